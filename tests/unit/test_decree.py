"""Do the rules of a vote hold, each to the last ballot?"""

from __future__ import annotations

import pytest

from p2p_network.core import decree


@pytest.mark.parametrize(
    ("promised", "ballot", "why"),
    [(None, 1, ""), (1, 2, ""), (2, 2, ""), (3, 2, decree.LOWER)],
)
def test_a_promise_stands_against_lower_ballots_alone(promised: int | None, ballot: int, why: str) -> None:
    assert decree.against_promise(promised, ballot) == why
    assert decree.against_vote(promised, None, ballot, "v") == why


@pytest.mark.parametrize(
    ("accepted", "ballot", "value", "why"),
    [
        ((2, "v"), 2, "v", ""),  # asked again, the answer was lost
        ((2, "v"), 2, "w", decree.TWICE),
        ((1, "v"), 2, "w", ""),
        ((2, "v"), 1, "v", decree.LOWER),
    ],
)
def test_a_ballot_has_one_value(accepted: tuple[int, str], ballot: int, value: str, why: str) -> None:
    assert decree.against_vote(2, accepted, ballot, value) == why


def test_what_may_have_been_decided_is_proposed_again() -> None:
    assert decree.to_propose([], "own") == decree.to_propose([None, None], "own") == "own"
    assert decree.to_propose([(1, "a"), None, (3, "c"), (2, "b")], "own") == "c"
    assert decree.to_propose([(3, "c"), (1, "a")], "own") == "c"
