"""What are time, tasks and chance on a real machine? trio's, and the operating system's."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar, TypeVarTuple

import trio

from p2p_bootstrap.node.signal import Signal
from p2p_network.core import log

T = TypeVar("T")
F = TypeVar("F")
Ts = TypeVarTuple("Ts")


class TrioRuntime:
    """The `Runtime` of the agent."""

    monotonic = staticmethod(trio.current_time)
    wall_s = staticmethod(time.time)
    random = staticmethod(random.random)
    log = staticmethod(log.event)

    def signal(self) -> Signal:
        """See `Runtime`, here and below."""
        return Signal()

    def event(self) -> trio.Event:
        return trio.Event()

    def lock(self) -> trio.Lock:
        return trio.Lock()

    def task_group(self) -> AbstractAsyncContextManager[trio.Nursery]:
        return trio.open_nursery()

    async def in_thread(self, work: Callable[[*Ts], T], /, *args: *Ts) -> T:
        return await trio.to_thread.run_sync(work, *args)

    async def carry_out(
        self, name: str, execute: Callable[[F], Awaitable[None]], effects: Sequence[F]
    ) -> None:
        # whoever fed the event may be cancelled (a peer's connection ends): a decision is still carried
        # out whole, or the machine would believe in effects that never were
        with trio.CancelScope(shield=True):
            for effect in effects:
                await execute(effect)
