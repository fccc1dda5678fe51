"""``kairos-p2p service``: which programs of other nodes can be reached by name?"""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast
from urllib.parse import quote, urlencode

import click

from p2p_bootstrap.api.services import ServiceDoc
from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import output_option, socket_option

TIMEOUT_S: Final = 15.0


def _state(row: ServiceDoc) -> str:
    if not row["alive"]:
        return "away"
    return "alive" if row["allowed"] else "denied"


COLUMNS: Final[tuple[out.Column[ServiceDoc], ...]] = (
    out.Column("NAME", lambda row: row["name"]),
    out.Column("PROTOCOL", lambda row: row["protocol"]),
    out.Column("PORT", lambda row: str(row["port"]), right=True),
    out.Column("NODE", lambda row: row["hostname"]),
    out.Column("REGION", lambda row: row["region"]),
    out.Column("STATE", _state),
    out.Column("HERE", lambda row: row["target"]),
)

udp_option = click.option("--udp", "udp", is_flag=True, help="A UDP service.")


@click.group()
def group() -> None:
    """Offer programs of this node to the mesh by name, and reach those of others.

    With or without a VPN: connections travel through the mesh itself. Members only; access rules count.
    """


@group.command()
@click.argument("name")
@click.option("--to", required=True, metavar="[HOST:]PORT", help="Where its program listens.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=None,
    help="Port on the VPN address. [default: that of --to]",
)
@udp_option
@socket_option
def expose(name: str, to: str, port: int | None, udp: bool, socket: Path) -> None:
    """Offer a program that this node reaches to the mesh, as NAME.

    Kept over restarts, beside those of p2p.services. Where this node has a VPN address it also answers there,
    as NAME.NETWORK_ID.p2p with p2p.dns.
    """
    query = urlencode({"to": to, "port": port or 0, "protocol": "udp" if udp else "tcp"})
    AgentClient(socket).call(
        "POST", f"/v1/services/{quote(name, safe='')}/expose?{query}", timeout_s=TIMEOUT_S
    )
    out.note(f"offered as {name}; reach it elsewhere with: kairos-p2p service connect {name}")


@group.command()
@click.argument("name")
@udp_option
@socket_option
def remove(name: str, udp: bool, socket: Path) -> None:
    """Offer it no longer."""
    query = urlencode({"protocol": "udp" if udp else "tcp"})
    AgentClient(socket).call(
        "POST", f"/v1/services/{quote(name, safe='')}/remove?{query}", timeout_s=TIMEOUT_S
    )
    out.note(f"{name} is offered no longer")


@group.command(name="list")
@output_option
@socket_option
def list_services(output: out.Output, socket: Path) -> None:
    """Which services are there, and where? With -o name: service and node."""
    rows = cast(list[ServiceDoc], AgentClient(socket).call("GET", "/v1/services", timeout_s=TIMEOUT_S))
    out.print_rows(
        rows,
        COLUMNS,
        output,
        name=lambda row: f"{row['name']} {row['hostname']}",
        empty="no node offers a service; offer one with: kairos-p2p service expose NAME --to PORT",
    )
    if output == "table":
        for row in rows:
            if row["error"]:
                out.note(f"{row['name']} is not answered on the VPN address by the agent: {row['error']}")


@group.command()
@click.argument("name", metavar="NAME[.REGION]")
@click.option(
    "--listen",
    default="",
    metavar="[HOST:]PORT",
    help="Where to listen on this machine. [default: 127.0.0.1, the service's port]",
)
@click.option("--node", default="", metavar="NODE", help="Only the one of this node. [default: the nearest]")
@udp_option
@socket_option
def connect(name: str, listen: str, node: str, udp: bool, socket: Path) -> None:
    """Reach a service through a local port, until Ctrl-C.

    Each connection goes to the nearest node that offers it: in the own region first, then by round trip;
    if it does not take it, to the next.
    """
    query = urlencode({"listen": listen, "node": node, "protocol": "udp" if udp else "tcp"})
    follow(socket, f"/v1/services/{quote(name, safe='')}/connect?{query}", name)


def follow(socket: Path, path: str, name: str) -> None:
    """Hold a door open: its address on stdout, what fails on stderr."""
    for line in AgentClient(socket).live("POST", path):
        if "listening" in line:
            out.emit(f"{out.printable(line['listening'])}")
            out.note(f"listening for {name} ({line['protocol']}); Ctrl-C ends it")
        elif "failed" in line:
            out.note(out.printable(f"a connection failed: {line['failed']}"))
