"""Which pieces of a blob are still missing, and are those that came the right ones?

Pure. A blob is named by whoever offers it, in a `space` ("snapshots", ...). Who wants it asks first for its
`Manifest`, the hashes of its pieces, then for one piece at a time; each is checked when it comes, so a peer
that breaks off or lies costs one piece, and what is on the disk already is never fetched again (`resume`).
That the manifest itself is the right one the owner of the space must see: by the hash of the whole, or by a
seal inside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import msgspec

from p2p_network import wire

METHOD: Final = "blob"
PIECE_BYTES: Final = 512 * 1024
MAX_PIECES: Final = 16_384
MAX_BLOB_BYTES: Final = PIECE_BYTES * MAX_PIECES
MAX_NAME_CHARS: Final = 128


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """What a blob consists of. `pieces`: SHA-256 of each; all but the last have `PIECE_BYTES`."""

    size_bytes: int
    pieces: tuple[bytes, ...]

    def check(self, max_bytes: int = MAX_BLOB_BYTES) -> None:
        """Raises ValueError unless it is sound and not larger than allowed."""
        if not 0 <= self.size_bytes <= min(max_bytes, MAX_BLOB_BYTES):
            raise ValueError(f"a blob of {self.size_bytes} bytes; at most {max_bytes} are taken")
        if len(self.pieces) != -(-self.size_bytes // PIECE_BYTES):
            raise ValueError("the number of pieces does not fit the size")
        if any(len(piece) != 32 for piece in self.pieces):
            raise ValueError("a piece's hash has 32 bytes")

    def size_of(self, index: int) -> int:
        """How long a piece is."""
        return min(PIECE_BYTES, self.size_bytes - index * PIECE_BYTES)

    def holds(self, index: int, data: bytes) -> bool:
        """Whether `data` is that piece."""
        return len(data) == self.size_of(index) and hashlib.sha256(data).digest() == self.pieces[index]


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """A request. `piece`: its index, or -1 for the manifest."""

    space: str
    name: str
    piece: int = -1


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """Its answer: the manifest, or the piece; else `missing` says why not."""

    manifest: Manifest | None = None
    data: bytes = b""
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """To be written at its place; it was checked."""

    index: int
    data: bytes

    @property
    def offset(self) -> int:
        """Where it begins."""
        return self.index * PIECE_BYTES


def decode_ask(raw: bytes) -> Ask:
    """A request from untrusted bytes. Raises ValueError."""
    ask = wire.decode(raw, Ask)
    if not -1 <= ask.piece < MAX_PIECES or not 0 < len(ask.name) <= MAX_NAME_CHARS:
        raise ValueError("no such piece or name")
    if not ask.name.isprintable() or "/" in ask.name or ask.name.startswith("."):
        raise ValueError("a blob's name is no path")
    return ask


class Gone(ValueError):
    """The peer does not have it (any more)."""


class Fetch:
    """One transfer of one blob.

    Args:
        max_bytes: a larger blob is refused before anything of it is fetched.
    """

    def __init__(self, space: str, name: str, *, max_bytes: int) -> None:
        self._space, self._name, self._max_bytes = space, name, max_bytes
        self.manifest: Manifest | None = None
        self._missing: list[int] = []

    @property
    def is_done(self) -> bool:
        """Whether every piece has come."""
        return self.manifest is not None and not self._missing

    @property
    def total_bytes(self) -> int:
        """How large it is; 0 before its manifest came."""
        return self.manifest.size_bytes if self.manifest is not None else 0

    @property
    def done_bytes(self) -> int:
        """How much of it is there."""
        if self.manifest is None:
            return 0
        return self.manifest.size_bytes - sum(map(self.manifest.size_of, self._missing))

    def resume(self, have: Collection[int]) -> None:
        """These pieces are there already, checked against the manifest."""
        assert self.manifest is not None, "what is missing is known with the manifest"
        self._missing = [i for i in reversed(range(len(self.manifest.pieces))) if i not in have]

    def next_request(self) -> bytes | None:
        """What to ask the peer; None when it is done."""
        if self.manifest is None:
            return wire.encode(Ask(self._space, self._name))
        return wire.encode(Ask(self._space, self._name, self._missing[-1])) if self._missing else None

    def take(self, raw: bytes) -> Piece | None:
        """The answer to the last request. Raises Gone, ValueError (the peer is at fault)."""
        answer = wire.decode(raw, Answer)
        if answer.missing:
            raise Gone(f"the peer does not have it: {answer.missing[:200]}")
        if self.manifest is None:
            if answer.manifest is None:
                raise ValueError("no manifest came")
            answer.manifest.check(self._max_bytes)
            self.manifest = answer.manifest
            self.resume(())
            return None
        index = self._missing[-1]
        if not self.manifest.holds(index, answer.data):
            raise ValueError(f"piece {index} of {self._name} is not what its manifest says")
        self._missing.pop()
        return Piece(index, answer.data)
