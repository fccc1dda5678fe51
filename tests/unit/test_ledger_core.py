"""What a ledger stores, refuses, deletes and reports; one defect of the peer per test where there is one."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec
import pytest

from p2p_network.core.clock import MAX_AHEAD_MS, Stamp
from p2p_network.core.errors import LocalViolation
from p2p_network.identity import Identity
from p2p_network.ledger.core import Ledger, Limits
from p2p_network.ledger.entry import MAX_COUNT, Entry, sign_entry
from p2p_network.ledger.events import (
    Changed,
    Contradiction,
    Disproved,
    Effect,
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
from p2p_network.ledger.policy import TABLE, Policy, Refusal

MESH = "mesh"
DEFAULT_LIMITS = Limits()
WALL_S = 1_800_000_000.0
DAY_S = 24 * 3600.0


def identity(name: str) -> Identity:
    return Identity(hashlib.sha256(name.encode()).digest())


ALICE, BOB, CAROL = identity("alice"), identity("bob"), identity("carol")
POLICY = Policy(
    decided=lambda key, value: value.split(b"|")[0] if value.startswith(b"quorum") else None,
    may_write=lambda key, author: author == ALICE.peer_id,
)


def ledger(who: Identity = ALICE, limits: Limits = DEFAULT_LIMITS) -> Ledger:
    return Ledger(who, MESH, POLICY, limits)


def at(seconds: float, count: int = 0) -> Stamp:
    return Stamp(int((WALL_S + seconds) * 1000), count)


def node(who: Identity, stamp: Stamp, value: bytes | None = b"v") -> Entry:
    return sign_entry(who, MESH, f"node/{who.peer_id}", stamp, value)


def receive(to: Ledger, *entries: Entry, after_s: float = 0.0) -> tuple[Effect, ...]:
    return to.step(after_s, EntriesReceived(CAROL.peer_id, entries, WALL_S + after_s)).effects


def why(effects: tuple[Effect, ...]) -> dict[Refusal, int]:
    return {reason: n for effect in effects if isinstance(effect, Refused) for reason, n in effect.why}


def test_a_write_is_stored_then_known_then_hinted() -> None:
    mine = ledger()
    key = f"node/{ALICE.peer_id}"
    decision = mine.step(0.0, LocalWrite(key, b"hello", WALL_S))
    match decision.effects:
        case (Store((entry,)), Changed(keys), Hint(root, (hinted,))):
            assert keys == (key,)
            assert root == mine.digest() != ledger().digest()
            assert entry == hinted == mine.get(key)
            assert entry.stamp == at(0)
        case other:
            pytest.fail(f"unexpected {other}")
    assert "written by this node" in decision.reason


def test_writing_the_same_again_changes_nothing() -> None:
    mine = ledger()
    event = LocalWrite(f"node/{ALICE.peer_id}", b"hello", WALL_S)
    mine.step(0.0, event)
    root = mine.digest()
    assert mine.step(1.0, replace(event, wall_s=WALL_S + 1)).effects == ()
    assert mine.digest() == root


@pytest.mark.parametrize("key", ["nonsense", f"node/{BOB.peer_id}", "genesis/kairos/1/D1"])
def test_our_own_mistakes_are_said_at_once(key: str) -> None:
    with pytest.raises(LocalViolation):
        ledger().step(0.0, LocalWrite(key, b"x", WALL_S))


def test_what_proves_nothing_any_more_is_forgotten_without_a_trace() -> None:
    mine, before = ledger(), ledger().digest()
    entry = sign_entry(BOB, MESH, "generation/2", at(1), b"quorum|1")
    receive(mine, entry)
    assert mine.digest() != before
    gone = mine.step(2.0, Disproved(("generation/2", "generation/3"), WALL_S + 2))
    assert gone.effects == (Remove(("generation/2",)), Changed(("generation/2",)))
    assert mine.digest() == before
    assert mine.step(3.0, Disproved(("generation/2",), WALL_S + 3)).effects == ()
    assert isinstance(receive(mine, entry)[0], Store), "no tombstone: if it proves itself again it is taken"


def test_a_certificate_that_is_outlived_is_forgotten_and_taken_no_more() -> None:
    """Whatever order they come in, and without a word of blame: the other may not know of the later one."""
    void = ("generation/2", "generation/3")
    policy = replace(POLICY, outlived=lambda _keys: void if mine.get("generation/9") else ())
    mine = Ledger(ALICE, MESH, policy)
    early = [sign_entry(BOB, MESH, f"generation/{n}", at(1), b"quorum|1") for n in (2, 3)]
    late = sign_entry(BOB, MESH, "generation/9", at(1), b"quorum|1")
    receive(mine, early[0])
    match receive(mine, late, early[1]):
        case (Store(stored), Remove(("generation/2", "generation/3")), Changed(keys), Hint(root, _)):
            assert stored == (late,)
            assert set(keys) == {"generation/9", "generation/2", "generation/3"}
            assert root == mine.digest()
        case other:
            pytest.fail(f"unexpected {other}")
    assert [entry.key for entry in mine.items()] == ["generation/9"]
    before = mine.digest()
    assert receive(mine, *early) == ()
    assert mine.step(2.0, LocalWrite("generation/2", b"quorum|1", WALL_S + 2)).effects == ()
    assert mine.digest() == before
    both = LocalWrites((("generation/2", b"quorum|1"), ("generation/8", b"quorum|1")), WALL_S + 3)
    (stored, *_) = mine.step(3.0, both).effects
    assert isinstance(stored, Store)
    assert [entry.key for entry in stored.entries] == ["generation/8"]
    mine = Ledger(ALICE, MESH, policy)  # a crash came between the later one's entry and the removal
    restored = mine.step(0.0, Restored((*early, late), WALL_S))
    assert restored.effects == (Remove(("generation/2", "generation/3")), Changed(("generation/9",)))


def test_a_certificate_can_not_be_deleted() -> None:
    with pytest.raises(LocalViolation, match="can't be deleted"):
        ledger().step(0.0, LocalDelete("genesis/kairos/1/D1", WALL_S))


def test_the_later_entry_wins_and_the_earlier_is_silently_old_news() -> None:
    mine = ledger()
    new, old = node(BOB, at(2), b"new"), node(BOB, at(1), b"old")
    assert isinstance(receive(mine, new)[0], Store)
    assert receive(mine, old) == ()
    assert receive(mine, new) == ()
    found = mine.get(new.key)
    assert found is not None
    assert found.value == b"new"
    assert not mine.refused


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (msgspec.structs.replace(node(BOB, at(0)), value=b"changed on the way"), Refusal.FORGED),
        (msgspec.structs.replace(node(BOB, at(0)), count=7), Refusal.FORGED),
        (msgspec.structs.replace(node(BOB, at(0)), signature=bytes(64)), Refusal.FORGED),
        (sign_entry(BOB, "another mesh", f"node/{BOB.peer_id}", at(0), b"v"), Refusal.FORGED),
        (sign_entry(CAROL, MESH, f"node/{BOB.peer_id}", at(0), b"v"), Refusal.NOT_OWNER),
        (sign_entry(BOB, MESH, f"assign/kairos/{BOB.peer_id}", at(0), b"server"), Refusal.NOT_AUTHORITY),
        (sign_entry(BOB, MESH, "genesis/kairos/1/D1", at(0), b"a master!"), Refusal.NOT_CERTIFIED),
        (sign_entry(BOB, MESH, "secrets/token", at(0), b"v"), Refusal.BAD_KEY),
        (node(BOB, at(0), b"v" * 8193), Refusal.TOO_LARGE),
        (node(BOB, Stamp(at(0).wall_ms + MAX_AHEAD_MS + 1, 0)), Refusal.AHEAD),
    ],
)
def test_what_is_refused_is_counted_and_not_there(entry: Entry, reason: Refusal) -> None:
    mine = ledger()
    effects = receive(mine, entry, node(CAROL, at(0)))
    assert why(effects) == {reason: 1}
    assert mine.refused == {reason: 1}
    assert mine.get(entry.key) is None
    assert mine.get(f"node/{CAROL.peer_id}") is not None, "one bad entry must not spoil the others"


def test_a_stamp_from_the_future_is_accepted_when_its_time_has_come() -> None:
    mine = ledger()
    fast = node(BOB, at(25 * 3600))
    assert why(receive(mine, fast)) == {Refusal.AHEAD: 1}
    assert mine.clock_last < at(0, 1), "and it does not drag our clock along"
    assert receive(mine, fast, after_s=3601)[0] == Store((fast,))


def test_our_next_stamp_exceeds_everything_accepted() -> None:
    mine = ledger()
    receive(mine, node(BOB, at(300, 5)))
    mine.step(0.0, LocalWrite(f"node/{ALICE.peer_id}", b"x", WALL_S))
    found = mine.get(f"node/{ALICE.peer_id}")
    assert found is not None
    assert found.stamp == at(300, 6)


def test_a_counter_driven_to_its_end_does_not_silence_us() -> None:
    mine = ledger()
    receive(mine, node(BOB, at(300, MAX_COUNT)))
    (stored, *_) = mine.step(0.0, LocalWrite(f"node/{ALICE.peer_id}", b"x", WALL_S)).effects
    assert isinstance(stored, Store)
    assert stored.entries[0].stamp == Stamp(at(300).wall_ms + 1, 0)
    assert receive(ledger(BOB), *stored.entries)[0] == stored


def test_equivocation_ends_the_same_everywhere() -> None:
    one, two = node(BOB, at(0), b"one"), node(BOB, at(0), b"two")
    first, second = ledger(), ledger(CAROL)
    receive(first, one, two)
    receive(second, two, one)
    assert first.digest() == second.digest()


def test_a_second_signature_on_one_statement_is_no_news() -> None:
    mine = ledger()
    entry = node(BOB, at(0))
    receive(mine, entry)
    root = mine.digest()
    receive(mine, msgspec.structs.replace(entry, signature=b"\1" * 64))
    assert mine.get(entry.key) == entry
    assert mine.digest() == root


class TestCertificates:
    KEY = "genesis/kairos/1/D2"

    def certificate(self, who: Identity, value: bytes, seconds: float = 0.0) -> Entry:
        return sign_entry(who, MESH, self.KEY, at(seconds), value)

    def test_anyone_may_deliver_one_and_who_does_not_matter(self) -> None:
        one, two = ledger(), ledger(BOB)
        receive(one, self.certificate(BOB, b"quorum: alice"))
        receive(two, self.certificate(CAROL, b"quorum: alice", 60))
        assert one.digest() == two.digest()

    def test_a_wrong_clock_of_the_deliverer_does_not_matter(self) -> None:
        mine = ledger()
        receive(mine, self.certificate(BOB, b"quorum: alice", 100 * DAY_S))
        assert mine.get(self.KEY) is not None
        assert mine.clock_last == Stamp(0, 0)

    def test_another_set_of_signatures_on_the_same_decision_is_no_contradiction(self) -> None:
        one, two = ledger(), ledger(BOB)
        a, b = self.certificate(BOB, b"quorum: alice|sig 1"), self.certificate(BOB, b"quorum: alice|sig 2")
        effects = receive(one, a, b) + receive(two, b, a)
        assert not [e for e in effects if isinstance(e, Contradiction)]
        assert one.digest() == two.digest()

    def test_two_decisions_raise_one_alarm_on_each_node_and_end_the_same(self) -> None:
        one, two = ledger(), ledger(BOB)
        a, b = self.certificate(BOB, b"quorum: alice"), self.certificate(CAROL, b"quorum: carol", 60)
        receive(one, a)
        receive(two, b)
        alarms = [e for e in receive(one, b) + receive(two, a) if isinstance(e, Contradiction)]
        assert len(alarms) == 2
        assert {alarm.kept.value for alarm in alarms} == {min(alarms, key=id).kept.value}
        assert all({alarm.kept.value, alarm.other.value} == {a.value, b.value} for alarm in alarms)
        assert one.digest() == two.digest()
        assert not [e for e in receive(one, a, b) if isinstance(e, Contradiction)], "said once"

    def test_our_own_contradicting_one_is_reported_too(self) -> None:
        mine = ledger()
        receive(mine, self.certificate(BOB, b"quorum: alice"))
        effects = mine.step(0.0, LocalWrite(self.KEY, b"quorum: carol", WALL_S)).effects
        assert [e for e in effects if isinstance(e, Contradiction)]

    def test_junk_can_not_crowd_it_out(self) -> None:
        mine = ledger(limits=Limits(entries=1))
        receive(mine, node(BOB, at(0)), self.certificate(BOB, b"quorum: alice"))
        assert mine.get(self.KEY) is not None


class TestLimits:
    def test_a_full_ledger_takes_updates_but_no_new_keys(self) -> None:
        mine = ledger(limits=Limits(entries=2))
        effects = receive(mine, node(BOB, at(0)), node(CAROL, at(0)), node(identity("dave"), at(0)))
        assert why(effects) == {Refusal.FULL: 1}
        assert not why(receive(mine, node(BOB, at(1), b"newer")))
        assert len(mine) == 2

    def test_a_full_ledger_does_not_silence_ourselves(self) -> None:
        mine = ledger(limits=Limits(entries=1))
        receive(mine, node(BOB, at(0)))
        assert mine.step(0.0, LocalWrite(f"node/{ALICE.peer_id}", b"me", WALL_S)).effects

    def test_one_author_can_not_fill_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(TABLE, "assign", replace(TABLE["assign"], max_per_author=2))
        mine = ledger(BOB)
        keys = [f"assign/kairos/{identity(str(n)).peer_id}" for n in range(4)]
        entries = [sign_entry(ALICE, MESH, key, at(0), b"x") for key in keys]
        assert why(receive(mine, *entries)) == {Refusal.AUTHOR_FULL: 2}
        assert not why(receive(mine, sign_entry(ALICE, MESH, keys[0], at(1), None)))
        assert len(mine) == 2


class TestDeletion:
    KEY = f"node/{BOB.peer_id}"

    def test_a_deleted_key_is_gone_but_known_to_be_deleted(self) -> None:
        mine = ledger(BOB)
        mine.step(0.0, LocalWrite(self.KEY, b"x", WALL_S))
        effects = mine.step(1.0, LocalDelete(self.KEY, WALL_S + 1)).effects
        assert isinstance(effects[0], Store)
        assert mine.get(self.KEY) is None
        assert list(mine.items("node/")) == []
        assert mine.deleted("node/") == {self.KEY}
        assert mine.step(2.0, LocalDelete(self.KEY, WALL_S + 2)).effects == ()

    def test_deleting_what_never_was_is_nothing(self) -> None:
        assert ledger(BOB).step(0.0, LocalDelete(self.KEY, WALL_S)).effects == ()

    def test_after_the_retention_it_leaves_replication_but_nothing_comes_back(self) -> None:
        mine, empty = ledger(), ledger().digest()
        receive(mine, node(BOB, at(0), None))
        assert mine.wake_at() == pytest.approx(7 * DAY_S)
        mine.step(6.9 * DAY_S, Tick(WALL_S + 6.9 * DAY_S))
        assert len(mine) == 1
        mine.step(7 * DAY_S, Tick(WALL_S + 7 * DAY_S))
        assert len(mine) == 0
        assert mine.digest() == empty
        assert mine.wake_at() is None
        assert why(receive(mine, node(BOB, at(-1), b"risen"), after_s=8 * DAY_S)) == {Refusal.DELETED: 1}
        assert mine.deleted("node/") == {self.KEY}
        receive(mine, node(BOB, at(8 * DAY_S), b"really back"), after_s=8 * DAY_S)
        assert mine.get(self.KEY) is not None
        assert mine.deleted("node/") == frozenset()

    def test_an_expired_deletion_still_deletes_what_we_missed(self) -> None:
        mine, empty = ledger(), ledger().digest()
        receive(mine, node(BOB, at(0), b"x"))
        (stored, changed, _) = receive(mine, node(BOB, at(1), None), after_s=30 * DAY_S)
        assert isinstance(stored, Store)
        assert changed == Changed((self.KEY,))
        assert mine.get(self.KEY) is None
        assert mine.digest() == empty

    def test_an_expired_deletion_that_comes_first_is_remembered_and_not_passed_on(self) -> None:
        mine, empty = ledger(), ledger().digest()
        grave, risen = node(BOB, at(-8 * DAY_S), None), node(BOB, at(-9 * DAY_S), b"risen")
        assert not why(receive(mine, grave))
        assert mine.digest() == empty
        assert why(receive(mine, risen)) == {Refusal.DELETED: 1}
        assert receive(mine, grave) == ()

    def test_graves_survive_a_restart_and_are_bounded(self) -> None:
        people = [identity(str(n)) for n in range(5)]
        entries = tuple(node(who, at(n), None) for n, who in enumerate(people))
        mine = ledger(limits=Limits(graves=3))
        effects = mine.step(0.0, Restored(entries, WALL_S + 30 * DAY_S)).effects
        removed = [effect for effect in effects if isinstance(effect, Remove)]
        assert removed == [Remove((entries[0].key, entries[1].key))]
        assert mine.deleted() == {entry.key for entry in entries[2:]}


def test_a_restart_brings_everything_back_in_one_step() -> None:
    before = ledger()
    receive(before, node(BOB, at(1)), node(CAROL, at(200), None))
    before.step(0.0, LocalWrite(f"node/{ALICE.peer_id}", b"x", WALL_S))
    on_disk = tuple(
        held.entry for bucket in range(256) for held in before.scan(bucket, bytes(12), b"\xff" * 12)
    )
    after = ledger()
    decision = after.step(0.0, Restored(on_disk, WALL_S))
    assert after.digest() == before.digest()
    assert after.snapshot() == before.snapshot()
    assert after.clock_last == before.clock_last
    assert decision.reason == "3 entries restored from disk"
    assert not [effect for effect in decision.effects if isinstance(effect, Store | Hint)]


def test_a_row_of_a_newer_version_is_left_aside() -> None:
    mine = ledger()
    newer = sign_entry(BOB, MESH, "weather/today", at(0), b"rain")
    assert "1 of a form unknown" in mine.step(0.0, Restored((newer,), WALL_S)).reason
    assert len(mine) == 0


def test_items_come_in_order_and_stay_what_they_were() -> None:
    mine = ledger()
    people = sorted((identity(str(n)) for n in range(5)), key=lambda who: who.peer_id)
    receive(mine, *(node(who, at(0)) for who in reversed(people)))
    items, frozen = mine.items("node/"), mine.snapshot()
    receive(mine, node(people[0], at(1), None))
    assert [entry.author for entry in items] == [who.peer_id for who in people]
    assert len(frozen) == 5
    assert len(mine.snapshot()) == 4


def test_large_news_is_hinted_without_the_news() -> None:
    mine = ledger()
    hints = [
        e for e in receive(mine, *(node(identity(str(n)), at(0)) for n in range(17))) if isinstance(e, Hint)
    ]
    assert hints == [Hint(mine.digest(), ())]


def test_what_an_expelled_node_said_is_forgotten_and_nothing_else() -> None:
    mine = ledger()
    receive(mine, node(BOB, at(0)), node(CAROL, at(0)))
    decision = mine.step(0.0, Expelled(frozenset({BOB.peer_id}), WALL_S))
    assert decision.effects == (Remove((f"node/{BOB.peer_id}",)), Changed((f"node/{BOB.peer_id}",)))
    never = ledger()
    receive(never, node(CAROL, at(0)))
    assert mine.digest() == never.digest(), "the same as where it was never heard of"
    assert mine.step(0.0, Expelled(frozenset({BOB.peer_id}), WALL_S)).effects == ()


def test_several_things_are_said_all_or_none() -> None:
    mine = ledger()
    key = f"node/{ALICE.peer_id}"
    decision = mine.step(0.0, LocalWrites(((key, b"1"), (f"role/{ALICE.peer_id}", b"2")), WALL_S))
    stores = [effect for effect in decision.effects if isinstance(effect, Store)]
    assert len(stores) == 1, "one transaction on disk"
    assert [entry.value for entry in stores[0].entries] == [b"1", b"2"]
    assert [e for e in decision.effects if isinstance(e, Hint)] == [Hint(mine.digest(), ())]
    assert mine.step(0.0, LocalWrites(((key, b"1"),), WALL_S)).effects == ()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_is_restored_is_the_latest_word_of_each_key_and_is_not_stored_again(
    order: tuple[int, int],
) -> None:
    words = (node(BOB, at(1), b"old"), node(BOB, at(5), b"new"))
    other, unknown = node(ALICE, at(2)), sign_entry(BOB, MESH, "future/thing", at(9), b"?")
    mine = ledger()
    restored = mine.step(0.0, Restored((*(words[i] for i in order), unknown, other), WALL_S))
    assert sorted(e.value or b"" for e in mine.items()) == [b"new", b"v"]
    assert len(mine) == 2
    (changed,) = restored.effects
    assert isinstance(changed, Changed)
    assert sorted(changed.keys) == sorted((words[0].key, other.key))
    assert restored.reason == "2 entries restored from disk; 1 of a form unknown to this version left aside"
    assert mine.clock_last == at(5), "an entry that can't be read says nothing about the time either"
    mine.step(0.0, LocalWrite(other.key, b"after", WALL_S))
    written = mine.get(other.key)
    assert written is not None
    assert written.stamp > at(5), "what is said after a restart is later than all that was known before"


def test_an_empty_disk_changes_nothing() -> None:
    restored = ledger().step(0.0, Restored((), WALL_S))
    assert (restored.effects, restored.reason) == ((), "0 entries restored from disk")


def test_deletions_that_are_old_enough_leave_replication_when_the_disk_is_read() -> None:
    mine = ledger()
    gone = node(BOB, at(-8 * DAY_S), None)
    mine.step(0.0, Restored((gone,), WALL_S))
    assert len(mine) == 0
    assert mine.tombstone(gone.key) == gone, "it is still known to be deleted"


def test_two_certificates_that_contradict_each_other_are_told_once_however_they_come() -> None:
    key = "genesis/kairos/1/1"
    one = sign_entry(BOB, MESH, key, at(1), b"quorum a|1")
    two = sign_entry(BOB, MESH, key, at(2), b"quorum b|1")
    same = sign_entry(CAROL, MESH, key, at(3), b"quorum a|2")
    for first, second in ((one, two), (two, one)):
        mine = ledger()
        receive(mine, first)
        (alarm,) = [e for e in receive(mine, second) if isinstance(e, Contradiction)]
        held = mine.get(key)
        assert held is not None
        assert (alarm.key, alarm.kept) == (key, held)
        assert {alarm.kept, alarm.other} == {one, two}
        assert not [e for e in receive(mine, first, second) if isinstance(e, Contradiction)], "once"
    mine = ledger()
    receive(mine, one)
    assert not [e for e in receive(mine, same) if isinstance(e, Contradiction)], "it says the same"
