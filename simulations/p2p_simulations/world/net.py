"""How do messages travel, when the network misbehaves?

Every message is delayed by a base (more between two regions) plus a heavy tail, may be lost or come twice,
and is dropped while a cut stands between its sender and receiver (looked at on arrival too, so a cut takes
what is in flight). Cuts have names, so that several can stand at once and end one by one; they may be
one-way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from p2p_simulations.world.engine import Engine

_HEAVY = 0.02  # of the messages are delayed by the heavy tail
_HEAVY_SHAPE = 1.3  # Pareto: no variance to speak of
_HEAVY_MAX_S = 20.0


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad the network is. Delays in seconds; `loss` and `duplication` are probabilities.

    Attributes:
        base_delay_s: between two nodes of a region.
        region_delay_s: added between two regions.
        tail_delay_s: mean of the ordinary variation, and scale of the heavy tail.
    """

    base_delay_s: float = 0.001
    region_delay_s: float = 0.030
    tail_delay_s: float = 0.002
    loss: float = 0.0
    duplication: float = 0.0


CALM = Weather()


class Network:
    """Carries messages between the named places of one world."""

    def __init__(self, engine: Engine, weather: Weather) -> None:
        self.engine = engine
        self.weather = weather
        self.sent = 0
        self.sent_bytes = 0
        self._region: dict[str, str] = {}
        self._cuts: dict[str, frozenset[tuple[str, str]]] = {}
        self._lost: frozenset[tuple[str, str]] = frozenset()

    def place(self, name: str, region: str) -> None:
        """Put a node into a region."""
        self._region[name] = region

    def cut(self, label: str, pairs: Iterable[tuple[str, str]]) -> None:
        """Lose everything that goes from the first to the second of any of `pairs`, until `mend`."""
        self._cuts[label] = frozenset(pairs)
        self._lost = frozenset().union(*self._cuts.values())

    def mend(self, label: str | None = None) -> None:
        """End one cut, or all."""
        if label is None:
            self._cuts.clear()
        else:
            self._cuts.pop(label, None)
        self._lost = frozenset().union(*self._cuts.values())

    def reaches(self, source: str, target: str) -> bool:
        """Whether a message from `source` could arrive at `target` now."""
        return (source, target) not in self._lost

    def linked(self, one: str, other: str) -> bool:
        """Whether messages can go both ways: what a TCP connection needs."""
        return self.reaches(one, other) and self.reaches(other, one)

    def delay_s(self, source: str, target: str) -> float:
        """How long a message takes that goes now."""
        chance, weather = self.engine.random, self.weather
        delay = weather.base_delay_s + chance.expovariate(1 / weather.tail_delay_s)
        if self._region[source] != self._region[target]:
            delay += weather.region_delay_s
        if chance.random() < _HEAVY:
            delay += min(_HEAVY_MAX_S, weather.tail_delay_s * chance.paretovariate(_HEAVY_SHAPE))
        return delay

    def send(self, source: str, target: str, size_bytes: int, deliver: Callable[[], None]) -> None:
        """Carry one message; `deliver` is called zero, one or two times, later."""
        self.sent += 1
        self.sent_bytes += size_bytes
        chance, weather = self.engine.random, self.weather
        copies = 0 if weather.loss and chance.random() < weather.loss else 1
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
