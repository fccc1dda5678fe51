"""How are keys rotated and nodes put out in a simulated world? By the code that does it on a real node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

from p2p_network.core.errors import MeshError
from p2p_network.token import parse_token
from p2p_simulations.sim.plan import Revoke, Rotate

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine
    from p2p_simulations.sim.world import World

_AGAIN_S: Final = 5.0


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
    if agent is None or agent.admission.kept.authority is None or machine.peer in world.revoked:
        return
    world.rotations += 1

    async def move() -> None:
        try:
            token = parse_token(await agent.issuing.rotate())
        except MeshError as exc:
            world.note(machine.name, f"does not rotate: {exc.message}")
            world.rotations -= 1
            return
        if machine.peer in world.revoked:  # it was put out meanwhile: nobody follows
            return
        world.token = max(token, world.token, key=lambda token: token.generation)
        world.note("(world)", f"generation {token.generation} is announced by {machine.name}")
        hand_out(world)

    agent.tasks.start(move())


def hand_out(world: World) -> None:
    """A person gives the newest token to who was no member when the keys were rotated, and starts it again.

    The newest is looked up on the nodes: the agent at which it was ordered may have died over it.
    """
    agents = [m.agent for m in world.machines.values() if m.agent is not None and m.peer not in world.revoked]
    best = max(agents, key=lambda a: a.admission.kept.generation, default=None)
    if best is None or best.admission.kept.token is None:
        return
    token = best.admission.kept.token
    if token.generation > world.token.generation:
        world.token = token
        world.note("(world)", f"generation {token.generation} was announced")
    for agent in agents:
        seat = best.replication.ledger.get(f"seat/{token.generation}/{agent.peer}")
        if agent.admission.kept.generation < token.generation and seat is None:
            world.note(agent.machine.name, "is given the new token by a person")
            agent.machine.crash_agent()
            world.engine.after(1.0, agent.machine.start_agent)


def knows_revoked(machine: SimMachine, peer: str) -> bool:
    """Whether the agent of this machine refuses the peer, which was put out."""
    return machine.agent is not None and machine.agent.admission.trust.is_revoked(peer)


def _revoke(world: World, gone: SimMachine) -> None:
    """``peer revoke``, at the first node that runs and may; again where the word was lost.

    It fails where a disk is full, and is lost with a machine that goes for ever before anybody heard of it.
    People see that the node is still there, and put it out again.
    """
    others = [m for m in world.machines.values() if m is not gone and m.peer not in world.revoked]
    if any(knows_revoked(machine, gone.peer) for machine in others):
        may = []
    else:
        agents = [machine.agent for machine in others if machine.agent is not None]
        may = [agent for agent in agents if agent.admission.kept.authority is not None]
    if may:
        world.revoked[gone.peer] = gone.name
        may[0].tasks.start(may[0].issuing.revoke(gone.peer, "the plan says so"))
    if gone.peer in world.revoked:
        world.engine.after(_AGAIN_S, lambda: _revoke(world, gone))
