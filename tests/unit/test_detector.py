"""Does a member count as gone only when nobody hears it, and who can say that it is there?"""

from __future__ import annotations

import random

import pytest

from p2p_network.core.ids import PeerId
from p2p_network.detector import (
    ANSWER_S,
    ATTEMPTS,
    FANOUT,
    HELPERS,
    STALL_S,
    Absent,
    Answered,
    AskAbout,
    ChannelClosed,
    ChannelOpened,
    Detector,
    Effect,
    Event,
    MembersKnown,
    Present,
    Tell,
    Tick,
    Told,
)
from p2p_network.identity import Identity
from p2p_network.liveness import Alive, Suspicion, is_genuine, vouch

MESH = "mesh"
IDENTITIES = [Identity(bytes([n]) * 32) for n in range(1, 9)]
ME, *OTHERS = [identity.peer_id for identity in IDENTITIES]
A, B = OTHERS[0], OTHERS[1]


def word_of(number: int, incarnation: int, nonce: bytes = b"") -> Alive:
    return vouch(IDENTITIES[number], MESH, incarnation, nonce)


class Node:
    """One detector, and what it wanted since it was last looked at."""

    def __init__(self, members: list[PeerId] = OTHERS) -> None:
        chance = random.Random(7)
        self.now = 0.0
        self.core = Detector(
            ME,
            random=chance.random,
            vouch=lambda incarnation, nonce: vouch(IDENTITIES[0], MESH, incarnation, nonce),
            is_genuine=lambda alive: is_genuine(alive, MESH),
        )
        self.feed(MembersKnown(frozenset(members)))
        for peer in members:
            self.feed(ChannelOpened(peer))

    def feed(self, event: Event) -> tuple[Effect, ...]:
        return self.core.step(self.now, event).effects

    def wake(self) -> tuple[Effect, ...]:
        at = self.core.wake_at()
        assert at is not None
        self.now = max(self.now, at)
        return self.feed(Tick())

    def nobody_hears(self, effects: tuple[Effect, ...]) -> tuple[Effect, ...]:
        """All that are asked say no, until nobody is asked any more."""
        while asked := [e for e in effects if isinstance(e, AskAbout)]:
            for ask in asked:
                for helper in ask.helpers:
                    effects = self.feed(Answered(ask.peer, helper, None))
            if not any(isinstance(e, Absent) for e in effects):
                effects = self.wake()
        return effects


def the_question(effects: tuple[Effect, ...]) -> AskAbout:
    (ask,) = [e for e in effects if isinstance(e, AskAbout)]
    return ask


def test_with_a_channel_to_everybody_it_wants_nothing() -> None:
    node = Node()
    assert node.core.wake_at() is None
    assert node.feed(Tick()) == ()


def test_one_signed_word_brought_by_anybody_is_enough() -> None:
    node = Node()
    ask = the_question(node.feed(ChannelClosed(A, "reset")))
    assert len(ask.helpers) == HELPERS
    assert A not in ask.helpers
    assert node.feed(Answered(A, ask.helpers[0], None)) == ()
    assert node.feed(Answered(A, ask.helpers[1], word_of(1, 0, ask.nonce))) == ()  # it was never absent
    assert node.feed(Answered(A, ask.helpers[2], None)) == ()
    later = the_question(node.wake())  # it is looked after
    assert later.peer == A
    assert later.nonce != ask.nonce
    (absent, told) = node.nobody_hears((later,))
    assert isinstance(absent, Absent)
    assert absent.why == "nobody hears it any more; 6 other members do not hear it either"
    assert isinstance(told, Tell)
    assert told.word == Suspicion(A, 0)
    assert len(told.peers) == FANOUT


def test_who_is_heard_by_nobody_is_absent_within_seconds_and_the_others_are_told() -> None:
    node = Node()
    effects = node.nobody_hears(node.feed(ChannelClosed(A, "reset")))
    assert effects[0] == Absent(A, "its channel closed: reset; 6 other members do not hear it either")
    assert node.now < 3
    silent = Node()
    effects = silent.feed(ChannelClosed(A, "reset"))
    while not any(isinstance(e, Absent) for e in effects):
        effects = silent.wake()  # nobody even answers
    assert silent.now < ATTEMPTS * (ANSWER_S + 1)


def test_alone_there_is_nobody_to_ask() -> None:
    node = Node([A])
    assert node.feed(ChannelClosed(A, "reset")) == (Absent(A, "its channel closed: reset"),)
    node = Node()
    for peer in OTHERS[1:]:
        node.feed(ChannelClosed(peer, "cut"))
    gone = [e.peer for e in node.feed(ChannelClosed(A, "cut")) if isinstance(e, Absent)]
    effects: tuple[Effect, ...] = ()
    while len(gone) < len(OTHERS):  # whoever was asked is gone himself: nobody is waited for
        effects = node.wake()
        gone += [e.peer for e in effects if isinstance(e, Absent)]
    assert node.now < 3


@pytest.mark.parametrize(
    "forged",
    [
        word_of(2, 0, b"n" * 16),
        Alive(A, 0, b"n" * 16, bytes(64)),
        word_of(1, 0, b"o" * 16),
        word_of(1, 0),
    ],
    ids=["of-another", "unsigned", "of-an-earlier-question", "a-refutation"],
)
def test_nobody_else_can_say_that_it_is_there(forged: Alive) -> None:
    node = Node()
    ask = the_question(node.feed(ChannelClosed(A, "reset")))
    liar = ask.helpers[0]
    word = forged if forged.nonce != b"n" * 16 else Alive(forged.peer, 0, ask.nonce, forged.signature)
    for helper in ask.helpers[1:]:
        node.feed(Answered(A, helper, None))
    node.feed(Answered(A, liar, word))
    effects = node.wake()
    assert the_question(effects).peer == A  # as if nothing had been brought
    assert any(isinstance(e, Absent) for e in node.nobody_hears(effects))


def test_a_suspicion_is_not_believed_but_looked_into_and_told_to_the_suspect() -> None:
    node = Node()
    assert node.feed(Told(B, Suspicion(A, 0))) == (Tell((A,), Suspicion(A, 0)),)
    assert node.feed(Told(OTHERS[2], Suspicion(A, 0))) == ()  # it was told
    apart = Node()
    ask = the_question(apart.feed(ChannelClosed(A, "reset")))
    apart.feed(Answered(A, ask.helpers[0], word_of(1, 0, ask.nonce)))
    effects = apart.feed(Told(B, Suspicion(A, 0)))
    assert the_question(effects).peer == A
    (told,) = [e for e in effects if isinstance(e, Tell)]
    assert B not in told.peers
    assert not [e for e in apart.feed(Told(OTHERS[2], Suspicion(A, 0))) if isinstance(e, Tell)]


def test_the_suspect_refutes_with_a_higher_incarnation_once_a_second() -> None:
    node = Node()
    first, *spread = node.feed(Told(A, Suspicion(ME, 4)))
    assert first == Tell((A,), word_of(0, 5))
    assert len(spread) == 1
    assert node.core.word(b"x" * 16) == word_of(0, 5, b"x" * 16)
    assert node.feed(Told(B, Suspicion(ME, 3))) == (Tell((B,), word_of(0, 5)),)  # it is behind
    assert node.feed(Told(B, Suspicion(ME, 5))) == ()
    node.now += 1
    assert node.feed(Told(B, Suspicion(ME, 5)))[0] == Tell((B,), word_of(0, 6))


def test_a_refutation_brings_it_back_and_goes_round_but_an_old_one_does_not() -> None:
    node = Node()
    node.nobody_hears(node.feed(ChannelClosed(A, "reset")))
    assert node.feed(Told(B, word_of(1, 0))) == ()
    assert node.feed(Told(B, Alive(A, 9, b"", bytes(64)))) == ()
    present, told = node.feed(Told(B, word_of(1, 1)))
    assert present == Present(A, "it refutes that it is gone", False)
    assert isinstance(told, Tell)
    assert node.feed(Told(B, word_of(1, 1))) == ()
    (answer,) = node.feed(Told(B, Suspicion(A, 0)))
    assert answer == Tell((B,), word_of(1, 1))


def test_a_node_that_was_stalled_itself_asks_anew() -> None:
    node = Node()
    node.feed(ChannelClosed(A, "reset"))
    for _ in range(ATTEMPTS - 1):
        node.wake()
        node.wake()
    node.now += ANSWER_S + STALL_S + 0.1
    effects = node.feed(Tick())
    assert not [e for e in effects if isinstance(e, Absent)]
    assert the_question(effects).peer == A


def test_who_left_or_never_was_a_member_is_not_asked_about() -> None:
    node = Node()
    node.feed(MembersKnown(frozenset(OTHERS[1:])))
    assert node.feed(ChannelClosed(A, "it left")) == (Absent(A, "its channel closed: it left"),)
    ask = the_question(node.feed(ChannelClosed(B, "reset")))
    assert node.feed(MembersKnown(frozenset(OTHERS[2:]))) == (Absent(B, "it is no member any more"),)
    assert node.feed(Answered(B, ask.helpers[0], word_of(2, 0, ask.nonce))) == ()
    assert node.feed(Told(A, Suspicion(B, 0))) == ()


def test_a_member_known_from_the_ledger_is_asked_about_when_it_does_not_appear() -> None:
    node = Node(OTHERS[1:])
    node.feed(MembersKnown(frozenset(OTHERS)))
    ask = the_question(node.wake())
    assert ask.peer == A
    how = f"no channel to it, but {ask.helpers[0][-8:]} hears it"
    assert node.feed(Answered(A, ask.helpers[0], word_of(1, 0, ask.nonce))) == (Present(A, how, False),)
