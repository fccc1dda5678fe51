"""What do two nodes say to each other over a channel, and where does one message end?

A frame is a 4-byte big-endian length and that many bytes of MessagePack: an array whose first element is
the message's tag. The side that opened the stream (the caller) sends `Hello`, `Request`, `Notify`, `Ping`;
the other (the callee) answers `Welcome`, `Reply`, `Failure`, `Pong`. Each node opens a stream of its own to
each peer, so requests flow both ways.

`FrameReader` takes bytes as they come and yields messages; anything it can't accept is a `ValueError`, and
`cut_short` tells an end inside a frame from a clean one (libp2p can't). Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from p2p_network.wire import MAX_FRAME_BYTES, encode

HEADER_BYTES: Final = 4
MAX_METHOD_CHARS: Final = 64
OVERHEAD_BYTES: Final = 128
"""Tag, id, method and MessagePack headers never need more."""
MAX_PAYLOAD_BYTES: Final = MAX_FRAME_BYTES - OVERHEAD_BYTES


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """First frame of the caller. `addresses`: where it can be dialled, multiaddresses without ``/p2p``."""

    addresses: tuple[str, ...]


class Request(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Wants exactly one `Reply` or `Failure` with the same `id`."""

    id: int
    method: str
    payload: bytes


class Notify(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Wants no answer."""

    method: str
    payload: bytes


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Wants a `Pong` with the same count."""

    count: int


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The callee's answer to `Hello`, with its own addresses."""

    addresses: tuple[str, ...]


class Reply(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The handler's answer."""

    id: int
    payload: bytes


class Failure(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The handler failed or refused; `message` is one sentence without secrets."""

    id: int
    message: str


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Answer to `Ping`."""

    count: int


CallerFrame = Hello | Request | Notify | Ping
CalleeFrame = Welcome | Reply | Failure | Pong
Frame = CallerFrame | CalleeFrame

_decoder: Final[msgspec.msgpack.Decoder[Frame]] = msgspec.msgpack.Decoder(Frame)


def frame_bytes(frame: Frame) -> bytes:
    """The wire form. Raises ValueError when it would be larger than `MAX_FRAME_BYTES`."""
    body = encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(body)} bytes; at most {MAX_FRAME_BYTES} are sent")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


class FrameReader:
    """Cuts a byte stream into frames. Holds at most one incomplete frame."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def cut_short(self) -> bool:
        """Whether bytes of an unfinished frame are waiting for the rest."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames completed by `data`. Raises ValueError on an oversized or meaningless one."""
        self._buffer += data
        while len(self._buffer) >= HEADER_BYTES:
            size = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
            if not 0 < size <= MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {size} bytes; 1 to {MAX_FRAME_BYTES} are allowed")
            end = HEADER_BYTES + size
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[HEADER_BYTES:end])
            del self._buffer[:end]
            yield _decoded(body)


def _decoded(body: bytes) -> Frame:
    try:
        frame: Any = _decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise ValueError(f"not a frame: {exc}") from exc
    if isinstance(frame, Request | Notify) and len(frame.method) > MAX_METHOD_CHARS:
        raise ValueError(f"a method name of {len(frame.method)} characters")
    assert isinstance(frame, Frame)
    return frame
