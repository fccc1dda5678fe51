"""How does one node take part in the votes: answering others, and getting its own proposal through?

Joins this node's `Acceptor` with at most one running `Proposer`: asks to this node itself are answered
on the spot (durably: the `Persist` comes out before whatever follows from the vote), attempts that are
lost are tried again with a higher round after a growing, jittered pause. The jitter comes from a hash
of who and what, not from a random source, so runs repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from p2p_network.core.ids import PeerId, stable_hash
from p2p_roles.genesis import acceptor, proposer
from p2p_roles.genesis.acceptor import Acceptor, AcceptorState, Conflict, Persist, Reply
from p2p_roles.genesis.messages import (
    GENESIS,
    MAX_ROUND,
    OUTCOME,
    Certificate,
    Instance,
    Request,
    Value,
    encode_value,
    lost_in,
)
from p2p_roles.genesis.proposer import Answered, Ask, Lost, Proposer, Won

_LONGEST_PAUSE = 8  # in ballots
_N_HEARD_S = 30.0


@dataclass(frozen=True, slots=True)
class Learnt:
    """A certificate is new here and came from votes, not from the ledger: publish it."""

    certificate: Certificate


Effect: TypeAlias = Persist | Reply | Ask | Conflict | Learnt


class Voting:
    """One node's part in all votes of one scope.

    Args:
        ballot_s: how long an attempt may take; the pause between attempts is at least as long.
    """

    def __init__(
        self,
        *,
        scope: str,
        mesh_id: str,
        self_id: PeerId,
        sign: Callable[[bytes], bytes],
        ballot_s: float,
        state: AcceptorState,
    ) -> None:
        self.acceptor = Acceptor(scope=scope, mesh_id=mesh_id, sign=sign, state=state)
        self.last_refusal = ""
        self._scope, self._mesh_id, self._self_id = scope, mesh_id, self_id
        self._ballot_s = ballot_s
        self._attempt: Proposer | None = None
        self._goal: Instance | None = None
        self._deadline = 0.0
        self._retry_at = 0.0
        self._lost = 0
        self._round = 0
        self._heard = (0, 0.0)  # N and until when it is believed

    def nodes(self, now: float) -> int:
        """N for a proposal made now: the acceptor's, or a larger one that a voter answered with lately."""
        heard, until = self._heard
        return max(self.acceptor.nodes, heard if now < until else 0)

    def wake_at(self) -> float | None:
        """When the running attempt expires, or the next may begin."""
        if self._attempt is not None:
            return self._deadline
        return self._retry_at if self._goal is not None else None

    # ------------------------------------------------------------ proposing

    def propose(
        self,
        now: float,
        decree: int,
        value: Value,
        voters: tuple[PeerId, ...],
        *,
        epoch: int | None = None,
        nodes: int | None = None,
    ) -> list[Effect]:
        """Get `value` decided for `decree` of the open epoch; call again until it is decided.

        Args:
            epoch: another one than the open one: a recovery proposes the next.
            nodes: N to count on; default: what is known.
        """
        instance = Instance(self._scope, self.acceptor.epoch if epoch is None else epoch, decree)
        assert self.acceptor.certificate(instance.epoch, decree) is None, "decided already"
        if self._goal != instance:
            self._goal, self._attempt, self._lost, self._retry_at = instance, None, 0, now
        if self._attempt is not None or now < self._retry_at:
            return []
        promised = self.acceptor.promised(instance)
        self._round = max(self._round, promised.round if promised else 0) + 1
        assert self._round <= MAX_ROUND, "rounds are counted up one by one"
        before = (instance.epoch, GENESIS) if decree == OUTCOME else (instance.epoch - 1, OUTCOME)
        self._attempt = Proposer(
            mesh_id=self._mesh_id,
            instance=instance,
            self_id=self._self_id,
            voters=(self._self_id, *(v for v in voters if v != self._self_id)),
            value=encode_value(value),
            nodes=self.nodes(now) if nodes is None else nodes,
            round=self._round,
            grounds=self.acceptor.certificate(*before),
            lost=lost_in(value),
        )
        self._deadline = now + self._ballot_s
        return self._drive(now, proposer.Begun())

    @property
    def goal(self) -> Instance | None:
        """What is being proposed at present."""
        return self._goal

    def give_way(self) -> None:
        """Stop proposing; a vote already cast stays cast."""
        self._goal = self._attempt = None

    # ------------------------------------------------------------ what comes in

    def asked(self, now: float, event: acceptor.Asked) -> list[Effect]:
        """Answer a peer: exactly one `Reply` among the effects."""
        return self._own(now, event)

    def answered(self, now: float, event: Answered) -> list[Effect]:
        """A peer answered, or did not."""
        return self._drive(now, event)

    def tick(self, now: float) -> list[Effect]:
        """Give up an attempt whose time is over."""
        if self._attempt is not None and now >= self._deadline:
            return self._drive(now, proposer.Expired())
        return []

    def learn(self, now: float, certificate: Certificate) -> list[Effect]:
        """A certificate came from the ledger or the disk; it is verified here."""
        return self._own(now, acceptor.CertificateLearned(certificate))

    def declare(self, now: float, declared: int, seen: int) -> list[Effect]:
        """N as configurations declare it now, and how many nodes were ever seen (0: no matter)."""
        effects = self._own(now, acceptor.NodesDeclared(declared))
        if seen:
            effects += self._own(now, acceptor.NodesRaised(seen))
        return effects

    # ------------------------------------------------------------ inside

    def _own(self, now: float, event: acceptor.Event) -> list[Effect]:
        effects: list[Effect] = [*self.acceptor.step(now, event).effects]
        goal = self._goal
        if goal is not None and (
            self.acceptor.epoch > goal.epoch or self.acceptor.certificate(goal.epoch, goal.decree) is not None
        ):
            self.give_way()
        return effects

    def _drive(self, now: float, event: proposer.Event) -> list[Effect]:
        attempt = self._attempt
        if attempt is None:
            return []
        out: list[Effect] = []
        for effect in attempt.step(now, event).effects:
            match effect:
                case Ask(peer, message) if peer == self._self_id:
                    out += self._ask_self(now, message)
                case Ask():
                    out.append(effect)
                case Won(certificate):
                    learnt = self._own(now, acceptor.CertificateLearned(certificate))
                    out += learnt
                    if any(isinstance(e, Persist) for e in learnt):
                        out.append(Learnt(certificate))
                    self.give_way()
                case Lost(round, nodes, reason):
                    self._pause(now, round, nodes, reason)
                case _:
                    assert_never(effect)
        return out

    def _ask_self(self, now: float, message: Request) -> list[Effect]:
        out: list[Effect] = []
        for effect in self.acceptor.step(now, acceptor.Asked(self._self_id, message)).effects:
            if isinstance(effect, Reply):
                out += self._drive(now, Answered(self._self_id, message, effect.message))
            else:
                out.append(effect)
        return out

    def _pause(self, now: float, round: int, nodes: int, reason: str) -> None:
        self._attempt = None
        self._lost += 1
        self._round = max(self._round, round)
        self.last_refusal = reason
        if nodes > self.acceptor.nodes:
            self._heard = (nodes, now + _N_HEARD_S)
        jitter = stable_hash(self._self_id, self._round, self._lost) / 2**64
        self._retry_at = now + self._ballot_s * (0.2 + jitter) * min(self._lost, _LONGEST_PAUSE)
