"""``kairos-p2p peer drain|undrain``: which node will be away, and what follows from that?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import quote, urlencode

import click

from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import Duration, socket_option

if TYPE_CHECKING:
    from p2p_bootstrap.api.drains import DrainDoc

TIMEOUT_S: Final = 15.0


@click.command()
@click.argument("node", required=False)
@click.option(
    "--for",
    "window",
    type=Duration(),
    default="1h",
    show_default=True,
    help="How long it may be away (up to 7 days); after that its silence is a failure.",
)
@click.option("--reason", default="", metavar="TEXT", help="Why, for the others to read.")
@click.option("--dry-run", is_flag=True, help="Only tell what would follow.")
@click.option("--force", is_flag=True, help="Even if the control plane stops while it is away.")
@socket_option
def drain(node: str | None, window: float, reason: str, dry_run: bool, force: bool, socket: Path) -> None:
    """Announce that a node will be away, so that its going is no failure.

    NODE: its host name, its peer id or the end of it; without it: this node. Until the window ends it is
    shown as draining, then as away, and never as dead; no other node takes its place as a server. Its
    Kubernetes Node is cordoned, and its pods are evicted as far as their disruption budgets allow. Nothing
    is stopped on it. A server without which the control plane would stop is refused. Another node than this
    one: only where the network token is.
    """
    client = AgentClient(socket)
    name = node or client.status()["node"]["peer"]
    path, query = f"/v1/peers/{quote(name, safe='')}/drain", {"for_s": window, "reason": reason}
    if dry_run:
        found = cast("DrainDoc", client.call("GET", f"{path}?{urlencode(query)}", timeout_s=TIMEOUT_S))
        out.emit(f"{found['hostname']} would be drained")
        for step in found["steps"]:
            out.emit(f"  {step}")
        if found["drained"]:
            out.emit(f"  it is {found['drained']}")
        if found["danger"]:
            out.emit(f"  without --force it is refused: {found['danger']}")
        return
    more = query | {"force": int(force)}
    found = cast("DrainDoc", client.call("POST", f"{path}?{urlencode(more)}", timeout_s=TIMEOUT_S))
    out.note(f"{found['hostname']} is {found['drained']}")
    for step in found["steps"]:
        out.note(f"  {step}")
    if found["danger"]:
        out.note(f"  {found['danger']}")


@click.command()
@click.argument("node", required=False)
@socket_option
def undrain(node: str | None, socket: Path) -> None:
    """Take the announcement back: the node is one like any other again.

    NODE: its host name, its peer id or the end of it; without it: this node. Its Kubernetes Node takes pods
    again, unless a person had cordoned it before.
    """
    client = AgentClient(socket)
    name = node or client.status()["node"]["peer"]
    path = f"/v1/peers/{quote(name, safe='')}/undrain"
    found = cast("DrainDoc", client.call("POST", path, timeout_s=TIMEOUT_S))
    for step in found["steps"]:
        out.note(step)
