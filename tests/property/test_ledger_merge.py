"""Merging commutes, associates and is idempotent; sums never drift; garbage never breaks anything."""

from __future__ import annotations

import contextlib
import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_network import wire
from p2p_network.core.clock import Stamp
from p2p_network.identity import Identity
from p2p_network.ledger.core import Ledger, Limits
from p2p_network.ledger.entry import MAX_COUNT, MAX_WALL_MS, Entry, sign_entry
from p2p_network.ledger.events import EntriesReceived, Tick
from p2p_network.ledger.policy import Policy, rule_of

MESH = "mesh"
WALL_S = 1_800_000_000.0
WEEK_S = 7 * 24 * 3600.0
PEOPLE = [Identity(hashlib.sha256(str(n).encode()).digest()) for n in range(4)]
POLICY = Policy(
    decided=lambda key, value: value.split(b"|")[0] if value.startswith(b"quorum") else None,
    may_write=lambda key, author: author in (PEOPLE[0].peer_id, PEOPLE[1].peer_id),
)
KEYS = [
    *(f"{name}/{who.peer_id}" for name in ("node", "address", "role") for who in PEOPLE),
    *(f"assign/kairos/{who.peer_id}" for who in PEOPLE),
    "genesis/kairos/1/D1",
    "genesis/kairos/1/D2",
    "nonsense",
]
SHARED = f"assign/kairos/{PEOPLE[0].peer_id}"
values = st.one_of(
    st.none(), st.binary(max_size=3), st.sampled_from([b"quorum a|1", b"quorum a|2", b"quorum b|1"])
)
# few moments, so that equal stamps, expired deletions and stamps from the future all happen
moments = st.sampled_from([0, 1, 300_000, 3_600_000, -int(WEEK_S * 1000), -2 * int(WEEK_S * 1000)])


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    stamp = Stamp(int(WALL_S * 1000) + draw(moments), draw(st.integers(0, 1)))
    who = draw(st.sampled_from(PEOPLE[:2]))
    # mostly what may be written, so that entries meet
    key = draw(st.one_of(st.just(f"node/{who.peer_id}"), st.just(SHARED), st.sampled_from(KEYS)))
    return sign_entry(who, MESH, key, stamp, draw(values))


batches = st.lists(entries(), max_size=12)


def ledger() -> Ledger:
    return Ledger(PEOPLE[0], MESH, POLICY)


def merged(*parts: list[Entry], wall_s: float = WALL_S) -> Ledger:
    made = ledger()
    for part in parts:
        made.step(0.0, EntriesReceived(PEOPLE[1].peer_id, tuple(part), wall_s))
    return made


def content(made: Ledger) -> dict[str, bytes | None]:
    return {held.entry.key: held.entry.value for bucket in range(256) for held in whole(made, bucket)}


def whole(made: Ledger, bucket: int) -> list:  # type: ignore[type-arg]
    return made.scan(bucket, bytes(12), b"\xff" * 12)


@settings(max_examples=300)
@given(batches, batches)
def test_merging_commutes_and_is_idempotent(one: list[Entry], two: list[Entry]) -> None:
    forwards, backwards = merged(one, two), merged(two, one)
    assert forwards.digest() == backwards.digest()
    assert content(forwards) == content(backwards)
    assert merged(one, two, two, one).digest() == forwards.digest()
    assert (
        merged([entry for pair in zip(one, one, strict=True) for entry in pair], two).digest()
        == forwards.digest()
    )


@given(batches, batches, batches)
def test_merging_associates(one: list[Entry], two: list[Entry], three: list[Entry]) -> None:
    """(1 + 2) + 3 = 1 + (2 + 3), where + hands over what a ledger holds, as sync does."""

    def held(made: Ledger) -> list[Entry]:
        graves = [grave.entry for key in KEYS if (grave := made.grave_at(hash_of(key)))]
        return [h.entry for bucket in range(256) for h in whole(made, bucket)] + graves

    left = merged(held(merged(one, two)), three)
    right = merged(one, held(merged(two, three)))
    assert content(left) == content(right)
    assert left.digest() == right.digest()


def hash_of(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=12).digest()


@given(batches)
def test_the_sums_equal_those_of_a_fresh_ledger(batch: list[Entry]) -> None:
    made = merged(batch)
    fresh = ledger()
    for bucket in range(256):
        for held in whole(made, bucket):
            fresh._put(held)
    assert fresh.digest() == made.digest()
    assert fresh.bucket_digests() == made.bucket_digests()
    assert len(made) == len(content(made))
    assert sum(map(len, made._classes.values())) == sum(made._per_author.values()) == len(made)


@given(batches, st.floats(0, 30 * 24 * 3600))
def test_time_resurrects_nothing(batch: list[Entry], later_s: float) -> None:
    made = merged(batch)
    dead = made.deleted()
    made.step(later_s, Tick(WALL_S + later_s))
    assert made.deleted() == dead
    made.step(later_s, EntriesReceived(PEOPLE[1].peer_id, tuple(batch), WALL_S))
    assert made.deleted() >= dead
    assert not any(made.get(key) for key in dead)


@given(batches, st.integers(0, 5))
def test_limits_hold(batch: list[Entry], most: int) -> None:
    made = Ledger(PEOPLE[0], MESH, POLICY, Limits(entries=most, graves=1))
    made.step(0.0, EntriesReceived(PEOPLE[1].peer_id, tuple(batch), WALL_S))
    certificates = sum(1 for key in content(made) if key.startswith("genesis/"))
    assert len(made) - certificates <= most
    assert sum(1 for key in KEYS if made.grave_at(hash_of(key))) <= 1
    made.step(1e6, Tick(WALL_S + 1e9))
    assert len(made.deleted()) <= 1


@given(st.text(max_size=300))
def test_any_text_has_a_rule_or_none(key: str) -> None:
    rule_of(key)


@given(
    st.builds(
        Entry,
        key=st.one_of(st.sampled_from(KEYS), st.text(min_size=1, max_size=20)),
        author=st.one_of(st.sampled_from([who.peer_id for who in PEOPLE]), st.text(max_size=64)),
        wall_ms=st.integers(0, MAX_WALL_MS),
        count=st.integers(0, MAX_COUNT),
        value=st.one_of(st.none(), st.binary(max_size=30)),
        signature=st.binary(min_size=64, max_size=64),
    )
)
def test_entries_without_a_signature_never_enter(entry: Entry) -> None:
    received = wire.decode(wire.encode(entry), Entry)
    assert received == entry
    made = merged([received])
    assert len(made) == 0
    assert made.digest() == bytes(16)


@given(st.binary(max_size=300))
def test_garbage_is_no_entry(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        wire.decode(raw, Entry)
