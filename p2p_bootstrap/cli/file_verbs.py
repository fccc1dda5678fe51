"""``kairos-p2p file``: how does a file get to another node?"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import PATH, socket_option


@click.group()
def group() -> None:
    """Hand a file from node to node: offered on one, fetched on another.

    In checked pieces; broken off, it goes on where it ended; put in place whole. Members only.
    """


@group.command()
@click.argument("path", type=PATH)
@click.argument("node", required=False, default="")
@click.option("--name", default="", help="Under which name. [default: that of the file]")
@socket_option
def send(path: Path, node: str, name: str, socket: Path) -> None:
    """Offer a file to all members, or to NODE only, until Ctrl-C; to NODE: until it has it.

    Nothing is written on another node by itself: get it there with kairos-p2p file get NAME.
    """
    query = urlencode({"path": str(path.absolute()), "name": name, "node": node})
    for line in AgentClient(socket).live("POST", f"/v1/files/send?{query}"):
        if "offered" in line:
            size = out.bytes_text(line["size_bytes"])
            out.note(out.printable(f"offered to {node or 'all members'} as {line['offered']} ({size})"))
            out.note(f"sha256 {line['sha256']}")
        elif "got_by" in line:
            out.note(out.printable(f"{line['got_by']} has it"))


@group.command()
@click.argument("name")
@click.option(
    "--to", "target", type=PATH, default=None, metavar="PATH", help="File or folder. [default: here]"
)
@click.option("--from", "node", default="", metavar="NODE", help="Only from this node.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@socket_option
def get(name: str, target: Path | None, node: str, force: bool, socket: Path) -> None:
    """Fetch a file that another node offers, and print where it is."""
    where = (target or Path(".")).absolute()
    query = urlencode({"name": name, "path": str(where), "node": node, "force": int(force)})
    shown = False
    for line in AgentClient(socket).live("POST", f"/v1/files/get?{query}"):
        shown = _progress(line, shown)


def _progress(line: dict[str, Any], shown: bool) -> bool:
    if "from" in line:
        out.note(out.printable(f"{out.bytes_text(line['size_bytes'])} from {line['from']}"))
    elif "done_bytes" in line and out.is_terminal():
        share = line["done_bytes"] / line["size_bytes"] if line["size_bytes"] else 1.0
        click.echo(f"\r{share:4.0%} of {out.bytes_text(line['size_bytes'])}", nl=False, err=True)
        return True
    elif "path" in line:
        rate = out.bytes_text(int(line["size_bytes"] / max(line["seconds"], 0.01)))
        if shown:
            click.echo(err=True)
        out.note(f"sha256 {line['sha256']}, {line['seconds']} s, {rate}/s")
        out.emit(out.printable(line["path"]))
    return shown
