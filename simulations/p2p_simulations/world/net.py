"""How do messages travel, when the network misbehaves?

Every message is delayed by a base (more between two regions) plus a heavy tail, may be lost or come twice,
and is dropped while a cut stands between its sender and receiver (looked at on arrival too, so a cut takes
what is in flight). Cuts have names, so that several can stand at once and end one by one; they may be
one-way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from p2p_simulations.world.engine import Engine

Nat: TypeAlias = Literal["open", "full-cone", "port-restricted", "symmetric", "closed"]
"""Whether others can begin a connection: to a node in the open, or whose router hands on whatever comes
(`full-cone`), all can; to the others only those of its own region. The agent punches no holes, so for a mesh
of TCP connections the latter three are one; in a lab they are three."""
DIALLED: tuple[Nat, ...] = ("open", "full-cone")
_HEAVY = 0.02  # of the messages are delayed by the heavy tail
_HEAVY_SHAPE = 1.3  # Pareto: no variance to speak of
_HEAVY_MAX_S = 20.0


@dataclass(frozen=True, slots=True)
class PairWeather:
    """How bad the network is between two regions. `tail_s` is the scale of its own, heavy tail."""

    one: str
    other: str
    delay_s: float
    tail_s: float
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad the network is. Delays in seconds; `loss` and `duplication` are probabilities.

    Attributes:
        base_delay_s: between two nodes of a region.
        region_delay_s: added between two regions.
        tail_delay_s: mean of the ordinary variation, and scale of the heavy tail.
        links: pairs of regions that are unlike the others.
    """

    base_delay_s: float = 0.001
    region_delay_s: float = 0.030
    tail_delay_s: float = 0.002
    loss: float = 0.0
    duplication: float = 0.0
    links: tuple[PairWeather, ...] = ()


CALM = Weather()


class Network:
    """Carries messages between the named places of one world."""

    def __init__(self, engine: Engine, weather: Weather) -> None:
        self.engine = engine
        self.sent = 0
        self.sent_bytes = 0
        self._region: dict[str, str] = {}
        self._behind_nat: set[str] = set()
        self._links: dict[tuple[str, str], PairWeather] = {}
        self.weather = weather
        self._cuts: dict[str, frozenset[tuple[str, str]]] = {}
        self._lost: frozenset[tuple[str, str]] = frozenset()
        self.on_cut: Callable[[float, frozenset[tuple[str, str]]], None] | None = None

    @property
    def weather(self) -> Weather:
        """How bad the network is now."""
        return self._weather

    @weather.setter
    def weather(self, weather: Weather) -> None:
        self._weather = weather
        self._links = {
            pair: link for link in weather.links for pair in ((link.one, link.other), (link.other, link.one))
        }

    def place(self, name: str, region: str, nat: Nat = "open") -> None:
        """Put a node into a region, behind a router of this kind."""
        self._region[name] = region
        if nat not in DIALLED:
            self._behind_nat.add(name)

    def loss(self, source: str, target: str) -> float:
        """The probability that something from `source` to `target` is lost."""
        link = self._links.get((self._region[source], self._region[target])) if self._links else None
        return self._weather.loss if link is None else 1 - (1 - self._weather.loss) * (1 - link.loss)

    def cut(self, label: str, pairs: Iterable[tuple[str, str]]) -> None:
        """Lose everything that goes from the first to the second of any of `pairs`, until `mend`."""
        self._cuts[label] = frozenset(pairs)
        self._changed()

    def mend(self, label: str | None = None) -> None:
        """End one cut, or all."""
        if label is None:
            self._cuts.clear()
        else:
            self._cuts.pop(label, None)
        self._changed()

    def _changed(self) -> None:
        self._lost = frozenset().union(*self._cuts.values())
        if self.on_cut is not None:
            self.on_cut(self.engine.now, self._lost)

    def reaches(self, source: str, target: str) -> bool:
        """Whether a message from `source` could arrive at `target` now."""
        return (source, target) not in self._lost

    def linked(self, one: str, other: str) -> bool:
        """Whether a connection can be: messages go both ways, and one of the two can dial the other."""
        if self._lost and not (self.reaches(one, other) and self.reaches(other, one)):
            return False
        return self.may_meet(one, other)

    def may_meet(self, one: str, other: str) -> bool:
        """Whether one of the two can dial the other while nothing is cut."""
        behind = self._behind_nat
        return not (behind and one in behind and other in behind and self._region[one] != self._region[other])

    def delay_s(self, source: str, target: str) -> float:
        """How long a message takes that goes now."""
        chance, weather = self.engine.random, self._weather
        here, there = self._region[source], self._region[target]
        link = self._links.get((here, there)) if self._links else None
        tail_s = weather.tail_delay_s if link is None else link.tail_s
        delay = weather.base_delay_s + chance.expovariate(1 / tail_s)
        if link is not None:
            delay += link.delay_s
        elif here != there:
            delay += weather.region_delay_s
        if chance.random() < _HEAVY:
            delay += min(_HEAVY_MAX_S, tail_s * chance.paretovariate(_HEAVY_SHAPE))
        return delay

    def send(self, source: str, target: str, size_bytes: int, deliver: Callable[[], None]) -> None:
        """Carry one message; `deliver` is called zero, one or two times, later."""
        self.sent += 1
        self.sent_bytes += size_bytes
        chance, weather = self.engine.random, self._weather
        loss = self.loss(source, target)
        copies = 0 if loss and chance.random() < loss else 1
        if copies and weather.duplication and chance.random() < weather.duplication:
            copies = 2
        for _ in range(copies):
            self.engine.after(
                self.delay_s(source, target),
                lambda: deliver() if self.reaches(source, target) else None,
            )


def groups_cut(groups: Iterable[Iterable[str]]) -> frozenset[tuple[str, str]]:
    """All pairs, both ways, of nodes that stand in different groups."""
    sides = [tuple(group) for group in groups]
    return frozenset(
        (a, b) for one in sides for other in sides if one is not other for a in one for b in other
    )
