"""Any two ledgers converge by a session; a mesh converges by any sessions; garbage raises ValueError only."""

from __future__ import annotations

import contextlib
import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_network import wire
from p2p_network.core.clock import Stamp
from p2p_network.identity import Identity
from p2p_network.ledger import sync
from p2p_network.ledger.core import Ledger
from p2p_network.ledger.entry import Entry, sign_entry
from p2p_network.ledger.events import EntriesReceived, LocalDelete, LocalWrite, Tick
from p2p_network.ledger.policy import Policy
from p2p_network.ledger.sync import SyncSession, decode_hint, handle

MESH = "mesh"
WALL_S = 1_800_000_000.0
DAY_S = 24 * 3600.0
PEOPLE = [Identity(hashlib.sha256(str(n).encode()).digest()) for n in range(12)]
POLICY = Policy(
    decided=lambda key, value: value.split(b"|")[0] if value.startswith(b"quorum") else None,
    may_write=lambda key, author: True,
)


def node_entry(number: int, seconds: int, value: bytes | None) -> Entry:
    who = PEOPLE[number]
    return sign_entry(who, MESH, f"node/{who.peer_id}", Stamp(int((WALL_S + seconds) * 1000), 0), value)


def certificate(number: int, value: bytes) -> Entry:
    return sign_entry(PEOPLE[number], MESH, "genesis/kairos/1/D1", Stamp(int(WALL_S * 1000), 0), value)


entries = st.one_of(
    st.builds(node_entry, st.integers(0, 11), st.integers(0, 3), st.one_of(st.none(), st.binary(max_size=2))),
    st.builds(
        certificate, st.integers(0, 11), st.sampled_from([b"quorum a|1", b"quorum a|2", b"quorum b|1"])
    ),
)
batches = st.lists(entries, max_size=20)


def ledger(number: int, batch: list[Entry]) -> Ledger:
    made = Ledger(PEOPLE[number], MESH, POLICY)
    made.step(0.0, EntriesReceived(PEOPLE[11].peer_id, tuple(batch), WALL_S))
    return made


def run(one: Ledger, other: Ledger, wall_s: float = WALL_S) -> None:
    session = SyncSession(one)
    while (request := session.next_request()) is not None:
        handled = handle(other, request)
        other.step(0.0, EntriesReceived(PEOPLE[10].peer_id, handled.entries, wall_s))
        one.step(0.0, EntriesReceived(PEOPLE[11].peer_id, session.reply(handled.reply), wall_s))
        assert max(len(request), len(handled.reply)) < wire.MAX_FRAME_BYTES


@given(batches, batches)
def test_two_ledgers_converge_in_one_session(one: list[Entry], two: list[Entry]) -> None:
    left, right = ledger(0, one), ledger(1, two)
    run(left, right)
    assert left.digest() == right.digest()
    assert left.snapshot() == right.snapshot() or {k: e.value for k, e in left.snapshot().items()} == {
        k: e.value for k, e in right.snapshot().items()
    }
    both = ledger(2, one + two)
    assert left.digest() == both.digest(), "and nothing is lost on the way"


@settings(max_examples=50)
@given(st.data())
def test_a_mesh_converges_and_the_deleted_stay_deleted_over_any_time(data: st.DataObject) -> None:
    """Writes, deletions, sessions and leaps of time in any order; then everybody meets everybody."""
    mesh = [ledger(n, []) for n in range(4)]
    wall_s = WALL_S
    gone: dict[str, float] = {}
    for _ in range(data.draw(st.integers(0, 25))):
        match data.draw(st.sampled_from(["write", "delete", "meet", "wait"])):
            case "write":
                n = data.draw(st.integers(0, 3))
                value = data.draw(st.binary(max_size=2))
                mesh[n].step(0.0, LocalWrite(f"node/{PEOPLE[n].peer_id}", value, wall_s))
                gone.pop(f"node/{PEOPLE[n].peer_id}", None)
            case "delete":
                n = data.draw(st.integers(0, 3))
                if mesh[n].step(0.0, LocalDelete(f"node/{PEOPLE[n].peer_id}", wall_s)).effects:
                    gone[f"node/{PEOPLE[n].peer_id}"] = wall_s
            case "meet":
                one, other = data.draw(st.permutations(range(4)))[:2]
                run(mesh[one], mesh[other], wall_s)
            case "wait":
                wall_s += data.draw(st.sampled_from([1.0, DAY_S, 8 * DAY_S]))
                for each in mesh:
                    each.step(0.0, Tick(wall_s))
    for _ in range(2):
        for one in range(4):
            for other in range(4):
                if one != other:
                    run(mesh[one], mesh[other], wall_s)
    assert len({each.digest() for each in mesh}) == 1
    assert len({frozenset(each.snapshot().items()) for each in mesh}) == 1
    for key in gone:
        assert all(each.get(key) is None for each in mesh)


@given(st.binary(max_size=400), batches)
def test_garbage_as_a_request_is_a_value_error(raw: bytes, batch: list[Entry]) -> None:
    with contextlib.suppress(ValueError):
        handle(ledger(0, batch), raw)


hashes = st.one_of(st.sampled_from([bytes(12), b"\xff" * 12]), st.binary(min_size=12, max_size=12))
replies = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda raw: wire.encode(sync.Buckets(raw)), st.binary(min_size=1536, max_size=1536)),
    st.builds(
        lambda some, wanted, done: wire.encode(sync.Delta(tuple(some), b"".join(wanted), done)),
        batches,
        st.lists(hashes, max_size=5),
        hashes,
    ),
    st.just(wire.encode(sync.Same())),
    st.just(wire.encode(sync.Taken())),
)


@given(st.lists(replies, max_size=20), batches)
def test_garbage_as_replies_is_a_value_error_and_ends(answers: list[bytes], batch: list[Entry]) -> None:
    session = SyncSession(ledger(0, batch))
    for raw in answers:
        if session.next_request() is None:
            return
        try:
            session.reply(raw)
        except ValueError:
            return


@given(hashes, hashes, st.binary(min_size=32, max_size=32), st.binary(max_size=280), batches)
def test_wellformed_nonsense_is_answered_or_refused(
    first: bytes, last: bytes, buckets: bytes, items: bytes, batch: list[Entry]
) -> None:
    try:
        handled = handle(ledger(0, batch), wire.encode(sync.Compare(buckets, first, last, items)))
    except ValueError:
        return
    assert len(handled.reply) < wire.MAX_FRAME_BYTES


@given(st.binary(max_size=300))
def test_garbage_as_a_hint_is_a_value_error(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        decode_hint(raw)
