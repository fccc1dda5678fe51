"""How are keys rotated and nodes put out in a simulated world? By the code that does it on a real node."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from p2p_network.core.errors import MeshError
from p2p_network.token import parse_token
from p2p_simulations.sim.plan import Revoke, Rotate

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine
    from p2p_simulations.sim.world import World


def change_trust(world: World, machine: SimMachine, fault: Rotate | Revoke) -> None:
    """The fault happens, if a node that holds the root runs."""
    match fault:
        case Rotate():
            _rotate(world, machine)
        case Revoke():
            _revoke(world, machine)
        case _:
            assert_never(fault)


def _rotate(world: World, machine: SimMachine) -> None:
    """``token rotate``; its new token goes into the configuration of machines that come later."""
    agent = machine.agent
    if agent is None or agent.admission.kept.authority is None:
        return
    world.rotations += 1

    async def move() -> None:
        try:
            world.token = parse_token(await agent.issuing.rotate())
        except MeshError as exc:
            world.note(machine.name, f"does not rotate: {exc.message}")
            world.rotations -= 1
            return
        world.note("(world)", f"generation {world.token.generation} is announced by {machine.name}")

    agent.tasks.start(move())


def _revoke(world: World, gone: SimMachine) -> None:
    """``peer revoke``, at the first node that runs and may."""
    for machine in world.machines.values():
        agent = machine.agent
        if machine is not gone and agent is not None and agent.admission.kept.authority is not None:
            world.revoked[gone.peer] = gone.name
            agent.tasks.start(agent.issuing.revoke(gone.peer, "the plan says so"))
            return
