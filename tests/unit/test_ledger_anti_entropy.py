"""With whom ledgers are compared, and when: the scheduler under a clock of our own."""

from __future__ import annotations

import itertools
import random

import pytest

from p2p_network.core.ids import PeerId
from p2p_network.ledger.anti_entropy import (
    CONCURRENT,
    FANOUT,
    QUIET_S,
    AntiEntropy,
    ChannelClosed,
    ChannelOpened,
    HintReceived,
    LedgerChanged,
    SendHint,
    StartSync,
    SyncFinished,
    Tick,
)

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def machine() -> AntiEntropy:
    return AntiEntropy(random=random.Random(1).random)


def idle_with(*peers: PeerId) -> AntiEntropy:
    """Connected to these peers at 0, all first sessions done."""
    made = machine()
    todo = [e for peer in peers for e in made.step(0.0, ChannelOpened(peer)).effects]
    while todo:
        effect = todo.pop()
        assert isinstance(effect, StartSync)
        todo += made.step(0.0, SyncFinished(effect.peer, is_fruitless=False)).effects
    return made


def test_alone_it_wants_nothing() -> None:
    made = machine()
    assert made.wake_at() is None
    assert made.step(0.0, Tick()).effects == ()
    assert made.step(0.0, LedgerChanged()).effects == ()


def test_a_new_channel_is_used_at_once() -> None:
    decision = machine().step(3.0, ChannelOpened(A))
    assert decision.effects == (StartSync(A),)
    assert decision.reason == "comparing ledgers with a"


def test_rounds_come_about_every_five_seconds() -> None:
    made = idle_with(A, B, C)
    now, asked = 0.0, []
    for _ in range(300):
        wake_at = made.wake_at()
        assert wake_at is not None
        assert 3.75 <= wake_at - now <= 6.25
        now = wake_at
        (effect,) = made.step(now, Tick()).effects
        assert isinstance(effect, StartSync)
        asked.append(effect.peer)
        made.step(now, SyncFinished(effect.peer, is_fruitless=False))
    assert now / 300 == pytest.approx(5.0, rel=0.1)
    assert all(asked.count(peer) > 60 for peer in (A, B, C))


def test_a_hint_of_something_else_starts_a_session_at_once() -> None:
    made = idle_with(A, B)
    assert made.step(1.0, HintReceived(A, differs=False)).effects == ()
    assert made.step(1.0, HintReceived(A, differs=True)).effects == (StartSync(A),)
    assert made.step(1.0, HintReceived(A, differs=True)).effects == (), "one session per peer at a time"
    assert made.step(1.1, SyncFinished(A, is_fruitless=False)).effects == (StartSync(A),), "then the next"
    assert made.step(1.0, HintReceived(C, differs=True)).effects == (), "no channel, no session"


def test_a_change_is_hinted_to_a_few_but_not_to_its_source() -> None:
    peers = [PeerId(f"p{n}") for n in range(20)]
    made = idle_with(*peers)
    (hint,) = made.step(1.0, LedgerChanged(peers[0])).effects
    assert isinstance(hint, SendHint)
    assert len(set(hint.peers)) == FANOUT
    for _ in range(100):
        (hint,) = made.step(1.0, LedgerChanged(peers[0])).effects
        assert isinstance(hint, SendHint)
        assert peers[0] not in hint.peers
    assert idle_with(A).step(1.0, LedgerChanged(A)).effects == ()


def test_few_sessions_at_a_time() -> None:
    made = machine()
    started = [e for n in range(10) for e in made.step(0.0, ChannelOpened(PeerId(f"p{n}"))).effects]
    assert len(started) == CONCURRENT
    assert made.wake_at() is None
    (following,) = made.step(0.1, SyncFinished(PeerId("p0"), is_fruitless=False)).effects
    assert isinstance(following, StartSync)


def test_a_peer_with_whom_nothing_helps_is_asked_less_and_less_until_something_changes() -> None:
    made = idle_with(A)
    now, moments = 0.0, []
    for _ in range(40):
        wake_at = made.wake_at()
        assert wake_at is not None
        now = max(now, wake_at)
        if made.step(now, Tick()).effects:
            moments.append(now)
            made.step(now, SyncFinished(A, is_fruitless=True))
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    assert gaps[0] < 10
    assert QUIET_S <= gaps[-1] <= QUIET_S + 7
    assert made.step(now + 1, HintReceived(A, differs=True)).effects == ()
    assert StartSync(A) in made.step(now + 1, LedgerChanged()).effects


def test_a_closed_channel_is_forgotten_even_during_a_session() -> None:
    made = machine()
    made.step(0.0, ChannelOpened(A))
    made.step(0.0, ChannelClosed(A))
    assert made.step(0.1, SyncFinished(A, is_fruitless=True)).effects == ()
    assert made.wake_at() is None
    assert made.step(0.2, ChannelOpened(A)).effects == (StartSync(A),)
