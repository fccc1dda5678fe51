"""How do batches of packets become bytes on a stream, and back?

Pure. A record is `u32 size | AEAD(entry*)`, its nonce an implicit counter: a lost, repeated, swapped or
changed record fails to open, and the connection ends there. An entry is `u16 length | virtio-net header |
packet`; a length of 0 marks a control entry, `u16 0 | u8 kind | u8 size | body`, whose unknown kinds are
passed over. Keys belong to one connection and one direction (`preface`), so a counter is never used twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap
from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from p2p_network.dataplane.packet import MAX_PACKET_BYTES, VNET_BYTES
from p2p_network.session import AES, CHACHA

TAG_BYTES: Final = 16
SIZE_BYTES: Final = 4
ENTRY_BYTES: Final = 2
MAX_PLAIN_BYTES: Final = 1 << 18
MAX_FRAME_BYTES: Final = SIZE_BYTES + MAX_PLAIN_BYTES + TAG_BYTES
MAX_RECORDS: Final = 1 << 32
WORN_RECORDS: Final = 1 << 31
"""A key is worn after so many records: its connection is ended in time, and the next one has new keys."""

PING: Final = 1
PONG: Final = 2
REPORT: Final = 3
"""Datagrams: the receiver's highest number plus one, and how many came, 32 bits each."""
PROBE: Final = 4
PROBED: Final = 5
"""A padded datagram of so many bytes on the wire; the answer says that it came."""
BYE: Final = 6
"""No more will be sent on this association."""
_PADDING: Final = 255
_KNOWN: Final = frozenset((PING, PONG, REPORT, PROBE, PROBED, BYE))

_SIZE = Struct("!I")
_LENGTH = Struct("!H")
_CONTROL = Struct("!HBBQ")

Buffer = bytearray | memoryview | mmap


class RecordViolation(ValueError):
    """Bytes that no honest peer with the right keys sends."""


def cipher(name: str, key: bytes) -> AESGCM | ChaCha20Poly1305:
    """The AEAD of a negotiated name. Raises ValueError for an unknown one."""
    if name == AES:
        return AESGCM(key)
    if name == CHACHA:
        return ChaCha20Poly1305(key)
    raise ValueError(f"unknown cipher {name[:40]!r}")


class Sealer:
    """Makes records of one direction of one connection."""

    __slots__ = ("_aead", "count")

    def __init__(self, name: str, key: bytes) -> None:
        self._aead = cipher(name, key)
        self.count = 0

    @property
    def worn(self) -> bool:
        """Whether the key has sealed so much that it should be replaced."""
        return self.count >= WORN_RECORDS

    def seal_into(self, plain: bytes | memoryview, frame: memoryview) -> int:
        """Write one record into `frame` (at least 20 bytes longer than `plain`); its size in bytes."""
        size = len(plain) + TAG_BYTES
        end = SIZE_BYTES + size
        assert len(plain) <= MAX_PLAIN_BYTES, "a batch is larger than a record may be"
        assert self.count < MAX_RECORDS, "a key outlived its connection"
        nonce = self.count.to_bytes(12, "big")
        self.count += 1
        self._aead.encrypt_into(nonce, plain, None, frame[SIZE_BYTES:end])
        _SIZE.pack_into(frame, 0, size)
        return end


class Opener:
    """Opens records of one direction of one connection, in order."""

    __slots__ = ("_aead", "count")

    def __init__(self, name: str, key: bytes) -> None:
        self._aead = cipher(name, key)
        self.count = 0

    def open_into(self, sealed: memoryview, plain: memoryview) -> int:
        """Write the entries of one record (without its size field) into `plain`; their size.

        RecordViolation.
        """
        size = len(sealed) - TAG_BYTES
        if not 0 <= size <= MAX_PLAIN_BYTES:
            raise RecordViolation("a record of impossible size")
        try:
            self._aead.decrypt_into(self.count.to_bytes(12, "big"), sealed, None, plain[:size])
        except InvalidTag:
            raise RecordViolation("a record that its key does not open") from None
        self.count += 1
        return size


def sealed_size(buffer: Buffer, at: int, end: int) -> int | None:
    """Bytes of the sealed part of the record that starts at `at`, or None while less than all of it lies
    before `end`.

    Raises RecordViolation as soon as the size field is out of bounds.
    """
    if end - at < SIZE_BYTES:
        return None
    size: int = _SIZE.unpack_from(buffer, at)[0]
    if not TAG_BYTES <= size <= MAX_PLAIN_BYTES + TAG_BYTES:
        raise RecordViolation("a record of impossible size")
    return size if end - at - SIZE_BYTES >= size else None


def begun_size(buffer: Buffer, at: int, end: int) -> int:
    """Bytes in all of the record that begins at `at`, with its size field; 0 while that isn't there.

    Raises RecordViolation as `sealed_size` does.
    """
    if end - at < SIZE_BYTES:
        return 0
    size: int = _SIZE.unpack_from(buffer, at)[0]
    if not TAG_BYTES <= size <= MAX_PLAIN_BYTES + TAG_BYTES:
        raise RecordViolation("a record of impossible size")
    return SIZE_BYTES + size


def put_length(buffer: Buffer, at: int, length: int) -> None:
    """Head of a packet entry: `length` bytes of IP packet follow the virtio-net header."""
    _LENGTH.pack_into(buffer, at, length)


def packet_entry(header: bytes, packet: bytes) -> bytes:
    """A whole packet entry."""
    assert len(header) == VNET_BYTES
    assert 0 < len(packet) <= MAX_PACKET_BYTES
    return _LENGTH.pack(len(packet)) + header + packet


def control_entry(kind: int, value: int) -> bytes:
    """A control entry with a 64-bit value (`PING`, `PONG`: the pinger's clock in nanoseconds)."""
    return _CONTROL.pack(0, kind, 8, value)


def padded_entry(kind: int, value: int, size: int) -> bytes:
    """A control entry, made `size` bytes long (at least 16) with entries that everyone passes over."""
    parts = [control_entry(kind, value)]
    left = size - len(parts[0])
    while left:
        assert left >= 4, "too short to be padded"
        body = min(255, left - 4)
        if 0 < left - 4 - body < 4:
            body -= 4
        parts.append(bytes((0, 0, _PADDING, body)) + bytes(body))
        left -= 4 + body
    return b"".join(parts)


def entries(plain: Buffer, size: int) -> Iterator[tuple[int, int, int]]:
    """The entries of an opened record: (kind, position, value).

    Kind 0 is a packet: position of its virtio-net header, value = bytes of the IP packet behind it. Kinds
    above are control entries with their 64-bit value. Raises RecordViolation when an entry runs over the
    end.
    """
    at = 0
    while at < size:
        if size - at < ENTRY_BYTES + 2:
            raise RecordViolation("an entry is cut off")
        length: int = (plain[at] << 8) | plain[at + 1]
        if length:
            start = at + ENTRY_BYTES
            at = start + VNET_BYTES + length
            if at > size:
                raise RecordViolation("a packet is cut off")
            yield 0, start, length
            continue
        kind, body = plain[at + 2], plain[at + 3]
        start, at = at, at + 4 + body
        if at > size:
            raise RecordViolation("a control entry is cut off")
        if kind in _KNOWN:
            if body != 8:
                raise RecordViolation("a control entry of the wrong size")
            yield kind, start, _CONTROL.unpack_from(plain, start)[3]
