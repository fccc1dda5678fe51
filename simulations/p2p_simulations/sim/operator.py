"""What does a person do when the cluster has lost its majority? Orders its recovery, on any node that runs.

The plan is the production's (`p2p_roles.recovery`), made from what the machines in reach know; the order goes
to the agent's own `Cluster`. The operator is honest: only machines that are off are declared lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p_roles.recovery import ClusterFacts, plan_recovery
from p2p_simulations.sim.k3s import DATA, Data

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine
    from p2p_simulations.sim.world import World


def recover(world: World, name: str) -> None:
    """An operator at the machine `name` orders a recovery; nothing if there is nothing to be done there."""
    asker = world.machines[name]
    agent = asker.agent
    if agent is None or agent.bootstrap.member is None:
        return world.note(name, "the operator finds no member of a cluster here")
    machine = agent.bootstrap
    lost = [m.peer for m in world.machines.values() if not m.is_on and m.scope == asker.scope]
    facts = {m.peer: _facts(m) for m in world.machines.values() if _is_in_reach(world, asker, m)}
    member = machine.member
    assert member is not None, "looked at above"
    plan = plan_recovery(
        machine.view,
        facts,
        member.genesis,
        machine.up_epoch(),
        nodes=machine.voting.acceptor.nodes,
        lost=[peer for peer in lost if peer in machine.view.by_peer],
    )
    if plan.genesis is None or plan.forbidden:
        return world.note(name, f"no recovery: {'; '.join(plan.forbidden)}")
    world.note(name, f"an operator orders a recovery by {world.name(plan.genesis.initiator)}")
    agent.tasks.start(_order(world, name, agent.cluster.recover(plan.genesis)))
    return None


async def _order(world: World, name: str, order: object) -> None:
    refusal = await order  # type: ignore[misc]
    world.note(name, f"the recovery was not decided: {refusal}" if refusal else "the recovery was decided")


def _is_in_reach(world: World, asker: SimMachine, other: SimMachine) -> bool:
    if other.agent is None or other.scope != asker.scope:
        return False
    return other is asker or world.joined(asker, other)


def _facts(machine: SimMachine) -> ClusterFacts:
    agent = machine.agent
    assert agent is not None, "only running agents are asked"
    member = agent.bootstrap.member
    data: Data | None = machine.disk.read(DATA)
    observed = agent.k3s.observed.event
    is_server = member is not None and member.role == "server"
    return ClusterFacts(
        state=agent.bootstrap.status.state.value,
        role=member.role if member is not None else "",
        k3s=observed.state,
        genesis=member.genesis if member is not None else None,
        epoch=member.epoch if member is not None else 0,
        has_data=data is not None and data.role == "server",
        is_ready=is_server and observed.state == "ready",
    )
