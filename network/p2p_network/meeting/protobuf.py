"""How do a few bytes of Protocol Buffers become numbers and strings, when anybody may have sent them?

The wire format (protobuf.dev/programming-guides/encoding) as far as the messages of libp2p use it: varints
and length-delimited fields; fixed-width ones are passed over. Reading never raises anything but ValueError.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

MAX_FIELDS: Final = 1024
_MAX_VARINT_BYTES: Final = 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def varint(number: int) -> bytes:
    """An unsigned number below 2^64."""
    assert 0 <= number < 1 << 64, "a varint is an unsigned 64-bit number"
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(raw: bytes, at: int = 0) -> tuple[int, int]:
    """A number and where it ends. Raises ValueError if it does not end, or is 2^64 or more."""
    number = 0
    for count in range(_MAX_VARINT_BYTES):
        if at + count >= len(raw):
            break
        byte = raw[at + count]
        number |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            if number >= 1 << 64:
                break
            return number, at + count + 1
    raise ValueError("a number that does not end")


def message(*fields: tuple[int, int | bytes | None]) -> bytes:
    """The bytes of (number, value) pairs; a None is left out."""
    out = bytearray()
    for number, value in fields:
        if value is None:
            continue
        if isinstance(value, int):
            out += varint(number << 3 | _VARINT) + varint(value)
        else:
            out += varint(number << 3 | _BYTES) + varint(len(value)) + value
    return bytes(out)


def fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The (number, value) pairs of a message, in order. Raises ValueError on anything malformed."""
    at = 0
    for _ in range(MAX_FIELDS):
        if at == len(raw):
            return
        tag, at = read_varint(raw, at)
        kind = tag & 7
        if kind == _VARINT:
            number, at = read_varint(raw, at)
            yield tag >> 3, number
        elif kind == _BYTES:
            size, at = read_varint(raw, at)
            if size > len(raw) - at:
                raise ValueError("a field that ends after its message")
            yield tag >> 3, raw[at : at + size]
            at += size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
            if at > len(raw):
                raise ValueError("a field that ends after its message")
        else:
            raise ValueError(f"a field of kind {kind}")
    if at != len(raw):
        raise ValueError(f"more than {MAX_FIELDS} fields")


def a_number(value: int | bytes) -> int:
    """The value as a number. Raises ValueError if it is a string."""
    if not isinstance(value, int):
        raise ValueError("a string where a number belongs")
    return value


def a_string(value: int | bytes, limit: int) -> bytes:
    """The value as at most `limit` bytes. Raises ValueError if it is a number, or longer."""
    if isinstance(value, int):
        raise ValueError("a number where a string belongs")
    if len(value) > limit:
        raise ValueError(f"a string of {len(value)} bytes, at most {limit} are taken")
    return value


def framed(body: bytes) -> bytes:
    """A message as it goes over a stream: its length before it."""
    return varint(len(body)) + body


def unframed(raw: bytes, limit: int) -> tuple[bytes, bytes] | None:
    """The first message of what came so far and the rest; None if it is not whole yet. Raises ValueError."""
    head = raw[:_MAX_VARINT_BYTES]
    if not any(byte < 0x80 for byte in head):
        if len(head) == _MAX_VARINT_BYTES:
            raise ValueError("a length that does not end")
        return None
    size, at = read_varint(raw)
    if size > limit:
        raise ValueError(f"a message of {size} bytes, at most {limit} are taken")
    if len(raw) - at < size:
        return None
    return raw[at : at + size], raw[at + size :]
