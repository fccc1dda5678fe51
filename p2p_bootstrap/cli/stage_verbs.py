"""``kairos-p2p stage``: run a stage of the cloud-config, or say what it would do."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2p_bootstrap.cli import output as out

if TYPE_CHECKING:
    from p2p_bootstrap.stages.engine import Engine
    from p2p_bootstrap.stages.run import Outcome, Report


@click.group()
def group() -> None:
    """Run the cloud-config's stages, or see what they would do."""


@group.command()
@click.argument("stages", nargs=-1, required=True, metavar="NAME...")
@click.option("--dry-run", is_flag=True, help="Say what each step would do; change nothing.")
@click.option("--analyze", is_flag=True, help="Say in which order the steps run, and what each waits for.")
@click.option(
    "--root",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("/"),
    help="Act on this folder as if it were /; commands run in a chroot.",
)
@click.option(
    "--cloud-config",
    "paths",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file or folder of cloud-configs, lowest first. Default: those of the root.",
)
@click.option(
    "-o", "--output", type=click.Choice(("table", "json")), default="table", help="How to print it."
)
@click.pass_context
def run(
    ctx: click.Context,
    stages: tuple[str, ...],
    dry_run: bool,
    analyze: bool,
    folder: Path,
    paths: tuple[Path, ...],
    output: str,
) -> None:
    """Run the stage NAME with its .before and .after; several, one after the other.

    A failing step doesn't stop the others unless it is marked fatal, or the configuration strict. Every error
    is printed and kept in /run/kairos-p2p/stages. Exit code 1 if anything failed.
    """
    from p2p_bootstrap.stages import names
    from p2p_bootstrap.stages.engine import Engine
    from p2p_network.core.errors import UsageError, nearest

    for name in stages:
        if not names.is_known(name):
            near = nearest(name, names.NAMES)
            hint = f"did you mean {near!r}?" if near else f"the stages of a boot are {', '.join(names.BOOT)}"
            raise UsageError(f"there is no stage {name!r}", hint=hint)
    only_look = dry_run or analyze
    logging.getLogger("p2p_bootstrap").addHandler(logging.NullHandler())  # the report is printed instead
    failed = False
    for name in stages:
        # read anew for each: a stage may write configuration, and only the later ones have a network
        engine = Engine.of(folder, paths, network=names.has_network(name), keep=not only_look, say=out.note)
        if only_look:
            _foresee(name, engine, analyze=analyze, output=output)
        else:
            failed |= not _run(name, engine, output)
    if failed:
        ctx.exit(1)


def _run(name: str, engine: Engine, output: str) -> bool:
    """Run one stage and print its report. Returns whether all went well."""
    report = engine.run(name)
    for remark in engine.collected.remarks:
        out.note(out.printable(f"note: {remark}"))
    if output == "json":
        from dataclasses import asdict

        out.print_document({**asdict(report), "ok": report.ok}, "json")
    else:
        _print(report)
    return report.ok


def _foresee(name: str, engine: Engine, *, analyze: bool, output: str) -> None:
    from p2p_bootstrap.stages.run import describe

    planned = engine.plan(name)
    rows = []
    waits = {step.configured.id: step.waits_for for step in planned.steps}
    for configured_step, verdict, does in describe(planned, engine.context):
        row: dict[str, object] = {
            "stage": configured_step.stage,
            "step": configured_step.label,
            "id": configured_step.id,
            "place": str(configured_step.step.mark),
            "runs": verdict.runs,
            "reason": verdict.reason,
        }
        row |= {"waits_for": list(waits[configured_step.id])} if analyze else {"actions": list(does)}
        rows.append(row)
    problems = [str(problem) for problem in (*engine.configured.problems, *planned.problems)]
    remarks = [str(remark) for remark in (*engine.collected.remarks, *planned.remarks)]
    if output == "json":
        out.print_document({"stage": name, "steps": rows, "problems": problems, "remarks": remarks}, "json")
        return
    for number, row in enumerate(rows, start=1):
        would = "runs" if row["runs"] else "is skipped"
        out.emit(out.printable(f"{number}. [{row['stage']}] {row['step']} {would}: {row['reason']}"))
        lines = row.get("waits_for") or row.get("actions") or []
        assert isinstance(lines, list), "rows hold lists"
        for line in lines:
            out.emit(out.printable(f"     {'after ' if analyze else ''}{line}"))
    if not rows:
        out.emit(f"the stage {name} has no steps")
    for text in problems:
        out.note(out.printable(f"error: {text}"))
    for text in remarks:
        out.note(out.printable(f"note: {text}"))


def _print(report: Report) -> None:
    from p2p_bootstrap.stages.run import summary

    for outcome in report.outcomes:
        out.emit(out.printable(_line(outcome)))
        for failure in outcome.failures:
            hint = f" ({failure.hint})" if failure.hint else ""
            out.note(out.printable(f"error: {outcome.label}: {failure.action}: {failure.message}{hint}"))
    for text in report.problems:
        out.note(out.printable(f"error: {text}"))
    for text in report.remarks:
        out.note(out.printable(f"note: {text}"))
    out.emit(f"stage {report.stage}: {summary(report)}")


def _line(outcome: Outcome) -> str:
    return f"{outcome.state:8} {outcome.label}: {outcome.reason}"
