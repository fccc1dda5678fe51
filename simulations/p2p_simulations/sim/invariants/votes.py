"""What was voted, certified and made durable, and can all of that be true?

Every certificate and every durable vote is counted outside the nodes, whoever noticed it: one value per
(scope, epoch, decree), at most one READY cluster per scope, nothing promised or voted forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p_network.core.ids import PeerId
from p2p_roles import placement
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
from p2p_roles.recovery import is_kin
from p2p_roles.view import ViewNode
from p2p_simulations.sim.k3s import DATA, Data
from p2p_simulations.sim.violation import fail

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine
    from p2p_simulations.sim.world import World


def _replaces(before: Genesis, after: Genesis) -> bool:
    """Whether it carries the other cluster on, or an operator has said that it takes its place."""
    given_up = after.continues.abandons if after.continues is not None else ()
    return is_kin(before, after) or before.cluster_id in given_up


class Votes:
    """Everything that was ever voted in one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.certified: dict[Instance, Certificate] = {}
        self._seen_raw: set[bytes] = set()
        self._epochs: dict[PeerId, int] = {}
        self._said: dict[tuple[PeerId, Instance], tuple[Ballot, bytes | None]] = {}
        self._votes: dict[Instance, dict[Ballot, tuple[bytes, set[PeerId]]]] = {}
        self._chosen: dict[Instance, tuple[Ballot, bytes]] = {}
        self.is_any_ready = False

    def certificate(self, machine: SimMachine, raw: bytes) -> None:
        """A certificate was seen somewhere."""
        if raw not in self._seen_raw:
            self._seen_raw.add(raw)
            self.certificate_seen(machine, certificates.decode(raw))

    def certificate_seen(self, machine: SimMachine, seen: Certificate) -> None:
        """Likewise, already decoded."""
        known = self.certified.get(seen.instance)
        if known is seen:
            return
        if known is not None:
            if known.value != seen.value:
                one, other = certificates.value_of(known), certificates.value_of(seen)
                fail(f"{seen.instance} was decided twice: {one} and {other} (at {machine.name})")
            return
        if not certificates.verify(seen, self._world.mesh_id):
            fail(f"{machine.name} holds a certificate of {seen.instance} that does not verify")
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
        """The first servers stand where the rule that every node declares lets them. A recovery carries on
        with those that there are: one more than the first two, say, whose region nobody had come from yet."""
        rule, plan = placement.of_genesis(decided), self._world.plan
        if rule.kind != plan.placement.kind or plan.placement.home_region not in ("", rule.home_region):
            fail(f"certified is the placement {rule}, declared {plan.placement}")
        if decided.continues is not None and decided.continues.cluster_id:
            return
        machines = (self._world.machine_of(peer) for peer in decided.servers)
        nodes = [
            ViewNode(m.peer, m.name, "" if plan.unsaid_regions else m.plan.region, m.plan.zone, m.plan.wish)
            for m in machines
            if m is not None
        ]
        if wrong := placement.fault(rule, nodes):
            fail(f"the first servers are placed against the rule: {wrong}")

    def _ready_certified(self, seen: Certificate) -> None:
        """At most one cluster per scope is READY, and it serves the CA that was certified for it."""
        self.is_any_ready = True
        scope, epoch = seen.instance.scope, seen.instance.epoch
        for instance, other in self.certified.items():
            if instance.scope == scope and instance.epoch != epoch and certificates.is_ready(other):
                before, after = (self.genesis(scope, e) for e in sorted((epoch, instance.epoch)))
                if before is None or after is None or not _replaces(before, after):
                    fail(f"two clusters of {scope} are READY: epochs {instance.epoch} and {epoch}")
        decided = self.genesis(scope, epoch)
        if decided is None:
            fail(f"READY of epoch {epoch} without a GENESIS certificate")
        initiator = self._world.machine_of(decided.initiator)
        data: Data | None = initiator.disk.read(DATA) if initiator is not None else None
        if data is not None and data.ca_hash != decided.ca_hash:
            fail(
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
                self.certificate_seen(machine, known)
        for state in core.voting.acceptor.state.instances:
            if state.accepted is not None:
                self._voted(machine, core, state.instance, *state.accepted)
        before = self._epochs.get(machine.peer, 0)
        if core.epoch < before:
            fail(f"{machine.name} went back from epoch {before} to {core.epoch}")
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
            fail(f"two values in one ballot of {instance}")
        if len(voters) >= quorum(self._electorate(core, instance, value)):
            self._chosen.setdefault(instance, (ballot, value))
        chosen = self._chosen.get(instance)
        for other, (proposed, _) in votes.items() if chosen is not None else ():
            if chosen is not None and other > chosen[0] and proposed != chosen[1]:
                fail(f"{instance} was decided in round {chosen[0].round}, another value voted for later")

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
                fail(f"{machine.name} answers what it has not noted: {answer}")
            elif before is not None and isinstance(answer, Accepted) and answer.ballot < before[0]:
                fail(f"{machine.name} votes in a ballot of {answer.instance} below its promise")
            elif before is not None and before[1] and isinstance(answer, Promise) and answer.accepted is None:
                fail(f"{machine.name} conceals its vote in {answer.instance}")
            elif before is None or before[0] <= answer.ballot:
                held = next(s for s in core.voting.acceptor.state.instances if s.instance == answer.instance)
                self._said[key] = (answer.ballot, held.accepted[1] if held.accepted else None)

    def started(self, machine: SimMachine, core: Bootstrap) -> None:
        """A node has read what it made durable before: nothing that it said may be forgotten."""
        acceptor = core.voting.acceptor
        if core.epoch < self._epochs.get(machine.peer, 0):
            fail(
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
                fail(f"{machine.name} has forgotten what it promised or voted in {instance}")

    def is_ready(self, scope: str, epoch: int) -> bool:
        """Whether READY was certified for an epoch."""
        known = self.certified.get(Instance(scope, epoch, OUTCOME))
        return known is not None and certificates.is_ready(known)

    def cas(self, scope: str) -> set[str]:
        """Every CA that was ever certified for a scope."""
        return {
            certificates.genesis_of(known).ca_hash
            for instance, known in self.certified.items()
            if instance.scope == scope and instance.decree == GENESIS
        }

    def authorities(self, scope: str) -> set[str]:
        """Who initialised a cluster of this scope that was READY, or brought it back."""
        epochs = {i.epoch for i, c in self.certified.items() if i.scope == scope and certificates.is_ready(c)}
        found = (self.genesis(scope, epoch) for epoch in epochs)
        return {p for decided in found if decided is not None for p in (decided.initiator, *decided.servers)}
