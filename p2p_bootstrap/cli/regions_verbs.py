"""``kairos-p2p regions``: which node stands where, how far apart are they, and is that right?"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from p2p_bootstrap.api.service import ConfirmedDoc, PairDoc, RegionRow, RegionsDoc
from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import output_option, socket_option
from p2p_network.core.errors import P2PError


def _time(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} ms"


COLUMNS: Final[tuple[out.Column[RegionRow], ...]] = (
    out.Column("NODE", lambda row: row["hostname"] + ("*" if row["self"] else "")),
    out.Column("REGION", lambda row: row["region"]),
    out.Column("SAID", lambda row: row["how"]),
    out.Column("ZONE", lambda row: row["zone"]),
    out.Column("INFERRED", lambda row: row["inferred"]),
    out.Column("RTT", lambda row: _time(row["measured_ms"]), right=True),
    out.Column("ESTIMATE", lambda row: _time(row["estimated_ms"]), right=True),
    out.Column("WHY", lambda row: row["why"]),
)


@click.group(invoke_without_command=True)
@output_option
@click.option("--matrix", is_flag=True, help="Every pair: round trip as measured and as estimated.")
@socket_option
@click.pass_context
def group(ctx: click.Context, output: out.Output, matrix: bool, socket: Path) -> None:
    """Which node stands where, and how far apart?

    REGION is what counts: from the cloud-config, or confirmed. INFERRED is what the measured round trips say;
    it counts only once it is confirmed, or with p2p.region: auto. RTT is measured from this node, ESTIMATE
    follows from the coordinates. With -o name: host names and regions.
    """
    if ctx.invoked_subcommand is not None:
        return
    found = AgentClient(socket).regions()
    if output in ("json", "yaml"):
        out.print_document(found, output)
    elif matrix:
        out.print_rows(
            found["pairs"], _pairs(found), output, name=lambda pair: f"{pair['a']} {pair['b']}",
            empty="there is no other node yet",
        )  # fmt: skip
    else:
        out.print_rows(
            found["nodes"],
            COLUMNS,
            output,
            name=lambda row: f"{row['hostname']} {row['region'] or out.NOTHING}",
            empty="no node has told where it stands yet",
        )


def _pairs(found: RegionsDoc) -> tuple[out.Column[PairDoc], ...]:
    names = {row["peer"]: row["hostname"] for row in found["nodes"]}
    return (
        out.Column("NODE", lambda pair: names.get(pair["a"], pair["a"])),
        out.Column("NODE", lambda pair: names.get(pair["b"], pair["b"])),
        out.Column("MEASURED", lambda pair: _time(pair["measured_ms"]), right=True),
        out.Column("ESTIMATE", lambda pair: _time(pair["estimated_ms"]), right=True),
    )


CONFIRMED: Final[tuple[out.Column[ConfirmedDoc], ...]] = (
    out.Column("NODE", lambda row: row["hostname"]),
    out.Column("REGION", lambda row: row["region"]),
    out.Column("SAID", lambda row: row["how"]),
    out.Column("NOT DONE", lambda row: row["error"]),
)


@group.command()
@output_option
@socket_option
def confirm(output: out.Output, socket: Path) -> None:
    """Agree with the inferred regions, on every node that can be reached.

    Each node keeps its own for good; one whose cloud-config names a region keeps that. It is used for
    placement at once, and for the node's labels when k3s starts next.
    """
    rows = sorted(AgentClient(socket).confirm_regions(), key=lambda row: (row["region"], row["hostname"]))
    out.print_rows(rows, CONFIRMED, output, name=lambda row: row["hostname"], empty="there is no node")
    failed = [row["hostname"] for row in rows if row["error"]]
    if failed:
        raise P2PError(
            f"without a region: {', '.join(failed)}", hint="try again when more round trips are measured"
        )
