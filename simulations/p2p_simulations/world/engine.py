"""When does what happen, in a world without clocks?

A heap of (virtual time, sequence number, action). Nothing sleeps and nothing runs in parallel; the only
source of chance is one generator made from the seed. The trace is a running hash over one line per
transition: the same seed and the same code give the same trace, byte for byte, on any machine.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable

from p2p_simulations.world.draws import Draws


class Timer:
    """A planned action that can still be called off."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Do not do it; no effect if it has happened already."""
        self.action = None


class Engine:
    """Virtual time and the trace of one world. `now`: seconds since the world began."""

    def __init__(self, seed: int, *, keep_trace: bool = True) -> None:
        self.seed = seed
        self.now = 0.0
        self.random = Draws(seed)
        self.trace: list[str] = []
        self.events = 0
        self._keep_trace = keep_trace
        self._hash = hashlib.blake2b(digest_size=16)
        self._heap: list[tuple[float, int, Timer]] = []
        self._sequence = 0

    def at(self, when: float, action: Callable[[], None]) -> Timer:
        """Plan `action` for virtual second `when` (at once if that is past)."""
        self._sequence += 1
        timer = Timer(action)
        heapq.heappush(self._heap, (max(when, self.now), self._sequence, timer))
        return timer

    def after(self, delay_s: float, action: Callable[[], None]) -> Timer:
        """Plan `action` for `delay_s` virtual seconds from now."""
        return self.at(self.now + delay_s, action)

    def note(self, who: str, what: str) -> None:
        """One line of the trace: a transition and its reason."""
        line = f"{self.now:10.3f} {who:<8} {what}"
        self._hash.update(line.encode() + b"\n")
        if self._keep_trace:
            self.trace.append(line)

    @property
    def trace_hash(self) -> str:
        """32 hex digits that stand for everything that happened so far."""
        return self._hash.hexdigest()

    def run(
        self,
        until_s: float,
        *,
        stop: Callable[[], bool] | None = None,
        after_each: Callable[[], None] | None = None,
    ) -> bool:
        """Run events up to virtual second `until_s`.

        Args:
            stop: asked after every event; True ends the run early.
            after_each: called after every event; a checker raises from here.

        Returns:
            whether `stop` said so (False: time was up).
        """
        while self._heap and self._heap[0][0] <= until_s:
            at, _, timer = heapq.heappop(self._heap)
            action, timer.action = timer.action, None
            if action is None:
                continue
            self.now = at
            self.events += 1
            action()
            if after_each is not None:
                after_each()
            if stop is not None and stop():
                return True
        self.now = max(self.now, until_s)
        return False
