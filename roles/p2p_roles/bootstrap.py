"""How does a node get from "switched on" to "member of the one cluster"?

The machine walks the table in `transitions.py`. An event only updates what the node knows; then the
machine takes every transition whose cause holds, and then does what is due in the state it is in
(`duties.py`): so the order in which facts arrive never matters, and a restart is nothing but the same
facts again. It owns this node's part in the votes (`genesis.voting`).

Safety rests on the certificates alone: ``cluster-init`` only after a GENESIS certificate that names
this node, no join without a READY certificate, no wipe without a newer certificate (asserted).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, assert_never

from p2p_network.core.ids import PeerId
from p2p_network.core.machine import Decision
from p2p_roles import assign
from p2p_roles.assign import Assignment, Role
from p2p_roles.duties import Duties
from p2p_roles.events import (
    AssignmentChanged,
    CertificateLearned,
    Effect,
    Event,
    JoinSecretReceived,
    JoinSecretRefused,
    K3sChanged,
    K3sMayVote,
    K3sReset,
    K3sWiped,
    LedgerCompared,
    RecoveryOrdered,
    RoundTripsMeasured,
    SecretsMade,
    Started,
    Tick,
    ViewChanged,
    VpnReady,
    WorkloadsCounted,
)
from p2p_roles.genesis.acceptor import Asked, Reply
from p2p_roles.genesis.messages import GENESIS, Instance, Nack, Prepare, Request, covered
from p2p_roles.genesis.proposer import Answered
from p2p_roles.quorum import NO_CLUSTER, Quorum
from p2p_roles.rules import Authorization, Rules, authorize
from p2p_roles.transitions import TABLE, Cause, State
from p2p_roles.view import MAX_NODES, View

# what a server that comes back heeds before it knows whether it was replaced
_WHILE_LOOKING: Final = frozenset(
    {Cause.OVERTAKEN, Cause.RECOVERS, Cause.HELD_BACK, Cause.CONTESTED, Cause.REASSIGNED}
)


@dataclass(frozen=True, slots=True)
class Status:
    """Where this node stands; what its `RoleRecord` and ``status`` say."""

    state: State
    role: Role | None
    reason: str
    epoch: int
    cluster_id: str
    ready: bool
    quorum: Quorum = NO_CLUSTER


class Bootstrap(Duties):
    """The bootstrap machine of one node in one cluster scope.

    Args:
        sign: makes a vote's signature: ``lambda m: identity.sign(VOTE_PURPOSE, m)``.
    """

    def __init__(
        self,
        *,
        self_id: PeerId,
        scope: str,
        mesh_id: str,
        sign: Callable[[bytes], bytes],
        rules: Rules,
    ) -> None:
        super().__init__(self_id, scope, mesh_id, sign, rules)
        self._said = ""
        self._causes: dict[Cause, Callable[[float], bool]] = {
            Cause.OVERTAKEN: lambda now: self.overtaken_by() is not None,
            Cause.WAS_MEMBER: lambda now: self._was_member(),
            Cause.CLUSTER_EXISTS: lambda now: self.ready_genesis() is not None,
            Cause.CHOSEN: lambda now: self.is_initiator(),
            Cause.OTHER_CHOSEN: lambda now: self.open_genesis() is not None,
            Cause.ENOUGH_NODES: self._enough_nodes,
            Cause.TOO_FEW_NODES: lambda now: len(self.view.alive) < self.needed_votes(now),
            Cause.INITIALISED: lambda now: self.own_outcome_is_ready(),
            Cause.ABORTED: lambda now: self.open_genesis() is None,
            Cause.SUPERSEDED: lambda now: self.ready_genesis() is None,
            Cause.SERVING: lambda now: self.is_serving(),
            Cause.REASSIGNED: lambda now: self.is_reassigned(),
            Cause.WIPED: lambda now: self.member is None,
            Cause.MAY_VOTE: lambda now: self.is_kept,
            Cause.RECOVERS: lambda now: self.recovers(),
            Cause.HELD_BACK: lambda now: self.is_held(),
            Cause.CONTINUED: lambda now: self.is_continued(),
            Cause.CONTESTED: lambda now: self.is_contested(),
            Cause.WITHDRAWN: lambda now: not (self.recovers() or self.is_held()),
            Cause.ONLY_RECOVERY: lambda now: self.open_genesis() is None and self.up_epoch() > 0,
        }

    # ------------------------------------------------------------ what others may ask

    @property
    def status(self) -> Status:
        """Where this node stands."""
        member, found = self.member, self.ready_genesis()
        if member is not None:
            joined_id = member.genesis.cluster_id if member.joined else ""
            ready = self.state is State.MEMBER and self.k3s.state == "ready" and not self.has_foreign_k3s()
            trouble = f"; {self.quorum.reason}" if self.quorum.health in ("minority", "lost") else ""
            reason = self.reason + trouble
            return Status(self.state, member.role, reason, member.epoch, joined_id, ready, self.quorum)
        role = self.own_role(found[1])[0] if found is not None else None
        return Status(self.state, role, self.reason, self.epoch, "", False)

    def authorize_join(self, peer: PeerId, role: Role) -> Authorization:
        """Whether this node may give `peer` the join secret of `role`."""
        member = self.member
        serving = self.state is State.MEMBER and member is not None and member.role == "server"
        serving = serving and not self.has_foreign_k3s()
        genesis = member.genesis if serving and member is not None else None
        return authorize(peer, role, genesis, self.assignments)

    def explain(self) -> dict[PeerId, str]:
        """One sentence per node: what it is and why."""
        decided = self.member.genesis if self.member is not None else None
        if decided is None and (ready := self.ready_genesis()) is not None:
            decided = ready[1]
        return assign.explain(self.view, decided, self.assignments)

    # ------------------------------------------------------------ the machine

    def wake_at(self) -> float | None:
        """When a `Tick` is due (monotonic seconds), or None."""
        return self.next_wake

    def step(self, now: float, event: Event) -> Decision[Effect]:
        """Take one event in; `Started` is the first. An `Asked` gets exactly one `Reply`."""
        assert self.started or isinstance(event, Started), "nothing is decided before Started"
        self.out = []
        self.next_wake = None
        self._take_in(now, event)
        self.emit_votes(self.voting.tick(now))
        self._walk(now)
        self.look_at_quorum(now)
        retry_at = self.voting.wake_at()
        if retry_at is not None and retry_at > now:  # a past one: no proposal is wanted at present
            self.wake(retry_at)
        said, self._said = self._said, f"{self.state}: {self.reason}"
        return Decision(tuple(self.out), "" if said == self._said else self._said)

    def _take_in(self, now: float, event: Event) -> None:
        match event:
            case Started(durable, known):
                self.start(now, durable)
                for raw in known:
                    self.learn(now, raw)
            case ViewChanged(view):
                self._view_changed(now, view)
            case CertificateLearned(raw):
                self.learn(now, raw)
            case Asked(peer, message) if self._is_stranger(peer, message):
                why = "I have no record of the proposer: could I reach its cluster? (is a clock wrong?)"
                nodes = self.voting.acceptor.nodes
                self.out.append(Reply(Nack(message.instance, message.ballot, nodes, None, why)))
            case Asked(peer, message) if refusal := self.refusal(peer, message):
                nodes = self.voting.acceptor.nodes
                self.out.append(Reply(Nack(message.instance, message.ballot, nodes, None, refusal)))
            case Asked():
                # someone else's ballot is under way: don't duel with it
                if event.peer != self.self_id and self.state is State.ELECT:
                    self.yield_until = now + self.rules.ballot_s * (1 + self.turn())
                self.emit_votes(self.voting.asked(now, event))
            case Answered():
                self.emit_votes(self.voting.answered(now, event))
            case SecretsMade(epoch, ca_hash):
                if epoch == self.epoch:
                    self.change(secrets=(epoch, ca_hash))
                    self.persist()
            case K3sChanged():
                self.k3s = event
            case JoinSecretReceived() | JoinSecretRefused():
                self.secret_answered(now, event)
            case AssignmentChanged(peer, assignment):
                self._assigned(peer, assignment)
            case RoundTripsMeasured():
                self.distances = event
            case LedgerCompared():
                self.ledger_compared = True
            case VpnReady(ipv4):
                self.vpn_ip = ipv4
            case K3sWiped(epoch):
                away = self.state in (State.FENCED, State.CHANGE)
                if away and self.member is not None and epoch == self.member.epoch:
                    self.change(member=None)
                    self.k3s, self.k3s_started = K3sChanged("stopped"), False
                    self.persist()
            case K3sMayVote(epoch):
                self.came_too_late(epoch)
            case RecoveryOrdered():
                self.ordered(now, event)
            case K3sReset():
                self.reset_done(now, event)
            case WorkloadsCounted():
                self.counted(event)
            case Tick():
                pass  # what is due is looked at after every event
            case _:
                assert_never(event)

    def _walk(self, now: float) -> None:
        """Take every transition that is due, and do what is due in the state reached.

        What is done may decide something (a quorum of one), so look at the table again afterwards. The
        table has no way around in a circle without an event.
        """
        for _ in range(3 * len(State)):
            self.carry_over()
            self.look_for_twins()
            is_looking = self.state is State.DISCOVER and self.is_looking(now)
            table = [t for t in TABLE[self.state] if not is_looking or t.cause in _WHILE_LOOKING]
            due = next((t for t in table if self._causes[t.cause](now)), None)
            if due is not None:
                self.state = due.target
                self.enter(now)
                continue
            before = (self.epoch, self.voting.acceptor.state.certificates)
            self.act(now)
            if before == (self.epoch, self.voting.acceptor.state.certificates):
                return
        raise AssertionError(f"the table runs in a circle around {self.state}")

    def _is_stranger(self, peer: PeerId, message: Request) -> bool:
        """Whether a proposal to initialise comes from a node that this one doesn't see as a member.

        Its records may have been refused, e.g. since its clock is far ahead: then nobody could join it.
        Only new ballots are refused (an acceptor always may), never the completion of an old vote.
        """
        return (
            isinstance(message, Prepare)
            and message.instance == Instance(self.scope, self.epoch, GENESIS)
            and self.open_genesis() is None
            and peer not in self.view.by_peer
        )

    # ------------------------------------------------------------ facts

    def _assigned(self, peer: PeerId, assignment: Assignment) -> None:
        known, ready = self.assignments.get(peer), self.ready_genesis()
        current = ready[1].cluster_id if ready is not None else ""
        if known is not None and known.cluster_id == current != assignment.cluster_id:
            return  # the word of an authority that has been overtaken
        if len(self.assignments) < MAX_NODES or peer in self.assignments:
            self.assignments[peer] = assignment

    def _view_changed(self, now: float, view: View) -> None:
        assert view.scope == self.scope, "the view is of this cluster's scope"
        assert view.self_id == self.self_id, "the view is this node's own"
        electorate = frozenset((n.peer, n.alive, n.wish) for n in view.nodes)
        if electorate != self.electorate:
            self.electorate = electorate
            self.stable_since = now
        self.view = view
        self.note_silence(now)
        declared, seen = self.expected_nodes(), 0
        if self.member is None and self.ready_genesis() is None:
            known = {*self.durable.seen, *(node.peer for node in view.nodes)}
            if len(self.durable.seen) < len(known) <= MAX_NODES:
                self.change(seen=tuple(sorted(known)))
            if len(known) > covered(max(declared, self.voting.acceptor.nodes)):
                seen = len(known)
        self.emit_votes(self.voting.declare(now, declared, seen))

    # ------------------------------------------------------------ causes

    def _enough_nodes(self, now: float) -> bool:
        here = len(self.view.alive)
        if not assign.rank(self.view, rule=self.rules.placement) or here < self.needed_votes(now):
            return False
        if self.up_epoch():
            return False
        if self.epoch > 1:  # the first epoch had them all
            return True
        settled_at = self.stable_since + (self.rules.settle_s if here > 1 else self.rules.alone_s)
        if here < self.expected_nodes():
            return False
        if self.places_pending():
            settled_at = self.stable_since + self.rules.region_patience_s
        if now < settled_at:
            self.wake(settled_at)
            return False
        return True

    def _was_member(self) -> bool:
        """k3s was up with this role; for the initiator its READY certificate says so too."""
        member = self.member
        return member is not None and (member.joined or self.own_outcome_is_ready())
