"""How does a pure machine live in a world with time and I/O?

A `Runner` owns one machine: it feeds it one event at a time, executes the effects in the order given
before the next event is looked at, and wakes it when it asked to be woken. An effect that takes long must
be started by its executor and come back as an event. A decision's reason is logged when it changes.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from p2p_network.core import log
from p2p_network.core.machine import Decision, Machine

E = TypeVar("E")
F = TypeVar("F")

logger = log.get(__name__)


class Runner(Generic[E, F]):
    """Drives one machine.

    Args:
        name: what the log calls it, e.g. "roles.bootstrap".
        machine: the core.
        execute: carries out one effect; must be durable on return if the effect persists.
        tick: makes the event that `wake_at` asks for.
        after: called after every decision was carried out, ticks included.
        quiet: log reasons at debug level; for machines that decide all the time.
    """

    def __init__(
        self,
        name: str,
        machine: Machine[E, F],
        execute: Callable[[F], Awaitable[None]],
        tick: Callable[[], E],
        *,
        after: Callable[[], Awaitable[None]] | None = None,
        quiet: bool = False,
    ) -> None:
        self._level = logging.DEBUG if quiet else logging.INFO
        self._name = name
        self._machine = machine
        self._execute = execute
        self._tick = tick
        self._after = after
        self._lock = trio.Lock()
        self._changed = trio.Event()
        self.reason = ""

    async def feed(self, event: E) -> Decision[F]:
        """Decide on one event and carry the decision out. Returns it (for replies among its effects)."""
        async with self._lock:
            decision = self._machine.step(trio.current_time(), event)
            if decision.reason and decision.reason != self.reason:
                self.reason = decision.reason
                log.event(logger, f"{self._name}_decided", self._level, reason=decision.reason)
            # whoever fed the event may be cancelled (a peer's connection ends): a decision is still
            # carried out whole, or the machine would believe in effects that never were
            with trio.CancelScope(shield=True):
                for effect in decision.effects:
                    await self._execute(effect)
        self._changed.set()
        if self._after is not None:
            await self._after()
        return decision

    async def run(self) -> None:
        """Wake the machine whenever it asked for it; runs until cancelled."""
        while True:
            self._changed = trio.Event()
            wake_at = self._machine.wake_at()
            with trio.move_on_at(float("inf") if wake_at is None else wake_at) as scope:
                await self._changed.wait()
            if scope.cancelled_caught:
                await self.feed(self._tick())
