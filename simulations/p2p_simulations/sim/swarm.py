"""How many worlds survive until the time is up?

One world after another, each from a seed of its own; stops at the first violation. The seeds count up from
the first one, so a swarm can be continued and split.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from p2p_simulations.sim.chance import random_plan
from p2p_simulations.sim.world import Outcome, World, run_world


@dataclass(slots=True)
class Summary:
    """What a swarm has seen. `failed`: the outcome that ended it, if one did; `last`: the newest."""

    first_seed: int
    worlds: int = 0
    events: int = 0
    messages: int = 0
    virtual_s: float = 0.0
    slowest_healing_s: float = 0.0
    exempt: Counter[str] = field(default_factory=Counter)
    failed: Outcome | None = None
    last: Outcome | None = None

    def add(self, outcome: Outcome) -> None:
        """Count one world."""
        self.worlds += 1
        self.last = outcome
        self.events += outcome.events
        self.messages += outcome.messages
        self.virtual_s += outcome.virtual_s
        if outcome.exempt:
            self.exempt[outcome.exempt] += 1
        else:
            self.slowest_healing_s = max(self.slowest_healing_s, outcome.healed_after_s)
        if outcome.violation:
            self.failed = outcome


def worlds(first_seed: int, *, world_type: type[World] = World) -> Iterator[Outcome]:
    """The outcomes of the worlds of `first_seed`, `first_seed` + 1, ..."""
    seed = first_seed
    while True:
        yield run_world(random_plan(seed), seed, world_type=world_type)
        seed += 1


def swarm(for_s: float, first_seed: int, progress: Callable[[Summary], None]) -> Summary:
    """Play worlds for `for_s` seconds of real time. `progress` is called after each."""
    summary = Summary(first_seed)
    end = time.monotonic() + for_s
    for outcome in worlds(first_seed):
        summary.add(outcome)
        progress(summary)
        if summary.failed is not None or time.monotonic() >= end:
            break
    return summary
