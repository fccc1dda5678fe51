"""How do values become bytes, and untrusted bytes values?

One codec for everything that crosses a wire or rests on a disk: MessagePack through msgspec, strictly
typed, keys in declaration order, so equal values have equal bytes and can be signed. Decoding never
raises anything but `ValueError`; whoever knows the peer turns that into a `RemoteViolation`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

MAX_FRAME_BYTES = 1 << 20
"""No frame between peers is larger; larger things are sent in pieces."""

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def encode(value: object) -> bytes:
    """The bytes of a struct, tuple, dict or scalar. Deterministic for structs and tuples."""
    return _encoder.encode(value)


def decode(raw: bytes | memoryview, as_type: type[T]) -> T:
    """A value of `as_type` from untrusted bytes. Raises ValueError with the path of what is wrong."""
    decoder = _decoders.get(as_type)
    if decoder is None:
        decoder = _decoders[as_type] = msgspec.msgpack.Decoder(as_type)
    try:
        return decoder.decode(raw)  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise ValueError(f"not a {getattr(as_type, '__name__', as_type)}: {exc}") from exc
