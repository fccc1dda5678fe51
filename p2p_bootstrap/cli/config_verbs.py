"""``kairos-p2p config``: is this cloud-config right, and what may stand in one?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from p2p_bootstrap.cli import output as out

if TYPE_CHECKING:
    from p2p_bootstrap.config.loading import Config
    from p2p_network.core.errors import Problem

STDIN = Path("-")


@click.group()
def group() -> None:
    """Check cloud-config files."""


@group.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option(
    "-o",
    "--output",
    type=click.Choice(("table", "json")),
    default="table",
    show_default=True,
    help="How to print it.",
)
@click.pass_context
def validate(ctx: click.Context, files: tuple[Path, ...], output: Literal["table", "json"]) -> None:
    """Check files as one configuration; every problem at once.

    FILE is a file, a folder of .yaml files, or - for stdin; later ones win, as on a node. Exit code 0 if
    it is valid, 1 if not. Remarks (a key without effect, and the like) are no problems.
    """
    from p2p_bootstrap.cloudconfig.collect import collect
    from p2p_bootstrap.config.loading import check

    collected = collect(files, stdin=read_stdin() if STDIN in files else None)
    config, problems = check(collected)
    notes = config.notes if config else collected.remarks
    if output == "json":
        rows: dict[str, Any] = {
            "valid": config is not None,
            "files": list(collected.files),
            "problems": [_row(problem) for problem in problems],
            "notes": [_row(problem) for problem in notes],
        }
        out.print_document(rows, "json")
    else:
        for problem in problems:
            out.emit(out.printable(f"error: {problem}"))
        for problem in notes:
            out.emit(out.printable(f"note: {problem}"))
        if config:
            out.emit(f"valid: {_summary(config)}")
        else:
            places = len({problem.file for problem in problems})
            out.note(f"not valid: {_count(len(problems), 'problem')} in {_count(places, 'place')}")
    if config is None:
        ctx.exit(1)


@group.command()
def schema() -> None:
    """Print the JSON Schema of a cloud-config, for editors."""
    from p2p_bootstrap.config.schema import schema as make

    out.print_document(make(), "json")


def read_stdin() -> str:
    """All of stdin, a little more than a cloud-config may have at most."""
    from p2p_bootstrap.cloudconfig.document import MAX_BYTES

    if sys.stdin.isatty():
        out.note("reading from the terminal; end with Ctrl-D")
    return sys.stdin.buffer.read(MAX_BYTES + 1).decode("utf-8", "surrogateescape")


def _row(problem: Problem) -> dict[str, str | int]:
    return {
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "key": problem.key,
        "message": problem.message,
        "hint": problem.hint,
    }


def _summary(config: Config) -> str:
    """The configuration in one line: what a node would do with it."""
    if not config.has_token:
        return "no mesh to join"
    parts = [f"network {config.p2p.network_id!r} on token {config.token.fingerprint}"]
    if not config.p2p.auto.enable:
        return ", ".join([*parts, "mesh and VPN only"])
    parts.append(
        f"{_count(config.declared_servers, 'server')} of at least {_count(config.minimum_nodes, 'node')}"
    )
    if config.wish != "auto":
        parts.append(f"this node is {'a server' if config.wish == 'server' else 'an agent'}")
    return ", ".join(parts)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
