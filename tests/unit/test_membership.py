"""Who is alive, suspect, dead or gone, as one node sees it."""

from __future__ import annotations

from dataclasses import replace

from p2p_network.core.ids import PeerId
from p2p_network.core.machine import Decision
from p2p_network.membership import (
    SUSPECT_S,
    DrainChanged,
    Effect,
    MemberChanged,
    Membership,
    MemberState,
    PeerConnected,
    PeerLost,
    PublishView,
    RecordsChanged,
    Tick,
)
from p2p_network.records import NodeRecord

ME, A, B = PeerId("me"), PeerId("a"), PeerId("b")


def record(hostname: str) -> NodeRecord:
    return NodeRecord(hostname, "eu", "", (), (), "auto", 2, 1, "0.1.0")


def records(*peers: PeerId, left: frozenset[PeerId] = frozenset()) -> RecordsChanged:
    return RecordsChanged({p: record(f"host-{p}") for p in peers}, {A: ("10.144.0.7", "fd00::7")}, left)


def machine() -> Membership:
    return Membership(ME, 0.0)


def changes(decision: Decision[Effect]) -> list[tuple[PeerId, MemberState | None, MemberState]]:
    return [
        (e.member.peer, e.before, e.member.state) for e in decision.effects if isinstance(e, MemberChanged)
    ]


def state(made: Membership, peer: PeerId) -> MemberState | None:
    member = made.view.get(peer)
    return member.state if member else None


def test_at_first_there_is_only_this_node() -> None:
    made = machine()
    assert [m.peer for m in made.view.alive()] == [ME]
    assert made.wake_at() is None


def test_a_peer_is_alive_while_we_hold_a_channel() -> None:
    made = machine()
    decision = made.step(1.0, PeerConnected(A))
    assert changes(decision) == [(A, None, MemberState.ALIVE)]
    assert decision.effects[-1] == PublishView(made.view)
    assert decision.reason == "a is alive: a channel to it is open"
    member = made.view.get(A)
    assert member is not None
    assert member.record is None
    made.step(2.0, records(A, ME))
    member = made.view.get(A)
    assert member is not None
    assert member.record == record("host-a")
    assert (member.ipv4, member.ipv6, member.since) == ("10.144.0.7", "fd00::7", 1.0)


def test_a_lost_peer_is_suspect_then_dead_then_alive_again() -> None:
    made = machine()
    made.step(0.0, records(A))
    made.step(1.0, PeerConnected(A))
    assert changes(made.step(5.0, PeerLost(A, "no heartbeat"))) == [
        (A, MemberState.ALIVE, MemberState.SUSPECT)
    ]
    assert made.wake_at() == 5.0 + SUSPECT_S
    assert made.step(14.9, Tick()).effects == ()
    decision = made.step(15.0, Tick())
    assert changes(decision) == [(A, MemberState.SUSPECT, MemberState.DEAD)]
    assert decision.reason == "a is dead: not back within 10 s: no heartbeat"
    assert made.wake_at() is None
    assert changes(made.step(20.0, PeerConnected(A))) == [(A, MemberState.DEAD, MemberState.ALIVE)]


def test_back_in_time_is_no_death() -> None:
    made = machine()
    made.step(0.0, records(A))
    made.step(1.0, PeerConnected(A))
    made.step(5.0, PeerLost(A, "reset"))
    made.step(7.0, PeerConnected(A))
    assert made.step(100.0, Tick()).effects == ()
    assert state(made, A) is MemberState.ALIVE


def test_a_node_known_from_the_ledger_has_its_time_to_appear() -> None:
    made = machine()
    assert changes(made.step(3.0, records(A))) == [(A, None, MemberState.SUSPECT)]
    assert changes(made.step(13.0, Tick())) == [(A, MemberState.SUSPECT, MemberState.DEAD)]


def test_leaving_is_no_failure() -> None:
    made = machine()
    made.step(0.0, records(A))
    made.step(1.0, PeerConnected(A))
    decision = made.step(2.0, records(left=frozenset({A})))
    assert changes(decision) == [(A, MemberState.ALIVE, MemberState.LEFT)]
    assert decision.reason == "a is left: it said that it leaves"
    assert changes(made.step(3.0, PeerLost(A, "closed"))) == []
    assert made.wake_at() is None
    assert changes(made.step(4.0, records(A))) == [(A, MemberState.LEFT, MemberState.SUSPECT)]


def test_a_forgotten_node_leaves_the_view() -> None:
    made = machine()
    made.step(0.0, records(A, B))
    decision = made.step(1.0, records(B))
    assert [m.peer for m in made.view.members] == [B, ME]
    assert isinstance(decision.effects[-1], PublishView)


def test_nothing_new_publishes_nothing_and_old_views_stay() -> None:
    made = machine()
    made.step(0.0, records(A))
    before = made.view
    assert made.step(1.0, records(A)).effects == ()
    assert made.view is before
    made.step(2.0, PeerConnected(A))
    assert state(made, A) is MemberState.ALIVE
    assert before.members[0].state is MemberState.SUSPECT


def test_who_is_drained_is_away_and_no_failure_until_its_window_ends() -> None:
    made = machine()
    made.step(0.0, PeerConnected(A))
    made.step(0.0, records(A))
    drained = replace(records(A), drained={A: "drained until noon"})
    decision = made.step(1.0, drained)
    assert decision.effects[0] == DrainChanged(A, "drained until noon")
    assert state(made, A) is MemberState.ALIVE
    assert changes(made.step(2.0, PeerLost(A, "closed"))) == [(A, MemberState.ALIVE, MemberState.AWAY)]
    assert made.view.get(A).reason == "drained until noon"  # type: ignore[union-attr]
    assert made.wake_at() is None, "it is not waited for its death"
    assert changes(made.step(900.0, Tick())) == []
    over = made.step(901.0, records(A))
    assert over.effects[0] == DrainChanged(A, "")
    assert changes(over) == [(A, MemberState.AWAY, MemberState.SUSPECT)]
    assert changes(made.step(901.0 + SUSPECT_S, Tick())) == [(A, MemberState.SUSPECT, MemberState.DEAD)]
    made.step(950.0, drained)
    assert state(made, A) is MemberState.AWAY, "also when it was announced too late"
    assert changes(made.step(960.0, PeerConnected(A))) == [(A, MemberState.AWAY, MemberState.ALIVE)]
