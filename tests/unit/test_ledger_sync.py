"""How many bytes and frames it takes to make two ledgers equal, and what a wrong peer gets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import pytest

from p2p_network import wire
from p2p_network.core.clock import Stamp
from p2p_network.identity import Identity
from p2p_network.ledger import sync
from p2p_network.ledger.core import Ledger
from p2p_network.ledger.entry import ITEM_BYTES, KEY_HASH_BYTES, Entry, sign_entry
from p2p_network.ledger.events import EntriesReceived, Hint, LocalWrite, Tick
from p2p_network.ledger.policy import Policy, Refusal
from p2p_network.ledger.sync import SyncSession, decode_hint, encode_hint, handle

MESH = "mesh"
WALL_S = 1_800_000_000.0
DAY_S = 24 * 3600.0
POLICY = Policy(decided=lambda key, value: None, may_write=lambda key, author: True)
PEOPLE = [Identity(hashlib.sha256(str(n).encode()).digest()) for n in range(600)]
ME, YOU = PEOPLE[0], PEOPLE[1]


@dataclass
class Traffic:
    requests: list[bytes] = field(default_factory=list)
    replies: list[bytes] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.requests + self.replies))


def ledger(who: Identity = ME) -> Ledger:
    return Ledger(who, MESH, POLICY)


def node(who: Identity, seconds: float = 0.0, value: bytes | None = b"v" * 150) -> Entry:
    return sign_entry(who, MESH, f"node/{who.peer_id}", Stamp(int((WALL_S + seconds) * 1000), 0), value)


def receive(to: Ledger, entries: tuple[Entry, ...], wall_s: float = WALL_S) -> None:
    to.step(0.0, EntriesReceived(YOU.peer_id, entries, wall_s))


def run(one: Ledger, other: Ledger, wall_s: float = WALL_S) -> tuple[SyncSession, Traffic]:
    session, traffic = SyncSession(one), Traffic()
    while (request := session.next_request()) is not None:
        handled = handle(other, request)
        receive(other, handled.entries, wall_s)
        receive(one, session.reply(handled.reply), wall_s)
        traffic.requests.append(request)
        traffic.replies.append(handled.reply)
    return session, traffic


def test_an_idle_round_costs_forty_bytes_at_most() -> None:
    one, other = ledger(), ledger(YOU)
    for each in (one, other):
        receive(each, tuple(map(node, PEOPLE[:50])))
    session, traffic = run(one, other)
    assert not session.differed
    assert len(traffic.requests) == 1
    assert traffic.size_bytes <= 40


@pytest.mark.parametrize("has_news", ["initiator", "responder"])
def test_one_change_costs_some_kilobytes_whatever_the_size(has_news: str) -> None:
    one, other = ledger(), ledger(YOU)
    for each in (one, other):
        receive(each, tuple(map(node, PEOPLE[2:200])))
    news = one if has_news == "initiator" else other
    who = ME if has_news == "initiator" else YOU
    news.step(0.0, LocalWrite(f"role/{who.peer_id}", b"r" * 100, WALL_S))
    session, traffic = run(one, other)
    assert one.digest() == other.digest()
    assert (session.received, session.sent) == ((0, 1) if has_news == "initiator" else (1, 0))
    assert traffic.size_bytes < 2500


@pytest.mark.parametrize("full", ["initiator", "responder"])
def test_a_large_ledger_goes_in_small_frames(full: str) -> None:
    one, other = ledger(), ledger(YOU)
    receive(one if full == "initiator" else other, tuple(node(who, value=b"v" * 4000) for who in PEOPLE))
    _, traffic = run(one, other)
    assert one.digest() == other.digest()
    assert len(one) == len(other) == len(PEOPLE)
    assert max(map(len, traffic.requests + traffic.replies)) < wire.MAX_FRAME_BYTES // 2
    assert len(traffic.requests) > 5


def test_many_items_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "ITEMS_PER_FRAME", 7)
    one, other = ledger(), ledger(YOU)
    receive(one, tuple(map(node, PEOPLE[:100])))
    receive(other, tuple(map(node, PEOPLE[50:150])))
    session, _ = run(one, other)
    assert one.digest() == other.digest()
    assert (session.received, session.sent) == (50, 50)


def test_a_session_without_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "ROUNDS_PER_SESSION", 3)
    monkeypatch.setattr(sync, "ENTRIES_PER_FRAME", 8)
    one, other = ledger(), ledger(YOU)
    receive(other, tuple(map(node, PEOPLE[:100])))
    sessions = 0
    while one.digest() != other.digest():
        _, traffic = run(one, other)
        assert len(traffic.requests) <= 3
        sessions += 1
        assert sessions < 100
    assert sessions > 3


def test_a_deletion_older_than_the_retention_meets_a_peer_that_missed_it() -> None:
    """A partition outlived the retention: the dead stay dead, on both sides, whoever asks."""
    for asks_first in (True, False):
        knows, missed = ledger(), ledger(YOU)
        receive(missed, (node(PEOPLE[5]),))
        receive(knows, (node(PEOPLE[5], 1.0, None),))
        later_s = WALL_S + 30 * DAY_S
        knows.step(0.0, Tick(later_s))
        assert len(knows) == 0
        run(*((knows, missed) if asks_first else (missed, knows)), wall_s=later_s)
        assert missed.get(f"node/{PEOPLE[5].peer_id}") is None
        assert knows.digest() == missed.digest()
        assert len(knows) == len(missed) == 0


def test_what_is_refused_does_not_end_the_session_and_stays_bounded() -> None:
    one, other = ledger(), ledger(YOU)
    fast = node(PEOPLE[5], 48 * 3600)
    other.step(0.0, EntriesReceived(ME.peer_id, (fast, node(PEOPLE[6])), WALL_S + 48 * 3600))
    _, traffic = run(one, other)
    assert one.refused == {Refusal.AHEAD: 1}
    assert len(one) == 1
    assert len(traffic.requests) == 2


def test_a_hint_carries_small_news() -> None:
    hint = Hint(ledger().digest(), (node(ME),))
    assert decode_hint(encode_hint(hint)) == hint
    with pytest.raises(ValueError, match="length"):
        decode_hint(encode_hint(Hint(bytes(16), (node(ME),) * 17)))


def compare(first: bytes, last: bytes, *hashes: bytes, buckets: bytes = b"\xff" * 32) -> bytes:
    version = bytes(ITEM_BYTES - KEY_HASH_BYTES)
    return wire.encode(sync.Compare(buckets, first, last, b"".join(h + version for h in hashes)))


LOW, MIDDLE, HIGH = bytes(12), b"\x80" + bytes(11), b"\xff" * 12


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\x00",
        wire.encode({"tag": 1}),
        wire.encode([1, bytes(15)]),
        wire.encode([1, bytes(16), 0]),
        wire.encode([9, bytes(16)]),
        wire.encode([3, [[1, 2, 3]]]),
        compare(LOW, HIGH, MIDDLE, LOW),
        compare(LOW, HIGH, MIDDLE, MIDDLE),
        compare(MIDDLE, HIGH, LOW),
        compare(LOW, LOW, MIDDLE),
        compare(LOW, HIGH, MIDDLE, buckets=bytes(32)),
        compare(LOW, HIGH)[:-1] + b"\x01x",
        wire.encode(sync.Compare(b"\xff" * 32, LOW, HIGH, b"odd")),
        wire.encode(sync.Compare(b"\xff" * 31, LOW, HIGH, b"")),
        wire.encode(sync.Push((node(ME),) * (sync.ENTRIES_PER_FRAME + 1))),
        wire.encode(sync.Push((node(ME, value=b"x" * 20_000),))),
        b"\x91" * 100_000,
    ],
)
def test_a_wrong_request_is_a_value_error(request_: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each has its own text; the type is the contract
        handle(ledger(), request_)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        wire.encode([7]),
        wire.encode(sync.Buckets(bytes(10))),
        wire.encode(sync.Same()),
        wire.encode(sync.Delta((), b"", b"short")),
        wire.encode(sync.Delta((), b"odd", HIGH)),
    ],
)
def test_a_wrong_reply_is_a_value_error(reply: bytes) -> None:
    one, other = ledger(), ledger(YOU)
    receive(other, (node(YOU),))
    session = SyncSession(one)
    request = session.next_request()
    assert request is not None
    session.reply(handle(other, request).reply)
    session.next_request()
    with pytest.raises(ValueError):  # noqa: PT011
        session.reply(reply)


def test_a_reply_may_not_want_what_was_not_compared() -> None:
    one, other = ledger(), ledger(YOU)
    receive(other, (node(YOU),))
    session = SyncSession(one)
    request = session.next_request()
    assert request is not None
    session.reply(handle(other, request).reply)
    session.next_request()
    with pytest.raises(ValueError, match="beyond"):
        session.reply(wire.encode(sync.Delta((), HIGH, LOW)))
