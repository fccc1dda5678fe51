"""How does a pure machine live in virtual time? The twin of the agent's runner.

One event at a time; the effects in order, each finished before the next begins; a tick whenever the
machine asked for one. Between any two effects the node may crash.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from p2p_network.core.machine import Decision, Machine
from p2p_simulations.world.engine import Timer
from p2p_simulations.world.tasks import Lock, Tasks

E = TypeVar("E")
F = TypeVar("F")

_SPINS = 1000
_ROUNDING_S = 1e-6  # a moment on the node's clock, carried over to the world's and back, may fall short


class Spinning(AssertionError):
    """A machine asks for a tick at once, again and again."""


class SimRunner(Generic[E, F]):
    """Drives one machine.

    Args:
        clock: the node's monotonic clock.
        execute: carries out one effect.
        tick: makes the event that `wake_at` asks for.
        note: takes a decision's reason when it changes.
        after: called after every decision was carried out, ticks included.
    """

    def __init__(
        self,
        tasks: Tasks,
        clock: Callable[[], float],
        machine: Machine[E, F],
        execute: Callable[[F], Awaitable[None]],
        tick: Callable[[], E],
        note: Callable[[str], None] | None = None,
        after: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._tasks, self._clock, self._machine = tasks, clock, machine
        self._execute, self._tick, self._note, self._after = execute, tick, note, after
        self._lock = Lock()
        self._timer: Timer | None = None
        self._reason = ""
        self._last_tick = (0.0, 0)
        self._running = False

    @property
    def is_busy(self) -> bool:
        """Whether a decision is being carried out."""
        return self._lock.is_held

    async def feed(self, event: E) -> Decision[F]:
        """Decide on one event and carry the decision out. Returns it."""
        async with self._lock:
            decision = self._machine.step(self._clock(), event)
            if self._note is not None and decision.reason and decision.reason != self._reason:
                self._reason = decision.reason
                self._note(decision.reason)
            for effect in decision.effects:
                await self._execute(effect)
        self._rearm()
        if self._after is not None:
            await self._after()
        return decision

    def run(self) -> None:
        """From now on, wake the machine whenever it asked for it."""
        self._running = True
        self._rearm()

    def _rearm(self) -> None:
        if not self._running:
            return
        if self._timer is not None:
            self._timer.cancel()
        wake_at = self._machine.wake_at()
        if wake_at is not None:
            wait_s = max(0.0, wake_at - self._clock()) + _ROUNDING_S
            self._timer = self._tasks.call(self._wake, wait_s)

    def _wake(self) -> None:
        now = round(self._clock(), 2)
        count = self._last_tick[1] + 1 if self._last_tick[0] == now else 1
        self._last_tick = (now, count)
        if count > _SPINS:
            raise Spinning(f"{type(self._machine).__name__} asks for tick after tick at {now:.2f} s")
        self._tasks.start(self.feed(self._tick()))
