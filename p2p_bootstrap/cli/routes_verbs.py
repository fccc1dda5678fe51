"""``kairos-p2p routes``: which networks are behind which node, and who may carry them?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlencode

import click

from p2p_bootstrap.api.reach import DecidedDoc, RouteDoc
from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import output_option, socket_option
from p2p_network.core.errors import UsageError

TIMEOUT_S: Final = 15.0

COLUMNS: Final[tuple[out.Column[RouteDoc], ...]] = (
    out.Column("NETWORK", lambda row: row["network"]),
    out.Column("NODE", lambda row: row["hostname"] or row["peer"]),
    out.Column("STATE", lambda row: row["state"]),
    out.Column("WHY", lambda row: row["reason"]),
)


def _ask(socket: Path, what: str, query: list[tuple[str, str]]) -> Any:
    path = f"/v1/routes/{what}" + (f"?{urlencode(query)}" if query else "")
    return AgentClient(socket).call("POST", path, timeout_s=TIMEOUT_S)


@click.group(invoke_without_command=True)
@output_option
@socket_option
@click.pass_context
def group(ctx: click.Context, output: out.Output, socket: Path) -> None:
    """Which networks are behind which node?

    A node offers subnets that it can reach, or an exit to the internet; an administrator accepts or refuses;
    from then on every node sends packets for them there. With -o name: networks and nodes.
    """
    if ctx.invoked_subcommand is not None:
        return
    rows = cast(list[RouteDoc], AgentClient(socket).call("GET", "/v1/routes", timeout_s=TIMEOUT_S))
    out.print_rows(
        rows,
        COLUMNS,
        output,
        name=lambda row: f"{row['network']} {row['hostname'] or row['peer']}",
        empty="no node offers anything; offer a network with: kairos-p2p routes advertise NETWORK",
    )


def _query(networks: tuple[str, ...], is_exit: bool) -> list[tuple[str, str]]:
    if not networks and not is_exit:
        raise UsageError("name at least one network, such as 192.168.7.0/24, or add --exit")
    return [*(("network", text) for text in networks), *((("exit", "1"),) if is_exit else ())]


@group.command()
@click.argument("networks", nargs=-1, metavar="NETWORK...")
@click.option("--exit", "is_exit", is_flag=True, help="Offer to carry what goes to the internet.")
@socket_option
def advertise(networks: tuple[str, ...], is_exit: bool, socket: Path) -> None:
    """Offer networks that this node can reach, or an exit.

    Kept over restarts, beside those of p2p.vpn.routes and p2p.vpn.offer_exit. Once accepted, this machine
    forwards, and packets that leave the mesh here get its address (nftables).
    """
    _ask(socket, "offer", _query(networks, is_exit))
    out.note("offered; accept it on a node that has the network token: kairos-p2p routes accept NODE")


@group.command()
@click.argument("networks", nargs=-1, metavar="NETWORK...")
@click.option("--exit", "is_exit", is_flag=True, help="The exit.")
@socket_option
def withdraw(networks: tuple[str, ...], is_exit: bool, socket: Path) -> None:
    """Take back what this node offers."""
    _ask(socket, "withdraw", _query(networks, is_exit))
    out.note("withdrawn")


@group.command()
@click.argument("node")
@click.argument("networks", nargs=-1, metavar="[NETWORK...|exit]")
@socket_option
def accept(node: str, networks: tuple[str, ...], socket: Path) -> None:
    """Let the mesh use what a node offers: all of it, or these networks ("exit" for the exit).

    Only on a node that has the network token.
    """
    _decided(node, _ask(socket, "accept", [("node", node), *(("network", n) for n in networks)]))


@group.command()
@click.argument("node")
@click.argument("networks", nargs=-1, metavar="[NETWORK...|exit]")
@socket_option
def refuse(node: str, networks: tuple[str, ...], socket: Path) -> None:
    """Let the mesh use it no longer: all of it, or these networks. Only with the network token."""
    _decided(node, _ask(socket, "refuse", [("node", node), *(("network", n) for n in networks)]))


def _decided(node: str, word: DecidedDoc) -> None:
    accepted = [*word["networks"], *(("an exit",) if word["exit"] else ())]
    out.note(f"accepted of {node}: {', '.join(accepted) or 'nothing'}")


@group.command(name="exit")
@click.argument("node", required=False)
@click.option("--none", "none", is_flag=True, help="Through no node any more.")
@socket_option
def choose_exit(node: str | None, none: bool, socket: Path) -> None:
    """Send what goes to the internet from this machine through a node.

    It takes effect once the node was reached; from then on nothing leaks past it, also while it is away. The
    mesh's own connections, your local networks, and answers to whoever comes in from outside (a remote login)
    go their usual way.
    """
    if (node is None) is not none:
        raise UsageError("name one node, or write --none")
    _ask(socket, "exit", [("node", node)] if node is not None else [])
    out.note("no exit is used" if node is None else f"the exit is {node}; see: kairos-p2p routes")
