"""Whom a relay carries for, which relay is chosen, and when the dialler asks for one: pure."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_network.core.ids import PeerId
from p2p_network.host import dialer, relay
from p2p_network.host.addresses import Endpoint
from p2p_network.host.dialer import Connected, Dial, DialEnded, Dialer, Learned, Lost, Relay, RelayEnded, Tick

SELF, PEER, MIDDLE = PeerId("self"), PeerId("peer"), PeerId("middle")
HERE, THERE = Endpoint("10.0.0.1", 4701), Endpoint("10.0.0.2", 4701)


def seen(rtt_ms: float | None) -> relay.Sight:
    return relay.Sight(True, rtt_ms)


def test_the_shortest_way_over_both_legs_is_asked_first() -> None:
    found = [
        relay.Candidate(PeerId("far"), 5.0, seen(90.0)),
        relay.Candidate(PeerId("near"), 20.0, seen(10.0)),
        relay.Candidate(PeerId("blind"), 1.0, relay.Sight(False)),
        relay.Candidate(PeerId("liar"), 30.0, seen(-1e9)),
        relay.Candidate(PeerId("new"), None, seen(1.0)),
    ]
    assert relay.ranked(found) == ("near", "far", "new", "liar")


def test_frames_come_back_in_any_pieces_and_nonsense_is_refused() -> None:
    frames = (relay.Ask("target"), relay.Call("source"), relay.Word("no"))
    for frame in frames:
        data = relay.frame_bytes(frame)
        assert relay.read_frame(data) == (frame, len(data))
        assert all(relay.read_frame(data[:cut]) is None for cut in range(len(data)))
    with pytest.raises(ValueError, match="600 bytes"):
        relay.read_frame((600).to_bytes(2, "big"))


@given(st.binary(max_size=600))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    try:
        found = relay.read_frame(data)
    except ValueError:
        return
    assert found is None or isinstance(found[0], relay.Ask | relay.Call | relay.Word)


def test_a_member_gets_so_many_circuits_and_its_rate_and_no_more() -> None:
    carriage = relay.Carriage(SELF)

    def refusal(source: str, target: str, *, directly: bool = True, sees: bool = True) -> str:
        return carriage.refusal(PeerId(source), PeerId(target), asked_directly=directly, sees_target=sees)

    assert refusal("a", "b") == ""
    assert "one hop" in refusal("a", "b", directly=False)
    assert "another member" in refusal("a", "a")
    assert "another member" in refusal("a", SELF)
    assert "no direct connection" in refusal("a", "b", sees=False)
    for n in range(relay.MAX_PER_MEMBER):
        carriage.enter(PeerId("a"), PeerId(f"b{n}"))
    assert "already" in refusal("a", "c")
    assert refusal("c", "a") == ""
    for n in range(relay.MAX_PER_MEMBER):
        carriage.enter(PeerId(f"c{n}"), PeerId("d"))
    assert "already" in refusal("e", "d")
    assert len(carriage) == 2 * relay.MAX_PER_MEMBER
    carriage.leave(PeerId("a"), PeerId("b0"))
    assert refusal("a", "c") == ""
    while len(carriage) < relay.MAX_CIRCUITS:
        carriage.enter(PeerId(f"f{len(carriage)}"), PeerId(f"g{len(carriage)}"))
    assert "already" in refusal("h", "i")
    # all circuits that one member asked for share one rate
    assert carriage.enter(PeerId("x"), PeerId("y")) is carriage.enter(PeerId("x"), PeerId("z"))


def test_a_rate_is_kept_after_the_burst() -> None:
    bucket = relay.Bucket(rate_bytes_s=1000, burst_bytes=500)
    assert bucket.wait_s(0.0, 500) == 0
    assert bucket.wait_s(0.0, 100) == pytest.approx(0.1)
    assert bucket.wait_s(10.0, 500) == 0
    now, sent = 10.0, 0
    while now < 20.0:
        now += bucket.wait_s(now, 64)
        sent += 64
    assert sent <= 10 * 1000 + 64


def test_a_relay_is_asked_for_once_dialling_has_failed_for_a_while_and_dialling_goes_on() -> None:
    core = Dialer(SELF, (), jitter=lambda: 1.0)
    core.step(0, Learned(MIDDLE, (HERE,), "disk"))
    core.step(0, Connected(MIDDLE))
    assert core.step(0, Learned(PEER, (THERE,), "ledger")).effects == (Dial(PEER, (THERE,)),)
    now, relayed_at = 0.0, None
    while relayed_at is None:
        core.step(now, DialEnded(PEER, None))
        now = core.wake_at() or now
        effects = core.step(now, Tick()).effects
        relayed_at = now if Relay(PEER) in effects else None
        if Dial(PEER, (THERE,)) in effects:
            core.step(now, DialEnded(PEER, None))
    assert relayed_at >= dialer.RELAY_AFTER_S
    assert "through a relay" in core.step(now, Connected(PEER, relayed=True)).reason
    core.step(now, RelayEnded(PEER, reached=True))
    # dialled on, no more than every so often; no further relay is asked for
    for _ in range(8):
        wake = core.wake_at()
        assert wake is not None
        assert wake - now <= dialer.UPGRADE_CAP_S
        now = wake
        assert core.step(now, Tick()).effects == (Dial(PEER, (THERE,)),)
        core.step(now, DialEnded(PEER, None))
    assert "directly again" in core.step(now, Connected(PEER)).reason
    assert core.wake_at() is None


def test_a_relay_that_fails_is_followed_by_another_attempt_with_growing_pauses() -> None:
    core = Dialer(SELF, (), jitter=lambda: 1.0)
    core.step(0, Learned(MIDDLE, (HERE,), "disk"))
    core.step(0, Connected(MIDDLE))
    core.step(0, Learned(PEER, (THERE,), "ledger"))
    core.step(0, DialEnded(PEER, None))
    now, asked = 0.0, []
    while len(asked) < 8:
        wake = core.wake_at()
        assert wake is not None
        assert wake >= now
        now = wake
        for effect in core.step(now, Tick()).effects:
            if isinstance(effect, Relay):
                asked.append(now)
                core.step(now, RelayEnded(PEER, reached=False))
            else:
                core.step(now, DialEnded(PEER, None))
    pauses = [after - before for before, after in pairwise(asked)]
    assert pauses[0] < 2
    assert max(pauses) <= dialer.RELAY_CAP_S
    assert pauses == sorted(pauses)


def test_a_lost_relay_is_replaced_soon_and_without_neighbours_none_is_asked() -> None:
    core = Dialer(SELF, (), jitter=lambda: 1.0)
    core.step(0, Learned(MIDDLE, (HERE,), "disk"))
    core.step(0, Connected(MIDDLE))
    core.step(0, Learned(PEER, (THERE,), "ledger"))
    core.step(0, DialEnded(PEER, None))
    core.step(5, Tick())
    core.step(5, Connected(PEER, relayed=True))
    core.step(5, RelayEnded(PEER, reached=True))
    core.step(90, Lost(PEER))
    effects: list[dialer.Effect] = []
    now = 90.0
    while Relay(PEER) not in effects and now < 92:
        now += 0.1
        effects += core.step(now, Tick()).effects
    assert Relay(PEER) in effects
    core.step(now, RelayEnded(PEER, reached=False))
    core.step(now, Lost(MIDDLE))
    for later in range(100):
        assert Relay(PEER) not in core.step(now + later, Tick()).effects
