"""Where does this node stand, how far are the others, and when is that worth telling? Pure.

Feeds the node's coordinate with measured round trips; of each peer the smallest of the last few counts, so
that a busy moment moves nobody. The coordinate is published only when it has changed by something that
matters, and seldom: the ledger is for what lasts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from p2p_network.coordinates import MAX_RTT_S, ORIGIN, Coordinate, apart_s, moved, rtt_s
from p2p_network.core.ids import PeerId, stable_hash
from p2p_network.core.machine import Decision

KEPT_SAMPLES: Final = 8
PUBLISH_FIRST_S: Final = 5.0
PUBLISH_EVERY_S: Final = 60.0
YOUNG_S: Final = 120.0
"""So long after the start a coordinate still finds its place and may be told more often."""
_SIGNIFICANT_S: Final = 0.003
_SIGNIFICANT_ERROR: Final = 0.1
_MAX_PEERS: Final = 1024


@dataclass(frozen=True, slots=True)
class Sampled:
    """A round trip to `peer` took `rtt_s`; it says that it stands at `coordinate`."""

    peer: PeerId
    coordinate: Coordinate
    rtt_s: float


@dataclass(frozen=True, slots=True)
class PeersKnown:
    """These are the peers; what was measured of others is forgotten."""

    peers: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event: TypeAlias = Sampled | PeersKnown | Tick


@dataclass(frozen=True, slots=True)
class PublishPlace:
    """Write this coordinate to the ledger."""

    coordinate: Coordinate


Effect: TypeAlias = PublishPlace


class Places:
    """The place of one node."""

    def __init__(self, self_id: PeerId, started_at: float) -> None:
        self.coordinate = ORIGIN
        self._self_id = self_id
        self._started_at = started_at
        self._samples: dict[PeerId, deque[float]] = {}
        self._published: tuple[float, Coordinate] | None = None
        self._count = 0

    @property
    def samples(self) -> int:
        """How many round trips were measured."""
        return self._count

    @property
    def measured(self) -> Mapping[PeerId, float]:
        """The round trip to each peer measured, seconds: the smallest of the last few."""
        return {peer: min(kept) for peer, kept in self._samples.items()}

    @property
    def young(self) -> frozenset[PeerId]:
        """Of those measured, who was asked too seldom for a busy moment not to count."""
        return frozenset(peer for peer, kept in self._samples.items() if len(kept) < KEPT_SAMPLES)

    def wake_at(self) -> float | None:
        """When the coordinate may be published again; None if there is nothing new to say."""
        if self._count == 0 or not self._is_news():
            return None
        return self._due_at()

    def step(self, now: float, event: Event) -> Decision[Effect]:
        """Take a measurement in; say where this node stands when that is news and due."""
        match event:
            case Sampled(peer, coordinate, measured_s):
                self._sampled(peer, coordinate, measured_s)
            case PeersKnown(peers):
                self._samples = {peer: kept for peer, kept in self._samples.items() if peer in peers}
            case Tick():
                pass
            case _:
                assert_never(event)
        if self._count == 0 or not self._is_news() or now < self._due_at():
            return Decision()
        self._published = (now, self.coordinate)
        return Decision((PublishPlace(self.coordinate),), "the place in the network is another one now")

    def _sampled(self, peer: PeerId, coordinate: Coordinate, measured_s: float) -> None:
        if peer not in self._samples and len(self._samples) >= _MAX_PEERS:
            return
        kept = self._samples.setdefault(peer, deque(maxlen=KEPT_SAMPLES))
        kept.append(min(max(measured_s, 0.0), MAX_RTT_S))
        self._count += 1
        if coordinate.is_sound:
            seed = stable_hash(self._self_id, peer, self._count)
            x, y, z = (((seed >> shift) & 0x3FF) - 511.5 for shift in (0, 20, 40))
            self.coordinate = moved(self.coordinate, coordinate, min(kept), (x, y, z))

    def _is_news(self) -> bool:
        if self._published is None:
            return True
        told = self._published[1]
        away_s = apart_s(self.coordinate, told) + abs(self.coordinate.height - told.height)
        size_s = max(_SIGNIFICANT_S, 0.1 * rtt_s(told, ORIGIN))
        return away_s > size_s or abs(self.coordinate.error - told.error) > _SIGNIFICANT_ERROR

    def _due_at(self) -> float:
        if self._published is None:
            return self._started_at
        at = self._published[0]
        return at + (PUBLISH_FIRST_S if at < self._started_at + YOUNG_S else PUBLISH_EVERY_S)
