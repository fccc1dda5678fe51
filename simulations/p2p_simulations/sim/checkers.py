"""What must never be, whatever fails?

The checkers stand outside the nodes and see all of them. They are told of everything that matters (votes
answered, state made durable, certificates, k3s started, wiped, joined, addresses) and look at the nodes
after every event. They take nothing from a core's word that they can count for themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from p2p_network.core.ids import PeerId
from p2p_network.ledger.entry import Entry
from p2p_roles import assign, events, placement
from p2p_roles.bootstrap import Bootstrap
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis.messages import (
    GENESIS,
    OUTCOME,
    Accepted,
    Answer,
    Ballot,
    Certificate,
    Genesis,
    Instance,
    Promise,
    decode_value,
    lost_in,
    quorum,
)
from p2p_roles.k3s.pki import JoinSecret
from p2p_roles.recovery import is_kin
from p2p_roles.transitions import State
from p2p_roles.view import ViewNode
from p2p_simulations.sim.etcd import Etcd
from p2p_simulations.sim.k3s import DATA, DROP_IN, Data, DropIn
from p2p_simulations.sim.programs import installed
from p2p_simulations.sim.violation import Violation
from p2p_simulations.sim.weight import bytes_held

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine
    from p2p_simulations.sim.world import World

_SECRET = (b"::server:", b"::node:")  # in every token of k3s
MAX_MESSAGES_PER_S = 150.0  # per node, over `WINDOW_S`
MAX_BYTES_PER_S = 60_000.0  # likewise
WINDOW_S = 20.0
MAX_HELD_BYTES = (96 << 10, 16 << 10)
"""What an agent's columns may hold in memory: so much, and so much more for each identity of the mesh."""


def _begins_again(certificate: Certificate) -> bool:
    """Whether it is the GENESIS of a recovery that resets the datastore."""
    value = certificates.value_of(certificate)
    return isinstance(value, Genesis) and value.continues is not None and value.continues.reset


SNAPSHOTS_HELD_BYTES = 16 << 10
"""And for each identity in worlds with snapshots: who holds which."""


class Checkers:
    """The invariants of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.certified: dict[Instance, Certificate] = {}
        self._seen_raw: set[bytes] = set()
        self._epochs: dict[PeerId, int] = {}
        self._said: dict[tuple[PeerId, Instance], tuple[Ballot, bytes | None]] = {}
        self._votes: dict[Instance, dict[Ballot, tuple[bytes, set[PeerId]]]] = {}
        self._chosen: dict[Instance, tuple[Ballot, bytes]] = {}
        self._wipes_allowed: set[tuple[PeerId, int]] = set()
        self._settled: dict[PeerId, str] = {}
        self._member_ca: dict[str, str] = {}  # scope -> the CA that its members trust
        self._assigned_servers: set[str] = set()
        self._restarting: set[SimMachine] = set()  # by an upgrade of their k3s
        self.is_any_ready = False
        self._messages: dict[str, tuple[int, int]] = {}
        self._window_began = 0.0
        self.most_messages_per_s = self.most_bytes_per_s = 0.0
        self.most_held_bytes = 0

    def _fail(self, what: str) -> None:
        raise Violation(what)

    # ------------------------------------------------------------ votes

    def certificate(self, machine: SimMachine, raw: bytes) -> None:
        """A certificate was seen somewhere."""
        if raw not in self._seen_raw:
            self._seen_raw.add(raw)
            self._certified(machine, certificates.decode(raw))

    def _certified(self, machine: SimMachine, seen: Certificate) -> None:
        known = self.certified.get(seen.instance)
        if known is seen:
            return
        if known is not None:
            if known.value != seen.value:
                one, other = certificates.value_of(known), certificates.value_of(seen)
                self._fail(f"{seen.instance} was decided twice: {one} and {other} (at {machine.name})")
            return
        if not certificates.verify(seen, self._world.mesh_id):
            self._fail(f"{machine.name} holds a certificate of {seen.instance} that does not verify")
        self.certified[seen.instance] = seen
        value = certificates.value_of(seen)
        voters = ", ".join(self._world.name(vote.peer) for vote in seen.votes)
        self._world.note("(world)", f"certified {seen.instance} by {voters}: {type(value).__name__}")
        self._world.mark("certificate", f"certified {seen.instance} by {voters}: {type(value).__name__}")
        if certificates.is_ready(seen):
            self._ready_certified(seen)
        if isinstance(value, Genesis):
            self._well_placed(value)

    def _well_placed(self, decided: Genesis) -> None:
        """The first servers stand where the rule that every node declares lets them."""
        rule, plan = placement.of_genesis(decided), self._world.plan
        if rule.kind != plan.placement.kind or plan.placement.home_region not in ("", rule.home_region):
            self._fail(f"certified is the placement {rule}, declared {plan.placement}")
        machines = (self._world.machine_of(peer) for peer in decided.servers)
        nodes = [
            ViewNode(m.peer, m.name, "" if plan.unsaid_regions else m.plan.region, m.plan.zone, m.plan.wish)
            for m in machines
            if m is not None
        ]
        if wrong := placement.fault(rule, nodes):
            self._fail(f"the first servers are placed against the rule: {wrong}")

    def _ready_certified(self, seen: Certificate) -> None:
        """At most one cluster per scope is READY, and it serves the CA that was certified for it."""
        self.is_any_ready = True
        scope, epoch = seen.instance.scope, seen.instance.epoch
        for instance, other in self.certified.items():
            if instance.scope == scope and instance.epoch != epoch and certificates.is_ready(other):
                before, after = (self.genesis(scope, e) for e in sorted((epoch, instance.epoch)))
                if before is None or after is None or not is_kin(before, after):
                    self._fail(f"two clusters of {scope} are READY: epochs {instance.epoch} and {epoch}")
        decided = self.genesis(scope, epoch)
        if decided is None:
            self._fail(f"READY of epoch {epoch} without a GENESIS certificate")
            return
        initiator = self._world.machine_of(decided.initiator)
        data: Data | None = initiator.disk.read(DATA) if initiator is not None else None
        if data is not None and data.ca_hash != decided.ca_hash:
            self._fail(
                f"READY of epoch {epoch} although the k3s of {self._world.name(decided.initiator)} serves "
                f"CA {data.ca_hash}, not the certified {decided.ca_hash}"
            )

    def genesis(self, scope: str, epoch: int) -> Genesis | None:
        """What was certified as GENESIS of an epoch, anywhere."""
        known = self.certified.get(Instance(scope, epoch, GENESIS))
        return certificates.genesis_of(known) if known is not None else None

    def ready(self, scope: str) -> tuple[int, Genesis] | None:
        """Epoch and GENESIS of the READY cluster of a scope."""
        epochs = [i.epoch for i, c in self.certified.items() if i.scope == scope and certificates.is_ready(c)]
        if not epochs:
            return None
        decided = self.genesis(scope, max(epochs))
        assert decided is not None, "checked when READY was certified"
        return max(epochs), decided

    def persisted(self, machine: SimMachine, core: Bootstrap) -> None:
        """The bootstrap machine's state is durable."""
        for known in core.voting.acceptor.state.certificates:
            if self.certified.get(known.instance) is not known:
                self._certified(machine, known)
        for state in core.voting.acceptor.state.instances:
            if state.accepted is not None:
                self._voted(machine, core, state.instance, *state.accepted)
        before = self._epochs.get(machine.peer, 0)
        if core.epoch < before:
            self._fail(f"{machine.name} went back from epoch {before} to {core.epoch}")
        self._epochs[machine.peer] = core.epoch

    def _voted(
        self, machine: SimMachine, core: Bootstrap, instance: Instance, ballot: Ballot, value: bytes
    ) -> None:
        """A vote is durable. Once a quorum has voted for a value, no higher ballot may have another one,
        whether or not anybody has noticed and made a certificate of it."""
        votes = self._votes.setdefault(instance, {})
        first, voters = votes.setdefault(ballot, (value, set()))
        if machine.peer in voters:
            return
        voters.add(machine.peer)
        if first != value:
            self._fail(f"two values in one ballot of {instance}")
        if len(voters) >= quorum(self._electorate(core, instance, value)):
            self._chosen.setdefault(instance, (ballot, value))
        chosen = self._chosen.get(instance)
        for other, (proposed, _) in votes.items() if chosen is not None else ():
            if chosen is not None and other > chosen[0] and proposed != chosen[1]:
                self._fail(
                    f"{instance} was decided in round {chosen[0].round}, another value voted for later"
                )

    def _electorate(self, core: Bootstrap, instance: Instance, value: bytes) -> int:
        """N of a vote: without those that an operator declared lost."""
        acceptor = core.voting.acceptor
        if instance.decree == OUTCOME:
            return acceptor.outcome_nodes(instance.epoch)
        return acceptor.nodes - len(lost_in(decode_value(value, GENESIS)))

    def answered(self, machine: SimMachine, core: Bootstrap, answer: Answer) -> None:
        """A promise or a vote leaves a node."""
        if isinstance(answer, Promise | Accepted):
            key = (machine.peer, answer.instance)
            promised = core.voting.acceptor.promised(answer.instance)
            before = self._said.get(key)
            if promised is None or promised < answer.ballot:
                self._fail(f"{machine.name} answers what it has not noted: {answer}")
            elif before is not None and isinstance(answer, Accepted) and answer.ballot < before[0]:
                self._fail(f"{machine.name} votes in a ballot of {answer.instance} below its promise")
            elif before is not None and before[1] and isinstance(answer, Promise) and answer.accepted is None:
                self._fail(f"{machine.name} conceals its vote in {answer.instance}")
            elif before is None or before[0] <= answer.ballot:
                held = next(s for s in core.voting.acceptor.state.instances if s.instance == answer.instance)
                self._said[key] = (answer.ballot, held.accepted[1] if held.accepted else None)

    def started(self, machine: SimMachine, core: Bootstrap) -> None:
        """A node has read what it made durable before: nothing that it said may be forgotten."""
        acceptor = core.voting.acceptor
        if core.epoch < self._epochs.get(machine.peer, 0):
            self._fail(
                f"{machine.name} restarted in epoch {core.epoch}, it had been in {self._epochs[machine.peer]}"
            )
        for (peer, instance), (ballot, value) in self._said.items():
            if peer != machine.peer or instance.scope != core.scope or instance.epoch < core.epoch:
                continue
            if acceptor.certificate(instance.epoch, instance.decree) is not None:
                continue
            promised = acceptor.promised(instance)
            held = next((s for s in acceptor.state.instances if s.instance == instance), None)
            if promised is None or promised < ballot or (value and (held is None or held.accepted is None)):
                self._fail(f"{machine.name} has forgotten what it promised or voted in {instance}")

    # ------------------------------------------------------------ k3s

    def start_wanted(self, machine: SimMachine, core: Bootstrap, effect: events.StartK3s) -> None:
        """The bootstrap machine asks for k3s."""
        decided = self.genesis(core.scope, effect.epoch)
        if decided is None or decided.ca_hash != effect.ca_hash:
            self._fail(f"{machine.name} starts k3s with a CA that nobody certified for epoch {effect.epoch}")
        elif decided.timing != effect.timing:
            self._fail(f"{machine.name} starts k3s with other times than those certified: {effect.timing}")
        elif effect.kind == "server-init":
            if core.state is not State.INIT or decided.initiator != machine.peer:
                self._fail(f"{machine.name} is to run cluster-init in {core.state}, chosen or not")
        elif core.state is State.RECOVER and decided.initiator == machine.peer:
            pass  # it brings the cluster back, to have READY certified
        elif self._outcome_is_ready(core.scope, effect.epoch) is False:
            self._fail(f"{machine.name} joins (as {effect.kind}) epoch {effect.epoch}, which is not READY")

    def _outcome_is_ready(self, scope: str, epoch: int) -> bool:
        known = self.certified.get(Instance(scope, epoch, OUTCOME))
        return known is not None and certificates.is_ready(known)

    def k3s_started(self, machine: SimMachine, drop_in: DropIn, data: Data) -> None:
        """k3s comes up on a datastore that it has."""
        if drop_in.ca_hash != data.ca_hash and not machine.plan.stale_k3s:
            self._fail(f"{machine.name}: the drop-in says CA {drop_in.ca_hash}, the datastore {data.ca_hash}")

    def k3s_initialises(self, machine: SimMachine, drop_in: DropIn) -> None:
        """k3s makes a new cluster."""
        decided = self.genesis(machine.scope, drop_in.epoch)
        if decided is None or (decided.initiator, decided.ca_hash) != (machine.peer, drop_in.ca_hash):
            self._fail(f"{machine.name} initialises a cluster that no quorum chose it for")
        known = self._world.etcds.get(drop_in.ca_hash)
        if known is not None and self._outcome_is_ready(machine.scope, drop_in.epoch):
            self._fail(f"{machine.name} initialises the cluster with CA {drop_in.ca_hash} a second time")

    def k3s_joins(self, machine: SimMachine, drop_in: DropIn, ca_hash: str) -> None:
        """k3s has got into a cluster."""
        ready = self.ready(machine.scope)
        if ready is None:
            self._fail(f"{machine.name} joined a cluster before any READY certificate")
        elif ready[1].ca_hash != ca_hash or drop_in.ca_hash != ca_hash:
            self._fail(f"{machine.name} joined CA {ca_hash}, certified is {ready[1].ca_hash}")

    def k3s_ready(self, machine: SimMachine, data: Data, etcd: Etcd) -> None:
        """k3s serves."""
        if data.ca_hash != etcd.ca_hash:
            self._fail(f"{machine.name} serves CA {data.ca_hash} from a datastore with CA {etcd.ca_hash}")

    def member_removed(self, machine: SimMachine, etcd: Etcd, peer: str) -> None:
        """A Node is deleted, and its etcd member goes with it: never may that cost the quorum."""
        rest = [self._world.machine_of(p) for p in etcd.members if p != peer]
        alive = sum(
            m is not None and m.k3s.joined and (m is machine or self._world.joined(machine, m)) for m in rest
        )
        if 2 * alive <= len(rest):
            self._fail(
                f"{machine.name} removes {self._world.name(peer)}: of the {len(rest)} servers that remain "
                f"only {alive} are alive"
            )
        if etcd.learner and etcd.learner != peer:
            self._fail(f"{machine.name} removes a member while {self._world.name(etcd.learner)} comes")

    def role_changed(self, machine: SimMachine, core: Bootstrap) -> None:
        """k3s's data of a role is to be set aside, since the authority says so: it must have said so."""
        member, etcd = core.member, None
        if member is not None:
            etcd = self._world.etcd_of(member.genesis.ca_hash)
            self._wipes_allowed.add((machine.peer, member.epoch))
        if member is None or etcd is None:
            self._fail(f"{machine.name} changes a role that it does not have")

    def role_given_up(self, machine: SimMachine) -> None:
        """k3s is stopped, and its data goes since the role is another: it may not be etcd's member then."""
        data: Data | None = machine.disk.read(DATA)
        if data is None or data.role != "server" or data.ca_hash not in self._cas(machine.scope):
            return  # a datastore of somebody else's (`stale_k3s`) has no quorum of ours to lose
        if machine.peer in self._world.revoked:
            return  # the others don't hear it any more: it is lost to them in any case
        if machine.peer in self._world.etcds[data.store].members:
            self._fail(f"{machine.name} sets its server's data aside while it is a member of etcd")

    def _cas(self, scope: str) -> set[str]:
        """Every CA that was ever certified for a scope."""
        return {
            certificates.genesis_of(known).ca_hash
            for instance, known in self.certified.items()
            if instance.scope == scope and instance.decree == GENESIS
        }

    def wipe_wanted(self, machine: SimMachine, core: Bootstrap, epoch: int, certificate: Certificate) -> None:
        """The data of an epoch is to be set aside: only if a certificate ends that epoch. One that is READY
        ends with the READY of a newer one; for who never got in, when it is to begin again without it."""
        self._certified(machine, certificate)
        newer = certificate.instance.epoch > epoch
        if certificate.instance.scope != machine.scope or not (
            newer or (certificate.instance.epoch == epoch and certificates.is_abort(certificate))
        ):
            self._fail(f"{machine.name} wipes epoch {epoch} because of {certificate.instance}")
        if not certificates.verify(certificate, self._world.mesh_id):
            self._fail(f"{machine.name} wipes epoch {epoch} without a valid certificate")
        ready = self.ready(machine.scope)
        has_joined = core.member is not None and core.member.joined
        if ready is not None and ready[0] == epoch and (has_joined or not _begins_again(certificate)):
            self._fail(f"{machine.name} wipes epoch {epoch}, which is READY")
        self._wipes_allowed.add((machine.peer, epoch))

    def wiped(self, machine: SimMachine, epoch: int) -> None:
        """k3s's data is being set aside."""
        if (machine.peer, epoch) not in self._wipes_allowed:
            self._fail(f"{machine.name} wipes epoch {epoch} without being allowed to")

    # ------------------------------------------------------------ addresses and ledger

    def address_settled(self, machine: SimMachine, ipv4: str) -> None:
        """k3s may be built on this address now."""
        before = self._settled.setdefault(machine.peer, ipv4)
        if before != ipv4 and machine.name not in self._world.lost_ledger:
            self._fail(f"{machine.name} settled on {before}, and after a restart on {ipv4}")

    def settled_on(self, peer: PeerId) -> str:
        """The address that a node has for life; "" before it has one."""
        return self._settled.get(peer, "")

    def address_assigned(self, machine: SimMachine, ipv4: str) -> None:
        """An address goes on the device."""
        before = self._settled.get(machine.peer, ipv4)
        if before == ipv4:
            return
        if machine.name not in self._world.lost_ledger:
            self._fail(f"{machine.name} had settled on {before} and takes {ipv4}, though nobody claims that")
        # with its ledger it lost the claim, or how old it was
        del self._settled[machine.peer]
        self._world.readdressed.add(machine.name)

    def address_withdrawn(self, machine: SimMachine, ipv4: str) -> None:
        """An address is given up: only for an older claim."""
        agent = machine.agent
        assert agent is not None, "an agent withdraws"
        claims = agent.replication.claims()
        own = claims.get(machine.peer)
        if self._settled.pop(machine.peer, None) is None or own is None:
            return
        older = [
            peer
            for peer, claim in claims.items()
            if claim.ipv4 == ipv4 and (claim.claimed_ms, peer) < (own.claimed_ms, machine.peer)
        ]
        if not older:
            self._fail(f"{machine.name} gives up {ipv4} although nobody has an older claim")
        self._world.readdressed.add(machine.name)

    def entries(self, machine: SimMachine, entries: Iterable[Entry]) -> None:
        """Entries became valid in a node's ledger."""
        for entry in entries:
            if any(mark in (entry.value or b"") for mark in (*_SECRET, self._world.token.seed)):
                self._fail(f"{entry.key} at {machine.name} tells a secret to everybody")
            kind, *rest = entry.key.split("/")
            if kind == "genesis":
                if entry.value is not None:
                    self.certificate(machine, entry.value)
            elif kind == "upgrade":
                if entry.author not in {*self._authorities("/".join(rest)), *self._assigned_servers}:
                    self._fail(f"{machine.name} takes {entry.key} from {self._world.name(entry.author)}")
            elif kind == "assign":
                if entry.author not in {*self._authorities("/".join(rest[:-1])), *self._assigned_servers}:
                    self._fail(f"{machine.name} takes {entry.key} from {self._world.name(entry.author)}")
                if entry.value is not None and assign.decode(entry.value).role == "server":
                    self._assigned_servers.add(rest[-1])
            elif kind in ("revoked", "seat", "generation"):
                self._admission_entry(machine, kind, rest)
            elif not self._world.knows(entry.author):
                self._fail(f"{machine.name} takes {kind} from a stranger")
            elif kind == "node" and entry.author in self._gone(machine):
                whom = self._world.name(entry.author)
                self._fail(f"{machine.name} takes {kind} from {whom}, which it knows is revoked")
            elif rest[-1] != entry.author:
                self._fail(
                    f"{machine.name} takes {kind}/{self._world.name(rest[-1])} "
                    f"from {self._world.name(entry.author)}"
                )
        agent = machine.agent
        if agent is not None:
            identities = self._world.identities
            rotations = max(self._world.token.generation, 1 + self._world.rotations)
            each = 8 if self._world.plan.upgrades_k3s else 7  # two of them grants: a holder's and a liar's
            limit = each * identities + 2 * (len(self.certified) + 2) + len(self._world.revoked)
            limit += rotations * (identities + 1)
            if len(agent.replication.ledger) > limit:
                self._fail(f"{machine.name} holds more than {limit} entries of {identities} nodes")

    def secret_kept(self, machine: SimMachine, secret: JoinSecret) -> None:
        """What was handed out is on this disk: the servers' token only where a server may be."""
        if secret.server_token and not self.may_assign(machine):
            self._fail(f"{machine.name} holds the servers' token, and nobody made it a server")

    def _admission_entry(self, machine: SimMachine, kind: str, rest: list[str]) -> None:
        """Nobody is put out and nothing rotated but by the plan."""
        if kind == "revoked" and rest[0] not in self._world.revoked:
            self._fail(f"{machine.name} takes it that {self._world.name(rest[0])} is revoked")
        if kind != "revoked" and int(rest[0]) > self._world.rotations + 1:
            self._fail(f"{machine.name} takes {kind} of generation {rest[0]}")

    def _gone(self, machine: SimMachine) -> set[PeerId]:
        """Of those that were revoked, the ones of which this node has learned."""
        agent = machine.agent
        if agent is None:
            return set()
        known = agent.replication.ledger
        return {p for p in self._world.revoked if known.get(f"revoked/{p}")} - {machine.peer}

    def _authorities(self, scope: str) -> set[str]:
        """Who initialised a cluster of this scope that was READY, or brought it back."""
        epochs = {i.epoch for i, c in self.certified.items() if i.scope == scope and certificates.is_ready(c)}
        found = (self.genesis(scope, epoch) for epoch in epochs)
        return {p for decided in found if decided is not None for p in (decided.initiator, *decided.servers)}

    def may_assign(self, machine: SimMachine) -> bool:
        """Whether what this node says of others' roles is believed: then it is trusted, and must not lie."""
        return machine.peer in {*self._authorities(machine.scope), *self._assigned_servers}

    # ------------------------------------------------------------ after every event

    def look(self, machines: Iterable[SimMachine]) -> None:
        """What holds of every node whenever it has done what it decided. `machines`: those to look at."""
        for machine in machines:
            agent = machine.agent
            if agent is None or not agent.is_idle:
                continue
            core = agent.bootstrap
            drop_in: DropIn | None = machine.disk.read(DROP_IN)
            if drop_in is not None and drop_in.cluster_init and core.state not in (State.INIT, State.FENCED):
                self._fail(f"cluster-init is on the disk of {machine.name} in {core.state}")
            if core.state is State.MEMBER:
                self._member(machine, core)

    def _member(self, machine: SimMachine, core: Bootstrap) -> None:
        member = core.member
        assert member is not None, "a member knows what it is a member of"
        ca_hash = member.genesis.ca_hash
        if self._member_ca.setdefault(machine.scope, ca_hash) != ca_hash:
            self._fail(f"{machine.scope} has members with two CAs: {ca_hash} at {machine.name}")
        data: Data | None = machine.disk.read(DATA)
        if data is not None and data.ca_hash != ca_hash:
            self._fail(f"{machine.name} is a member of CA {ca_hash}, its k3s has CA {data.ca_hash}")

    def message(self, name: str, size_bytes: int) -> None:
        """A node sends a message: the rate is bounded, by number and by bytes."""
        now = self._world.engine.now
        if now - self._window_began >= WINDOW_S:
            self._window_began = now
            self._messages.clear()
        count, size = self._messages.get(name, (0, 0))
        count, size = self._messages[name] = count + 1, size + size_bytes
        self.most_messages_per_s = max(self.most_messages_per_s, count / WINDOW_S)
        if count > MAX_MESSAGES_PER_S * WINDOW_S:
            self._fail(f"{name} sent {count} messages in {WINDOW_S:.0f} s")
        self.most_bytes_per_s = max(self.most_bytes_per_s, size / WINDOW_S)
        if size > MAX_BYTES_PER_S * WINDOW_S:
            self._fail(f"{name} sent {size} bytes in {WINDOW_S:.0f} s")

    def memory(self) -> None:
        """What a node remembers is bounded by the size of the mesh, whatever the others said to it."""
        first, each = MAX_HELD_BYTES
        if self._world.plan.k3s.snapshots_s:  # what the others hold
            each += SNAPSHOTS_HELD_BYTES
        limit = first + each * self._world.identities
        for machine in self._world.machines.values():
            if machine.agent is None:
                continue
            held = bytes_held(machine.agent)
            self.most_held_bytes = max(self.most_held_bytes, held)
            if held > limit:
                self._fail(f"{machine.name} holds {held} bytes in memory, more than {limit}")

    def k3s_restarts(self, machine: SimMachine) -> None:
        """An upgrade takes k3s down: never so many servers at once that the majority goes."""
        data: Data | None = machine.disk.read(DATA)
        if data is None or data.role != "server":
            return
        members = self._world.etcds[data.store].members
        self._restarting = {
            m for m in self._restarting if m.peer in members and m.k3s.observed.state != "ready"
        }
        self._restarting.add(machine)
        if len(members) > 2 and 2 * len(self._restarting) >= len(members):
            names = ", ".join(sorted(m.name for m in self._restarting))
            self._fail(f"an upgrade has {names} of {len(members)} servers down at once")

    # ------------------------------------------------------------ in the end

    def converged(self) -> str:
        """What is not yet as it must be after healing; "" if all is."""
        world = self._world
        running = [m for m in world.machines.values() if m.agent is not None and m.peer not in world.revoked]
        digests = {m.agent.replication.ledger.digest() for m in running if m.agent is not None}
        if len(digests) > 1:
            return f"{len(digests)} different ledgers"
        return ""

    def revoked_are_gone(self) -> None:
        """After convergence nobody holds what a revoked node said of itself, or talks with it."""
        for machine in self._world.machines.values():
            agent = machine.agent
            if agent is None or machine.peer in self._world.revoked:
                continue
            for peer, name in self._world.revoked.items():
                if agent.replication.ledger.get(f"node/{peer}") is not None:
                    self._fail(f"{machine.name} still holds what {name} says, which was revoked")
                if peer in agent.host.connected():
                    self._fail(f"{machine.name} still talks with {name}, which was revoked")
            if agent.admission.trust.generation != self._world.token.generation:
                self._fail(f"{machine.name} was left behind in generation {agent.admission.trust.generation}")

    def one_k3s(self) -> None:
        """After an upgrade, carried out or given up, all nodes run one version: it is one minor version.
        Where it was stopped, since a node is not well with its old k3s either, a person was told."""
        found: dict[str, dict[str, str]] = {}
        stopped = self._world.upgrades_may_wait() | {
            m.scope
            for m in self._world.machines.values()
            if m.agent is not None
            and m.agent.upgrading is not None
            and (order := m.agent.upgrading.order()) is not None
            and order.state == "stopped"
        }
        for machine in self._world.machines.values():
            if machine.scope in stopped:
                continue
            if machine.agent is not None and machine.peer not in self._world.revoked:
                found.setdefault(machine.scope, {})[machine.name] = installed(machine)
        for versions in found.values():
            if len(set(versions.values())) > 1:
                self._fail(f"nodes run different versions of k3s: {versions}")

    def addresses_unique(self) -> None:
        """After convergence no two nodes hold one address."""
        held: dict[str, str] = {}
        for machine in self._world.machines.values():
            if (
                machine.agent is not None
                and machine.peer not in self._world.revoked
                and (ipv4 := machine.agent.vpn.status.ipv4)
            ):
                other = held.setdefault(ipv4, machine.name)
                if other != machine.name:
                    self._fail(f"{other} and {machine.name} both hold {ipv4}")
