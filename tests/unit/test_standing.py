"""When a claim stands: by the others' word, by age, never while somebody knows better."""

from __future__ import annotations

import hashlib

import pytest

from p2p_network.core.ids import PeerId
from p2p_network.identity import Identity
from p2p_network.records import AddressClaim
from p2p_network.standing import (
    AGAIN_S,
    MAX_ASKED,
    STANDS_S,
    Ack,
    Answered,
    Ask,
    Build,
    Held,
    MembersSeen,
    Standing,
    Tick,
    acknowledge,
)

ME, YOU, THEY = sorted(Identity(hashlib.sha256(str(n).encode()).digest()).peer_id for n in range(3))
MINE = AddressClaim("10.144.7.7", 0, 1000)


def held(*members: PeerId, age_s: float = 0.0) -> Standing:
    made = Standing(ME)
    made.step(0.0, MembersSeen(frozenset(members)))
    made.step(0.0, Held(MINE, age_s))
    return made


def test_it_stands_when_all_in_sight_and_whom_they_see_hold_it() -> None:
    made = Standing(ME)
    made.step(0.0, MembersSeen(frozenset({ME, YOU})))
    assert made.step(0.0, Held(MINE)).effects == (Ask(YOU, MINE),)
    assert not made.step(0.1, Answered(YOU, MINE, Ack(True, (ME, YOU, THEY)))).effects, "YOU sees THEY"
    assert made.step(0.2, MembersSeen(frozenset({YOU, THEY}))).effects == (Ask(THEY, MINE),)
    decision = made.step(0.3, Answered(THEY, MINE, Ack(True, (ME, YOU))))
    assert decision.effects == (Build(MINE),)
    assert decision.reason == "10.144.7.7 may be built upon: all 2 members in sight hold its claim"
    assert made.stands
    assert made.wake_at() is None
    assert not made.step(9.0, Tick()).effects, "said once"


@pytest.mark.parametrize("answer", [None, Ack(False, ())])
def test_who_does_not_hold_it_is_asked_again_until_it_is_old_enough(answer: Ack | None) -> None:
    made = held(YOU)
    made.step(0.1, Answered(YOU, MINE, answer))
    assert made.wake_at() == 0.1 + AGAIN_S
    assert made.step(0.1 + AGAIN_S, Tick()).effects == (Ask(YOU, MINE),)
    assert made.wake_at() == STANDS_S
    assert made.step(STANDS_S, Tick()).effects == (Build(MINE),)


def test_who_is_gone_is_not_asked_again_and_wakes_nobody() -> None:
    made = held(YOU, THEY)
    made.step(0.1, Answered(YOU, MINE, None))
    assert not made.step(0.2, MembersSeen(frozenset({THEY}))).effects
    assert made.wake_at() == STANDS_S
    assert made.step(1.0, MembersSeen(frozenset({YOU, THEY}))).effects == (Ask(YOU, MINE),)


def test_alone_it_stands_by_age_and_after_a_restart_at_once() -> None:
    made = held()
    assert made.wake_at() == STANDS_S
    assert not made.step(STANDS_S - 0.1, Tick()).effects
    assert made.step(STANDS_S, Tick()).reason == "10.144.7.7 may be built upon: its claim has stood for 2 s"
    assert Standing(ME).step(0.0, Held(MINE, age_s=60.0)).effects == (Build(MINE),)


def test_another_claim_begins_anew_and_answers_to_the_old_one_do_not_count() -> None:
    made = held(YOU)
    moved = AddressClaim("10.144.8.8", 1, 2000)
    assert made.step(0.5, Held(None)).effects == ()
    assert made.wake_at() is None
    assert made.step(0.5, Held(moved)).effects == (Ask(YOU, moved),)
    assert not made.step(0.6, Answered(YOU, MINE, Ack(True, ()))).effects
    assert made.step(0.7, Answered(YOU, moved, Ack(True, (ME,)))).effects == (Build(moved),)


def test_a_large_mesh_is_not_asked() -> None:
    crowd = [PeerId(f"peer{n}") for n in range(MAX_ASKED + 1)]
    made = Standing(ME)
    made.step(0.0, MembersSeen(frozenset(crowd)))
    assert made.step(0.0, Held(MINE)).effects == ()
    assert not acknowledge({ME: MINE}, ME, MINE, frozenset(crowd)).holds, "its answer would be too long"


@pytest.mark.parametrize(
    ("claims", "holds"),
    [
        ({}, False),
        ({ME: MINE}, True),
        ({ME: AddressClaim("10.144.7.7", 1, 1000)}, False),
        ({ME: MINE, YOU: AddressClaim("10.144.7.7", 0, 999)}, False),
        ({ME: MINE, YOU: AddressClaim("10.144.7.7", 0, 1000)}, True),
        ({ME: MINE, YOU: AddressClaim("10.144.7.8", 0, 1)}, True),
    ],
)
def test_held_is_what_is_known_and_not_beaten(claims: dict[PeerId, AddressClaim], holds: bool) -> None:
    ack = acknowledge(claims, ME, MINE, frozenset({ME, YOU}))
    assert ack == Ack(holds, (ME, YOU) if holds else ())
