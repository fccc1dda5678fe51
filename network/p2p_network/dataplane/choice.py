"""Which of a peer's live carriers takes its packets?

Pure. Two kinds reach a peer directly: records over TCP carry most where the path is good, datagrams where
TCP inside TCP would stall. The third, through the mesh, is for when neither does. The figures behind the rule
are in the benchmark's table (tests/bench).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

TCP: Final = "tcp"
UDP: Final = "udp"
MESH: Final = "mesh"
DIRECT: Final = (TCP, UDP)
KINDS: Final = (TCP, UDP, MESH)
_LOSSY: Final = 0.0005
"""Share of lost segments from which a loss-driven congestion control starves: Mathis et al. 1997."""
_MIN_INNER_MTU: Final = 1280
_NEAR_MS: Final = 3.0
_QUEUED_MS: Final = 50.0
_FEW: Final = 8
BEARS_LOSS: Final = "bbr"


@dataclass(frozen=True, slots=True)
class Path:
    """What is known of one live carrier.

    Attributes:
        kind: one of `KINDS`.
        congestion: TCP's congestion control when something is lost, e.g. "bbr"; "" for others.
        loss: share of segments or datagrams lost lately; None if unknown.
        rtt_ms: of the last heartbeat; None if unknown.
        inner_mtu: the largest packet it takes, bytes.
        silent: it was asked and does not answer, or acknowledges nothing: not given up yet, but no way to go
            while there is another.
    """

    kind: str
    congestion: str = ""
    loss: float | None = None
    rtt_ms: float | None = None
    inner_mtu: int = 65535
    silent: bool = False


def has_grown(min_rtt_ms: float, rtt_ms: float) -> bool:
    """Whether a near way (by its shortest round trip) isn't near any more, or full of queues.

    TCP remembers the shortest round trip for minutes, and bbr would go by it: only a new connection helps.
    """
    return min_rtt_ms <= _NEAR_MS and rtt_ms > _QUEUED_MS


def needs_bbr(min_rtt_ms: float, sent: int, again: int) -> bool:
    """Whether TCP's congestion control should bear loss, at some cost: on a long way or a lossy one.

    Args:
        min_rtt_ms: the shortest round trip; 0 if unknown.
        sent, again: segments so far, and how many of them were sent again.
    """
    return min_rtt_ms > _NEAR_MS or again > max(_FEW, sent * _LOSSY / 4)


def choose(paths: Sequence[Path], current: str) -> tuple[str, str]:
    """(kind, reason) of the carrier to use; `current` is that in use, or "". There is at least one path."""
    assert paths, "nothing to choose from"
    awake = [path for path in paths if not path.silent]
    by_kind = {path.kind: path for path in awake or paths if path.kind != MESH}
    if not by_kind:
        return MESH, "neither TCP nor UDP reaches it: packets go through the mesh"
    if len(by_kind) == 1:
        only = next(iter(by_kind))
        return only, f"only {only.upper()} reaches it"
    tcp, udp = by_kind[TCP], by_kind[UDP]
    if udp.inner_mtu < _MIN_INNER_MTU:
        return TCP, f"datagrams of {udp.inner_mtu} bytes are too small for the VPN"
    if tcp.congestion == BEARS_LOSS:
        return TCP, "records over TCP carry most; its congestion control (bbr) bears loss"
    threshold = _LOSSY / 4 if current == UDP else _LOSSY  # don't swing to and fro
    loss = max(tcp.loss or 0.0, udp.loss or 0.0)
    if loss > threshold:
        return UDP, f"{loss:.2%} loss, and TCP's congestion control ({tcp.congestion}) would starve"
    return TCP, "records over TCP carry most; hardly any loss"
