"""How do batches of packets become datagrams that may be lost, doubled or swapped, and back?

Pure. A datagram is `u32 receiver's id | u48 number | u8 index | u8 segments | u8 header bytes | AEAD(plain)`;
what stands before the AEAD is authenticated with it, the nonce is the number, which no direction of a
connection uses twice. Two kinds of plain text:

- bundle (`segments` 0): whole entries as in a record (`records`), as many as fit into the path's MTU;
- segment: `virtio-net header | headers | share of the payload`, number `index` of the `segments` that its
  super-packet was cut into (`segments`): each can be used without the others.

Segments are sealed first to last in the buffer where the super-packet lies: the headers of the next one
overwrite what was sealed already. They are opened last to first, each over the headers of the one behind it:
so a run of neighbours becomes one super-packet without a copy.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag

from p2p_network.dataplane.packet import VNET_BYTES
from p2p_network.dataplane.records import TAG_BYTES, RecordViolation, cipher
from p2p_network.dataplane.segments import Shape

HEAD_BYTES: Final = 13
OVERHEAD_BYTES: Final = HEAD_BYTES + TAG_BYTES
MAX_NUMBER: Final = 1 << 48
WORN_NUMBER: Final = 1 << 46
WINDOW: Final = 8192
"""Datagrams that may come so much later than the newest: about 11 MB, 20 ms at 5 Gbit/s."""
LOWEST_ID: Final = 256
"""Smaller receivers' ids mark flights of the handshake."""

_HEAD = Struct("!IHIBBB")


class ReplayWindow:
    """Which numbers were taken; each is good once, and none far below the newest."""

    __slots__ = ("_next", "_seen")

    def __init__(self) -> None:
        self._next = 0  # one above the newest
        self._seen = 0  # bit i: number `_next - 1 - i`

    @property
    def expected(self) -> int:
        """One above the newest number taken."""
        return self._next

    def is_fresh(self, number: int, count: int = 1) -> bool:
        """Whether none of `count` numbers from `number` on was taken."""
        behind = self._next - number - count
        if behind >= 0:
            return behind + count <= WINDOW and not (self._seen >> behind) & ((1 << count) - 1)
        if number >= self._next:
            return True
        return self._next - number <= WINDOW and not self._seen & ((1 << (self._next - number)) - 1)

    def take(self, number: int, count: int = 1) -> None:
        """They are taken now. Only after they were authenticated, and `is_fresh`."""
        ahead = number + count - self._next
        if ahead > 0:
            self._next += ahead
            self._seen = (self._seen << ahead) & ((1 << WINDOW) - 1) if ahead < WINDOW else 0
        self._seen |= ((1 << count) - 1) << (self._next - number - count)


class DatagramSealer:
    """Makes datagrams of one direction of one connection. `receiver`: the other end's id."""

    __slots__ = ("_aead", "count", "receiver")

    def __init__(self, name: str, key: bytes, receiver: int) -> None:
        self._aead = cipher(name, key)
        self.receiver = receiver
        self.count = 0

    @property
    def worn(self) -> bool:
        """Whether the key has sealed so much that it should be replaced."""
        return self.count >= WORN_NUMBER

    def seal_bundle(self, plain: bytes | memoryview, frame: memoryview) -> int:
        """Write a bundle of entries into `frame`; its size in bytes."""
        number = self._take(1)
        _HEAD.pack_into(frame, 0, self.receiver, number >> 32, number & 0xFFFFFFFF, 0, 0, 0)
        end = OVERHEAD_BYTES + len(plain)
        nonce = number.to_bytes(12, "big")
        self._aead.encrypt_into(nonce, plain, frame[:HEAD_BYTES], frame[HEAD_BYTES:end])
        return end

    def seal_segments(self, packet: memoryview, shape: Shape, frame: memoryview) -> tuple[int, int]:
        """Write all segments of a super-packet one behind the other into `frame`.

        `packet`: from its virtio-net header on, writable; it is used up.

        Returns:
            (bytes in all, bytes of every datagram but the last).
        """
        encrypt, pack, receiver = self._aead.encrypt_into, _HEAD.pack_into, self.receiver
        total, share = shape.segments, shape.segment_bytes
        head = VNET_BYTES + shape.header_bytes
        headers = bytes(packet[:head])
        number = self._take(total)
        step = head + share + OVERHEAD_BYTES
        start = at = 0
        last = shape.payload_bytes - (total - 1) * share
        for index in range(total):
            size = head + (share if index + 1 < total else last)
            if index:
                packet[start : start + head] = headers
            pack(frame, at, receiver, number >> 32, number & 0xFFFFFFFF, index, total, shape.header_bytes)
            body = at + HEAD_BYTES
            encrypt(
                number.to_bytes(12, "big"),
                packet[start : start + size],
                frame[at:body],
                frame[body : body + size + TAG_BYTES],
            )
            number += 1
            start += share
            at += step
        return at - share + last, step

    def _take(self, count: int) -> int:
        number = self.count
        self.count += count
        assert self.count < MAX_NUMBER, "a key outlived its connection"
        return number


def head_of(datagram: memoryview, at: int) -> tuple[int, int, int, int, int]:
    """(receiver's id, number, index, segments, header bytes); nothing is authenticated yet.

    The caller has checked that `OVERHEAD_BYTES` lie there.
    """
    receiver, high, low, index, total, header = _HEAD.unpack_from(datagram, at)
    return receiver, high << 32 | low, index, total, header


class DatagramOpener:
    """Opens datagrams of one direction of one connection, in any order."""

    __slots__ = ("_aead", "received", "window")

    def __init__(self, name: str, key: bytes) -> None:
        self._aead = cipher(name, key)
        self.window = ReplayWindow()
        self.received = 0
        """Datagrams that were authentic and new."""

    def open_bundle(self, sealed: memoryview, number: int, plain: memoryview) -> int:
        """Write the entries of one whole datagram into `plain`; their size. Raises RecordViolation."""
        if not self.window.is_fresh(number):
            raise RecordViolation("a datagram that came before")
        size = len(sealed) - OVERHEAD_BYTES
        self._open(sealed, number, plain[:size])
        self.window.take(number)
        self.received += 1
        return size

    def open_run(
        self, sealed: memoryview, step: int, count: int, number: int, share: int, plain: memoryview
    ) -> int:
        """Write a run of neighbouring segments as one super-packet into `plain`; its size in bytes.

        Args:
            sealed: `count` whole datagrams, `step` bytes each, the last one may be shorter.
            number: of the first.
            share: bytes of payload in each but the last.

        Raises:
            RecordViolation: one of them is not authentic, or came before; then none is taken.
        """
        if not self.window.is_fresh(number, count):
            raise RecordViolation("a datagram that came before")
        end = len(sealed)
        size = 0
        for index in range(count - 1, -1, -1):
            at, begin = index * step, index * share
            after = begin + min(step, end - at) - OVERHEAD_BYTES
            self._open(sealed[at : min(at + step, end)], number + index, plain[begin:after])
            size = size or after
        self.window.take(number, count)
        self.received += count
        return size

    def _open(self, datagram: memoryview, number: int, plain: memoryview) -> None:
        try:
            self._aead.decrypt_into(
                number.to_bytes(12, "big"), datagram[HEAD_BYTES:], datagram[:HEAD_BYTES], plain
            )
        except InvalidTag:
            raise RecordViolation("a datagram that its key does not open") from None
