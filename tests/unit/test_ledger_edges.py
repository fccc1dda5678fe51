"""Where exactly are the edges of the ledger: bounds, reasons, sums, what is kept and what is forgotten?

Written against mutants (`.ci/mutation`): each of these lines had one that lived.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from p2p_network.core.clock import Stamp
from p2p_network.core.errors import LocalViolation
from p2p_network.core.ids import PeerId
from p2p_network.core.machine import Decision
from p2p_network.identity import Identity
from p2p_network.ledger import entry as entries
from p2p_network.ledger.core import HINT_ENTRIES, HINT_VALUE_BYTES, Ledger, Limits
from p2p_network.ledger.entry import MAX_COUNT, Entry, Held, hold, key_hash, sign_entry
from p2p_network.ledger.events import (
    Changed,
    Contradiction,
    EntriesReceived,
    Expelled,
    Hint,
    LocalDelete,
    LocalWrite,
    LocalWrites,
    Refused,
    Remove,
    Restored,
    Store,
    Tick,
)
from p2p_network.ledger.policy import Policy, Refusal, rule_of

MESH, WALL_S, DAY_S = "mesh", 1_800_000_000.0, 86_400.0
ALICE, BOB, CAROL = (Identity(hashlib.sha256(name).digest()) for name in (b"alice", b"bob", b"carol"))
PEER = PeerId("the peer that sent it")


def policy(**more: Callable[..., object]) -> Policy:
    return Policy(
        **{
            "decided": lambda key, value: value.split(b"|")[0] if value.startswith(b"quorum") else None,
            "may_write": lambda key, author: author in (ALICE.peer_id, BOB.peer_id),
            "owns": lambda key, value: key.endswith(value.decode()),
            **more,
        }  # type: ignore[arg-type]
    )


def ledger(who: Identity = ALICE, limits: Limits | None = None, rules: Policy | None = None) -> Ledger:
    return Ledger(who, MESH, rules or policy(), limits or Limits())


def said(by: Identity, key: str, seconds: float, value: bytes | None = b"v", count: int = 0) -> Entry:
    return sign_entry(by, MESH, key, Stamp(int((WALL_S + seconds) * 1000), count), value)


def node(by: Identity, seconds: float, value: bytes | None = b"v", count: int = 0) -> Entry:
    return said(by, f"node/{by.peer_id}", seconds, value, count)


def got(to: Ledger, *items: Entry, after_s: float = 0.0) -> Decision[object]:
    return to.step(after_s, EntriesReceived(PEER, items, WALL_S + after_s))  # type: ignore[return-value]


def held(entry: Entry) -> Held:
    rule = rule_of(entry.key)
    assert rule is not None
    return hold(entry, is_certificate=rule.is_certificate)


# ---------------------------------------------------------------- sums, by which two ledgers are compared


def test_the_sums_are_those_of_the_content() -> None:
    mine, items = ledger(), [node(who, 1) for who in (ALICE, BOB, CAROL)]
    assert ledger().digest() == bytes(16)
    assert ledger().bucket_digests() == bytes(256 * 6)
    got(mine, *items)
    total = sum(held(item).content for item in items) % (1 << 128)
    assert mine.digest() == total.to_bytes(16, "big")
    for item in items:
        bucket = key_hash(item.key)[0]
        inside = sum(held(i).content for i in items if key_hash(i.key)[0] == bucket)
        assert mine.bucket_digests()[6 * bucket :][:6] == (inside % (1 << 48)).to_bytes(6, "big")
    got(mine, *[node(who, 2, None) for who in (ALICE, BOB, CAROL)])
    mine.step(0.0, Expelled(frozenset(who.peer_id for who in (ALICE, BOB, CAROL)), WALL_S))
    assert mine.digest() == bytes(16)
    assert len(mine) == 0
    assert mine.bucket_digests() == bytes(256 * 6)


def test_an_entry_has_this_hash_rank_and_form() -> None:
    entry = node(BOB, 1.5, count=7)
    plain = hold(entry, is_certificate=False)
    digest = hashlib.blake2b(entries.signed_part(entry), digest_size=16).digest()
    assert plain.entry is entry
    assert plain.content == int.from_bytes(digest, "big")
    assert plain.rank == (0, entry.wall_ms, 7, BOB.peer_id, plain.content)
    newness = entry.wall_ms.to_bytes(6, "big") + (7).to_bytes(4, "big")
    assert plain.item == hashlib.blake2b(entry.key.encode(), digest_size=12).digest() + newness + digest[-6:]
    assert (plain.key_hash, plain.version) == (plain.item[:12], plain.item[12:])
    fenced = hold(entry, is_certificate=False, fence=5)
    assert fenced.rank == (5, entry.wall_ms, 7, BOB.peer_id, plain.content)
    seconds = (entry.wall_ms // 1000).to_bytes(4, "big")
    assert fenced.version == ((1 << 47) + 5).to_bytes(6, "big") + seconds + digest[-6:]
    far = Entry(entry.key, entry.author, (1 << 47) - 1, 0, b"v", b"")
    assert hold(far, is_certificate=False, fence=1).version[6:10] == b"\xff\xff\xff\xff"
    proof = hold(said(BOB, "genesis/kairos/1/1", 1, b"quorum"), is_certificate=True)
    again = hold(said(CAROL, "genesis/kairos/1/1", 9, b"quorum"), is_certificate=True)
    assert (proof.content, proof.item, proof.rank) == (again.content, again.item, again.rank)
    assert proof.rank == (0, 0, 0, "", -proof.content)
    assert proof.version == bytes(10) + proof.content.to_bytes(16, "big")[-6:]
    assert entries.is_genuine(entry, MESH)
    assert not entries.is_genuine(entry, "another mesh")


def test_a_bucket_is_scanned_from_and_to_both_inclusive() -> None:
    mine, item = ledger(), node(BOB, 1)
    got(mine, item)
    where = key_hash(item.key)
    scan = [h.entry for h in mine.scan(where[0], where, where)]
    assert scan == [item]
    assert mine.scan(where[0], bytes(12), where) != []
    assert mine.scan(where[0], where[:-1] + bytes([where[-1] ^ 1]), where) in (
        [],
        mine.scan(where[0], where, where),
    )
    assert mine.held_at(where) is not None
    assert mine.held_at(where).entry == item  # type: ignore[union-attr]


# ---------------------------------------------------------------- deletions


def test_a_deletion_is_known_while_it_is_remembered_and_collected_on_time() -> None:
    mine = ledger(limits=Limits(retention_ms=10_000))
    key = f"node/{BOB.peer_id}"
    assert mine.tombstone(key) is None
    assert mine.wake_at() is None
    got(mine, node(BOB, 0))
    assert mine.tombstone(key) is None
    assert mine.wake_at() is None
    gone = node(BOB, 1, None)
    got(mine, gone, after_s=1.0)
    assert mine.tombstone(key) == gone
    assert mine.get(key) is None
    assert mine.deleted("node/") == {key}
    assert mine.deleted("role/") == frozenset()
    assert mine.wake_at() == pytest.approx(11.001, abs=1e-4)
    assert mine.wake_at() == (gone.wall_ms + 10_000 + 1) / 1000 - WALL_S
    mine.step(4.0, Tick(WALL_S + 6.0))
    assert mine.wake_at() == pytest.approx(9.001, abs=1e-4), "the wall clock was set ahead by two seconds"
    assert len(mine) == 1
    mine.step(11.0, Tick(WALL_S + 10.999))
    assert len(mine) == 1
    assert mine.step(11.0, Tick(WALL_S + 11.0)) == Decision()
    assert len(mine) == 0
    assert mine.wake_at() is None
    assert mine.tombstone(key) == gone, "in its grave"
    assert mine.deleted() == {key}
    assert mine.grave_at(key_hash(key)) == held(gone)
    assert mine.grave_over(node(BOB, 0)) == held(gone)
    assert mine.grave_over(gone) is None
    assert mine.grave_over(node(BOB, 2)) is None
    assert mine.grave_over(node(BOB, 1, b"of that moment")) == held(gone)
    assert mine.grave_over(node(CAROL, 0)) is None
    (refused,) = got(mine, node(BOB, 0), after_s=12.0).effects
    assert refused == Refused(PEER, ((Refusal.DELETED, 1),))
    assert got(mine, gone, after_s=12.0) == Decision()
    later = got(mine, node(BOB, 12), after_s=12.0)
    assert isinstance(later.effects[0], Store)
    assert mine.grave_at(key_hash(key)) is None


def test_deletions_that_come_too_late_are_buried_at_once_and_the_oldest_forgotten() -> None:
    mine = ledger(limits=Limits(retention_ms=10_000, graves=1))
    late = node(BOB, -20, None)
    decision = got(mine, late)
    assert decision.effects[:2] == (Store((late,)), Changed((late.key,)))
    assert decision.effects[2] == Hint(mine.digest(), ())
    assert decision.reason == f"1 entries received from {PEER}"
    assert len(mine) == 0
    older = node(CAROL, -30, None)
    assert got(mine, older).effects[-1] == Remove((older.key,))
    assert mine.tombstone(older.key) is None
    fresh = node(CAROL, 0, None)
    got(mine, fresh)
    decision = mine.step(10.0, Tick(WALL_S + 10.0))
    assert decision == Decision((Remove((late.key,)),), "1 deletions forgotten for want of room")
    assert mine.tombstone(fresh.key) == fresh


# ---------------------------------------------------------------- our own words


def test_what_is_written_and_deleted_is_said_so() -> None:
    mine, key = ledger(), f"node/{ALICE.peer_id}"
    assert mine.step(0.0, LocalDelete(key, WALL_S)) == Decision(), "it was not there"
    assert mine.step(0.0, LocalWrite(key, b"v", WALL_S)).reason == f"{key} written by this node"
    assert mine.step(0.0, LocalDelete(key, WALL_S)).reason == f"{key} deleted by this node"
    with pytest.raises(LocalViolation, match="ledger key 'nonsense'") as wrong:
        mine.step(0.0, LocalWrite("nonsense", b"", WALL_S))
    assert "ledger.policy.TABLE" in wrong.value.hint
    role, place = f"role/{ALICE.peer_id}", f"place/{ALICE.peer_id}"
    decision = mine.step(0.0, LocalWrites(((role, b"a"), (place, b"b")), WALL_S))
    store, changed, hint = decision.effects
    assert isinstance(store, Store)
    assert [e.key for e in store.entries] == [role, place]
    assert changed == Changed((role, place))
    assert hint == Hint(mine.digest(), ())
    assert decision.reason == "2 keys written by this node"
    assert mine.step(0.0, LocalWrites(((role, b"a"),), WALL_S)) == Decision()


def test_an_authority_that_was_overtaken_does_not_write() -> None:
    fenced = policy(fence=lambda key, value: int(value or b"0"))
    mine, key = ledger(rules=fenced), f"assign/kairos/{CAROL.peer_id}"
    got(mine, said(BOB, key, 0, b"7"))
    assert mine.get(key) is not None
    decision = mine.step(0.0, LocalWrite(key, b"6", WALL_S + 5))
    assert decision == Decision((), f"{key} is not written: a newer word is known")
    assert mine.step(0.0, LocalWrite(key, b"8", WALL_S + 5)).reason == f"{key} written by this node"
    # of two words with one fence the later counts; the fence of a key is asked for by that key and value
    assert got(mine, said(BOB, key, 9, b"7"), after_s=9.0) == Decision()
    assert got(mine, said(BOB, key, 9, b"8"), after_s=9.0).effects != ()


def test_certificates_that_contradict_are_reported_once() -> None:
    mine, key = ledger(), "genesis/kairos/1/1"
    first = mine.step(0.0, LocalWrite(key, b"quorum a|1", WALL_S))
    assert first.reason == f"{key} written by this node"
    kept = mine.get(key)
    assert kept is not None
    assert mine.step(0.0, LocalWrite(key, b"quorum a|1", WALL_S)) == Decision()
    mine_held = held(kept)
    others = [said(BOB, key, 0, b"quorum b|%d" % n) for n in range(40)]
    lower = next(other for other in others if held(other).rank < mine_held.rank)
    higher = next(other for other in others if held(other).rank > mine_held.rank)
    decision = mine.step(0.0, LocalWrite(key, lower.value or b"", WALL_S))
    (alarm,) = decision.effects
    assert isinstance(alarm, Contradiction)
    assert (alarm.key, alarm.kept) == (key, kept)
    assert decision.reason == f"{key} is certified already"
    assert mine.step(0.0, LocalWrite(key, lower.value or b"", WALL_S)) == Decision(), "once"
    assert got(mine, lower) == Decision()
    decision = got(mine, higher)
    assert decision.reason == (
        f"1 entries received from {PEER}; a quorum's certificates contradict each other"
    )
    assert decision.effects[-1] == Contradiction(key, higher, kept)
    same = next(
        v for n in range(40)
        if held(v := said(BOB, key, 0, higher.value.split(b"|")[0] + b"|x%d" % n)).rank < held(higher).rank  # type: ignore[union-attr]
    )  # fmt: skip
    assert got(mine, same) == Decision(), "the same decision, by other votes"
    assert mine.step(0.0, LocalWrite(key, same.value or b"", WALL_S)) == Decision()


def test_a_counter_that_was_driven_up_is_started_again() -> None:
    mine, key = ledger(), f"node/{ALICE.peer_id}"
    for count in (MAX_COUNT - 1, MAX_COUNT):
        got(mine, node(BOB, 0, count=count))
        mine.step(0.0, LocalWrite(key, b"%d" % count, WALL_S))
        entry = mine.get(key)
        assert entry is not None
        ours = int(WALL_S * 1000)
        assert entry.stamp == (Stamp(ours, MAX_COUNT) if count < MAX_COUNT else Stamp(ours + 1, 0))
    mine.step(0.0, LocalWrite(key, b"again", WALL_S))
    assert mine.get(key).stamp == Stamp(int(WALL_S * 1000) + 1, 1)  # type: ignore[union-attr]
    assert mine.clock_last == Stamp(int(WALL_S * 1000) + 1, 1)


# ---------------------------------------------------------------- what others send


def test_a_batch_is_counted_by_what_became_of_it() -> None:
    mine = ledger()
    bad = said(BOB, "nonsense", 0)
    forged = Entry(f"node/{CAROL.peer_id}", CAROL.peer_id, int(WALL_S * 1000), 0, b"v", bytes(64))
    good = node(BOB, 0)
    decision = got(mine, bad, bad, forged, good)
    assert decision.effects == (
        Store((good,)), Changed((good.key,)), Hint(mine.digest(), (good,)),
        Refused(PEER, tuple(sorted({Refusal.BAD_KEY: 2, Refusal.FORGED: 1}.items()))),
    )  # fmt: skip
    listed = ", ".join(
        f"{n}, since {why}" for why, n in sorted({Refusal.BAD_KEY: 2, Refusal.FORGED: 1}.items())
    )
    assert decision.reason == f"1 entries received from {PEER}; refused: {listed}"
    assert dict(mine.refused) == {Refusal.BAD_KEY: 2, Refusal.FORGED: 1}
    got(mine, bad)
    assert mine.refused[Refusal.BAD_KEY] == 3
    assert got(mine, good) == Decision()


def test_who_is_a_member_comes_first_in_a_batch() -> None:
    members: set[str] = set()

    def owns(key: str, value: bytes) -> bool:
        members.add(value.decode())
        return True

    mine = ledger(rules=policy(admitted=lambda author: author in members, owns=owns))
    member = said(BOB, f"member/{BOB.peer_id}", 0, BOB.peer_id.encode())
    for batch in ([node(BOB, 0), member],):
        (store, *_) = got(mine, *batch).effects
        assert isinstance(store, Store)
        assert [e.key.partition("/")[0] for e in store.entries] == ["member", "node"]
    order = [
        said(BOB, f"member/{BOB.peer_id}", 0, BOB.peer_id.encode()),
        said(BOB, f"revoked/{CAROL.peer_id}", 0, b"quorum r"),
        said(BOB, f"seat/1/{BOB.peer_id}", 0, b"quorum s"),
        said(BOB, "generation/1", 0, b"quorum g"),
        said(BOB, f"role/{BOB.peer_id}", 0),
    ]
    members.add(BOB.peer_id)
    (store, *_) = got(ledger(rules=policy(owns=owns)), *order).effects
    assert isinstance(store, Store)
    kinds = [e.key.partition("/")[0] for e in store.entries]
    assert kinds == ["generation", "seat", "revoked", "member", "role"]


def test_hints_carry_few_and_small_entries() -> None:
    def hint(*items: Entry) -> Hint:
        found = next(e for e in got(ledger(), *items).effects if isinstance(e, Hint))
        assert isinstance(found, Hint)
        return found

    who = [Identity(hashlib.sha256(b"%d" % n).digest()) for n in range(HINT_ENTRIES + 1)]
    few = [node(w, 0) for w in who[:HINT_ENTRIES]]
    assert set(hint(*few).entries) == set(few)
    assert hint(*few, node(who[-1], 0)).entries == ()
    half = HINT_VALUE_BYTES // 2
    assert len(hint(node(BOB, 0, bytes(half)), node(CAROL, 0, bytes(half))).entries) == 2
    assert hint(node(BOB, 0, bytes(half)), node(CAROL, 0, bytes(half + 1))).entries == ()
    assert len(hint(node(BOB, 0, None), node(CAROL, 0, bytes(HINT_VALUE_BYTES))).entries) == 2


def test_a_full_ledger_takes_certificates_alone() -> None:
    mine = ledger(limits=Limits(entries=1))
    got(mine, node(BOB, 0))
    assert got(mine, node(CAROL, 0)).effects == (Refused(PEER, ((Refusal.FULL, 1),)),)
    assert isinstance(got(mine, node(BOB, 1), after_s=1.0).effects[0], Store), "in place of an older one"
    assert isinstance(got(mine, said(CAROL, "genesis/kairos/1/1", 0, b"quorum")).effects[0], Store)
    ahead = node(BOB, 100 * DAY_S)
    assert got(mine, ahead).effects == (Refused(PEER, ((Refusal.AHEAD, 1),)),)
    far = said(CAROL, "genesis/kairos/1/2", 100 * DAY_S, b"quorum")
    assert isinstance(got(mine, far).effects[0], Store), "a certificate's date counts for nothing"


# ---------------------------------------------------------------- from disk, and out


def test_what_was_on_the_disk_is_restored_with_its_time() -> None:
    mine = ledger(limits=Limits(retention_ms=10_000, graves=0))
    first, second, newest = node(BOB, 5), node(BOB, 6), node(CAROL, 7, count=3)
    expired = said(BOB, f"role/{BOB.peer_id}", -20, None)
    odd = (said(BOB, "of/a/newer/version", 0), said(BOB, "another", 0))
    decision = mine.step(0.0, Restored((second, first, newest, expired, *odd), WALL_S))
    assert decision.effects == (Remove((expired.key,)), Changed((second.key, newest.key)))
    assert decision.reason == "2 entries restored from disk; 2 of a form unknown to this version left aside"
    assert mine.get(second.key) == second
    assert mine.clock_last == newest.stamp
    assert ledger().step(0.0, Restored((), WALL_S)) == Decision((), "0 entries restored from disk")
    assert ledger().step(0.0, Restored((first,), WALL_S)).reason == "1 entries restored from disk"


def test_who_is_put_out_is_forgotten_but_for_what_proves_itself() -> None:
    asked: list[tuple[str, int]] = []

    def spoke(author: str, wall_ms: int) -> bool:
        asked.append((author, wall_ms))
        return wall_ms <= int(WALL_S * 1000)

    mine = ledger(rules=policy(spoke=spoke))
    kept = [
        said(BOB, "genesis/kairos/1/1", 0, b"quorum"),
        said(BOB, f"member/{BOB.peer_id}", 0, BOB.peer_id.encode()),
        said(BOB, f"assign/kairos/{CAROL.peer_id}", 0, b"x"),
        node(CAROL, 0),
    ]
    late = said(BOB, f"assign/kairos/{BOB.peer_id}", 1, b"x")
    gone = [node(BOB, 0), late]
    got(mine, *kept, *gone, after_s=1.0)
    asked.clear()
    decision = mine.step(1.0, Expelled(frozenset({BOB.peer_id}), WALL_S))
    keys = tuple(e.key for e in gone)
    assert set(asked) == {(BOB.peer_id, kept[2].wall_ms), (BOB.peer_id, late.wall_ms)}
    assert isinstance(decision.effects[0], Remove)
    assert set(decision.effects[0].keys) == set(keys)
    assert decision.effects[1] == Changed(decision.effects[0].keys)
    assert decision.reason == "2 entries of expelled nodes forgotten"
    assert set(mine.snapshot()) == {e.key for e in kept}
    assert mine.step(1.0, Expelled(frozenset({BOB.peer_id}), WALL_S)) == Decision()
