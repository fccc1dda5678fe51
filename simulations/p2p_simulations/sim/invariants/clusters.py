"""May this k3s start, join, be set aside, restart or lose a member now?

What the bootstrap machines ask of k3s, and what the model of k3s does, each held against what was certified.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from p2p_network.core.ids import PeerId
from p2p_network.ledger.reading import revoked_peers
from p2p_roles import events
from p2p_roles.bootstrap import Bootstrap
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis.messages import Certificate
from p2p_roles.transitions import State
from p2p_roles.upgrade import model
from p2p_simulations.sim.etcd import Etcd
from p2p_simulations.sim.invariants.votes import Votes
from p2p_simulations.sim.k3s import DATA, DROP_IN, Data, DropIn
from p2p_simulations.sim.programs import installed
from p2p_simulations.sim.violation import fail

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine
    from p2p_simulations.sim.world import World

_HEARD_S: Final = 30.0
"""So long after somebody was put out, whoever has heard of it has looked at the cluster again."""


class Clusters:
    """What is asked of k3s in one world, and what it does."""

    def __init__(self, world: World, votes: Votes) -> None:
        self._world, self._votes = world, votes
        self._wipes_allowed: set[tuple[PeerId, int]] = set()
        self._member_ca: dict[str, str] = {}  # scope -> the CA that its members trust
        self._restarting: set[SimMachine] = set()  # by an upgrade of their k3s
        self._out_since: dict[str, float] = {}  # peer -> when somebody put it out
        self._went_back: set[str] = set()  # scopes whose datastore was replaced by a snapshot

    def start_wanted(self, machine: SimMachine, core: Bootstrap, effect: events.StartK3s) -> None:
        """The bootstrap machine asks for k3s."""
        decided = self._votes.genesis(core.scope, effect.epoch)
        if decided is None or decided.ca_hash != effect.ca_hash:
            fail(f"{machine.name} starts k3s with a CA that nobody certified for epoch {effect.epoch}")
        elif decided.timing != effect.timing:
            fail(f"{machine.name} starts k3s with other times than those certified: {effect.timing}")
        elif effect.kind == "server-init":
            if core.state is not State.INIT or decided.initiator != machine.peer:
                fail(f"{machine.name} is to run cluster-init in {core.state}, chosen or not")
        elif core.state is State.RECOVER and decided.initiator == machine.peer:
            pass  # it brings the cluster back, to have READY certified
        elif self._votes.is_ready(core.scope, effect.epoch) is False:
            fail(f"{machine.name} joins (as {effect.kind}) epoch {effect.epoch}, which is not READY")

    def k3s_started(self, machine: SimMachine, drop_in: DropIn, data: Data) -> None:
        """k3s comes up on a datastore that it has."""
        if drop_in.ca_hash != data.ca_hash and not machine.plan.stale_k3s:
            fail(f"{machine.name}: the drop-in says CA {drop_in.ca_hash}, the datastore {data.ca_hash}")

    def k3s_initialises(self, machine: SimMachine, drop_in: DropIn) -> None:
        """k3s makes a new cluster."""
        decided = self._votes.genesis(machine.scope, drop_in.epoch)
        if decided is None or (decided.initiator, decided.ca_hash) != (machine.peer, drop_in.ca_hash):
            fail(f"{machine.name} initialises a cluster that no quorum chose it for")
        known = self._world.etcds.get(drop_in.ca_hash)
        if known is not None and self._votes.is_ready(machine.scope, drop_in.epoch):
            fail(f"{machine.name} initialises the cluster with CA {drop_in.ca_hash} a second time")

    def k3s_joins(self, machine: SimMachine, drop_in: DropIn, ca_hash: str) -> None:
        """k3s has got into a cluster."""
        ready = self._votes.ready(machine.scope)
        if ready is None:
            fail(f"{machine.name} joined a cluster before any READY certificate")
        elif ready[1].ca_hash != ca_hash or drop_in.ca_hash != ca_hash:
            fail(f"{machine.name} joined CA {ca_hash}, certified is {ready[1].ca_hash}")

    def k3s_ready(self, machine: SimMachine, data: Data, etcd: Etcd) -> None:
        """k3s serves."""
        self._restarting.discard(machine)
        if data.ca_hash != etcd.ca_hash:
            fail(f"{machine.name} serves CA {data.ca_hash} from a datastore with CA {etcd.ca_hash}")

    def member_removed(self, machine: SimMachine, etcd: Etcd, peer: str) -> None:
        """A Node is deleted, and its etcd member goes with it: never may that cost the quorum."""
        rest = [self._world.machine_of(p) for p in etcd.members if p != peer]
        alive = sum(
            m is not None and m.k3s.joined and (m is machine or self._world.joined(machine, m)) for m in rest
        )
        if 2 * alive <= len(rest):
            fail(
                f"{machine.name} removes {self._world.name(peer)}: of the {len(rest)} servers that remain "
                f"only {alive} are alive"
            )
        if etcd.learner and etcd.learner != peer:
            fail(f"{machine.name} removes a member while {self._world.name(etcd.learner)} comes")

    def node_deleted(self, machine: SimMachine, etcd: Etcd, peer: str) -> None:
        """Nobody takes the place of a server whose absence was announced to who decides: only if it is not
        coming back, or if there are too many."""
        world = self._world
        known = machine.agent.replication.drained if machine.agent is not None else {}
        is_surplus = peer not in etcd.members or len(etcd.members) > world.plan.servers
        if peer in known and not is_surplus and not world.is_gone(peer) and peer not in world.reimaged:
            fail(f"{machine.name} deletes the Node of {world.name(peer)}, which is drained")

    def role_changed(self, machine: SimMachine, core: Bootstrap) -> None:
        """k3s's data of a role is to be set aside, since the authority says so: it must have said so."""
        member, etcd = core.member, None
        if member is not None:
            etcd = self._world.etcd_of(member.genesis.ca_hash)
            self._wipes_allowed.add((machine.peer, member.epoch))
        if member is None or etcd is None:
            fail(f"{machine.name} changes a role that it does not have")

    def role_given_up(self, machine: SimMachine) -> None:
        """k3s is stopped, and its data goes since the role is another: it may not be etcd's member then."""
        data: Data | None = machine.disk.read(DATA)
        if data is None or data.role != "server" or data.ca_hash not in self._votes.cas(machine.scope):
            return  # a datastore of somebody else's (`stale_k3s`) has no quorum of ours to lose
        if machine.peer in self._world.revoked:
            return  # the others don't hear it any more: it is lost to them in any case
        if machine.peer in self._world.etcds[data.store].members:
            fail(f"{machine.name} sets its server's data aside while it is a member of etcd")

    def wipe_wanted(self, machine: SimMachine, core: Bootstrap, epoch: int, certificate: Certificate) -> None:
        """The data of an epoch is to be set aside: only if a certificate ends that epoch. One that is READY
        ends with the READY of a newer one; for who never got in, when it is to begin again without it."""
        self._votes.certificate_seen(machine, certificate)
        newer = certificate.instance.epoch > epoch
        if certificate.instance.scope != machine.scope or not (
            newer or (certificate.instance.epoch == epoch and certificates.is_abort(certificate))
        ):
            fail(f"{machine.name} wipes epoch {epoch} because of {certificate.instance}")
        if not certificates.verify(certificate, self._world.mesh_id):
            fail(f"{machine.name} wipes epoch {epoch} without a valid certificate")
        ready = self._votes.ready(machine.scope)
        has_joined = core.member is not None and core.member.joined
        if ready is not None and ready[0] == epoch and (has_joined or not self._begins_again(certificate)):
            fail(f"{machine.name} wipes epoch {epoch}, which is READY")
        self._wipes_allowed.add((machine.peer, epoch))

    def _begins_again(self, certificate: Certificate) -> bool:
        """Whether it is of a recovery that resets the datastore; also of one given up: no k3s of the epoch
        before starts again then, until another recovery begins it anew from one server's data."""
        decided = self._votes.genesis(certificate.instance.scope, certificate.instance.epoch)
        return decided is not None and decided.continues is not None and decided.continues.reset

    def wiped(self, machine: SimMachine, epoch: int) -> None:
        """k3s's data is being set aside."""
        if (machine.peer, epoch) not in self._wipes_allowed:
            fail(f"{machine.name} wipes epoch {epoch} without being allowed to")

    def look(self, machines: Iterable[SimMachine]) -> None:
        """What holds of every node whenever it has done what it decided. `machines`: those to look at."""
        for peer in self._world.revoked:
            self._out_since.setdefault(peer, self._world.engine.now)
        for machine in machines:
            agent = machine.agent
            if agent is None or not agent.is_idle:
                continue
            core = agent.bootstrap
            drop_in: DropIn | None = machine.disk.read(DROP_IN)
            if drop_in is not None and drop_in.cluster_init and core.state not in (State.INIT, State.FENCED):
                fail(f"cluster-init is on the disk of {machine.name} in {core.state}")
            if core.state is State.MEMBER:
                self._member(machine, core)

    def _member(self, machine: SimMachine, core: Bootstrap) -> None:
        member = core.member
        assert member is not None, "a member knows what it is a member of"
        ca_hash = member.genesis.ca_hash
        if self._member_ca.setdefault(machine.scope, ca_hash) != ca_hash:
            fail(f"{machine.scope} has members with two CAs: {ca_hash} at {machine.name}")
        data: Data | None = machine.disk.read(DATA)
        if data is not None and data.ca_hash != ca_hash:
            fail(f"{machine.name} is a member of CA {ca_hash}, its k3s has CA {data.ca_hash}")

    def k3s_restarts(self, machine: SimMachine) -> None:
        """An upgrade takes k3s down: never so many servers at once that the majority goes."""
        data: Data | None = machine.disk.read(DATA)
        if data is None or data.role != "server":
            return
        members = self._world.etcds[data.store].members
        self._restarting = {m for m in self._restarting if m.peer in members} | {machine}
        if len(members) > 2 and 2 * len(self._restarting) >= len(members):
            names = ", ".join(sorted(m.name for m in self._restarting))
            fail(f"an upgrade has {names} of {len(members)} servers down at once")

    def turns_given(
        self, machine: SimMachine, etcd: Etcd, before: dict[str, Any] | None, item: dict[str, Any]
    ) -> None:
        """It is some nodes' turn to be upgraded: no server's, while another one is lost for ever to whoever
        decides, and without both no majority would remain."""
        given = set(model.from_object(item).turns)
        given -= set(model.from_object(before).turns) if before is not None else set()
        heard = revoked_peers(machine.agent.replication.ledger) if machine.agent is not None else set()
        now = self._world.engine.now
        lost = {p for p in etcd.members if p in heard and now - self._out_since.get(p, now) > _HEARD_S}
        taken = lost | (given & set(etcd.members))
        if lost and taken > lost and len(etcd.members) > 2 and 2 * len(taken) >= len(etcd.members):
            names = ", ".join(sorted(self._world.name(peer) for peer in taken))
            fail(f"{machine.name} upgrades a server with {names} of {len(etcd.members)} servers lost by then")

    def went_back(self, machine: SimMachine) -> None:
        """Its cluster's datastore is what a snapshot held, whatever becomes of the recovery."""
        self._went_back.add(machine.scope)

    def one_k3s(self) -> None:
        """After an upgrade, carried out or given up, all nodes run one version: it is one minor version.
        Where it was stopped, since a node is not well with its old k3s either, a person was told. A datastore
        that went back to before the upgrade was ordered knows of no order: a person gives it again."""
        found: dict[str, dict[str, str]] = {}
        stopped = self._world.verdict.upgrades_may_wait() | {
            m.scope
            for m in self._world.machines.values()
            if m.agent is not None
            and m.agent.upgrading is not None
            and (order := m.agent.upgrading.order()) is not None
            and order.state == "stopped"
        }
        stopped |= {scope for scope in self._went_back if not self._is_ordered(scope)}
        for machine in self._world.machines.values():
            if machine.scope in stopped:
                continue
            if machine.agent is not None and machine.peer not in self._world.revoked:
                found.setdefault(machine.scope, {})[machine.name] = installed(machine)
        for versions in found.values():
            if len(set(versions.values())) > 1:
                fail(f"nodes run different versions of k3s: {versions}")

    def _is_ordered(self, scope: str) -> bool:
        """Whether anybody knows of an order to upgrade the cluster that is there."""
        agents = (m.agent for m in self._world.machines.values() if m.scope == scope)
        return any(a is not None and a.upgrading is not None and a.upgrading.order() for a in agents)
