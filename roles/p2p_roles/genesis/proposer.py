"""How does one node get a value decided?

One `Proposer` is one attempt: one ballot, two phases. It asks every voter for a promise, adopts the
value of the highest ballot that any of a quorum reports (else its own), asks for votes, and has `Won`
with a certificate when a quorum of distinct peers has signed. When that has become impossible, or at
the deadline, it has `Lost`; whoever owns it waits and tries again with a higher round.

The first voter asked is always the proposer itself: its own promise is durable before any other peer
hears of the ballot, so a ballot is never used twice, whatever crashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, assert_never

from p2p_network.core import decree
from p2p_network.core.ids import PeerId
from p2p_network.core.machine import Decision
from p2p_network.identity import verify as verify_signature
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis import messages
from p2p_roles.genesis.messages import (
    VOTE_PURPOSE,
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
    Vote,
    vote_payload,
)
from p2p_roles.view import MAX_NODES


@dataclass(frozen=True, slots=True)
class Begun:
    """The attempt may begin."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A voter answered `asked`; `answer` is None when it did not in time."""

    peer: PeerId
    asked: Request
    answer: Answer | None


@dataclass(frozen=True, slots=True)
class Expired:
    """The attempt has taken too long."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Send `message` to a voter; its answer, or None after a timeout, comes back as `Answered`."""

    peer: PeerId
    message: Request


@dataclass(frozen=True, slots=True)
class Won:
    """Decided: by this attempt, or earlier and now learnt. The value need not be the one proposed."""

    certificate: Certificate


@dataclass(frozen=True, slots=True)
class Lost:
    """No decision in this ballot. `round`: the highest seen; `nodes`: the largest N heard."""

    round: int
    nodes: int
    reason: str


Event: TypeAlias = Begun | Answered | Expired
Effect: TypeAlias = Ask | Won | Lost


class Proposer:
    """One attempt to get a value decided.

    Args:
        voters: whom to ask; this node first.
        value: what to propose if nobody has accepted anything yet.
        nodes: the N that the quorum is based on.
        round: higher than every round that this node has promised.
        lost: peers that `nodes` leaves out.
    """

    def __init__(
        self,
        *,
        mesh_id: str,
        instance: Instance,
        self_id: PeerId,
        voters: tuple[PeerId, ...],
        value: bytes,
        nodes: int,
        round: int,
        grounds: Certificate | None,
        lost: tuple[str, ...] = (),
    ) -> None:
        assert voters[:1] == (self_id,), "a proposer asks itself first"
        assert len(set(voters)) == len(voters), "each voter is asked once"
        self.instance = instance
        self.ballot = Ballot(round, self_id)
        self.phase = 1
        self.done = False
        self._mesh_id = mesh_id
        self._voters = voters
        self._value = value
        self._nodes = nodes
        self._grounds = grounds
        self._lost_peers = lost
        self._promises: dict[PeerId, tuple[Ballot, bytes] | None] = {}
        self._votes: dict[PeerId, bytes] = {}
        self._failed: set[PeerId] = set()
        self._highest_round = round
        self._largest_nodes = nodes
        self._refusal = ""

    @property
    def quorum(self) -> int:
        """How many voters decide."""
        return messages.quorum(self._nodes)

    def step(self, now: float, event: Event) -> Decision[Effect]:
        """Begin, take an answer, or give up."""
        if self.done:
            return Decision()
        match event:
            case Begun():
                request = Prepare(self.instance, self.ballot, self._nodes, self._grounds, self._lost_peers)
                return self._ask_all(request)
            case Answered(peer, asked, answer):
                return self._answered(peer, asked, answer)
            case Expired():
                return self._lost("too few voters answered in time")
            case _:
                assert_never(event)

    def wake_at(self) -> float | None:
        """Never: the owner keeps the deadline and sends `Expired`."""
        return None

    def _ask_all(self, request: Request) -> Decision[Effect]:
        if len(self._voters) < self.quorum:
            return self._lost(f"{len(self._voters)} voters are here, {self.quorum} must agree")
        return Decision(tuple(Ask(peer, request) for peer in self._voters))

    def _answered(self, peer: PeerId, asked: Request, answer: Answer | None) -> Decision[Effect]:
        phase = 1 if isinstance(asked, Prepare) else 2
        stale = asked.instance != self.instance or asked.ballot != self.ballot or phase != self.phase
        if isinstance(answer, Decided):  # a proof is good whenever it comes
            return self._decided(peer, answer.certificate)
        if stale or peer not in self._voters:
            return Decision()
        match answer:
            case Promise() if phase == 1 and self._is_mine(answer):
                return self._promised(peer, answer)
            case Accepted() if phase == 2 and self._is_mine(answer):
                return self._accepted(peer, answer)
            case Nack():
                self._heard(answer)
        return self._missed(peer)

    def _is_mine(self, answer: Promise | Accepted) -> bool:
        return answer.instance == self.instance and answer.ballot == self.ballot

    def _heard(self, nack: Nack) -> None:
        self._largest_nodes = max(self._largest_nodes, min(nack.nodes, MAX_NODES))
        if nack.promised is not None:
            self._highest_round = max(self._highest_round, min(nack.promised.round, messages.MAX_ROUND - 1))
        self._refusal = nack.reason[:200]

    def _promised(self, peer: PeerId, promise: Promise) -> Decision[Effect]:
        if promise.accepted is not None:
            ballot, value = promise.accepted
            try:
                messages.decode_value(value, self.instance.decree)
            except ValueError:
                return self._missed(peer)
            if not ballot < self.ballot:
                return self._missed(peer)
        self._promises[peer] = promise.accepted
        self._failed.discard(peer)
        if len(self._promises) < self.quorum:
            return Decision()
        self.phase = 2
        self._failed.clear()
        self._value = self._choose()
        reason = f"{len(self._promises)} of {self._nodes} nodes promised {self.instance}"
        asking = self._ask_all(
            Accept(self.instance, self.ballot, self._nodes, self._value, self._grounds, self._lost_peers)
        )
        return Decision(asking.effects, reason)

    def _choose(self) -> bytes:
        return decree.to_propose(self._promises.values(), self._value)

    def _accepted(self, peer: PeerId, answer: Accepted) -> Decision[Effect]:
        payload = vote_payload(self._mesh_id, self.instance, self.ballot, self._nodes, self._value)
        if not verify_signature(peer, VOTE_PURPOSE, payload, answer.signature):
            return self._missed(peer)
        self._votes[peer] = answer.signature
        if len(self._votes) < self.quorum:
            return Decision()
        self.done = True
        votes = tuple(Vote(voter, self._votes[voter]) for voter in sorted(self._votes))
        certificate = Certificate(self.instance, self.ballot, self._nodes, self._value, votes)
        return Decision((Won(certificate),), f"{len(votes)} of {self._nodes} nodes decided {self.instance}")

    def _decided(self, peer: PeerId, certificate: Certificate) -> Decision[Effect]:
        if (
            certificate.instance.scope != self.instance.scope
            or certificate.instance < self.instance
            or not certificates.verify(certificate, self._mesh_id)
        ):
            return self._missed(peer) if peer in self._voters else Decision()
        self.done = True
        return Decision((Won(certificate),), f"{certificate.instance} was decided before")

    def _missed(self, peer: PeerId) -> Decision[Effect]:
        """This voter won't help in this phase; give up when a quorum has become impossible."""
        if peer in (self._promises if self.phase == 1 else self._votes):
            return Decision()  # it has helped already; this is a late duplicate
        self._failed.add(peer)
        if len(self._voters) - len(self._failed) >= self.quorum:
            return Decision()
        return self._lost(self._refusal or "too few voters answered")

    def _lost(self, why: str) -> Decision[Effect]:
        self.done = True
        return Decision((Lost(self._highest_round, self._largest_nodes, why),), why)
