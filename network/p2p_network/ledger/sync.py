"""How do two nodes make their ledgers equal, with few bytes and no trust?

A session is a row of requests from the initiator, each answered by the responder, which keeps no state::

    Root(16-byte digest)            -> Same                       an idle round: 23 bytes in all
                                    -> Buckets(256 x 6 bytes)
    Compare(buckets, range, items)  -> Delta(entries the responder has newer, keys it wants, up to where)
    Push(entries it wanted)         -> Taken

`Compare` walks the key hashes of the buckets that differ, in order. Both sides stop early when a frame is
full, so a ledger of any size goes in frames far below `wire.MAX_FRAME_BYTES`. An item names a version in
28 bytes (`entry.Held.item`).

Everything from a peer is checked; what breaks the protocol raises ValueError, and whoever knows the peer
makes that a `RemoteViolation`. Entries received are handed to the caller, who feeds them to the ledger
(`EntriesReceived`), carries out the effects, and only then goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Final, assert_never, cast

import msgspec

from p2p_network import wire
from p2p_network.ledger.core import BUCKET_DIGEST_BYTES, BUCKETS, HINT_ENTRIES, ROOT_BYTES, Ledger
from p2p_network.ledger.entry import ITEM_BYTES, KEY_HASH_BYTES, Entry, Held
from p2p_network.ledger.events import Hint

METHOD: Final = "ledger.sync"
HINT_METHOD: Final = "ledger.hint"

ENTRIES_PER_FRAME: Final = 256
ENTRY_BYTES_PER_FRAME: Final = 256 * 1024
ITEMS_PER_FRAME: Final = 4096
ROUNDS_PER_SESSION: Final = 1024
"""A longer session ends unfinished; the next one goes on from there."""

_FIRST: Final = bytes(KEY_HASH_BYTES)
_LAST: Final = b"\xff" * KEY_HASH_BYTES
_VERSION_STAMP_BYTES: Final = 10

_Hash = Annotated[bytes, msgspec.Meta(min_length=KEY_HASH_BYTES, max_length=KEY_HASH_BYTES)]
_RootDigest = Annotated[bytes, msgspec.Meta(min_length=ROOT_BYTES, max_length=ROOT_BYTES)]
_Entries = Annotated[tuple[Entry, ...], msgspec.Meta(max_length=ENTRIES_PER_FRAME)]
_Items = Annotated[bytes, msgspec.Meta(max_length=ITEMS_PER_FRAME * ITEM_BYTES)]
_Wanted = Annotated[bytes, msgspec.Meta(max_length=ITEMS_PER_FRAME * KEY_HASH_BYTES)]


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Arrays on the wire: short, and strict about their length."""


class Root(_Message, frozen=True, tag=1):
    """Is your ledger equal to mine?"""

    digest: _RootDigest


class Compare(_Message, frozen=True, tag=2):
    """In these buckets (a bit each), from key hash `first` to `last`, I hold exactly these items."""

    buckets: Annotated[bytes, msgspec.Meta(min_length=BUCKETS // 8, max_length=BUCKETS // 8)]
    first: _Hash
    last: _Hash
    items: _Items


class Push(_Message, frozen=True, tag=3):
    """Here is what you wanted."""

    entries: _Entries


class Same(_Message, frozen=True, tag=1):
    """It is."""


class Buckets(_Message, frozen=True, tag=2):
    """It is not; these are my buckets."""

    digests: Annotated[
        bytes,
        msgspec.Meta(min_length=BUCKETS * BUCKET_DIGEST_BYTES, max_length=BUCKETS * BUCKET_DIGEST_BYTES),
    ]


class Delta(_Message, frozen=True, tag=3):
    """Up to key hash `done`: these are newer here, and I want the keys with these hashes."""

    entries: _Entries
    wanted: _Wanted
    done: _Hash


class Taken(_Message, frozen=True, tag=4):
    """I have judged them."""


Request = Root | Compare | Push
Reply = Same | Buckets | Delta | Taken
_REQUEST = cast("type[Request]", Request)
_REPLY = cast("type[Reply]", Reply)


class _HintMessage(_Message, frozen=True):
    root: _RootDigest
    entries: Annotated[tuple[Entry, ...], msgspec.Meta(max_length=HINT_ENTRIES)]


@dataclass(frozen=True, slots=True)
class Handled:
    """What a request leads to: the reply to send after `entries` went into the ledger."""

    reply: bytes
    entries: tuple[Entry, ...] = ()


def handle(ledger: Ledger, request: bytes) -> Handled:
    """The responder's side. Raises ValueError on anything but a well-formed request."""
    message = wire.decode(request, _REQUEST)
    match message:
        case Root(digest):
            same = digest == ledger.digest()
            return Handled(wire.encode(Same() if same else Buckets(ledger.bucket_digests())))
        case Compare():
            return Handled(wire.encode(_compare(ledger, message)))
        case Push(entries):
            return Handled(wire.encode(Taken()), entries)
        case _:
            assert_never(message)


def encode_hint(hint: Hint) -> bytes:
    """The payload of a hint (method `HINT_METHOD`)."""
    return wire.encode(_HintMessage(hint.root, hint.entries))


def decode_hint(raw: bytes) -> Hint:
    """A peer's hint: feed its entries to the ledger; if the roots still differ, a session is due."""
    message = wire.decode(raw, _HintMessage)
    return Hint(message.root, message.entries)


class SyncSession:
    """The initiator's side of one session::

        while (request := session.next_request()) is not None:
            for_ledger = session.reply(await ask(request))
            ...step the ledger with for_ledger and carry out the effects...

    Attributes:
        differed: whether the ledgers differed at the start.
        received, sent: entries so far.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._asked: Request | None = None
        self._greeted = False
        self._buckets = bytes(BUCKETS // 8)
        self._first: bytes | None = None  # None: nothing (more) to compare
        self._to_push: list[bytes] = []  # key hashes
        self._rounds = 0
        self.differed = False
        self.received = 0
        self.sent = 0

    def next_request(self) -> bytes | None:
        """The next request, or None when the session is over."""
        assert self._asked is None, "the last request has no reply yet"
        if self._rounds >= ROUNDS_PER_SESSION:
            return None
        self._rounds += 1
        if not self._greeted:
            self._asked = Root(self._ledger.digest())
        elif len(self._to_push) >= ENTRIES_PER_FRAME or (self._to_push and self._first is None):
            self._asked = self._next_push()
        elif self._first is not None:
            self._asked = self._next_compare(self._first)
        else:
            return None
        return wire.encode(self._asked)

    def reply(self, raw: bytes) -> tuple[Entry, ...]:
        """Take the reply to the last request; returns entries for the ledger. Raises ValueError."""
        asked, self._asked = self._asked, None
        assert asked is not None, "no request is waiting for a reply"
        message = wire.decode(raw, _REPLY)
        match asked, message:
            case Root(), Same():
                self._greeted = True
            case Root(), Buckets(digests):
                self._greeted = self.differed = True
                self._buckets = _differing(self._ledger.bucket_digests(), digests)
                self._first = _FIRST if any(self._buckets) else None
            case Compare(), Delta():
                return self._take(asked, message)
            case Push(), Taken():
                pass
            case _:
                raise ValueError(f"{type(message).__name__} is no reply to {type(asked).__name__}")
        return ()

    def _next_push(self) -> Push:
        chunk: list[Entry] = []
        size = 0
        while self._to_push and len(chunk) < ENTRIES_PER_FRAME and size < ENTRY_BYTES_PER_FRAME:
            hashed = self._to_push.pop()
            held = self._ledger.held_at(hashed) or self._ledger.grave_at(hashed)
            if held is not None:  # it may have gone meanwhile
                chunk.append(held.entry)
                size += _size(held.entry)
        self.sent += len(chunk)
        return Push(tuple(chunk))

    def _next_compare(self, first: bytes) -> Compare:
        items: list[bytes] = []
        last = _LAST
        for bucket in _numbers(self._buckets, first):
            items.extend(held.item for held in self._ledger.scan(bucket, first, _LAST))
            if len(items) > ITEMS_PER_FRAME:
                last = items[ITEMS_PER_FRAME - 1][:KEY_HASH_BYTES]
                break
        return Compare(self._buckets, first, last, b"".join(items[:ITEMS_PER_FRAME]))

    def _take(self, asked: Compare, delta: Delta) -> tuple[Entry, ...]:
        if not asked.first <= delta.done <= asked.last:
            raise ValueError("the reply goes beyond what was asked")
        for hashed in _pieces(delta.wanted, KEY_HASH_BYTES):
            if not asked.first <= hashed <= delta.done:
                raise ValueError("the reply wants keys beyond what was asked")
            self._to_push.append(hashed)
        for entry in delta.entries:  # a peer that missed a deletion, long ago
            if grave := self._ledger.grave_over(entry):
                self._to_push.append(grave.key_hash)
        self._first = None if delta.done == _LAST else _successor(delta.done)
        self.received += len(delta.entries)
        return delta.entries


def _compare(ledger: Ledger, asked: Compare) -> Delta:
    theirs = _items(asked)
    entries: list[Entry] = []
    wanted: list[bytes] = []
    size = 0
    for hashed, version, held in _side_by_side(ledger, asked, theirs):
        mine = held.version if held else None
        grave = ledger.grave_at(hashed) if held is None else None
        if grave is not None and version is not None and grave.version >= version:
            held, mine = grave, grave.version  # they still hold what was deleted
        if mine == version:
            continue
        if held is not None and (version is None or _stamp(mine) >= _stamp(version)):
            entries.append(held.entry)
            size += _size(held.entry)
        if version is not None and (mine is None or _stamp(version) >= _stamp(mine)):
            wanted.append(hashed)
        if len(entries) >= ENTRIES_PER_FRAME or size >= ENTRY_BYTES_PER_FRAME:
            return Delta(tuple(entries), b"".join(wanted), hashed)
    return Delta(tuple(entries), b"".join(wanted), asked.last)


def _side_by_side(
    ledger: Ledger, asked: Compare, theirs: dict[bytes, bytes]
) -> Iterator[tuple[bytes, bytes | None, Held | None]]:
    """Every key hash of the range that either side holds, in order: hash, their version, our entry."""
    by_bucket: dict[int, list[bytes]] = {}
    for hashed in theirs:
        by_bucket.setdefault(hashed[0], []).append(hashed)
    for bucket in _numbers(asked.buckets, asked.first):
        ours = {held.key_hash: held for held in ledger.scan(bucket, asked.first, asked.last)}
        for hashed in sorted({*ours, *by_bucket.get(bucket, ())}):
            yield hashed, theirs.get(hashed), ours.get(hashed)


def _items(asked: Compare) -> dict[bytes, bytes]:
    """The peer's versions by key hash, checked: in order, inside the range and the buckets named."""
    items: dict[bytes, bytes] = {}
    buckets = set(_numbers(asked.buckets, asked.first))
    before = b""
    for item in _pieces(asked.items, ITEM_BYTES):
        hashed = item[:KEY_HASH_BYTES]
        if not (before < hashed and asked.first <= hashed <= asked.last and hashed[0] in buckets):
            raise ValueError("the items of a comparison are out of order or out of range")
        items[hashed] = item[KEY_HASH_BYTES:]
        before = hashed
    return items


def _differing(ours: bytes, theirs: bytes) -> bytes:
    """A bit for each bucket whose digests differ."""
    pairs = zip(_pieces(ours, BUCKET_DIGEST_BYTES), _pieces(theirs, BUCKET_DIGEST_BYTES), strict=True)
    bits = sum(1 << bucket for bucket, (one, other) in enumerate(pairs) if one != other)
    return bits.to_bytes(BUCKETS // 8, "little")


def _numbers(buckets: bytes, first: bytes) -> list[int]:
    """The buckets whose bit is set, from that of key hash `first` on."""
    bits = int.from_bytes(buckets, "little")
    return [bucket for bucket in range(first[0], BUCKETS) if bits >> bucket & 1]


def _pieces(raw: bytes, size: int) -> Iterable[bytes]:
    if len(raw) % size:
        raise ValueError(f"{len(raw)} bytes are no whole number of {size}")
    return [raw[i : i + size] for i in range(0, len(raw), size)]


def _successor(hashed: bytes) -> bytes:
    return (int.from_bytes(hashed, "big") + 1).to_bytes(KEY_HASH_BYTES, "big")


def _stamp(version: bytes | None) -> bytes:
    """The part of a version that tells which is newer; empty (older than all) for none."""
    return b"" if version is None else version[:_VERSION_STAMP_BYTES]


def _size(entry: Entry) -> int:
    return len(entry.key) + len(entry.value or b"") + 160
