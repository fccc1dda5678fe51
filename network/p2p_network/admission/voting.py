"""Which new keys does the mesh agree on, if two holders of the root rotate at the same time?

Single-decree Paxos per generation, among the nodes that hold the root. The value is the seed of the new
network token, so whoever finds that another one's rotation got half way can complete it: each holder gets the
seed from its seat of the rotation anyway. The rules are those of `core.decree`; `answer` is the acceptor,
`adopted` and `is_decided` are what a proposer has to know; asking and keeping (a vote is durable before it is
given) is the caller's. Pure.

From the second generation on the holders that vote are those of the roster of the generation in force
(`Trust.electorate`): a set that is signed, the same everywhere, and that nobody adds himself to. In the first
generation it is the founding roster that they agreed on (`founding`); a holder votes only on what counts on
the list that it stated itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, TypeAlias

import msgspec

from p2p_network.core import decree

_SAID: Final = {decree.LOWER: "another rotation is under way"}
MAX_ROUND: Final = 1 << 31

_Seed = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Number = Annotated[int, msgspec.Meta(ge=2, le=1 << 31)]
_Holders = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]


class Ballot(msgspec.Struct, frozen=True, array_like=True, order=True, forbid_unknown_fields=True):
    """An attempt. The higher one counts; no two peers make the same."""

    round: Annotated[int, msgspec.Meta(ge=0, le=MAX_ROUND)]
    peer: Annotated[str, msgspec.Meta(max_length=128)]


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """Promise to vote in no lower ballot. `holders`: how many may vote, as far as the proposer knows."""

    number: _Number
    ballot: Ballot
    holders: _Holders


class Accept(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    """Vote for this seed. Secret."""

    number: _Number
    ballot: Ballot
    holders: _Holders
    seed: _Seed

    def __repr__(self) -> str:
        return f"Accept({self.number}, {self.ballot})"


class Promise(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """Given. `accepted`: what this holder voted for last, and in which ballot. Secret."""

    accepted: tuple[Ballot, _Seed] | None

    def __repr__(self) -> str:
        return f"Promise({self.accepted and self.accepted[0]})"


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    """Voted."""


class Nack(msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True):
    """Not voted. `round`: the highest promised."""

    round: Annotated[int, msgspec.Meta(ge=0, le=MAX_ROUND)]
    reason: Annotated[str, msgspec.Meta(max_length=200)]


Ask: TypeAlias = Prepare | Accept
Answer: TypeAlias = Promise | Accepted | Nack


class Votes(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a holder must never forget while generation `number` is not in force. Secret."""

    number: int = 0
    promised: Ballot = Ballot(0, "")
    accepted: tuple[Ballot, _Seed] | None = None
    roster: tuple[str, ...] = ()  # of the first generation, as stated last (`founding`)

    def __repr__(self) -> str:
        return f"Votes({self.number}, {self.promised})"


def answer(votes: Votes, ask: Ask, *, peer: str, generation: int, holders: int) -> tuple[Votes, Answer]:
    """What a holder says to `peer`, and what it must have made durable before it does.

    `generation`: in force here; `holders`: how many vote, as far as this node knows; 0: it has no vote.
    """
    held = votes if votes.number == ask.number else Votes(ask.number, roster=votes.roster)
    if ask.number != generation + 1:
        return votes, Nack(0, f"generation {generation} is in force here")
    if ask.ballot.peer != peer or ask.ballot.round >= MAX_ROUND:
        return votes, Nack(held.promised.round, "the ballot is not the asking peer's")
    if ask.holders != holders:
        return votes, Nack(held.promised.round, f"{holders} nodes vote, not {ask.holders}")
    said: Answer
    match ask:
        case Prepare():
            problem = decree.against_promise(held.promised, ask.ballot)
            after = Votes(ask.number, ask.ballot, held.accepted, held.roster)
            said = Promise(held.accepted)
        case Accept():
            problem = decree.against_vote(held.promised, held.accepted, ask.ballot, ask.seed)
            after = Votes(ask.number, ask.ballot, (ask.ballot, ask.seed), held.roster)
            said = Accepted()
    if problem:
        return votes, Nack(held.promised.round, _SAID.get(problem, problem))
    return after, said


def stated(votes: Votes, roster: frozenset[str]) -> Votes | None:
    """After stating this founding roster; None where that would undo a vote, or what was stated before."""
    if votes.accepted is not None or not frozenset(votes.roster) < roster:
        return None
    return Votes(votes.number, votes.promised, votes.accepted, tuple(sorted(roster)))


def is_decided(agreeing: int, holders: int) -> bool:
    """Whether so many of them are a majority."""
    return 2 * agreeing > holders


def adopted(promises: Iterable[Promise], own: bytes) -> bytes:
    """The seed to ask votes for: the one voted for in the highest ballot, else one's own."""
    return decree.to_propose((promise.accepted for promise in promises), own)
