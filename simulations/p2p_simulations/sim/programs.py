"""Which k3s has a simulated machine? The twin of the agent's `K3sPrograms`, and who orders another one.

Versions as files on the simulated disk; a program comes from a machine in reach that has it, and takes a
while. Which version does not start where, the plan says (`UpgradeK3s`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from p2p_network.core.errors import MeshError, P2PError, RoleError
from p2p_network.core.ids import PeerId
from p2p_roles.upgrade.model import Order, Program

if TYPE_CHECKING:
    from p2p_simulations.sim.agent import SimAgent
    from p2p_simulations.sim.machine import SimMachine
    from p2p_simulations.sim.plan import UpgradeK3s
    from p2p_simulations.sim.world import World

FIRST: Final = "v1.36.0+k3s1"
PROGRAM: Final = "k3s/program"
_PREVIOUS, _STAGED = "k3s/previous", "k3s/staged"
_FETCH_S: Final = (1.0, 20.0)
_PATIENCE_S: Final = 60.0  # and as long as k3s takes to start at most


def installed(machine: SimMachine) -> str:
    """The version of the k3s on this machine's disk."""
    return machine.disk.read(PROGRAM) or FIRST


class SimPrograms:
    """The k3s programs of one machine, as its agent sees them."""

    arch = "amd64"

    def __init__(self, agent: SimAgent) -> None:
        self._agent, self._machine = agent, agent.machine

    async def installed(self) -> str:
        """See `K3sPrograms`, here and below."""
        return installed(self._machine)

    async def stage(self, order: Order, holders: Sequence[PeerId]) -> None:
        world, disk = self._machine.world, self._machine.disk
        if disk.read(_STAGED) == order.version or order.source == self._machine.peer:
            return
        for peer in holders:
            other = world.machine_of(peer)
            if other is None or not world.joined(self._machine, other):
                continue
            await self._agent.tasks.sleep(world.engine.random.uniform(*_FETCH_S))
            if other.is_on and world.joined(self._machine, other):
                await self._write({_STAGED: order.version})
                return
        raise MeshError("k3s can't be fetched: no node in reach has it")

    async def swap(self, version: str) -> None:
        if installed(self._machine) != version:
            await self._write({_PREVIOUS: installed(self._machine), PROGRAM: version})

    async def swap_back(self, before: str) -> None:
        if installed(self._machine) == before:
            return
        if self._machine.disk.read(_PREVIOUS) != before:
            raise RoleError(f"k3s {before} is not here any more")
        await self._write({PROGRAM: before})

    async def _write(self, files: dict[str, str]) -> None:
        await self._machine.fsync(self._agent.tasks, self._machine.disk.write(files))


def order(world: World, fault: UpgradeK3s) -> None:
    """An operator orders another k3s at a machine, or at a server there is, and again until it is taken."""
    first = world.machines[fault.node]
    for machine in (first, *(m for m in world.machines.values() if m.scope == first.scope)):
        agent = machine.agent
        if agent is not None and agent.cluster.standing() is not None:
            agent.tasks.start(_order(world, machine, fault))
            return
    world.engine.after(5.0, lambda: None if world.healing else order(world, fault))


async def _order(world: World, machine: SimMachine, fault: UpgradeK3s) -> None:
    agent = machine.agent
    assert agent is not None and agent.upgrading is not None, "looked at above"  # noqa: PT018

    async def bring(version: str, archs: object) -> tuple[Program, ...]:
        await machine.fsync(agent.tasks, machine.disk.write({_STAGED: version}))
        return (Program("amd64", "0" * 64, 1),)

    try:
        await agent.upgrading.give_order(
            fault.version,
            bring,
            wave=0,
            patience_s=_PATIENCE_S + 2 * machine.world.plan.k3s.start_s[1],
            by="an operator",
        )
    except P2PError as exc:
        world.note(machine.name, f"no upgrade of k3s: {exc.message}")
        world.engine.after(5.0, lambda: None if world.healing else order(world, fault))
