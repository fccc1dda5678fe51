"""What does this node hold of the ledger, and what follows from a new entry?

`Ledger` is a map from key to the winning entry (`entry.Held.rank`), with digests kept incrementally: each
entry's 128-bit content hash is added to the sum of its bucket (first byte of the key's hash, 256 buckets)
and to the root, so a change costs O(1) and two equal roots mean equal ledgers.

Untrusted entries pass, in this order: form of the key, news at all, policy, limits, deletions, signature,
stamp. What is refused is counted by `policy.Refusal` and is simply not there: a later offer is judged anew.

Deletions: a tombstone takes part in replication for a retention (7 days of mesh time). After that it is
collected: it leaves digests and sync, but is kept aside as a bounded "grave", and comes forward when a peer
still offers what it deleted. So nothing is resurrected, not even by a partition that outlived the retention.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, assert_never

from p2p_network.core.clock import HybridClock, Stamp
from p2p_network.core.errors import LocalViolation
from p2p_network.core.ids import PeerId
from p2p_network.core.machine import Decision
from p2p_network.identity import Identity
from p2p_network.ledger.entry import (
    MAX_COUNT,
    Entry,
    Held,
    hold,
    is_genuine,
    key_hash,
    sign_entry,
)
from p2p_network.ledger.events import (
    Changed,
    Contradiction,
    Disproved,
    Effect,
    EntriesReceived,
    Event,
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
from p2p_network.ledger.policy import Policy, Refusal, Rule, Writer, rule_of

BUCKETS: Final = 256
BUCKET_DIGEST_BYTES: Final = 6
ROOT_BYTES: Final = 16
HINT_VALUE_BYTES: Final = 4096
HINT_ENTRIES: Final = 16

_MODULUS: Final = 1 << 128
_ADMISSION: Final = {"generation": 0, "seat": 1, "revoked": 2, "member": 3}
_MAX_REPORTED: Final = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a ledger besides the limits of each class.

    Attributes:
        entries: entries in all, tombstones included.
        graves: collected tombstones kept aside; the oldest go first.
        retention_ms: how long a tombstone takes part in replication.
    """

    entries: int = 50_000
    graves: int = 16_384
    retention_ms: int = 7 * 24 * 3600 * 1000


class Ledger:
    """The replicated map as one node holds it."""

    def __init__(self, identity: Identity, mesh_id: str, policy: Policy, limits: Limits = Limits()) -> None:
        self._identity = identity
        self._mesh_id = mesh_id
        self._policy = policy
        self._limits = limits
        self._clock = HybridClock()
        self._held: dict[str, Held] = {}
        self._buckets: tuple[dict[bytes, Held], ...] = tuple({} for _ in range(BUCKETS))
        self._sums = [0] * BUCKETS
        self._root = 0
        self._classes: defaultdict[str, dict[str, Held]] = defaultdict(dict)
        self._per_author: Counter[tuple[str, str]] = Counter()
        self._tombstones: list[tuple[int, str]] = []  # heap of (wall_ms, key); may hold outdated pairs
        self._graves: dict[bytes, Held] = {}
        self._contradictions: set[tuple[str, int]] = set()  # those reported
        self._refused: Counter[Refusal] = Counter()
        self._ahead_s = 0.0  # Unix seconds minus the machine's `now`

    # -- reading ---------------------------------------------------------------------------------------

    def get(self, key: str) -> Entry | None:
        """The live entry of a key."""
        held = self._held.get(key)
        return None if held is None or held.entry.is_tombstone else held.entry

    def tombstone(self, key: str) -> Entry | None:
        """The deletion of a key, while it is remembered."""
        held = self._held.get(key) or self._graves.get(key_hash(key))
        return held.entry if held is not None and held.entry.is_tombstone else None

    def items(self, prefix: str = "") -> Iterator[Entry]:
        """The live entries whose key starts with `prefix`, in the order of keys. A copy: safe to hold."""
        kind, slash, _ = prefix.partition("/")
        among = self._classes.get(kind, {}) if slash else self._held
        found = [h.entry for k, h in among.items() if k.startswith(prefix) and not h.entry.is_tombstone]
        return iter(sorted(found, key=lambda entry: entry.key))

    def deleted(self, prefix: str = "") -> frozenset[str]:
        """The keys under `prefix` that are known to be deleted."""
        both = (*self._held.values(), *self._graves.values())
        return frozenset(h.entry.key for h in both if h.entry.is_tombstone and h.entry.key.startswith(prefix))

    def snapshot(self) -> Mapping[str, Entry]:
        """All live entries, frozen at this moment. O(size)."""
        return MappingProxyType({entry.key: entry for entry in self.items()})

    def digest(self) -> bytes:
        """16 bytes; equal on two nodes if and only if they hold the same."""
        return self._root.to_bytes(ROOT_BYTES, "big")

    def __len__(self) -> int:
        """Entries that take part in replication, tombstones included."""
        return len(self._held)

    @property
    def refused(self) -> Mapping[Refusal, int]:
        """How often an entry was refused, by reason, since the start."""
        return MappingProxyType(self._refused)

    @property
    def clock_last(self) -> Stamp:
        """The highest stamp issued or accepted: the mesh's time as far as this node knows."""
        return self._clock.last

    def wake_at(self) -> float | None:
        """When the oldest tombstone is to be collected."""
        if not self._tombstones:
            return None
        # a millisecond late: rounding must not wake us before the time has come
        return (self._tombstones[0][0] + self._limits.retention_ms + 1) / 1000 - self._ahead_s

    # -- reading, for `sync` ---------------------------------------------------------------------------

    def bucket_digests(self) -> bytes:
        """256 times 6 bytes."""
        low = (1 << (8 * BUCKET_DIGEST_BYTES)) - 1
        return b"".join((total & low).to_bytes(BUCKET_DIGEST_BYTES, "big") for total in self._sums)

    def scan(self, bucket: int, first: bytes, last: bytes) -> list[Held]:
        """What the bucket holds from key hash `first` to `last`, both inclusive, in order."""
        inside = self._buckets[bucket]
        return [inside[h] for h in sorted(h for h in inside if first <= h <= last)]

    def held_at(self, hashed: bytes) -> Held | None:
        """The entry or tombstone whose key has this hash."""
        return self._buckets[hashed[0]].get(hashed)

    def grave_at(self, hashed: bytes) -> Held | None:
        """The collected tombstone of the key with this hash."""
        return self._graves.get(hashed)

    def grave_over(self, entry: Entry) -> Held | None:
        """The collected tombstone that deletes this entry, which a peer still has."""
        grave = self._graves.get(key_hash(entry.key))
        return grave if grave and grave.entry.stamp >= entry.stamp and grave.entry != entry else None

    # -- deciding --------------------------------------------------------------------------------------

    def step(self, now: float, event: Event) -> Decision[Effect]:
        """Decide on one event. Raises LocalViolation if we try to write what we may not."""
        self._ahead_s = event.wall_s - now
        match event:
            case Restored(entries):
                return self._restore(entries, event.wall_s)
            case LocalWrite(key, value):
                return self._write(key, value, event.wall_s)
            case LocalWrites(items):
                return self._write_all(items, event.wall_s)
            case LocalDelete(key):
                return self._write(key, None, event.wall_s)
            case EntriesReceived(peer, entries):
                return self._receive(peer, entries, event.wall_s)
            case Expelled(authors):
                gone = tuple(key for key, held in self._held.items() if self._goes(key, held, authors))
                return self._forget(gone, "entries of expelled nodes forgotten")
            case Disproved(keys):
                gone = tuple(key for key in keys if key in self._held)
                return self._forget(gone, "entries forgotten that prove nothing any more")
            case Tick():
                evicted = self._collect(event.wall_s)
                if not evicted:
                    return Decision()
                return Decision((Remove(evicted),), f"{len(evicted)} deletions forgotten for want of room")
            case _:
                assert_never(event)

    def _restore(self, entries: tuple[Entry, ...], wall_s: float) -> Decision[Effect]:
        unknown = 0
        for entry in entries:
            rule = rule_of(entry.key)
            if rule is None:  # written by a newer version of the program: left on disk, not used
                unknown += 1
                continue
            held = self._hold(rule, entry)
            old = self._held.get(entry.key)
            if old is None or held.rank > old.rank:
                self._put(held)
            if entry.stamp > self._clock.last:
                self._clock = HybridClock(entry.stamp)
        evicted = (*self._collect(wall_s), *self._outlive(tuple(self._held.values())))
        effects: list[Effect] = [Remove(evicted)] if evicted else []
        if self._held:
            effects.append(Changed(tuple(self._held)))
        left_out = f"; {unknown} of a form unknown to this version left aside" if unknown else ""
        return Decision(tuple(effects), f"{len(self._held)} entries restored from disk{left_out}")

    def _forget(self, gone: tuple[str, ...], why: str) -> Decision[Effect]:
        """Every node forgets the same, so digests agree again with those that never heard of it."""
        for key in gone:
            self._drop(key)
        if not gone:
            return Decision()
        return Decision((Remove(gone), Changed(gone)), f"{len(gone)} {why}")

    def _goes(self, key: str, held: Held, authors: frozenset[str]) -> bool:
        rule = rule_of(key)
        if rule is None or held.entry.author not in authors:
            return False
        match rule.writer:
            case Writer.OWNER:
                return True
            case Writer.AUTHORITY:
                return not self._policy.spoke(held.entry.author, held.entry.wall_ms)
            case Writer.CERTIFICATE | Writer.MEMBER:
                return False  # it proves itself, whoever delivered it
            case _:
                assert_never(rule.writer)

    def _write(self, key: str, value: bytes | None, wall_s: float) -> Decision[Effect]:
        held, alarms, why = self._own(key, value, wall_s)
        if held is None:
            return Decision(alarms, why)
        gone = self._outlive((held,))
        if key in gone:
            return Decision(alarms, f"{key} is not written: what came later has made it void")
        return Decision((*self._news([held], gone=gone), *alarms), why)

    def _own(
        self, key: str, value: bytes | None, wall_s: float
    ) -> tuple[Held | None, tuple[Contradiction, ...], str]:
        """Take in a word of this node's: it (None if it is no news), alarms, and a sentence."""
        rule, me = rule_of(key), self._identity.peer_id
        refusal = Refusal.BAD_KEY if rule is None else self._policy.refusal(rule, key, me, value)
        if rule is None or refusal is not None:
            raise LocalViolation(
                f"ledger key {key!r}: {refusal}",
                hint="write only what ledger.policy.TABLE lets this node write",
            )
        old = self._held.get(key)
        if old is None and value is None:
            return None, (), ""
        if old is not None and old.entry.value == value and (rule.is_certificate or old.entry.author == me):
            return None, (), ""
        # what we say ourselves is few, so a ledger filled by others must not silence us
        if old is None and self._per_author[_class_of(key), me] >= rule.max_per_author:
            raise LocalViolation(f"ledger key {key!r}: {Refusal.AUTHOR_FULL}", hint="delete entries first")
        held = self._signed(rule, key, value, wall_s)
        if rule.is_certificate and old is not None:
            assert value is not None
            alarms = self._contradiction(key, old, held)
            if held.rank < old.rank:
                return None, alarms, f"{key} is certified already" if alarms else ""
        else:
            alarms = ()
            if old is not None and held.rank < old.rank:  # an authority that was overtaken
                return None, (), f"{key} is not written: a newer word is known"
        self._put(held)
        return held, alarms, f"{key} {'deleted' if value is None else 'written'} by this node"

    def _write_all(self, items: tuple[tuple[str, bytes], ...], wall_s: float) -> Decision[Effect]:
        said = [self._own(key, value, wall_s) for key, value in items]
        alarms = tuple(alarm for _, found, _ in said for alarm in found)
        gone = self._outlive([held for held, _, _ in said if held is not None])
        entries = tuple(held.entry for held, _, _ in said if held is not None and held.entry.key not in gone)
        if not entries:
            return Decision(alarms)
        keys = tuple(entry.key for entry in entries)
        removed = (Remove(gone),) if gone else ()
        hint = Hint(self.digest(), ())  # too much for a hint: peers come and fetch
        return Decision(
            (Store(entries), *removed, Changed((*keys, *gone)), hint, *alarms),
            f"{len(keys)} keys written by this node",
        )

    def _signed(self, rule: Rule, key: str, value: bytes | None, wall_s: float) -> Held:
        stamp = self._clock.issue(wall_s)
        if stamp.count > MAX_COUNT:  # only if a peer drove the counter up on purpose
            stamp = self._clock.skip()
        entry = sign_entry(self._identity, self._mesh_id, key, stamp, value)
        return self._hold(rule, entry)

    def _hold(self, rule: Rule, entry: Entry) -> Held:
        fence = self._policy.fence_of(rule, entry.key, entry.value)
        return hold(entry, is_certificate=rule.is_certificate, fence=fence)

    def _receive(self, peer: PeerId, entries: Iterable[Entry], wall_s: float) -> Decision[Effect]:
        news: list[Held] = []
        buried: list[Held] = []
        alarms: list[Effect] = []
        refused: Counter[Refusal] = Counter()
        # who is a member comes first: it decides about all the rest of the batch
        for entry in sorted(entries, key=lambda entry: _ADMISSION.get(_class_of(entry.key), 9)):
            rule = rule_of(entry.key)
            if rule is None:
                refused[Refusal.BAD_KEY] += 1
                continue
            held = self._hold(rule, entry)
            old = self._held.get(entry.key)
            if old is not None and held.rank <= old.rank:
                if rule.is_certificate and held.rank != old.rank:
                    alarms.extend(self._contradiction(entry.key, old, held))
                continue
            grave = self._graves.get(held.key_hash)
            if grave is not None and entry.is_tombstone and held.rank <= grave.rank:
                continue
            refusal = self._judge(rule, held, old, wall_s)
            if refusal is not None:
                refused[refusal] += 1
                continue
            if rule.is_certificate and old is not None:
                alarms.extend(self._contradiction(entry.key, old, held))
            if self._has_expired(entry, wall_s):
                self._bury(held)
                buried.append(held)
            else:
                self._put(held)
                news.append(held)
        self._refused.update(refused)
        gone = self._outlive(news)
        news = [held for held in news if held.entry.key not in gone]
        return self._verdict(peer, news, buried, gone, alarms, refused)

    def _verdict(
        self,
        peer: PeerId,
        news: list[Held],
        buried: list[Held],
        gone: tuple[str, ...],
        alarms: list[Effect],
        refused: Counter[Refusal],
    ) -> Decision[Effect]:
        effects = [*self._news(news, buried, gone), *alarms]
        if evicted := self._evict():
            effects.append(Remove(evicted))
        reasons = []
        if news or buried:
            reasons.append(f"{len(news) + len(buried)} entries received from {peer}")
        if refused:
            effects.append(Refused(peer, tuple(sorted(refused.items()))))
            reasons.append("refused: " + ", ".join(f"{n}, since {why}" for why, n in sorted(refused.items())))
        if alarms:
            reasons.append("a quorum's certificates contradict each other")
        return Decision(tuple(effects), "; ".join(reasons))

    def _judge(self, rule: Rule, held: Held, old: Held | None, wall_s: float) -> Refusal | None:
        """Why an entry that would win is not stored; cheap checks first."""
        entry = held.entry
        if refusal := self._policy.refusal(rule, entry.key, entry.author, entry.value, wall_ms=entry.wall_ms):
            return refusal
        is_new = old is None and not self._has_expired(entry, wall_s)  # graves have room of their own
        if is_new and (full := self._no_room(rule, entry.key, entry.author)):
            return full
        if (grave := self._graves.get(held.key_hash)) and held.rank <= grave.rank:
            return Refusal.DELETED
        if not is_genuine(entry, self._mesh_id):
            return Refusal.FORGED
        # a certificate is true whenever it was wrapped, so its stamp counts for nothing
        if not rule.is_certificate and not self._clock.accept(entry.stamp, wall_s):
            return Refusal.AHEAD
        return None

    def _no_room(self, rule: Rule, key: str, author: str) -> Refusal | None:
        name = _class_of(key)
        # certificates have room of their own: junk of other classes can't keep one out
        is_full = len(self._held) >= self._limits.entries and not rule.is_certificate
        if is_full or len(self._classes[name]) >= rule.max_entries:
            return Refusal.FULL
        if self._per_author[name, author] >= rule.max_per_author:
            return Refusal.AUTHOR_FULL
        return None

    def _contradiction(self, key: str, one: Held, other: Held) -> tuple[Contradiction, ...]:
        """The alarm if both are valid and don't say the same; raised once per pair."""
        if one.entry.value is None or other.entry.value is None or one.content == other.content:
            return ()
        first = self._policy.decided(key, one.entry.value)
        second = self._policy.decided(key, other.entry.value)
        if first is None or second is None or first == second:
            return ()
        pair = (key, one.content ^ other.content)
        if pair in self._contradictions or len(self._contradictions) >= _MAX_REPORTED:
            return ()
        self._contradictions.add(pair)
        kept, lost = (one, other) if one.rank > other.rank else (other, one)
        return (Contradiction(key, kept.entry, lost.entry),)

    def _outlive(self, news: Sequence[Held]) -> tuple[str, ...]:
        """Drop what these certificates have made void; perhaps one of themselves. Returns the keys."""
        keys = [held.entry.key for held in news]
        certified = frozenset(
            key for key in keys if (rule := rule_of(key)) is not None and rule.is_certificate
        )
        gone = tuple(sorted(self._held.keys() & self._policy.outlived(certified))) if certified else ()
        for key in gone:
            self._drop(key)
        return gone

    def _news(
        self, news: list[Held], buried: Iterable[Held] = (), gone: tuple[str, ...] = ()
    ) -> tuple[Effect, ...]:
        """What every change entails: durable first, then known here, then hinted to others."""
        entries = tuple(held.entry for held in news)
        stored = entries + tuple(held.entry for held in buried)
        if not stored:
            return ()
        size = sum(len(entry.value or b"") for entry in entries)
        fits = len(entries) <= HINT_ENTRIES and size <= HINT_VALUE_BYTES
        keys = (*(entry.key for entry in stored), *gone)
        removed = (Remove(gone),) if gone else ()
        return (Store(stored), *removed, Changed(keys), Hint(self.digest(), entries if fits else ()))

    # -- the map and its sums --------------------------------------------------------------------------

    def _put(self, held: Held) -> None:
        entry = held.entry
        self._drop(entry.key)
        self._graves.pop(held.key_hash, None)
        bucket = held.key_hash[0]
        self._held[entry.key] = self._buckets[bucket][held.key_hash] = held
        self._sums[bucket] = (self._sums[bucket] + held.content) % _MODULUS
        self._root = (self._root + held.content) % _MODULUS
        name = _class_of(entry.key)
        self._classes[name][entry.key] = held
        self._per_author[name, entry.author] += 1
        if entry.is_tombstone:
            heapq.heappush(self._tombstones, (entry.wall_ms, entry.key))

    def _drop(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is None:
            return
        bucket = held.key_hash[0]
        del self._buckets[bucket][held.key_hash]
        self._sums[bucket] = (self._sums[bucket] - held.content) % _MODULUS
        self._root = (self._root - held.content) % _MODULUS
        name, author = _class_of(key), held.entry.author
        del self._classes[name][key]
        self._per_author[name, author] -= 1
        if not self._per_author[name, author]:
            del self._per_author[name, author]

    def _mesh_ms(self, wall_s: float) -> int:
        return max(int(wall_s * 1000), self._clock.last.wall_ms)

    def _has_expired(self, entry: Entry, wall_s: float) -> bool:
        return entry.is_tombstone and entry.wall_ms + self._limits.retention_ms <= self._mesh_ms(wall_s)

    def _collect(self, wall_s: float) -> tuple[str, ...]:
        """Lay expired tombstones aside. Returns the keys of graves forgotten for want of room."""
        horizon_ms = self._mesh_ms(wall_s) - self._limits.retention_ms
        while self._tombstones and self._tombstones[0][0] <= horizon_ms:
            _, key = heapq.heappop(self._tombstones)
            held = self._held.get(key)
            if held is not None and self._has_expired(held.entry, wall_s):
                self._bury(held)
        return self._evict()

    def _bury(self, held: Held) -> None:
        self._drop(held.entry.key)
        self._graves[held.key_hash] = held

    def _evict(self) -> tuple[str, ...]:
        """Forget the oldest graves that are too many."""
        too_many = len(self._graves) - self._limits.graves
        oldest = heapq.nsmallest(max(too_many, 0), self._graves.values(), key=lambda grave: grave.rank)
        for held in oldest:
            del self._graves[held.key_hash]
        return tuple(held.entry.key for held in oldest)


def _class_of(key: str) -> str:
    return key.partition("/")[0]
