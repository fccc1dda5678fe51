"""What are time, tasks and chance in a simulated agent? Those of its world: the `Runtime` of virtual time.

What a machine's decision wants is carried out effect by effect in front of a `Witness`, who may let the
node crash between any two.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple

from p2p_simulations.world.tasks import Event, Group, Lock, Signal, Tasks

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine

T = TypeVar("T")
F = TypeVar("F")
Ts = TypeVarTuple("Ts")


class Witness(Protocol):
    """Who sees all that an agent does."""

    async def before(self, machine: str, effect: object) -> None:
        """`machine` wants this done now."""

    async def after(self, machine: str, effect: object) -> None:
        """It is done."""

    def carried_out(self, machine: str) -> None:
        """A whole decision is."""

    def said(self, name: str, level: int, fields: dict[str, Any]) -> None:
        """The agent logs something."""


class SimRuntime:
    """The `Runtime` of one life of a simulated agent. `busy`: machines with a decision being carried out."""

    def __init__(self, machine: SimMachine, tasks: Tasks, witness: Witness) -> None:
        self.busy: set[str] = set()
        self._tasks, self._witness = tasks, witness
        self._lasting: list[Callable[[], Awaitable[None]]] = []
        self.monotonic, self.wall_s = machine.monotonic, machine.wall_s
        self.random = machine.world.engine.random.random

    def on(self, tasks: Tasks) -> SimRuntime:
        """The same for activities that may end before the others."""
        other = copy.copy(self)
        other._tasks = tasks
        return other

    def signal(self) -> Signal:
        """See `Runtime`, here and below."""
        return Signal(self._tasks, self.monotonic)

    def event(self) -> Event:
        return Event()

    def lock(self) -> Lock:
        return Lock()

    def task_group(self) -> Group:
        return Group(self._tasks)

    def lasts(self, rest: Callable[[], Awaitable[None]]) -> None:
        """Of what blocks, while it runs: this is how long it takes, and what happens meanwhile."""
        self._lasting.append(rest)

    async def in_thread(self, work: Callable[[*Ts], T], /, *args: *Ts) -> T:
        result = work(*args)
        lasting = [*self._lasting]
        self._lasting.clear()
        for rest in lasting:
            await rest()
        return result

    async def carry_out(
        self, name: str, execute: Callable[[F], Awaitable[None]], effects: Sequence[F]
    ) -> None:
        self.busy.add(name)
        for effect in effects:
            await self._witness.before(name, effect)
            await execute(effect)
            await self._witness.after(name, effect)
        self.busy.discard(name)
        self._witness.carried_out(name)

    def log(self, logger: logging.Logger, name: str, /, level: int = logging.INFO, **fields: Any) -> None:
        self._witness.said(name, level, fields)
