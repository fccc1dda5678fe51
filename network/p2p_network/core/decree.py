"""What may a voter of single-decree Paxos still say, and which value must a proposer ask votes for?

The rules that agreement rests on, for any kind of ballot and value. Who may vote, how many are a majority
and what is durable before it is said is the business of who votes: on a cluster's genesis
(`p2p_roles.genesis`), and on new keys of the network (`admission.voting`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol, TypeVar


class Ballot(Protocol):
    """The number of an attempt: totally ordered, and no two proposers make the same."""

    def __lt__(self, other: Any, /) -> bool: ...


B = TypeVar("B", bound=Ballot)
V = TypeVar("V")

LOWER: Final = "a higher ballot was promised"
TWICE: Final = "this ballot had another value"


def against_promise(promised: B | None, ballot: B) -> str:
    """What a voter's promise holds against promising `ballot`; "" if nothing."""
    return LOWER if promised is not None and ballot < promised else ""


def against_vote(promised: B | None, accepted: tuple[B, V] | None, ballot: B, value: V) -> str:
    """What promise and last vote hold against voting for `value` in `ballot`; "" if nothing."""
    if problem := against_promise(promised, ballot):
        return problem
    return TWICE if accepted is not None and accepted[0] == ballot and accepted[1] != value else ""


def to_propose(accepted: Iterable[tuple[B, V] | None], own: V) -> V:
    """The value that may have been decided in a lower ballot, else one's own.

    `accepted`: the last votes that a majority reported with its promises.
    """
    voted = [vote for vote in accepted if vote is not None]
    if not voted:
        return own
    highest = voted[0]
    for vote in voted[1:]:
        if highest[0] < vote[0]:
            highest = vote
    return highest[1]
