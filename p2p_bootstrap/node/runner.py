"""How does a pure machine live in a world with time and I/O?

A `Runner` owns one machine: it feeds it one event at a time, executes the effects in the order given
before the next event is looked at, and wakes it when it asked to be woken. An effect that takes long must
be started by its executor and come back as an event. A decision's reason is logged when it changes.

A machine whose effects could not be carried out (the disk is full) knows more than the disk does, and what it
said to nobody: it decides nothing any more, and `run` ends with the error, also where whoever fed it answers
a peer or a person with it and goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from p2p_bootstrap.node.runtime import Runtime
from p2p_network.core import log
from p2p_network.core.machine import Decision, Machine

E = TypeVar("E")
F = TypeVar("F")

logger = log.get(__name__)


class Runner(Generic[E, F]):
    """Drives one machine.

    Args:
        runtime: time and tasks.
        name: what the log calls it, e.g. "roles.bootstrap".
        machine: the core.
        execute: carries out one effect; must be durable on return if the effect persists.
        tick: makes the event that `wake_at` asks for.
        after: called after every decision was carried out, ticks included.
        quiet: log reasons at debug level; for machines that decide all the time.
    """

    def __init__(
        self,
        runtime: Runtime,
        name: str,
        machine: Machine[E, F],
        execute: Callable[[F], Awaitable[None]],
        tick: Callable[[], E],
        *,
        after: Callable[[], Awaitable[None]] | None = None,
        quiet: bool = False,
    ) -> None:
        self._level = logging.DEBUG if quiet else logging.INFO
        self._runtime = runtime
        self._name = name
        self._machine = machine
        self._execute = execute
        self._tick = tick
        self._after = after
        self._lock = runtime.lock()
        self._changed = runtime.signal()
        self._broken: Exception | None = None
        self.reason = ""

    async def feed(self, event: E) -> Decision[F]:
        """Decide on one event and carry the decision out. Returns it (for replies among its effects)."""
        async with self._lock:
            if self._broken is not None:
                raise self._broken
            decision = self._machine.step(self._runtime.monotonic(), event)
            if decision.reason and decision.reason != self.reason:
                self.reason = decision.reason
                self._runtime.log(logger, f"{self._name}_decided", self._level, reason=decision.reason)
            try:
                await self._runtime.carry_out(self._name, self._execute, decision.effects)
            except Exception as exc:
                self._broken = exc
                self._changed.raise_()
                raise
        self._changed.raise_()
        if self._after is not None:
            await self._after()
        return decision

    async def run(self) -> None:
        """Wake the machine whenever it asked for it; runs until cancelled, or an effect has failed."""
        while True:
            if self._broken is not None:
                raise self._broken
            wake_at = self._machine.wake_at()
            if not await self._changed.wait_until(float("inf") if wake_at is None else wake_at):
                await self.feed(self._tick())
