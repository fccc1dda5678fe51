"""Can two rotations at a time come to different keys of one generation, whatever is lost and whoever crashes?

Proposers and holders of the root step by step in any order: answers are lost, late and repeated, proposers
give up anywhere and begin again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_network import wire
from p2p_network.admission.voting import (
    Accept,
    Accepted,
    Ask,
    Ballot,
    Nack,
    Prepare,
    Promise,
    Votes,
    adopted,
    answer,
    is_decided,
)

NUMBER = 2


@dataclass
class Operator:
    """Someone who rotates at one of the nodes."""

    node: int
    round: int = 0
    ask: Ask | None = None
    answers: dict[int, object] = field(default_factory=dict)

    @property
    def seed(self) -> bytes:
        return bytes([self.node]) * 32


@settings(max_examples=300)
@given(st.integers(1, 5), st.data())
def test_never_two_keys_for_one_generation(holders: int, data: st.DataObject) -> None:
    disks = {node: wire.encode(Votes()) for node in range(holders)}
    operators = [Operator(node) for node in range(min(holders, 3))]
    decided: set[bytes] = set()
    for _ in range(data.draw(st.integers(0, 60))):
        who = data.draw(st.sampled_from(operators))
        if who.ask is None or data.draw(st.integers(0, 9)) == 0:  # begins, or begins again
            known = wire.decode(disks[who.node], Votes).promised.round
            who.round = max(who.round, known) + 1
            who.ask, who.answers = Prepare(NUMBER, Ballot(who.round, str(who.node)), holders), {}
        node = data.draw(st.integers(0, holders - 1))
        votes, said = answer(
            wire.decode(disks[node], Votes), who.ask, peer=str(who.node), generation=1, holders=holders
        )
        disks[node] = wire.encode(votes)
        if data.draw(st.integers(0, 4)) == 0:
            continue  # the answer is lost
        who.answers[node] = said
        promises = [a for a in who.answers.values() if isinstance(a, Promise)]
        accepted = [a for a in who.answers.values() if isinstance(a, Accepted)]
        if isinstance(who.ask, Prepare) and is_decided(len(promises), holders):
            seed = adopted(promises, who.seed)
            who.ask, who.answers = Accept(NUMBER, who.ask.ballot, holders, seed), {}
        elif isinstance(who.ask, Accept) and is_decided(len(accepted), holders):
            decided.add(who.ask.seed)
        assert len(decided) <= 1


NO_VOTES = Votes()


def said(ask: Ask, *, votes: Votes = NO_VOTES, peer: str = "a", generation: int = 1, holders: int = 3) -> str:
    after, reply = answer(votes, ask, peer=peer, generation=generation, holders=holders)
    assert isinstance(reply, Nack)
    assert after == votes
    return reply.reason


def test_what_is_not_voted_for() -> None:
    ballot, seed = Ballot(2, "a"), bytes(32)
    assert said(Prepare(3, ballot, 3)) == "generation 1 is in force here"
    assert said(Prepare(2, ballot, 3), generation=2) == "generation 2 is in force here"
    assert said(Prepare(2, ballot, 2)) == "3 nodes vote, not 2"
    assert said(Prepare(2, ballot, 3), peer="b") == "the ballot is not the asking peer's"
    later = Votes(2, Ballot(2, "b"))
    assert said(Accept(2, ballot, 3, seed), votes=later) == "another rotation is under way"
    given_once = Votes(2, ballot, (ballot, seed))
    assert said(Accept(2, ballot, 3, bytes([1]) * 32), votes=given_once) == "this ballot had another value"
    done = Votes(2, ballot, (ballot, seed))
    assert said(Accept(2, ballot, 3, seed), votes=done, generation=2) == "generation 2 is in force here"
    assert "0000" not in repr(Accept(2, ballot, 3, seed)) + repr(Promise((ballot, seed))) + repr(given_once)
