"""What does the bootstrap machine know, and how does it say what it wants?

The base of the machine: the facts that events bring, the durable state, the effects collected during a
step, and the questions that causes and duties ask of the facts. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from p2p_network import wire
from p2p_network.core.ids import PeerId, stable_hash
from p2p_roles import assign
from p2p_roles.assign import Assignment, Role
from p2p_roles.durable import Durable, Membership, restore
from p2p_roles.events import Alarm, Effect, K3sChanged, Persist, PublishCertificate, RoundTripsMeasured
from p2p_roles.genesis import acceptor, voting
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis.acceptor import Reply
from p2p_roles.genesis.messages import (
    GENESIS,
    OUTCOME,
    Abort,
    Certificate,
    Genesis,
    Instance,
    Value,
    carries_on,
    covered,
    quorum,
)
from p2p_roles.genesis.proposer import Ask
from p2p_roles.recovery import is_kin
from p2p_roles.rules import Rules
from p2p_roles.transitions import State
from p2p_roles.view import View

_MAX_FAILED: Final = 32
_MAX_ALARMS: Final = 256
_NO_WORD: Final = Assignment("agent", "", 0, "")


class Facts:
    """What one node knows, in one cluster scope."""

    def __init__(
        self,
        self_id: PeerId,
        scope: str,
        mesh_id: str,
        sign: Callable[[bytes], bytes],
        rules: Rules,
    ) -> None:
        self.self_id, self.scope, self.mesh_id, self.rules = self_id, scope, mesh_id, rules
        self._sign = sign
        self.started = False
        self.state = State.DISCOVER
        self.reason = "starting"
        self.durable = Durable(scope)
        self.voting = self._new_voting()
        self.out: list[Effect] = []
        self.next_wake: float | None = None
        self._alarmed: set[str] = set()
        self._published: set[Instance] = set()
        # observed
        self.view = View(self_id, scope, (), 0.0)
        self.electorate: frozenset[object] = frozenset()
        self.stable_since = 0.0
        self.silent_since: float | None = None
        self.vpn_ip = ""
        self.distances = RoundTripsMeasured({}, {})
        self.k3s = K3sChanged("stopped")
        self.assignments: dict[PeerId, Assignment] = {}
        self.workloads: int | None = None
        self.twin_epoch = 0  # an epoch that two quorums decided differently
        self.ledger_compared = False
        self.started_at = 0.0
        # under way in this run of the process
        self.entered_at = 0.0
        self.k3s_started = False
        self.is_kept = False  # nothing was set aside: see `K3sMayVote`

    # ------------------------------------------------------------ state and effects

    @property
    def member(self) -> Membership | None:
        """This node's place in a cluster, if it has one."""
        return self.durable.member

    @property
    def epoch(self) -> int:
        """The epoch that is open."""
        return self.voting.acceptor.epoch

    def start(self, now: float, raw: bytes | None) -> None:
        """Continue from what was persisted. Raises RoleError if that is damaged."""
        self.durable = restore(raw, self.scope)
        self.voting = self._new_voting()
        self.started, self.started_at = True, now
        self.emit_votes(self.voting.declare(now, self.expected_nodes(), 0))

    def _new_voting(self) -> voting.Voting:
        return voting.Voting(
            scope=self.scope,
            mesh_id=self.mesh_id,
            self_id=self.self_id,
            sign=self._sign,
            ballot_s=self.rules.ballot_s,
            state=self.durable.acceptor,
        )

    def change(self, **changes: Any) -> None:
        """Change fields of the durable state; they are durable with the next `persist`."""
        self.durable = msgspec.structs.replace(self.durable, **changes)

    def change_member(self, **changes: Any) -> None:
        """Change fields of the membership; likewise."""
        assert self.member is not None, "there is a membership to change"
        self.change(member=msgspec.structs.replace(self.member, **changes))

    def persist(self) -> None:
        """Have everything made durable before the next effect."""
        before = self.durable.member
        assert before is None or before.epoch <= self.epoch, "epochs only increase"
        self.change(acceptor=self.voting.acceptor.state)
        self.out.append(Persist(wire.encode(self.durable)))

    def wake(self, at: float | None) -> None:
        """Ask for a tick not later than `at`."""
        if at is not None and (self.next_wake is None or at < self.next_wake):
            self.next_wake = at

    def alarm(self, message: str, hint: str, *, about: str = "") -> None:
        """Tell a person, once per `about` (default: per message)."""
        about = about or message
        if about not in self._alarmed and len(self._alarmed) < _MAX_ALARMS:
            self._alarmed.add(about)
            self.out.append(Alarm(message, hint))

    # ------------------------------------------------------------ votes

    def emit_votes(self, effects: Sequence[voting.Effect]) -> None:
        """Pass on what the votes want done; their durable state is part of ours."""
        for effect in effects:
            match effect:
                case acceptor.Persist():
                    self._note_failed()
                    self.persist()
                case Reply() | Ask():
                    self.out.append(effect)
                case voting.Learnt():
                    pass  # published below, with those that came as grounds of a request
                case acceptor.Conflict(known, _):
                    self.twin_epoch = max(self.twin_epoch, known.instance.epoch)
                    self.alarm(
                        f"two quorums decided {known.instance} of cluster {self.scope} differently: "
                        f"there are two clusters; this node keeps to the one it learnt first",
                        "p2p.minimum_nodes is too low for this mesh: set it to the number of nodes on every "
                        "node, then keep one of the clusters: kairos-p2p cluster resolve",
                    )

        self._publish_certificates()

    def _publish_certificates(self) -> None:
        """Have every certificate that is durable here in the ledger too, once per run of the process.

        A power cut may have come in between, or the ledger may have been lost since. What is there
        already is not written again.
        """
        durable = self.voting.acceptor.state.certificates
        self._published &= {known.instance for known in durable}
        for known in durable:
            if known.instance not in self._published:
                self._published.add(known.instance)
                self.out.append(PublishCertificate(certificates.key_of(known), certificates.encode(known)))

    def learn(self, now: float, raw: bytes) -> None:
        """Take note of a certificate from the ledger or the disk; it is verified."""
        try:
            learnt = certificates.decode(raw)
        except ValueError:
            return  # the ledger's policy refuses such entries; an old file may hold one
        self._published.add(learnt.instance)
        self.emit_votes(self.voting.learn(now, learnt))

    def propose(self, now: float, decree: int, value: Value) -> None:
        """Get a value decided in the open epoch; called again until it is."""
        acceptor = self.voting.acceptor
        known = acceptor.certificate(self.epoch, GENESIS) if decree == OUTCOME else None
        nodes = None
        if known is not None and carries_on(certificates.value_of(known)):
            nodes = acceptor.outcome_nodes(self.epoch, self.voting.nodes(now))
        voters = tuple(sorted(self.view.alive))
        self.emit_votes(self.voting.propose(now, decree, value, voters, nodes=nodes))

    def _note_failed(self) -> None:
        """Whose epoch was aborted ranks last from now on."""
        ended = self.voting.acceptor.certificate(self.epoch - 1, OUTCOME)
        value = certificates.value_of(ended) if ended is not None else None
        if isinstance(value, Abort) and value.initiator:
            mark = f"{self.epoch - 1}/{value.initiator}"
            if mark not in self.durable.failed:
                self.change(failed=(*self.durable.failed, mark)[-_MAX_FAILED:])

    # ------------------------------------------------------------ reading the facts

    def open_genesis(self) -> Genesis | None:
        """The GENESIS of the open epoch, if it is certified."""
        known = self.voting.acceptor.certificate(self.epoch, GENESIS)
        return certificates.genesis_of(known) if known is not None else None

    def ready_genesis(self) -> tuple[int, Genesis, Certificate] | None:
        """Epoch, GENESIS and READY certificate of the cluster that is up, if all is known."""
        outcome = self.voting.acceptor.certificate(self.epoch, OUTCOME)
        decided = self.open_genesis()
        if outcome is None or decided is None or not certificates.is_ready(outcome):
            return None
        return self.epoch, decided, outcome

    def overtaken_by(self) -> Certificate | None:
        """The certificate that ends the epoch which this node holds data of."""
        member, known = self.member, self.voting.acceptor.certificate
        if member is None or self.epoch <= member.epoch:
            return None
        if member.joined:  # nothing but a newer cluster ends one that was up
            ready = self.ready_genesis()
            if ready is not None and not self.is_contested():
                return ready[2]
            if self.durable.fenced_epoch <= member.epoch:
                return None
            # that was decided, and is being carried out; by now the newer cluster is carried on itself
            # (or no longer: the epoch is that of the newest certificate, or one after it)
            fenced = known(self.durable.fenced_epoch, OUTCOME)
            return fenced or known(self.epoch, GENESIS) or known(self.epoch - 1, OUTCOME)
        return known(self.epoch, GENESIS) or known(self.epoch, OUTCOME) or known(self.epoch - 1, OUTCOME)

    def is_contested(self) -> bool:
        """Another cluster, which does not carry this one on, was certified while people use this one.

        A server asks its own cluster; what can't be told counts as used. An agent stays by its servers.
        """
        member, ready = self.member, self.ready_genesis()
        if member is None or not member.joined or ready is None or ready[0] < member.epoch:
            return False
        if ready[0] == member.epoch:
            return self.twin_epoch == member.epoch
        if self.durable.fenced_epoch == ready[0]:
            return False  # that was decided before; the data may be half gone
        after, mine = ready[1].continues, member.genesis.cluster_id
        if is_kin(member.genesis, ready[1]) or (after is not None and mine in after.abandons):
            return False
        if member.role == "server":
            return self.workloads is None or self.workloads > 0
        return any(n.alive and n.role == "server" and n.cluster_id == mine for n in self.view.nodes)

    def own_outcome_is_ready(self) -> bool:
        """The READY certificate of the epoch that this node initialised is known."""
        member = self.member
        if member is None or not member.initiator:
            return False
        outcome = self.voting.acceptor.certificate(member.epoch, OUTCOME)
        return outcome is not None and certificates.is_ready(outcome)

    def is_initiator(self) -> bool:
        """The open epoch's GENESIS names this node, and it has the secrets for it."""
        decided = self.open_genesis()
        return (
            decided is not None
            and decided.continues is None
            and decided.initiator == self.self_id
            and self.durable.secrets == (self.epoch, decided.ca_hash)
        )

    def needed_votes(self, now: float) -> int:
        """Q."""
        return quorum(self.voting.nodes(now))

    def expected_nodes(self) -> int:
        """How many nodes the first genesis waits for: the largest N that is declared."""
        return max(self.rules.minimum_nodes, self.view.declared_nodes)

    def understated(self) -> str:
        """What is wrong with the declared N; "" if it covers all nodes that were seen."""
        nodes, declared = self.voting.acceptor.nodes, self.expected_nodes()
        if covered(declared) >= nodes:
            return ""
        return (
            f"p2p.minimum_nodes is understated: {nodes} nodes were seen, {declared} makes the genesis "
            f"safe for {covered(declared)} only; set p2p.minimum_nodes: {nodes}"
        )

    def places_pending(self) -> tuple[PeerId, ...]:
        """Living nodes whose region is still being found out."""
        return tuple(node.peer for node in self.view.nodes if node.alive and node.region_pending)

    def failed(self) -> tuple[str, ...]:
        """Initiators whose epochs were aborted, oldest first."""
        return tuple(mark.partition("/")[2] for mark in self.durable.failed)

    def turn(self) -> int:
        """This node's place in the order of proposers, from 0; those that can't initialise come last."""
        ranked = assign.rank(self.view, self.failed(), self.rules.placement)
        if self.self_id in ranked:
            return ranked.index(self.self_id)
        others = sorted(self.view.alive - set(ranked), key=lambda p: stable_hash("rank", self.scope, p))
        return len(ranked) + (others.index(self.self_id) if self.self_id in others else len(others))

    def own_role(self, decided: Genesis) -> tuple[Role | None, str]:
        """What the genesis or the cluster's authority says this node is; a sentence."""
        given = self.own_word(decided)
        if given is not None and self.came_late(given):
            return "server", "became a server before it was told otherwise; waiting for the cluster's word"
        if given is not None and given.leaving:
            return None, f"{given.reason}; waiting until the cluster has removed this server"
        if given is not None:
            return given.role, given.reason
        if self.self_id in decided.servers:
            return "server", assign.certified_reasons(self.view, decided)[self.self_id]
        return None, "the cluster is up; waiting for an assignment by its servers"

    def own_word(self, decided: Genesis) -> Assignment | None:
        """What the cluster's authority says of this node."""
        given = self.assignments.get(self.self_id)
        return given if given is not None and given.cluster_id == decided.cluster_id else None

    def is_reassigned(self) -> bool:
        """The cluster's authority gave this node, which has data of one role, another one."""
        member = self.member
        given = self.own_word(member.genesis) if member is not None else None
        if member is None or given is None or given.role == member.role or member.epoch != self.epoch:
            return False
        if self.is_of_etcd():
            votes = self.state is State.MEMBER and self.k3s.state == "ready"
            votes = votes or (self.came_late(given) and self.k3s.state != "failed")
            if votes:  # only who is no member of etcd any more may go; the authority will see to it
                return False
        # who is in goes when the cluster has removed it; who was only getting in goes at once
        return not given.leaving or (self.is_of_etcd() and not member.joined and not member.late_fence)

    def is_of_etcd(self) -> bool:
        """What k3s has here may be a member of etcd."""
        member = self.member
        return member is not None and member.role == "server" and member.genesis.datastore == "etcd"

    def came_late(self, given: Assignment) -> bool:
        """When this word came, k3s here might already have been a voter, which the word did not know."""
        member = self.member
        if member is None or member.role != "server" or not member.late_fence:
            return False
        return given.leaving or 0 < given.fence <= member.late_fence

    def is_looking(self, now: float) -> bool:
        """Whether a server that comes back should still wait for what was said of it meanwhile.

        It may have been replaced. Without an answer in time it goes on with what it knows: after a power
        cut of the whole site nobody can say anything.
        """
        member = self.member
        if member is None or not member.joined or member.role != "server" or self.ledger_compared:
            return False
        if member.initiator and not member.join_ip:
            return False  # nobody was there yet to replace it, and cluster-init may still be on its disk
        others = {*member.genesis.servers, *(p for p, a in self.assignments.items() if a.role == "server")}
        if not others - {self.self_id} or self.assignments.get(self.self_id, _NO_WORD).leaving:
            return False
        until = self.started_at + self.rules.look_s
        if now >= until:
            return False
        self.wake(until)
        return True

    def note_silence(self, now: float) -> None:
        """Since when the open epoch's initiator has not been heard of."""
        decided = self.open_genesis()
        if decided is None or PeerId(decided.initiator) in self.view.alive:
            self.silent_since = None
        elif self.silent_since is None:
            self.silent_since = now

    def member_error(self) -> str:
        """What k3s says when it is not well, ready to append to a sentence; else ""."""
        if self.k3s.state == "ready":
            return ""
        return f"; k3s is {self.k3s.state}" + (f" ({self.k3s.error})" if self.k3s.error else "")
