"""Can two sides of a mesh that never rotated its keys come to different first new keys, however they grow?

Holders of the root come up, state lists, hear of each other's with delay, in any order, in any partition; any
of them rotates whenever it believes that it may. Only that a first list needs most of those that will ever be
there in sight is given: that is what `p2p.minimum_nodes` promises.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_network.admission.founding import MAX_FOUNDERS, in_force, may_follow, to_propose
from p2p_network.admission.voting import (
    Accept,
    Accepted,
    Ballot,
    Prepare,
    Promise,
    Votes,
    adopted,
    answer,
    is_decided,
    stated,
)

NAMES = "abcdefg"


@dataclass
class Holder:
    """`heard`: who states what, as far as it knows."""

    name: str
    votes: Votes = field(default_factory=Votes)
    heard: dict[str, frozenset[str]] = field(default_factory=dict)

    @property
    def own(self) -> frozenset[str]:
        return frozenset(self.votes.roster)

    def state(self, peers: frozenset[str]) -> None:
        after = stated(self.votes, peers)
        if after is not None:
            self.votes = after
            self.heard[self.name] = peers


def rotate(data: st.DataObject, mesh: dict[str, Holder], who: Holder, sight: list[str]) -> bytes | None:
    """One attempt, which may be cut off between any two answers; the seed if it was decided."""
    electorate = in_force(who.heard, NAMES)
    if electorate is None:
        return None
    asked = [peer for peer in sorted(electorate) if peer in sight]
    ballot = Ballot(who.votes.promised.round + data.draw(st.integers(1, 2)), who.name)
    promises = []
    for peer in asked[: data.draw(st.integers(0, len(asked)))]:
        holder = mesh[peer]
        ask = Prepare(2, ballot, len(electorate))
        holder.votes, said = answer(
            holder.votes, ask, peer=who.name, generation=1, holders=len(holder.votes.roster)
        )
        promises += [said] if isinstance(said, Promise) else []
    if not is_decided(len(promises), len(electorate)):
        return None
    if data.draw(st.booleans()):  # lists are stated meanwhile
        step(data, mesh, rotates=False)
    seed, agreed = adopted(promises, who.name.encode() * 32), 0
    for peer in asked[: data.draw(st.integers(0, len(asked)))]:
        holder = mesh[peer]
        ask_vote = Accept(2, ballot, len(electorate), seed)
        holder.votes, said = answer(
            holder.votes, ask_vote, peer=who.name, generation=1, holders=len(holder.votes.roster)
        )
        agreed += isinstance(said, Accepted)
    return seed if is_decided(agreed, len(electorate)) else None


def step(data: st.DataObject, mesh: dict[str, Holder], *, rotates: bool = True) -> bytes | None:
    """Something happens."""
    who = mesh[data.draw(st.sampled_from(sorted(mesh)))]
    sight = [n for n in sorted(mesh) if n == who.name or data.draw(st.integers(0, 3))]
    is_enough, has_voted = 2 * len(sight) > len(mesh), who.votes.accepted is not None
    match data.draw(st.integers(0, 3 if rotates else 2)):
        case 0:
            wanted = to_propose(
                who.own,
                who.heard,
                self_id=who.name,
                holders=sorted(mesh),
                in_sight=sight,
                revoked=(),
                is_enough=is_enough,
            )
            if wanted is not None and not has_voted:
                who.state(wanted)
        case 1:
            for proposed in sorted(set(who.heard.values()), key=lambda peers: (len(peers), sorted(peers))):
                if may_follow(
                    who.own,
                    proposed,
                    self_id=who.name,
                    holders=sorted(mesh),
                    revoked=(),
                    is_enough=is_enough,
                    has_voted=has_voted,
                ):
                    who.state(proposed)
        case 2:
            for name in sight:
                for peer, peers in mesh[name].heard.items():
                    if who.heard.get(peer, frozenset()) < peers:
                        who.heard[peer] = peers
        case _:
            return rotate(data, mesh, who, sight)
    return None


@settings(max_examples=300, deadline=None)
@given(st.integers(1, len(NAMES)), st.data())
def test_never_two_first_rotations(count: int, data: st.DataObject) -> None:
    mesh = {name: Holder(name) for name in NAMES[:count]}
    decided: set[bytes] = set()
    for _ in range(data.draw(st.integers(0, 50))):
        seed = step(data, mesh)
        decided |= {seed} if seed is not None else set()
        assert len(decided) <= 1


def together(mesh: dict[str, Holder], names: str) -> None:
    """These see each other for a while."""
    for _ in range(3):
        for who in (mesh[name] for name in names):
            for other in names:
                who.heard.update({k: v for k, v in mesh[other].heard.items() if who.heard.get(k, set()) < v})
            facts = {"self_id": who.name, "holders": list(mesh), "revoked": (), "is_enough": True}
            wanted = to_propose(who.own, who.heard, in_sight=list(names), **facts)  # type: ignore[arg-type]
            for peers in [wanted] if wanted else list(who.heard.values()):
                if wanted or may_follow(who.own, peers, has_voted=False, **facts):  # type: ignore[arg-type]
                    who.state(peers)


def test_a_roster_grows_with_all_in_sight_and_not_without() -> None:
    mesh = {name: Holder(name) for name in NAMES}
    together(mesh, "bcd")
    assert in_force(mesh["d"].heard, NAMES) == set("bcd")
    together(mesh, "bcde")
    assert in_force(mesh["e"].heard, NAMES) == set("bcde")
    together(mesh, "bcfg")
    assert in_force(mesh["g"].heard, NAMES) == set("bcde"), (
        "d and e could not agree: the newcomers have no vote"
    )
    together(mesh, "abcdefg")
    assert in_force(mesh["a"].heard, NAMES) == set("abcdefg")
    assert len(NAMES) == MAX_FOUNDERS


def test_two_rosters_that_came_about_apart_become_one_before_anybody_votes() -> None:
    mesh = {name: Holder(name) for name in "abcd"}
    together(mesh, "ab")
    together(mesh, "cd")
    heard = mesh["a"].heard | mesh["c"].heard
    assert in_force(heard, "abcd") is None
    together(mesh, "abcd")
    assert in_force(mesh["d"].heard, "abcd") == set("abcd")


def test_who_is_revoked_need_not_agree_and_who_holds_no_root_has_no_vote() -> None:
    trio = frozenset("abc")
    said = {"a": trio, "b": trio}
    assert in_force(said, "abc") is None
    assert in_force(said, "ab", revoked="c") == trio
    assert in_force({"a": trio}, "a", revoked="bc") is None, "most of them are out"
    assert in_force({"x": frozenset("x")}, "abc") is None
    assert in_force(said | {"c": trio, "x": frozenset("x")}, "abc") == trio
