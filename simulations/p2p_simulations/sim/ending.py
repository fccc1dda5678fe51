"""How did a run end, whatever it was run on? What a simulated world and a lab of real processes are compared
by.

Which of two equal machines becomes the server is chance (it follows from their keys), so what is compared
is what a person would rely on: one cluster, everybody ready in it, forced roles as forced, as many servers
as there should be, and that nobody's identity or address changed without cause.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2p_simulations.sim.plan import Plan

if TYPE_CHECKING:
    from p2p_simulations.sim.world import World


@dataclass(frozen=True, slots=True)
class NodeEnding:
    """One node at the end.

    Attributes:
        role: server, agent, or "" without one.
        same_identity: it has the key that it had at first; same_address: and the address.
    """

    role: str
    ready: bool
    same_identity: bool
    same_address: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a run. `nodes`: those that were not to be gone; `clusters`: how many they are in."""

    nodes: Mapping[str, NodeEnding]
    clusters: int

    @property
    def roles(self) -> Mapping[str, int]:
        """How many of each role."""
        return Counter(node.role for node in self.nodes.values())


def ending_of(world: World) -> Ending:
    """How a simulated world ended."""
    nodes, clusters = {}, set()
    for machine in world.machines.values():
        if machine.name in world.departed or machine.peer in world.revoked:
            continue
        status = machine.agent.bootstrap.status if machine.agent is not None else None
        settled = world.checkers.ledgers.settled_on(machine.peer)
        nodes[machine.name] = NodeEnding(
            role=(status.role or "") if status is not None else "",
            ready=status is not None and status.ready,
            same_identity=machine.generation == 0,
            same_address=machine.generation == 0 and machine.tun_ipv4 == settled,
        )
        if status is not None and status.cluster_id:
            clusters.add(status.cluster_id)
    return Ending(nodes, len(clusters))


def differences(plan: Plan, one: Ending, other: Ending, names: tuple[str, str]) -> tuple[str, ...]:
    """One sentence for each thing that two runs of a plan don't agree on."""
    found = []
    if one.nodes.keys() != other.nodes.keys():
        found.append(f"there are {_listed(one.nodes)} in {names[0]}, {_listed(other.nodes)} in {names[1]}")
    if one.clusters != other.clusters:
        found.append(f"{one.clusters} clusters in {names[0]}, {other.clusters} clusters in {names[1]}")
    if one.roles != other.roles:
        found.append(f"{_roles(one)} in {names[0]}, {_roles(other)} in {names[1]}")
    forced = {node.name for node in plan.nodes if node.wish != "auto"}
    for name in sorted(one.nodes.keys() & other.nodes.keys()):
        mine, theirs = one.nodes[name], other.nodes[name]
        if name in forced and mine.role != theirs.role:
            found.append(f"{name} is {mine.role or 'nothing'} in {names[0]}, {theirs.role} in {names[1]}")
        for what in ("ready", "same_identity", "same_address"):
            if getattr(mine, what) != getattr(theirs, what):
                yes, no = names if getattr(mine, what) else names[::-1]
                found.append(f"{name}: {_WORDS[what]} in {yes}, and not in {no}")
    return tuple(found)


_WORDS = {
    "ready": "it is ready",
    "same_identity": "its identity stayed",
    "same_address": "its address stayed",
}


def _listed(nodes: Mapping[str, NodeEnding]) -> str:
    return ", ".join(sorted(nodes)) or "no nodes"


def _roles(ending: Ending) -> str:
    return ", ".join(f"{count} {role or 'without a role'}" for role, count in sorted(ending.roles.items()))
