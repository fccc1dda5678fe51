"""Which nodes offer a service, and which of them is asked first?

Pure. Untrusted: a record may name anything; what is no name or port is passed over. The nearest comes first:
a node of one's own region, then the one with the shortest round trip.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from p2p_network.core.ids import PeerId
from p2p_network.records import ServiceItem, ServicesRecord

MAX_SERVICES: Final = 64
"""Per node."""
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Offer:
    """One service of one node."""

    peer: PeerId
    item: ServiceItem


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a node that may offer something. `rtt_s`: None if unknown."""

    region: str
    alive: bool
    rtt_s: float | None


def check_name(text: str) -> str:
    """A service's name. Raises ValueError."""
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text[:70]!r} is no service's name: 1 to 63 of a-z, 0-9 and - (not at the ends)")
    return text


def is_sound(item: ServiceItem) -> bool:
    """Whether an item that a peer wrote can be used."""
    return bool(_NAME.fullmatch(item.name)) and 0 < item.port < 65536


def offers(records: Mapping[PeerId, ServicesRecord]) -> list[Offer]:
    """All sound ones, by name and peer."""
    found = [
        Offer(peer, item)
        for peer, record in records.items()
        for item in record.services[:MAX_SERVICES]
        if is_sound(item)
    ]
    return sorted(found, key=lambda offer: (offer.item.name, offer.item.protocol, offer.peer))


def nearest_first(
    known: Iterable[Offer],
    name: str,
    protocol: Literal["tcp", "udp"],
    standing: Mapping[PeerId, Standing],
    *,
    own_region: str,
    region: str = "",
) -> list[Offer]:
    """Who offers this, in the order to ask. `region`: only there, "" for anywhere."""
    fitting = [
        offer
        for offer in known
        if (offer.item.name, offer.item.protocol) == (name, protocol)
        and (where := standing.get(offer.peer)) is not None
        and where.alive
        and region in ("", where.region)
    ]

    def distance(offer: Offer) -> tuple[bool, float, str]:
        where = standing[offer.peer]
        rtt_s = where.rtt_s if where.rtt_s is not None else float("inf")
        return (where.region != own_region, rtt_s, offer.peer)

    return sorted(fitting, key=distance)
