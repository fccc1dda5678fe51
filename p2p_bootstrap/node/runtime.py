"""What do the columns of a node need of time, tasks and chance?

`Runtime` is all that `Runner`, `Replication` and `Cluster` know of them, so that they run unchanged on trio
(`node.trio_runtime`) and in the simulator's virtual time. It is a description only and imports neither.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar, TypeVarTuple

T = TypeVar("T")
F = TypeVar("F")
Ts = TypeVarTuple("Ts")


class Signal(Protocol):
    """How one column of the node tells another that something changed: raised by many, awaited by one.

    It remembers that it was raised, not how often: whoever waits looks at the state anew. So nothing is
    queued, nothing is lost, and a slow listener delays nobody.
    """

    def raise_(self) -> None:
        """Something changed. Never blocks."""
        ...

    async def wait(self, timeout_s: float = ...) -> bool:
        """Wait until raised and lower it again. False if `timeout_s` passed first."""
        ...

    async def wait_until(self, moment: float) -> bool:
        """The same up to a moment of `Runtime.monotonic`, which is then reached; at once if it is past."""
        ...


class Event(Protocol):
    """Happens once; awaited by any number."""

    def set(self) -> object:
        """It has happened."""
        ...

    def is_set(self) -> bool:
        """Whether it has."""
        ...

    async def wait(self) -> None:
        """Until it has."""
        ...


class TaskGroup(Protocol):
    """Tasks that live no longer than the block that opened the group."""

    def start_soon(self, job: Callable[..., Awaitable[Any]], /, *args: Any) -> object:
        """Begin a task."""
        ...


class Runtime(Protocol):
    """Time, tasks and chance."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def wall_s(self) -> float:
        """What this machine takes for Unix time."""
        ...

    def random(self) -> float:
        """At least 0, less than 1."""
        ...

    def signal(self) -> Signal:
        """A new one, not raised."""
        ...

    def event(self) -> Event:
        """A new one."""
        ...

    def lock(self) -> AbstractAsyncContextManager[object]:
        """A new one; whoever comes first gets it first."""
        ...

    def task_group(self) -> AbstractAsyncContextManager[TaskGroup]:
        """A new one; its block ends when all of its tasks have ended."""
        ...

    async def in_thread(self, work: Callable[[*Ts], T], /, *args: *Ts) -> T:
        """Run what blocks. What it makes durable is durable when this returns."""
        ...

    async def carry_out(
        self, name: str, execute: Callable[[F], Awaitable[None]], effects: Sequence[F]
    ) -> None:
        """Execute all effects of a decision of machine `name`, each finished before the next begins.

        Whoever wanted the decision may be cancelled meanwhile: it is still carried out whole.
        """
        ...

    def log(self, logger: logging.Logger, name: str, /, level: int = ..., **fields: object) -> None:
        """See `p2p_network.core.log.event`."""
        ...
