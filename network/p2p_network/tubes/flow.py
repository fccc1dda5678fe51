"""How much may be sent into a tube, and what came out of it?

Pure. A tube is one mesh stream between two nodes that carries the bytes of a TCP connection, or the datagrams
of a UDP flow. libp2p's streams have no bound that both sides keep, and break when one side stops reading; so
the reader always reads, and the sender sends only what it was given credit for: `WINDOW_BYTES` at first, more
as the other side's program takes what came. What comes beyond that is a violation and ends the tube.

A frame is a kind (1 byte), a length (3 bytes) and so many bytes. The side that opened it says `OPEN`, the
other `TAKE` or `REFUSE`; then both send `DATA` and `CREDIT`, each an `END` when it has no more, and the side
that took it a `BYE` after both ends, so that nobody closes on data that is still under way.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Final, Literal

import msgspec

from p2p_network import wire

WINDOW_BYTES: Final = 512 * 1024
CHUNK_BYTES: Final = 60 * 1024
MAX_DATAGRAM_BYTES: Final = 65_507
MAX_FRAME_BYTES: Final = 1 << 16
FRAME_COST_BYTES: Final = 16
"""Counted for each frame beside its bytes, so that empty ones are bounded too."""
HEAD_BYTES: Final = 4
MAX_REASON_CHARS: Final = 300
MAX_NAME_CHARS: Final = 253

Protocol = Literal["tcp", "udp"]
PACKETS: Final = "@packets"
"""In place of a service's name: the other side's data plane (`node.detour`)."""


class Kind(IntEnum):
    """What a frame is."""

    OPEN = 1
    TAKE = 2
    REFUSE = 3
    DATA = 4
    CREDIT = 5
    END = 6
    BYE = 7


class Opening(msgspec.Struct, frozen=True, array_like=True):
    """What a tube is to lead to.

    Attributes:
        service: a service's name, or `PACKETS`; "" for an address.
        host, port: an address that the other side reaches; "" and 0 for a service.
    """

    protocol: Protocol
    service: str = ""
    host: str = ""
    port: int = 0


class Violation(ValueError):
    """The other side broke the protocol."""


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """The wire form."""
    assert len(payload) <= MAX_FRAME_BYTES, "whoever sends cuts its data"
    return bytes([kind]) + len(payload).to_bytes(3, "big") + payload


def credit_frame(size_bytes: int) -> bytes:
    """More may be sent."""
    return frame(Kind.CREDIT, size_bytes.to_bytes(4, "big"))


def open_frame(opening: Opening) -> bytes:
    """The first frame."""
    return frame(Kind.OPEN, wire.encode(opening))


def decode_opening(raw: bytes) -> Opening:
    """From untrusted bytes. Raises Violation."""
    try:
        opening = wire.decode(raw, Opening)
    except ValueError as exc:
        raise Violation(f"no opening: {exc}") from exc
    named = 0 < len(opening.service) <= MAX_NAME_CHARS and not opening.host and not opening.port
    addressed = not opening.service and 0 < len(opening.host) <= MAX_NAME_CHARS and 0 < opening.port < 65536
    if not named and not addressed:
        raise Violation("an opening names a service or an address")
    return opening


def cost(payload: bytes) -> int:
    """What a DATA frame takes of the credit."""
    return len(payload) + FRAME_COST_BYTES


class Reader:
    """Cuts bytes into frames; holds at most one that is unfinished."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def is_cut(self) -> bool:
        """Whether a frame is unfinished."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """The frames that `data` completes. Raises Violation."""
        self._buffer += data
        while len(self._buffer) >= HEAD_BYTES:
            size = int.from_bytes(self._buffer[1:HEAD_BYTES], "big")
            if size > MAX_FRAME_BYTES:
                raise Violation(f"a frame of {size} bytes")
            if len(self._buffer) < HEAD_BYTES + size:
                return
            try:
                kind = Kind(self._buffer[0])
            except ValueError as exc:
                raise Violation(f"a frame of kind {self._buffer[0]}") from exc
            payload = bytes(self._buffer[HEAD_BYTES : HEAD_BYTES + size])
            del self._buffer[: HEAD_BYTES + size]
            yield kind, payload


class Ledger:
    """Both directions' accounts."""

    __slots__ = ("_owed", "credit", "left")

    def __init__(self) -> None:
        self.credit = WINDOW_BYTES
        """What this side may still send."""
        self.left = WINDOW_BYTES
        """What the other side may still send."""
        self._owed = 0

    def may_send(self, payload: bytes) -> bool:
        """Whether the credit covers it."""
        return cost(payload) <= self.credit

    def sent(self, payload: bytes) -> None:
        """It was sent."""
        self.credit -= cost(payload)
        assert self.credit >= 0, "nothing is sent beyond the credit"

    def received(self, payload: bytes) -> None:
        """It came. Raises Violation beyond what was granted."""
        self.left -= cost(payload)
        if self.left < 0:
            raise Violation("more data than it was given credit for")

    def granted(self, payload: bytes) -> None:
        """A CREDIT frame came. Raises Violation."""
        more = int.from_bytes(payload, "big") if len(payload) == 4 else 0
        self.credit += more
        if not more or self.credit > WINDOW_BYTES:
            raise Violation("credit that nobody can need")

    def taken(self, payload: bytes) -> bytes:
        """The program took it: the CREDIT frame to send for it, b"" while it is not worth one."""
        self._owed += cost(payload)
        if self._owed < WINDOW_BYTES // 4:
            return b""
        owed, self._owed = self._owed, 0
        self.left += owed
        return credit_frame(owed)
