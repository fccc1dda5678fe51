"""``kairos-p2p peers``: who else is here, and how are they reached?"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from p2p_bootstrap.api.service import PeerDoc
from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import output_option, socket_option
from p2p_network.core.ids import short


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} ms"


def _rate(bits_per_s: float) -> str:
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits_per_s >= size:
            return f"{bits_per_s / size:.1f} {unit}"
    return f"{bits_per_s:.0f} bit/s" if bits_per_s else "-"


def _loss(peer: PeerDoc) -> str:
    return "" if peer["loss"] is None else f"{peer['loss']:.2%}"


def _address(peer: PeerDoc) -> str:
    return f"relayed by {peer['relay']}" if peer["relay"] else peer["address"]


def _why(peer: PeerDoc) -> str:
    """Why these packets travel so, and why the channel does if it needs a relay."""
    relayed = f"channel relayed by {peer['relay']}: {peer['relay_reason']}" if peer["relay"] else ""
    return "; ".join(part for part in (peer["carrier_reason"], relayed) if part)


def _state(peer: PeerDoc) -> str:
    """One that is no member (any more) shows why: revoked, expired, ..."""
    if peer["admission"] not in ("member", "uncertified"):
        return peer["admission"]
    return "draining" if peer["state"] == "alive" and peer.get("drained") else peer["state"]


COLUMNS: Final[tuple[out.Column[PeerDoc], ...]] = (
    out.Column("NODE", lambda peer: peer["hostname"]),
    out.Column("PEER", lambda peer: short(peer["peer"])),
    out.Column("REGION", lambda peer: peer["region"]),
    out.Column("STATE", _state),
    out.Column("ROLE", lambda peer: peer["role"]),
    out.Column("CLUSTER", lambda peer: peer["cluster"]),
    out.Column("IPV4", lambda peer: peer["ipv4"]),
    out.Column("RTT", lambda peer: _ms(peer["rtt_ms"]), right=True),
    out.Column("CARRIER", lambda peer: peer["carrier"]),
    out.Column("RX", lambda peer: out.bytes_text(peer["rx_bytes"]), right=True),
    out.Column("TX", lambda peer: out.bytes_text(peer["tx_bytes"]), right=True),
    out.Column("ADDRESS", _address),
)


PATH_COLUMNS: Final[tuple[out.Column[PeerDoc], ...]] = (
    out.Column("NODE", lambda peer: peer["hostname"]),
    out.Column("IPV4", lambda peer: peer["ipv4"]),
    out.Column("CARRIER", lambda peer: peer["carrier"]),
    out.Column("NAT", lambda peer: peer["nat"]),
    out.Column("SEEN AT", lambda peer: peer["seen_as"]),
    out.Column("RTT", lambda peer: _ms(peer["carrier_rtt_ms"]), right=True),
    out.Column("LOSS", _loss, right=True),
    out.Column("RX RATE", lambda peer: _rate(peer["rx_rate_bps"]), right=True),
    out.Column("TX RATE", lambda peer: _rate(peer["tx_rate_bps"]), right=True),
    out.Column("WHY", _why),
)


@click.command()
@click.option("--paths", is_flag=True, help="How each peer's packets travel, and why so.")
@output_option
@socket_option
def peers(paths: bool, output: out.Output, socket: Path) -> None:
    """Who else is here, and how are they reached?

    Lists every peer this node knows. CARRIER is what VPN packets travel on, ADDRESS where the mesh
    connection goes, or the member that relays it. With --paths: what NAT it stands behind, where its packets
    come from, round trip and loss of their own path, and why it was chosen. With -o name: peer ids. STATE
    "draining" and "away": a drain was announced (kairos-p2p peer drain), and it is still there, or gone.
    """
    rows = sorted(AgentClient(socket).peers(), key=lambda peer: (peer["hostname"], peer["peer"]))
    out.print_rows(
        rows,
        PATH_COLUMNS if paths else COLUMNS,
        output,
        name=lambda peer: peer["peer"],
        empty="no other node was seen yet; see what this one does with: kairos-p2p events -f",
    )
