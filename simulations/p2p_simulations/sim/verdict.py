"""Has a world come to a good end, and if not, could it have?

What is missing after everything healed: every node is to be a ready member of one cluster. And when that can
be demanded of nobody, by design: too many are gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p_network.core.ids import PeerId
from p2p_roles.bootstrap import Bootstrap
from p2p_roles.genesis.messages import quorum
from p2p_roles.transitions import State
from p2p_simulations.sim.k3s import DATA, Data

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine
    from p2p_simulations.sim.world import World


class Verdict:
    """The judge of one world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def missing(self) -> str:
        """What is not yet as it should be: every node a ready member of one cluster; "" if all is."""
        clusters: dict[str, set[str]] = {}
        for machine in self._world.machines.values():
            if machine.plan.stale_k3s or self._world.is_out(machine) or self._waits_for_stale(machine):
                continue
            agent = machine.agent
            if agent is None:
                return f"{machine.name} is not running"
            status = agent.bootstrap.status
            if status.state is not State.MEMBER or not status.ready:
                return f"{machine.name} is in {status.state}: {status.reason}"
            clusters.setdefault(machine.scope, set()).add(status.cluster_id)
            upgrading = agent.upgrading if machine.scope not in self.upgrades_may_wait() else None
            if upgrading is not None and (why := upgrading.under_way):
                return f"an upgrade of k3s is under way: {why}"
        wrong = {scope: ids for scope, ids in clusters.items() if len(ids) != 1}
        return f"several clusters: {wrong}" if wrong else ""

    def upgrades_may_wait(self) -> set[str]:
        """Scopes in which a node is gone for ever, or never gets in: as long as it is to be a server, none
        other is taken down for an upgrade of k3s; to say that it is to be replaced is a person's work."""
        return {m.scope for m in self._world.machines.values() if self._world.is_out(m) or m.plan.stale_k3s}

    def _waits_for_stale(self, machine: SimMachine) -> bool:
        """It is to be one server more, and a named one that can never come up stands before it."""
        stale = {m.peer for m in self._world.machines.values() if m.plan.stale_k3s or self._world.is_out(m)}
        if not stale:
            return False
        ready = self._world.checkers.votes.ready(machine.scope)
        if ready is None or machine.agent is None or not stale & set(ready[1].servers):
            return False
        status = machine.agent.bootstrap.status
        return status.state is State.JOIN and status.role is None

    def exempt(self) -> str:
        """Why this world can't come together without a person, by design; "" if it can.

        Re-addressing servers is a person's work, and so is what has lost all of etcd's members. A majority
        of them that is lost is, too, but there the status says what to do, and somebody does it.
        """
        world = self._world
        if apart := self.is_torn_apart():
            return apart
        for scope in sorted({machine.scope for machine in world.machines.values()}):
            ready = world.checkers.votes.ready(scope)
            if ready is None:
                here = [m for m in world.machines.values() if m.scope == scope and m not in world.waiting]
                left = [m for m in here if not world.is_out(m)]
                if len(left) < len(here) and len(left) < max(m.minimum_nodes for m in here):
                    return f"fewer nodes than minimum_nodes are left in {scope}"
                home = world.plan.placement.home_region if world.plan.placement.kind == "pack" else ""
                if home and not any(m.plan.region == home and m.plan.wish != "agent" for m in left):
                    return f"nobody is left in the declared home region of {scope}"
                continue
            _, decided = ready
            etcd = world.etcd_of(decided.ca_hash)
            members = etcd.members if etcd is not None else {}
            if not self.survivors(scope) and not world.backups.get(scope):
                return f"no server is left that could bring {scope} back, and no backup was made"
            if why := self._undecidable(scope):
                return why
            moved = [peer for peer, ipv4 in members.items() if self._address_changed(peer, ipv4)]
            if len({*self.lost_members(scope), *moved}) * 2 >= len(members) > 0 and moved:
                return f"with members whose address changed a majority of the etcd members of {scope} is lost"
            if any(self._address_changed(peer, ipv4) for peer, ipv4 in self._k3s_addresses()):
                return "a server's address changed after its k3s had started: an older claim turned up"
        return ""

    def lost_members(self, scope: str) -> set[str]:
        """The members of the cluster's etcd that were re-imaged or are gone for ever."""
        ready = self._world.checkers.votes.ready(scope)
        etcd = self._world.etcd_of(ready[1].ca_hash) if ready is not None else None
        return {
            peer
            for peer in (etcd.members if etcd is not None else ())
            if peer in self._world.reimaged or self._world.is_gone(peer)
        }

    def has_lost_majority(self, scope: str) -> bool:
        """Whether the cluster's etcd can't decide anything any more, whoever comes back."""
        ready = self._world.checkers.votes.ready(scope)
        etcd = self._world.etcd_of(ready[1].ca_hash) if ready is not None else None
        return etcd is not None and len(self.lost_members(scope)) * 2 >= len(etcd.members) > 0

    def survivors(self, scope: str) -> list[SimMachine]:
        """The servers that are up, or could be brought back. One that was still getting in sets its data
        aside."""
        found = []
        for machine in self._world.machines.values():
            if machine.scope == scope and not self._world.is_out(machine):
                data: Data | None = machine.disk.read(DATA)
                has_data = data is not None and data.role == "server" and not machine.plan.stale_k3s
                bootstrap = machine.agent.bootstrap if machine.agent is not None else None
                was = bootstrap.member if bootstrap is not None else None
                recovers = bootstrap is not None and bootstrap.state is State.RECOVER
                if recovers or (has_data and (bootstrap is None or (was is not None and was.joined))):
                    found.append(machine)
        return found

    def _deciders(self, scope: str) -> list[SimMachine]:
        """The machines that are there to decide a recovery, if one is due."""
        world = self._world
        left = [m for m in world.machines.values() if m.scope == scope and not world.is_out(m)]
        agents = [m.agent for m in left if m.agent is not None]
        pending = any(_awaits_recovery(agent.bootstrap) for agent in agents)
        due = pending or self.has_lost_majority(scope)
        return [m for m in left if m not in world.waiting] if due else []

    def declares_too_many(self, scope: str) -> list[SimMachine]:
        """Who came later and declares more nodes than could ever decide the recovery that is due."""
        left = self._deciders(scope)
        return [m for m in left if m.plan.joins_later and quorum(m.minimum_nodes) > len(left)]

    def _undecidable(self, scope: str) -> str:
        """N is more than can ever decide the recovery that is due: it was raised for good, or declared by
        nodes that are gone, and those that left in order can't be named as lost."""
        left = self._deciders(scope)
        here = {machine.peer for machine in left}
        counted = gone = 0
        for agent in (machine.agent for machine in left):
            if agent is None:
                continue
            lost = [node for node in agent.bootstrap.view.nodes if node.peer not in here]
            declared = max((node.minimum_nodes for node in lost), default=1)
            counted = max(counted, declared, agent.bootstrap.voting.acceptor.state.nodes)
            gone = max(gone, len(lost))
        if left and quorum(max(1, counted - gone)) > len(left):
            return f"more nodes than are left in {scope} must decide a recovery, and cannot be named as lost"
        return ""

    def is_torn_apart(self) -> str:
        """Two that are left can't meet for ever: nobody is left who could lead them to each other."""
        world = self._world
        left = [m.name for m in world.machines.values() if not world.is_out(m) and m not in world.waiting]
        if len(left) == len(world.machines) - len(world.waiting):
            return ""
        meet = world.network.may_meet
        for number, one in enumerate(left):
            for other in left[number + 1 :]:
                if not meet(one, other) and not (
                    world.plan.relays
                    and any(meet(one, by) and meet(by, other) for by in left if by not in (one, other))
                ):
                    return f"nobody is left who could join nodes behind different NATs: {one} and {other}"
        return ""

    def _k3s_addresses(self) -> list[tuple[PeerId, str]]:
        found = []
        for machine in self._world.machines.values():
            data: Data | None = machine.disk.read(DATA)
            if data is not None and data.role == "server" and not machine.plan.stale_k3s:
                found.append((machine.peer, data.ipv4))
        return found

    def _address_changed(self, peer: str, ipv4: str) -> bool:
        machine = self._world.machine_of(peer)
        return machine is not None and machine.tun_ipv4 not in ("", ipv4)


def _awaits_recovery(bootstrap: Bootstrap) -> bool:
    opened = bootstrap.open_genesis()
    waits = bootstrap.state is State.WAIT and opened is not None and opened.continues is not None
    return waits or bootstrap.state in (State.RECOVER, State.HELD)
