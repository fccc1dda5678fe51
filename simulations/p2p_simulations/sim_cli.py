"""``kairos-p2p sim``: whole clusters in virtual time, and everything that can go wrong in them.

The verbs are thin: a world is made of a plan and a seed (`sim.world.run_world`), a plan comes from a file
(`sim.files`) or from the seed itself (`sim.chance`). What failed is made small (`sim.shrink`), told
(`sim.story`) and shown (`sim.report`, `sim.junit`).
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import click

from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.options import PATH, Duration, format_duration
from p2p_network.core.errors import ConfigError, P2PError, UsageError
from p2p_simulations.sim import story
from p2p_simulations.sim.chance import random_plan
from p2p_simulations.sim.curves import curves
from p2p_simulations.sim.detection import MAX_WATCHED, Detection, watch
from p2p_simulations.sim.files import MAX_FILE_BYTES, parse_scenario
from p2p_simulations.sim.junit import junit as junit_of
from p2p_simulations.sim.plan import Plan
from p2p_simulations.sim.progress import Bar
from p2p_simulations.sim.report import report as report_of
from p2p_simulations.sim.scale import COARSE_TICK_S, MAX_NODES, Cost, measure
from p2p_simulations.sim.shrink import Shrunk
from p2p_simulations.sim.shrink import shrink as shrunk_of
from p2p_simulations.sim.swarm import Summary, swarm
from p2p_simulations.sim.world import Outcome, run_world
from p2p_simulations.sim.writing import describe, render

_WORLDS_PER_LINE = 50


class ScenarioWrong(ConfigError):
    """A scenario file can't be played: wrong use, and no failure of what it plays."""

    exit_code = 2


class SimulationFailed(P2PError):
    """An invariant did not hold, or what was expected was not seen."""


_REPORT = click.option("--report", type=PATH, help="Write what happened as one HTML page.")
_JUNIT = click.option("--junit", type=PATH, help="Write the verdict as JUnit XML, for a CI system.")
_SHRINK = click.option(
    "--shrink-for",
    "shrink_s",
    type=Duration(),
    default="60s",
    show_default=True,
    help="For how long to look for a smaller world that fails in the same way; 0s: not at all.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def group() -> None:
    """Run whole clusters in virtual time, and break them.

    The code that decides is the production code; network, disks, clocks and k3s are simulated. The same
    seed always gives the same run. What fails is made small and printed as a scenario file.

    \b
    kairos-p2p sim run simulations/scenarios/power-cut.yaml --report power-cut.html
    kairos-p2p sim swarm --for 60s        random worlds, random faults
    kairos-p2p sim replay 4711            the trace of one of them

    \b
    Exit codes: 0 all held, 1 something did not (the seed is named), 2 the file or an option is wrong.
    """


@group.command()
@click.argument("scenario", type=PATH)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Which run of it.")
@click.option(
    "--seeds",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    help="How many runs, from --seed on.",
)
@click.option("--trace", is_flag=True, help="Print a line per transition, also if all is well.")
@_REPORT
@_JUNIT
@_SHRINK
def run(
    scenario: Path,
    seed: int,
    seeds: int,
    trace: bool,
    report: Path | None,
    junit: Path | None,
    shrink_s: float,
) -> None:
    """Play a scenario file and check what it expects.

    With several seeds it ends at the first that fails; report and trace are of the last one played.
    """
    try:
        plan = parse_scenario(_read(scenario), str(scenario))
    except ConfigError as exc:
        raise ScenarioWrong(exc.problems, hint=exc.hint) from exc
    outcomes: list[Outcome] = []
    took_s: list[float] = []
    longest_s = plan.heal_at_s + plan.expect.within_s
    for number in range(seed, seed + seeds):
        began = time.monotonic()
        with Bar(f"{scenario.name}, seed {number}", longest_s) as bar:
            outcomes.append(
                run_world(
                    plan,
                    number,
                    keep_trace=True,
                    draw=report is not None,
                    progress=bar.at if bar.is_shown else None,
                )
            )
        took_s.append(time.monotonic() - began)
        if outcomes[-1].violation:
            break
    outcome = outcomes[-1]
    again = f"kairos-p2p sim run {scenario} --seed {outcome.seed}"
    if trace or outcome.violation:
        _print_trace(outcome)
    _write(report, lambda: report_of(outcome, again=again, description=scenario.stem))
    _write(junit, lambda: junit_of(scenario.stem, outcomes, took_s))
    if outcome.violation:
        _make_small(outcome, shrink_s)
    _conclude(outcome, again)


@group.command(name="swarm")
@click.option("--for", "for_s", type=Duration(), default="60s", show_default=True, help="For how long.")
@click.option("--seed", type=click.IntRange(0), help="The first seed; default: a random one.")
@_REPORT
@_JUNIT
@_SHRINK
def swarm_verb(
    for_s: float, seed: int | None, report: Path | None, junit: Path | None, shrink_s: float
) -> None:
    """Play random worlds with random faults until the time is up.

    The first violation ends it. That world is made smaller as long as it still fails in the same way, and
    printed as a scenario file; the report is of the world that failed (none is written if none did).
    """
    first = secrets.randbelow(1_000_000_000) if seed is None else seed
    out.note(f"swarm from seed {first} for {format_duration(for_s)}")
    began = time.monotonic()
    with Bar("swarm", for_s) as bar:

        def progress(summary: Summary) -> None:
            text = (
                f"{summary.worlds} worlds, {summary.events:,} events, {format_duration(summary.virtual_s)} "
                "of virtual time"
            )
            bar.at(time.monotonic() - began, text)
            if not bar.is_shown and summary.worlds % _WORLDS_PER_LINE == 0:
                out.note(text)

        summary = swarm(for_s, first, progress)
    out.print_sheet(
        [
            ("seeds", [f"{first} to {first + summary.worlds - 1}"]),
            ("worlds", [f"{summary.worlds:,}"]),
            ("events", [f"{summary.events:,}"]),
            ("messages", [f"{summary.messages:,}"]),
            ("virtual time", [format_duration(summary.virtual_s)]),
            ("slowest healing", [format_duration(summary.slowest_healing_s)]),
            *[("no liveness", [f"{count}: {why}"]) for why, count in summary.exempt.most_common()],
            ("violations", ["1" if summary.failed else "0"]),
        ]
    )
    failed = summary.failed
    if failed is None:
        if junit is not None and summary.last is not None:
            _write(
                junit,
                lambda: junit_of("swarm", [summary.last] if summary.last else [], [time.monotonic() - began]),
            )
        return
    drawn = run_world(failed.plan, failed.seed, keep_trace=True, draw=True)
    again = f"kairos-p2p sim replay {failed.seed}"
    _write(report, lambda: report_of(drawn, again=again, description=f"world {failed.seed}"))
    _write(junit, lambda: junit_of("swarm", [drawn], [time.monotonic() - began]))
    _make_small(failed, shrink_s)
    raise SimulationFailed(f"seed {failed.seed}: {failed.violation}", hint=again)


@group.command()
@click.argument("seed", type=click.IntRange(0))
@click.option("--scenario", type=PATH, help="Write the world's plan as a scenario file.")
@click.option(
    "--diagram", is_flag=True, help="Print the votes as a Mermaid sequence diagram instead of the trace."
)
@_REPORT
@_JUNIT
@_SHRINK
def replay(
    seed: int, scenario: Path | None, diagram: bool, report: Path | None, junit: Path | None, shrink_s: float
) -> None:
    """Print the world of a seed of the swarm, a line per transition with its reason."""
    plan = random_plan(seed)
    began = time.monotonic()
    outcome = run_world(plan, seed, keep_trace=True, draw=True)
    again = f"kairos-p2p sim replay {seed}"
    if diagram and outcome.record is not None:
        out.emit(story.mermaid(outcome.record, story.steps(outcome.record)))
    else:
        _print_plan(plan)
        _print_trace(outcome)
    _write(scenario, lambda: render(plan, comment=f"the plan of world {seed} of the swarm"))
    _write(report, lambda: report_of(outcome, again=again, description=f"world {seed}"))
    _write(junit, lambda: junit_of("replay", [outcome], [time.monotonic() - began]))
    if outcome.violation:
        _make_small(outcome, shrink_s)
    _conclude(outcome, again)


@group.command()
@click.option("--nodes", default="10,30,100,300", show_default=True, help="Sizes of the mesh, ascending.")
@click.option(
    "--for", "for_s", type=Duration(), default="120s", show_default=True, help="Virtual time of each."
)
@click.option(
    "--regions", type=click.IntRange(1, 1000), default=20, show_default=True, help="Failure domains."
)
@click.option(
    "--coarse-from",
    type=click.IntRange(1),
    default=3000,
    show_default=True,
    help="From this size on a node looks at what it was told four times a second only.",
)
@click.option("--svg", type=PATH, help="Draw the curves.")
@click.option("--json", "json_file", type=PATH, help="Write the figures.")
def scale(
    nodes: str, for_s: float, regions: int, coarse_from: int, svg: Path | None, json_file: Path | None
) -> None:
    """Measure what replication costs as a mesh grows, beside broadcasting whole ledgers.

    A cold start of all nodes at once, then idle. The scheduler is the production core; ledgers are sets of
    bits. Ten virtual minutes of a thousand nodes take a minute or two.
    """
    costs: list[Cost] = []
    for count in _sizes(nodes):
        began = time.process_time()
        with Bar(f"{count} nodes", for_s) as bar:
            try:
                cost = measure(
                    count,
                    regions=regions,
                    virtual_s=for_s,
                    tick_s=COARSE_TICK_S if count >= coarse_from else 0.0,
                    progress=bar.at if bar.is_shown else None,
                )
            except ValueError as exc:
                raise SimulationFailed(str(exc), hint="give it longer with --for") from exc
        costs.append(cost)
        out.emit(
            f"{count:>6} nodes: equal after {cost.converged_s:.1f} s; {cost.messages:,.0f} messages and "
            f"{out.bytes_text(int(cost.sent_bytes))} per node until then, {cost.idle_messages:.0f} and "
            f"{out.bytes_text(int(cost.idle_bytes))} per minute idle (broadcasting: "
            f"{out.bytes_text(int(cost.broadcast_bytes))}); a change reaches all in "
            f"{cost.change_s:.1f} s for {out.bytes_text(int(cost.change_bytes))} per node; "
            f"{time.process_time() - began:.0f} s of one core"
        )
    if svg is not None and len(costs) < 2:
        raise UsageError("--svg: a curve needs two sizes", hint="for example --nodes 10,100")
    _write(svg, lambda: curves(costs))
    _write(json_file, lambda: out.to_json([dataclasses.asdict(cost) for cost in costs]))


@group.command()
@click.option("--nodes", default="10,50", show_default=True, help="Sizes of the mesh, ascending.")
@click.option("--loss", type=click.FloatRange(0, 0.5), default=0.2, show_default=True, help="Of packets.")
@click.option(
    "--for", "for_s", type=Duration(), default="300s", show_default=True, help="Virtual time of each."
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of chance.")
@click.option("--json", "json_file", type=PATH, help="Write the figures.")
def detect(nodes: str, loss: float, for_s: float, seed: int, json_file: Path | None) -> None:
    """Measure how soon a dead node is noticed, and how often a living one is taken for dead.

    The failure detector is the production core. A node dies every minute; one stands still for 4 s every
    20 s. False alarms are counted beside those of a mesh that suspects whoever loses its channel.
    """
    found: list[Detection] = []
    for count in _sizes(nodes, MAX_WATCHED):
        with Bar(f"{count} nodes", for_s) as bar:
            try:
                seen = watch(
                    count, loss=loss, virtual_s=for_s, seed=seed, progress=bar.at if bar.is_shown else None
                )
            except ValueError as exc:
                raise SimulationFailed(str(exc), hint="give it longer with --for") from exc
        found.append(seen)
        out.emit(
            f"{count:>6} nodes, {loss:.0%} loss, {seen.deaths} deaths: suspected after "
            f"{seen.suspected_s:.1f} s, dead for the first after {seen.first_dead_s:.1f} s, for all after "
            f"{seen.last_dead_s:.1f} s; "
            f"living ones suspected {seen.suspected:.2f} times per node and hour, taken for dead "
            f"{seen.taken_for_dead:.2f} times (by their channels alone {seen.channels_lost:.0f}); "
            f"{seen.messages:.0f} messages per node and minute"
        )
    _write(json_file, lambda: out.to_json([dataclasses.asdict(seen) for seen in found]))


def _sizes(text: str, largest: int = MAX_NODES) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or sizes != sorted(set(sizes)) or not (sizes[0] >= 2 and sizes[-1] <= largest):
        raise UsageError(
            f"--nodes {text}: not ascending numbers from 2 to {largest:,}", hint="for example 10,100"
        )
    return sizes


# ---------------------------------------------------------------- what the verbs share


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        hint = "give a scenario file, e.g. one of simulations/scenarios"
        raise UsageError(f"{path}: {exc.strerror}", hint=hint) from exc


def _write(path: Path | None, text: Callable[[], str]) -> None:
    if path is None:
        return
    try:
        path.write_text(text(), encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", hint="name a file in a folder that exists") from exc
    out.note(f"written: {path}")


def _print_plan(plan: Plan) -> None:
    out.emit(render(plan))
    for trigger in plan.triggers:
        out.emit(f"# {trigger.after_s:.3f} s after the first {trigger.state}: {describe(trigger.fault)}")


def _print_trace(outcome: Outcome) -> None:
    for line in outcome.trace:
        out.emit(out.printable(line))


def _make_small(outcome: Outcome, shrink_s: float) -> None:
    """Print the smallest scenario file that fails in the same way, and the votes in it."""
    if shrink_s <= 0:
        return
    end = time.monotonic() + shrink_s
    with Bar("making it small", shrink_s) as bar:

        def is_over() -> bool:
            bar.at(shrink_s - (end - time.monotonic()))
            return time.monotonic() >= end

        small = shrunk_of(outcome, _play, is_over=is_over)
    out.note(
        f"the smallest world found that fails so ({small.plays} played); "
        f"save it as FILE, then: kairos-p2p sim run FILE --seed {small.seed}"
    )
    out.emit(render(small.plan, comment=_head_of(small)))
    drawn = run_world(small.plan, small.seed, draw=True)
    if drawn.record is not None:
        out.emit("```mermaid\n" + story.mermaid(drawn.record, story.steps(drawn.record, 40)) + "```")


def _head_of(small: Shrunk) -> str:
    return out.printable(f"seed {small.seed}: {small.violation}"[:300])


def _play(plan: Plan, seed: int, limit_s: float) -> Outcome:
    return run_world(plan, seed, limit_s=limit_s)


def _conclude(outcome: Outcome, again: str) -> None:
    out.note(
        f"{outcome.events:,} events, {outcome.messages:,} messages, "
        f"{format_duration(outcome.virtual_s)} of virtual time; trace {outcome.trace_hash}"
    )
    if outcome.violation:
        raise SimulationFailed(f"seed {outcome.seed}: {outcome.violation}", hint=f"the same again: {again}")
    if outcome.exempt:
        out.note(f"no cluster of all nodes was expected: {outcome.exempt}")
    else:
        out.note(f"all nodes were ready members {format_duration(outcome.healed_after_s)} after the healing")
