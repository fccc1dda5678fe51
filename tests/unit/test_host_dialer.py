"""The dialler's core: every decision, with time passed in."""

from __future__ import annotations

import pytest

from p2p_network.core.ids import PeerId
from p2p_network.host.addresses import MAX_ADDRESSES_PER_PEER, Endpoint
from p2p_network.host.dialer import (
    MAX_DIALLING,
    MAX_PEERS,
    RECENT_CAP_S,
    SEEN_CAP_S,
    SELF_PAUSE_S,
    STRANGE_CAP_S,
    WANTED_S,
    Connected,
    Dial,
    DialEnded,
    Dialer,
    Event,
    Learned,
    Lost,
    Tick,
    Wanted,
    pause_s,
)

SELF, PEER, OTHER = PeerId("self"), PeerId("peer"), PeerId("other")
HERE, THERE = Endpoint("10.0.0.1", 4701), Endpoint("10.0.0.2", 4701)
SEED = Endpoint("seed.example", 4701)


def dialer(*anonymous: Endpoint, jitter: float = 1.0, target_degree: int = 32) -> Dialer:
    return Dialer(SELF, anonymous, jitter=lambda: jitter, target_degree=target_degree)


def run(core: Dialer, now: float, event: Event) -> tuple[Dial, ...]:
    return core.step(now, event).effects


def test_a_learned_peer_is_dialled_at_all_its_endpoints_at_once() -> None:
    core = dialer()
    assert run(core, 0, Learned(PEER, (HERE, THERE), "mdns")) == (Dial(PEER, (HERE, THERE)),)
    assert run(core, 0, Tick()) == ()
    assert core.wake_at() is None


def test_it_dials_for_ever_with_growing_bounded_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p_network.host.dialer.RELAY_AFTER_S", float("inf"))
    core = dialer()
    run(core, 0, Learned(PEER, (HERE,), "disk"))
    run(core, 0, Learned(OTHER, (THERE,), "disk"))
    run(core, 0, Connected(OTHER))  # not alone, so a stranger's pause may grow to its cap
    now, pauses = 0.0, []
    for _ in range(12):
        assert run(core, now, DialEnded(PEER, None)) == ()
        wake = core.wake_at()
        assert wake is not None
        pauses.append(wake - now)
        now = wake
        assert run(core, now, Tick()) == (Dial(PEER, (HERE,)),)
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert pauses[-1] == STRANGE_CAP_S


def test_a_peer_seen_lately_is_never_left_alone_for_long() -> None:
    core = dialer()
    run(core, 0, Learned(OTHER, (THERE,), "disk"))
    run(core, 0, Connected(OTHER))
    run(core, 0, Learned(PEER, (HERE,), "disk"))
    run(core, 0, Connected(PEER))
    run(core, 0, DialEnded(PEER, PEER))
    core.step(100, Lost(PEER))
    now = 100.0
    for _ in range(20):
        wake = core.wake_at()
        assert wake is not None
        assert wake - now <= RECENT_CAP_S
        now = wake
        run(core, now, Tick())
        run(core, now, DialEnded(PEER, None))


def test_a_node_alone_tries_everybody_often() -> None:
    core = dialer(SEED)
    now = 0.0
    run(core, now, Tick())
    for _ in range(20):
        run(core, now, DialEnded(SEED, None))
        wake = core.wake_at()
        assert wake is not None
        assert wake - now <= RECENT_CAP_S
        now = wake
        assert run(core, now, Tick()) == (Dial(SEED, (SEED,)),)


def test_jitter_spreads_half_of_the_pause() -> None:
    assert pause_s(3, recent=True, jitter=0.0) == 1.0
    assert pause_s(3, recent=True, jitter=1.0) == 2.0
    assert pause_s(10_000, recent=False, jitter=1.0) == STRANGE_CAP_S


def test_a_connected_peer_is_not_dialled_and_a_lost_one_soon() -> None:
    core = dialer()
    run(core, 0, Learned(PEER, (HERE,), "disk"))
    run(core, 0, Connected(PEER))
    run(core, 0, DialEnded(PEER, PEER))
    assert run(core, 50, Learned(PEER, (THERE,), "hello")) == ()
    decision = core.step(60, Lost(PEER))
    assert "lost after 60 s" in decision.reason
    assert core.wake_at() == 60.5
    assert run(core, 60.5, Tick()) == (Dial(PEER, (THERE, HERE)),)


def test_connections_that_break_at_once_are_paused_like_failures() -> None:
    core = dialer()
    run(core, 0, Learned(PEER, (HERE,), "disk"))
    now, pauses = 0.0, []
    for _ in range(6):
        run(core, now, Connected(PEER))
        run(core, now, DialEnded(PEER, PEER))
        run(core, now + 0.1, Lost(PEER))
        wake = core.wake_at()
        assert wake is not None
        pauses.append(wake - now)
        now = wake
        run(core, now, Tick())
    assert pauses[-1] > 4


def test_new_addresses_end_the_pause() -> None:
    core = dialer()
    run(core, 0, Learned(PEER, (HERE,), "disk"))
    for _ in range(5):
        run(core, 0, DialEnded(PEER, None))
        core.step(0, Tick())
    assert run(core, 0, Learned(PEER, (HERE,), "dht")) == ()
    assert run(core, 0, Learned(PEER, (THERE,), "dht")) == (Dial(PEER, (THERE, HERE)),)


def test_a_bootstrap_address_without_id_gets_its_owner() -> None:
    core = dialer(SEED)
    assert run(core, 0, Tick()) == (Dial(SEED, (SEED,)),)
    run(core, 0, Connected(PEER))
    run(core, 0, DialEnded(SEED, PEER))
    assert core.known() == {PEER: (SEED,)}
    assert run(core, 1000, Tick()) == ()
    # once it is lost, both: whoever may live at that address now, and the peer we knew
    assert run(core, 1000, Lost(PEER)) == (Dial(SEED, (SEED,)),)
    assert run(core, 1010, Tick()) == (Dial(PEER, (SEED,)),)


def test_our_own_address_among_the_bootstrap_ones_is_left_alone() -> None:
    core = dialer(SEED)
    run(core, 0, Tick())
    decision = core.step(0, DialEnded(SEED, SELF))
    assert "this node itself" in decision.reason
    assert core.known() == {}
    assert core.wake_at() == SELF_PAUSE_S


def test_a_bootstrap_address_of_a_connected_peer_is_not_dialled_again() -> None:
    core = dialer(HERE)
    run(core, 0, Connected(PEER))
    assert core.step(0, Learned(PEER, (HERE,), "hello")).effects == ()
    core.step(0, DialEnded(HERE, PEER))
    assert run(core, 1000, Tick()) == ()


def test_nobody_makes_us_dial_ourselves() -> None:
    core = dialer()
    assert run(core, 0, Learned(SELF, (HERE,), "dht")) == ()
    assert core.known() == {}


def test_enough_connections_are_enough() -> None:
    core = dialer(target_degree=1)
    run(core, 0, Learned(PEER, (HERE,), "disk"))
    run(core, 0, Connected(PEER))
    run(core, 0, DialEnded(PEER, PEER))
    assert run(core, 0, Learned(OTHER, (THERE,), "disk")) == ()
    assert core.wake_at() is None
    # losing the one makes room for the other at once
    assert run(core, 100, Lost(PEER)) == (Dial(OTHER, (THERE,)),)


def test_dials_at_one_time_are_bounded() -> None:
    core = dialer(target_degree=1000)
    for n in range(100):
        core.step(0, Learned(PeerId(f"p{n}"), (HERE,), "disk"))
    assert core.wake_at() is None
    started = sum(len(run(core, 0, DialEnded(PeerId(f"p{n}"), None))) for n in range(MAX_DIALLING))
    assert started == MAX_DIALLING


def test_the_table_of_peers_is_bounded() -> None:
    core = dialer(target_degree=0)
    run(core, 0, Learned(PEER, (HERE,), "ledger"))
    run(core, 0, Connected(PEER))
    for n in range(MAX_PEERS + 50):
        core.step(0, Learned(PeerId(f"p{n}"), (HERE,), "dht"))
    assert len(core.known()) == MAX_PEERS
    assert PEER in core.known()


def test_a_peer_can_name_sixteen_endpoints_and_the_latest_count() -> None:
    core = dialer()
    for port in range(1, 50):
        core.step(0, Learned(PEER, (Endpoint("10.0.0.1", port),), "dht"))
    known = core.known()[PEER]
    assert len(known) == 16
    assert known[0] == Endpoint("10.0.0.1", 49)


def test_a_peer_that_is_wanted_is_dialled_whatever_the_degree() -> None:
    core = dialer(target_degree=1)
    run(core, 0, Connected(OTHER))
    assert run(core, 0, Learned(PEER, (HERE,), "ledger")) == ()
    assert core.wake_at() is None
    assert run(core, 1, Wanted(PEER)) == (Dial(PEER, (HERE,)),)
    assert run(core, 2, DialEnded(PEER, None)) == ()
    wake = core.wake_at()
    assert wake is not None
    assert run(core, wake, Tick()) == (Dial(PEER, (HERE,)),)
    run(core, wake, Connected(PEER))
    run(core, wake, DialEnded(PEER, PEER))
    run(core, 2 * WANTED_S, Lost(PEER))
    assert core.wake_at() is None  # nobody wants it any more
    assert run(core, 3 * WANTED_S, Tick()) == ()
    assert run(core, 3 * WANTED_S, Wanted(PeerId("unheard of"))) == ()


def test_after_a_partition_of_an_hour_a_peer_is_still_dialled_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("p2p_network.host.dialer.RELAY_AFTER_S", float("inf"))
    core = dialer()
    run(core, 0, Connected(OTHER))  # not alone
    run(core, 0, Learned(PEER, (HERE,), "ledger"))
    run(core, 0, Connected(PEER))
    run(core, 0, DialEnded(PEER, PEER))
    run(core, 100, Lost(PEER))
    now = 0.0
    while now < 3700:
        wake = core.wake_at()
        assert wake is not None
        assert wake - now <= SEEN_CAP_S or now == 0
        now = wake
        run(core, now, Tick())
        run(core, now, DialEnded(PEER, None))


def test_hearsay_never_displaces_what_a_peer_said_itself() -> None:
    core = dialer()
    run(core, 0, Learned(PEER, (HERE, THERE), "hello"))
    crowd = [Endpoint("10.9.9.9", port) for port in range(1, 200)]
    for start in range(0, 190, 10):
        run(core, 1, Learned(PEER, tuple(crowd[start : start + 10]), "dht"))
    known = core.known()[PEER]
    assert {HERE, THERE} <= set(known)
    assert len(known) <= MAX_ADDRESSES_PER_PEER
    run(core, 2, Learned(PEER, (SEED,), "hello"))
    assert core.known()[PEER][0] == SEED
