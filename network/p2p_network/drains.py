"""Which nodes are drained, until when, and why?

A drain is an announcement in the ledger (``drain/<peer>``): this node will be away, on purpose. Until its
window ends its going is no failure: it is shown as *away* instead of suspect and dead, and nobody takes its
place. It is said by the node itself or by a holder of the root, and taken back by deleting it.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from p2p_network.core.ids import PeerId

PREFIX: Final = "drain/"
MIN_WINDOW_S: Final = 10.0
MAX_WINDOW_S: Final = 7 * 24 * 3600.0
MAX_REASON_CHARS: Final = 200


class Drain(msgspec.Struct, frozen=True):
    """Key ``drain/<peer>``. `until_ms`: Unix milliseconds; `by`: host name of the node where it was said."""

    until_ms: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)] = ""
    by: Annotated[str, msgspec.Meta(max_length=253)] = ""


def key_of(peer: str) -> str:
    """Where a node's drain stands in the ledger."""
    return f"{PREFIX}{peer}"


def in_force(drains: Mapping[PeerId, Drain], now_ms: int) -> dict[PeerId, Drain]:
    """Those whose window has not ended."""
    return {peer: drain for peer, drain in drains.items() if now_ms < drain.until_ms}


def ends_in_s(drains: Mapping[PeerId, Drain], now_ms: int) -> float | None:
    """Until the first window ends, seconds; None without any."""
    return min(((d.until_ms - now_ms) / 1000 for d in in_force(drains, now_ms).values()), default=None)


def sentence(drain: Drain) -> str:
    """For people: until when, by whom, and why."""
    until = datetime.datetime.fromtimestamp(drain.until_ms / 1000, datetime.UTC)
    said = f"drained until {until:%Y-%m-%d %H:%M:%SZ}"
    said += f" by {drain.by}" if drain.by else ""
    return f"{said}: {drain.reason}" if drain.reason else said
