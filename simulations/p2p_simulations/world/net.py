"""How do messages travel, when the network misbehaves?

Every message is delayed by a base per pair of regions plus an exponential tail, may be lost or come
twice, and is dropped while its sender and receiver stand on different sides of a partition (decided at
arrival too, so a partition cuts what is in flight). Partitions may be one-way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from p2p_simulations.world.engine import Engine


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad the network is. Delays in seconds; `loss` and `duplication` are probabilities."""

    base_delay_s: float = 0.002
    region_delay_s: float = 0.030
    tail_delay_s: float = 0.005
    loss: float = 0.0
    duplication: float = 0.0


class Network:
    """Delivers messages between named places of one world."""

    def __init__(self, engine: Engine, weather: Weather) -> None:
        self.engine = engine
        self.weather = weather
        self.sent = 0
        self.delivered = 0
        self._region: dict[Hashable, str] = {}
        self._cut: set[tuple[Hashable, Hashable]] = set()  # (from, to) pairs that lose everything

    def place(self, name: Hashable, region: str) -> None:
        """Put a node into a region."""
        self._region[name] = region

    def cut(self, sources: set[str], targets: set[str], *, both_ways: bool = True) -> None:
        """Lose everything from any of `sources` to any of `targets`."""
        self._cut |= {(a, b) for a in sources for b in targets}
        if both_ways:
            self._cut |= {(b, a) for a in sources for b in targets}

    def heal(self) -> None:
        """End all partitions."""
        self._cut.clear()

    def reaches(self, source: Hashable, target: Hashable) -> bool:
        """Whether a message from `source` could arrive at `target` now."""
        return (source, target) not in self._cut

    def send(self, source: Hashable, target: Hashable, deliver: Callable[[], None]) -> None:
        """Carry one message; `deliver` is called zero, one or two times, later."""
        self.sent += 1
        chance, weather = self.engine.random, self.weather
        copies = 0 if chance.random() < weather.loss else 1
        if copies and weather.duplication and chance.random() < weather.duplication:
            copies = 2
        for _ in range(copies):
            delay = weather.base_delay_s + chance.expovariate(1 / weather.tail_delay_s)
            if self._region.get(source) != self._region.get(target):
                delay += weather.region_delay_s

            def arrive() -> None:
                if self.reaches(source, target):
                    self.delivered += 1
                    deliver()

            self.engine.after(delay, arrive)
