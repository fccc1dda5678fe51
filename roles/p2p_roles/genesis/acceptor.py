"""What may I still vote for, and what have I voted?

The acceptor is a node's durable memory of the genesis: its promises and votes, its N, and the
certificates it knows. Everything that an answer rests on is in the `Persist` effect *before* the
`Reply`; a vote that could be forgotten would be no vote.

It refuses (`Nack`) a proposal whose quorum is based on fewer nodes than it knows of, and any instance
that nothing opens: GENESIS(e+1) needs the ABORT certificate of e (or READY, for a recovery and nothing
else), OUTCOME(e) the GENESIS certificate of e. Where it knows a certificate it answers with that, and votes
no more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, assert_never

import msgspec

from p2p_network import wire
from p2p_network.core import decree
from p2p_network.core.ids import PeerId
from p2p_network.core.machine import Decision
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis.messages import (
    GENESIS,
    MAX_EPOCH,
    MAX_ROUND,
    OUTCOME,
    Accept,
    Accepted,
    Answer,
    Ballot,
    Certificate,
    Decided,
    Instance,
    Nack,
    Prepare,
    Promise,
    Request,
    carries_on,
    decode_value,
    lost_in,
    vote_payload,
)
from p2p_roles.view import MAX_NODES

_KEPT_EPOCHS = 2  # the current epoch and the one whose ABORT opened it


class InstanceState(msgspec.Struct, frozen=True, array_like=True):
    """Promise and vote in one instance."""

    instance: Instance
    promised: Ballot
    accepted: tuple[Ballot, bytes] | None


class AcceptorState(msgspec.Struct, frozen=True, array_like=True):
    """What must survive a crash. `nodes`: N, as far as it was raised; never lowered."""

    nodes: int = 1
    instances: tuple[InstanceState, ...] = ()
    certificates: tuple[Certificate, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """A peer (perhaps this node itself) asked for a promise or a vote."""

    peer: PeerId
    message: Request


@dataclass(frozen=True, slots=True)
class CertificateLearned:
    """A certificate became known from outside; it is not verified yet."""

    certificate: Certificate


@dataclass(frozen=True, slots=True)
class NodesDeclared:
    """The N that configurations declare now; may go down again."""

    nodes: int


@dataclass(frozen=True, slots=True)
class NodesRaised:
    """This many eligible nodes were seen: N never goes below it again."""

    nodes: int


@dataclass(frozen=True, slots=True)
class Persist:
    """Make `state` (an encoded `AcceptorState`) durable before the next effect."""

    state: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer the request that this decision is about."""

    message: Answer


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two quorums decided differently: N was understated. The one known first is kept."""

    known: Certificate
    other: Certificate


Event: TypeAlias = Asked | CertificateLearned | NodesDeclared | NodesRaised
Effect: TypeAlias = Persist | Reply | Conflict


class Acceptor:
    """One scope's acceptor. `sign` makes a vote's signature (purpose `VOTE_PURPOSE`)."""

    def __init__(
        self,
        *,
        scope: str,
        mesh_id: str,
        sign: Callable[[bytes], bytes],
        state: AcceptorState | None = None,
    ) -> None:
        state = state or AcceptorState()
        self.scope = scope
        self._mesh_id = mesh_id
        self._sign = sign
        self._raised = state.nodes
        self._declared = 1
        self._instances = {s.instance: s for s in state.instances}
        self._certificates = {c.instance: c for c in state.certificates}

    # ------------------------------------------------------------ what it knows

    @property
    def nodes(self) -> int:
        """N: the larger of what is declared now and what it was ever raised to."""
        return max(self._raised, self._declared)

    @property
    def epoch(self) -> int:
        """The epoch that is open: one after the last ABORT, or that of the newest certificate."""
        newest = 1
        for known in self._certificates.values():
            newest = max(newest, known.instance.epoch + certificates.is_abort(known))
        return newest

    def certificate(self, epoch: int, decree: int) -> Certificate | None:
        """The certificate of an instance, if known."""
        return self._certificates.get(Instance(self.scope, epoch, decree))

    def accepted(self, instance: Instance) -> bytes | None:
        """The value last voted for in an instance."""
        state = self._instances.get(instance)
        return state.accepted[1] if state is not None and state.accepted is not None else None

    def outcome_nodes(self, epoch: int, heard: int = 0) -> int:
        """N for the end of an epoch: that of a recovery counts as its begin did. `heard`: N, if a voter knew
        of more."""
        nodes, before = max(self.nodes, heard), self.certificate(epoch, GENESIS)
        if before is None or not carries_on(genesis := certificates.value_of(before)):
            return nodes
        return max(before.nodes, nodes - len(lost_in(genesis)))

    def promised(self, instance: Instance) -> Ballot | None:
        """The highest ballot promised in an instance."""
        state = self._instances.get(instance)
        return state.promised if state is not None else None

    @property
    def state(self) -> AcceptorState:
        """What must survive a crash."""
        return AcceptorState(
            self._raised,
            tuple(self._instances[key] for key in sorted(self._instances)),
            tuple(self._certificates[key] for key in sorted(self._certificates)),
        )

    # ------------------------------------------------------------ the machine

    def wake_at(self) -> float | None:
        """Never: an acceptor only answers."""
        return None

    def step(self, now: float, event: Event) -> Decision[Effect]:
        """Answer a request (exactly one `Reply`), or take note of a certificate or of N."""
        match event:
            case Asked(peer, message):
                return self._asked(peer, message)
            case CertificateLearned(learned):
                return self._learned(learned)
            case NodesDeclared(nodes):
                self._declared = min(nodes, MAX_NODES)
                return Decision()
            case NodesRaised(nodes):
                return self._nodes_raised(min(nodes, MAX_NODES))
            case _:
                assert_never(event)

    def _nodes_raised(self, nodes: int) -> Decision[Effect]:
        if nodes <= self._raised:
            return Decision()
        before, self._raised = self.nodes, nodes
        return Decision((self._persist(),), f"N raised from {before} to {nodes}: so many nodes were seen")

    def _learned(self, learned: Certificate) -> Decision[Effect]:
        if learned.instance.scope != self.scope:
            return Decision()
        known = self._certificates.get(learned.instance)
        if known is not None:
            if known.value == learned.value or not certificates.verify(learned, self._mesh_id):
                return Decision()
            return Decision(
                (Conflict(known, learned),), f"{learned.instance} was decided twice: N is understated"
            )
        if learned.instance.epoch < self.epoch - 1 or not certificates.verify(learned, self._mesh_id):
            return Decision()
        self._note(learned)
        return Decision((self._persist(),), f"learnt what a quorum decided: {learned.instance}")

    def _note(self, verified: Certificate) -> None:
        self._certificates[verified.instance] = verified
        oldest = self.epoch - _KEPT_EPOCHS + 1
        self._certificates = {i: c for i, c in self._certificates.items() if i.epoch >= oldest}
        # votes in a decided or closed instance are never asked for again
        self._instances = {
            i: s for i, s in self._instances.items() if i.epoch >= self.epoch and i not in self._certificates
        }

    def _asked(self, peer: PeerId, message: Request) -> Decision[Effect]:
        instance = message.instance
        if problem := self._malformed(peer, message):
            return self._refuse(message, problem)
        known = self._certificates.get(instance)
        if known is None and instance.epoch < self.epoch:
            known = self._certificates[max(self._certificates)]
        if known is not None:
            return Decision((Reply(Decided(known)),), f"{instance} is decided already")
        if problem := self._unopened(instance, message.grounds):
            return self._refuse(message, problem)
        if isinstance(message, Accept) and (problem := self._inadmissible(message)):
            return self._refuse(message, problem)
        if message.nodes < (needed := self._needed(message)):
            return self._refuse(message, f"the proposal counts on {message.nodes} nodes, I know of {needed}")
        match message:
            case Prepare():
                return self._prepare(message)
            case Accept():
                return self._accept(message)
            case _:
                assert_never(message)

    def _malformed(self, peer: PeerId, message: Request) -> str:
        instance, ballot = message.instance, message.ballot
        if instance.scope != self.scope:
            return f"this node belongs to the cluster scope {self.scope!r}"
        if instance.decree not in (GENESIS, OUTCOME) or not 1 <= instance.epoch <= MAX_EPOCH:
            return "there is no such decree"
        if not 1 <= ballot.round <= MAX_ROUND or ballot.peer != peer:
            return "the ballot is not the asking peer's"
        if not 1 <= message.nodes <= MAX_NODES:
            return f"N is 1 to {MAX_NODES}"
        if isinstance(message, Accept):
            try:
                decode_value(message.value, instance.decree)
            except ValueError as exc:
                return str(exc)
        return ""

    def _unopened(self, instance: Instance, grounds: Certificate | None) -> str:
        """Why nothing opens `instance`; "" if something does. Takes note of valid grounds."""
        before = (
            Instance(self.scope, instance.epoch, GENESIS)
            if instance.decree == OUTCOME
            else Instance(self.scope, instance.epoch - 1, OUTCOME)
        )
        if certificates.opens(instance, self._certificates.get(before)):
            return ""
        if not certificates.opens(instance, grounds):
            return f"{instance} is not open: the certificate of {before} is missing"
        if grounds is not None:
            if grounds.instance in self._certificates:
                return f"{instance} is not open: another value is certified for {before}"
            if not certificates.verify(grounds, self._mesh_id):
                return f"{instance} is not open: the certificate of {before} does not verify"
            self._note(grounds)
        return ""

    def _before(self, message: Request) -> Certificate | None:
        """The certificate that opened the instance; it was looked for by `_unopened`."""
        epoch, decree = message.instance.epoch, message.instance.decree
        return self.certificate(*((epoch, GENESIS) if decree == OUTCOME else (epoch - 1, OUTCOME)))

    def _inadmissible(self, message: Accept) -> str:
        value = decode_value(message.value, message.instance.decree)
        return certificates.admits(self._before(message), value)

    def _needed(self, message: Request) -> int:
        """N without whom an operator declared lost; the end of a recovery counts as its begin did."""
        if message.instance.decree == OUTCOME:
            return self.outcome_nodes(message.instance.epoch)
        lost = set(message.lost)
        if isinstance(message, Accept):
            # a value that had been accepted before may name others than the ballot that completes it
            value = decode_value(message.value, GENESIS)
            known = self.accepted(message.instance) == message.value
            lost = lost if known and carries_on(value) else set(lost_in(value))
        return self.nodes - len(lost)

    def _prepare(self, message: Prepare) -> Decision[Effect]:
        state = self._instances.get(message.instance)
        if state is not None and (problem := decree.against_promise(state.promised, message.ballot)):
            return self._refuse(message, problem, state.promised)
        accepted = state.accepted if state is not None else None
        self._instances[message.instance] = InstanceState(message.instance, message.ballot, accepted)
        self._raised = max(self._raised, message.nodes)
        promise = Promise(message.instance, message.ballot, self.nodes, accepted)
        return Decision(
            (self._persist(), Reply(promise)), f"promised {message.instance} to {message.ballot.peer[-8:]}"
        )

    def _accept(self, message: Accept) -> Decision[Effect]:
        instance, ballot = message.instance, message.ballot
        state = self._instances.get(instance)
        if state is not None and (
            problem := decree.against_vote(state.promised, state.accepted, ballot, message.value)
        ):
            return self._refuse(message, problem, state.promised)
        self._instances[instance] = InstanceState(instance, ballot, (ballot, message.value))
        self._raised = max(self._raised, message.nodes)
        signature = self._sign(vote_payload(self._mesh_id, instance, ballot, message.nodes, message.value))
        return Decision(
            (self._persist(), Reply(Accepted(instance, ballot, self.nodes, signature))),
            f"voted in {instance} for the proposal of {ballot.peer[-8:]}",
        )

    def _refuse(self, message: Request, why: str, promised: Ballot | None = None) -> Decision[Effect]:
        nack = Nack(message.instance, message.ballot, self.nodes, promised, why)
        return Decision((Reply(nack),), f"refused {message.instance} to {message.ballot.peer[-8:]}: {why}")

    def _persist(self) -> Effect:
        return Persist(wire.encode(self.state))
