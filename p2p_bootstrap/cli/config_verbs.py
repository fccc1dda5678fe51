"""``kairos-p2p config``: is this cloud-config right, what does it say, which line says it, and what may stand
in one?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from p2p_bootstrap.cli import output as out

if TYPE_CHECKING:
    from p2p_bootstrap.cloudconfig.collect import Collected
    from p2p_bootstrap.config.loading import Config
    from p2p_network.core.errors import Problem

STDIN = Path("-")


@click.group()
def group() -> None:
    """Check cloud-config files, and see which line set what."""


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


_FILES = click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
_SECRETS = click.option("--secrets", is_flag=True, help="Show tokens, passwords and contents of files too.")


@group.command()
@click.argument("key")
@_FILES
@_SECRETS
@click.option("--origin", is_flag=True, help="Print the file and line that set it instead.")
def get(key: str, files: tuple[Path, ...], secrets: bool, origin: bool) -> None:
    """Print what KEY is set to.

    KEY is written with dots: p2p.vpn.mtu, users[0].name, stages.boot[0].commands. Without FILE this machine's
    own configuration is read. Exit code 1 if nothing sets it.
    """
    from p2p_bootstrap.cloudconfig.nodes import ScalarNode, locate, to_value
    from p2p_bootstrap.cloudconfig.provenance import hidden, look_up
    from p2p_network.core.errors import P2PError

    collected = _collect(files)
    found = look_up(collected.root, key)
    if found is None:
        near = "see what is set with: kairos-p2p config show"
        raise P2PError(f"nothing sets {key!r}", hint=near)
    path, node = found
    if origin:
        out.emit(out.printable(str(locate(collected.root, path))))
        _end(collected)
        return
    shown = node if secrets else hidden(node, path)
    if isinstance(shown, ScalarNode):
        out.emit(shown.text)
    else:
        out.emit(json.dumps(to_value(shown), indent=2, ensure_ascii=False))
    _end(collected)


@group.command()
@_FILES
@_SECRETS
@click.option("--origin", is_flag=True, help="One line a key, with the file and line that set it.")
def show(files: tuple[Path, ...], secrets: bool, origin: bool) -> None:
    """Print the whole configuration as it is after merging.

    Without FILE this machine's own: its folders from low to high, the kernel command line, config_url.
    """
    from p2p_bootstrap.cloudconfig.nodes import MapNode, ScalarNode
    from p2p_bootstrap.cloudconfig.provenance import HIDDEN, hidden, settings
    from p2p_bootstrap.cloudconfig.render import render

    collected = _collect(files)
    if not origin:
        root = collected.root if secrets else hidden(collected.root)
        assert isinstance(root, MapNode), "a document is a map"
        out.emit(render(root).rstrip("\n"))
        _end(collected)
        return
    for one in settings(collected.root):
        text = one.node.text if isinstance(one.node, ScalarNode) else "(empty)"
        value = HIDDEN if one.secret and not secrets and text else text
        first, more, _ = value.partition("\n")
        out.emit(out.printable(f"{one.mark}: {one.key} = {first}{' ...' if more else ''}"))
    _end(collected)


def _end(collected: Collected) -> None:
    """What was shown is not the whole truth if a file could not be read: exit 1."""
    if collected.problems:
        raise click.exceptions.Exit(1)


def _collect(files: tuple[Path, ...]) -> Collected:
    """What the files say, or this machine. What is wrong with them goes to stderr."""
    from p2p_bootstrap.cloudconfig.collect import collect, collect_system
    from p2p_bootstrap.cloudconfig.fetching import fetch_http

    stdin = read_stdin() if STDIN in files else None
    collected = collect(files, stdin=stdin) if files else collect_system(fetch=fetch_http)
    for problem in collected.problems:
        out.note(out.printable(f"error: {problem}"))
    return collected


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
    if not (config.has_token or config.join_token):
        return "no mesh to join"
    on = (
        f"invitation {config.join_token.invite}" if config.join_token else f"token {config.token.fingerprint}"
    )
    parts = [f"network {config.p2p.network_id!r} on {on}"]
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
