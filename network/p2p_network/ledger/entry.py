"""What is one item of the ledger, who vouches for it, and which of two wins?

An `Entry` is signed by its author over (key, author, stamp, value), for one mesh: whoever relays it can
neither change nor forge it. Of two entries for a key the greater `rank` wins, a total order that does not
depend on arrival, so merging commutes, associates and is idempotent:

- ordinary keys: last writer wins, by (stamp, author, hash);
- certificates (`genesis/...`): the value alone counts, whoever wrapped it and when. The lower hash wins,
  which only matters if a quorum ever certified two things (`core` raises an alarm then).

`Held` is an entry together with the hashes that replication needs, computed once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from p2p_network import wire
from p2p_network.core.clock import Stamp
from p2p_network.identity import Identity, verify

MAX_KEY_CHARS: Final = 256
MAX_VALUE_BYTES: Final = 16 * 1024
"""No class of keys allows more (`policy.TABLE` has the limit of each)."""
MAX_WALL_MS: Final = (1 << 48) - 1
MAX_COUNT: Final = (1 << 32) - 1

KEY_HASH_BYTES: Final = 12
ITEM_BYTES: Final = KEY_HASH_BYTES + 6 + 4 + 6


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One signed statement: at `stamp`, `author` set `key` to `value`; None deletes it (a tombstone).

    Attributes:
        wall_ms, count: the stamp's parts (`core.clock.Stamp`).
        signature: 64 bytes, Ed25519, by the author.
    """

    key: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_KEY_CHARS)]
    author: Annotated[str, msgspec.Meta(max_length=64)]
    wall_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_WALL_MS)]
    count: Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
    value: Annotated[bytes, msgspec.Meta(max_length=MAX_VALUE_BYTES)] | None
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]

    @property
    def stamp(self) -> Stamp:
        """The entry's place in the mesh's order."""
        return Stamp(self.wall_ms, self.count)

    @property
    def is_tombstone(self) -> bool:
        """Whether this entry says that the key is deleted."""
        return self.value is None


@dataclass(frozen=True, slots=True)
class Held:
    """An entry with what replication needs of it.

    Attributes:
        content: 128-bit hash of what the entry says; the signature is left out, since an author can
            sign one statement in many ways. Sums of it are the ledger's digests.
        item: 28 bytes that name this version: key hash (12) | newness (10) | content (6); newness is
            wall_ms (6) | count (4), or the fence (6) and the stamp's seconds (4).
        rank: compares two entries of one key; the greater wins. It begins with the fence: of two words of
            an authority the one that was said by its newer datastore wins, whatever the clocks say.
    """

    entry: Entry
    content: int
    item: bytes
    rank: tuple[int, int, int, str, int]

    @property
    def key_hash(self) -> bytes:
        """12 bytes; the first one is the bucket."""
        return self.item[:KEY_HASH_BYTES]

    @property
    def version(self) -> bytes:
        """The rest of the item: equal if and only if (but for a hash collision) the content is."""
        return self.item[KEY_HASH_BYTES:]


_FENCED: Final = 1 << 47  # above any stamp, in milliseconds
MAX_FENCE: Final = 1 << 46


def key_hash(key: str) -> bytes:
    """Where a key lies in the ledger's hash order."""
    return hashlib.blake2b(key.encode(), digest_size=KEY_HASH_BYTES).digest()


def hold(entry: Entry, *, is_certificate: bool, fence: int = 0) -> Held:
    """Compute an entry's hashes and rank. O(size of the value). `fence`: see `Policy.fence`."""
    if is_certificate:
        # the wrapper does not count: ten members publishing one certificate hold the same thing
        digest = hashlib.blake2b(wire.encode((entry.key, entry.value)), digest_size=16).digest()
        content = int.from_bytes(digest, "big")
        version = bytes(10) + digest[-6:]
        rank = (0, 0, 0, "", -content)
    else:
        digest = hashlib.blake2b(signed_part(entry), digest_size=16).digest()
        content = int.from_bytes(digest, "big")
        newness = entry.wall_ms.to_bytes(6, "big") + entry.count.to_bytes(4, "big")
        if fence:  # sync asks for what looks newer: so must look what wins
            seconds = min(entry.wall_ms // 1000, (1 << 32) - 1)
            newness = (_FENCED + fence).to_bytes(6, "big") + seconds.to_bytes(4, "big")
        version = newness + digest[-6:]
        rank = (fence, entry.wall_ms, entry.count, entry.author, content)
    return Held(entry, content, key_hash(entry.key) + version, rank)


def signed_part(entry: Entry) -> bytes:
    """The bytes under the signature."""
    return wire.encode((entry.key, entry.author, entry.wall_ms, entry.count, entry.value))


def sign_entry(identity: Identity, mesh_id: str, key: str, stamp: Stamp, value: bytes | None) -> Entry:
    """An entry by `identity`, valid in this mesh only."""
    unsigned = Entry(key, identity.peer_id, stamp.wall_ms, stamp.count, value, b"")
    signature = identity.sign(_purpose(mesh_id), signed_part(unsigned))
    return Entry(key, identity.peer_id, stamp.wall_ms, stamp.count, value, signature)


def is_genuine(entry: Entry, mesh_id: str) -> bool:
    """Whether the author named in the entry signed it, for this mesh. About 0.1 ms."""
    return verify(entry.author, _purpose(mesh_id), signed_part(entry), entry.signature)


def _purpose(mesh_id: str) -> str:
    return f"ledger/{mesh_id}"
