"""``kairos-p2p roles``: who does what in the cluster, and why?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from p2p_bootstrap.api.service import RoleRow
from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import DEFAULT_SOCKET, AgentClient
from p2p_bootstrap.cli.options import output_option, socket_option
from p2p_network.core.errors import P2PError
from p2p_network.core.ids import short

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COLUMNS: Final[tuple[out.Column[RoleRow], ...]] = (
    out.Column("NODE", lambda row: row["hostname"] + ("*" if row["self"] else "")),
    out.Column("REGION", lambda row: row["region"]),
    out.Column("CLUSTER", lambda row: row["cluster"]),
    out.Column("IPV4", lambda row: row["ipv4"]),
    out.Column("ROLE", lambda row: row["role"]),
    out.Column("STATE", lambda row: row["state"]),
    out.Column("READY", lambda row: "yes" if row["ready"] else "no"),
    out.Column("REASON", lambda row: row["reason"]),
)


@click.group()
def group() -> None:
    """Who does what in the cluster, and why?"""


@group.command("list")
@output_option
@socket_option
def list_roles(output: out.Output, socket: Path) -> None:
    """Every node's role; * is this node. With -o name: host names."""
    order = {"server": 0, "agent": 1, "": 2}
    rows = sorted(
        AgentClient(socket).roles(), key=lambda row: (order[row["role"]], row["hostname"], row["peer"])
    )
    out.print_rows(
        rows, COLUMNS, output, name=lambda row: row["hostname"], empty="no node has told its role yet"
    )


def _complete_node(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    try:
        rows = AgentClient(ctx.params.get("socket") or DEFAULT_SOCKET, timeout_s=1.0).roles()
    except P2PError:  # a completion that finds nothing says nothing
        return []
    return [
        CompletionItem(row["hostname"], help=row["role"] or row["state"])
        for row in rows
        if row["hostname"].startswith(incomplete) and row["hostname"].isprintable()
    ]


@group.command()
@click.argument("node", required=False, shell_complete=_complete_node)
@output_option
@socket_option
def explain(node: str | None, output: out.Output, socket: Path) -> None:
    """Why has a node the role it has?

    NODE is a host name, a peer id or the end of one; this node if left out.
    """
    client = AgentClient(socket)
    row = client.role_of(node or client.status()["node"]["peer"])
    match output:
        case "json" | "yaml":
            out.print_document(row, output)
        case "name":
            out.emit(out.printable(row["hostname"]))
        case "table":
            out.print_sheet(
                [
                    (
                        "node",
                        (row["hostname"], "this node" if row["self"] else "", f"peer {short(row['peer'])}"),
                    ),
                    ("region", (row["region"],)),
                    ("cluster", (row["cluster"],)),
                    ("vpn", (row["ipv4"],)),
                    ("role", (row["role"] or out.NOTHING, row["state"])),
                    ("ready", ("yes" if row["ready"] else "no",)),
                    ("why", (row["reason"],)),
                ]
            )
