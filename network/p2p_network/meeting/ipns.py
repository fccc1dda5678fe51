"""What can be put into a public DHT by anybody, and changed by its owner only? An IPNS record.

(specs.ipfs.tech/ipns/ipns-record.) A DHT's nodes take values under two prefixes only, and check them: under
``/ipns/`` and the hash of a public key they keep a record that this key signed; of several the one with the
highest sequence number, then the one that is valid longest. Here the key is Ed25519, so it stands in the name
itself, and the value is a path ``/ipfs/CID`` whose content identifier has the content in it (the identity
hash), so nothing need be fetched. Written in both of the formats in use (V1 and V2), read by V2's signature.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2p_network.core.ids import base58_decode, peer_id_of
from p2p_network.meeting import protobuf

MAX_RECORD_BYTES: Final = 10_240
"""What DHT nodes take."""
MAX_CONTENT_BYTES: Final = 2560
_PREFIX: Final = b"ipns-signature:"
_PATH: Final = b"/ipfs/b"
_CID_RAW_IDENTITY: Final = b"\x01\x55\x00"
_VALUE, _SIGNATURE_1, _VALIDITY_TYPE, _VALIDITY, _SEQUENCE, _TTL, _SIGNATURE_2, _DATA = 1, 2, 3, 4, 5, 6, 8, 9


@dataclass(frozen=True, slots=True)
class Record:
    """What an owner of a key said. `until_s`: seconds since 1970."""

    content: bytes
    sequence: int
    until_s: float


def name_of(public_key: bytes) -> bytes:
    """Under which key of the DHT the records of a raw Ed25519 public key are."""
    return b"/ipns/" + base58_decode(peer_id_of(public_key))


def sign(seed: bytes, record: Record) -> bytes:
    """A record, signed. The ttl (how long it may be served without asking again) is a minute."""
    assert len(record.content) <= MAX_CONTENT_BYTES, "too much for a record"
    key = Ed25519PrivateKey.from_private_bytes(seed)
    value, validity, ttl_ns = _path(record.content), _rfc3339(record.until_s), 60 * 10**9
    data = _cbor_map(
        ("TTL", ttl_ns), ("Value", value), ("Sequence", record.sequence), ("Validity", validity),
        ("ValidityType", 0),
    )  # fmt: skip
    return protobuf.message(
        (_VALUE, value),
        (_SIGNATURE_1, key.sign(value + validity + b"EOL")),
        (_VALIDITY_TYPE, 0),
        (_VALIDITY, validity),
        (_SEQUENCE, record.sequence),
        (_TTL, ttl_ns),
        (_SIGNATURE_2, key.sign(_PREFIX + data)),
        (_DATA, data),
    )


def read(public_key: bytes, raw: bytes, wall_s: float) -> Record:
    """A record that this key signed and that is valid now. Raises ValueError on anything else."""
    if len(raw) > MAX_RECORD_BYTES:
        raise ValueError(f"a record of {len(raw)} bytes")
    signature = data = b""
    for number, field in protobuf.fields(raw):
        if number == _SIGNATURE_2:
            signature = protobuf.a_string(field, 64)
        elif number == _DATA:
            data = protobuf.a_string(field, MAX_RECORD_BYTES)
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _PREFIX + data)
    except InvalidSignature as exc:
        raise ValueError("the record is not signed by its key") from exc
    said = _read_cbor_map(data)
    value, validity, sequence = said.get("Value"), said.get("Validity"), said.get("Sequence")
    if not (isinstance(value, bytes) and isinstance(validity, bytes) and isinstance(sequence, int)):
        raise ValueError("the record lacks a field")
    if said.get("ValidityType") != 0:
        raise ValueError("the record's validity is of an unknown type")
    until_s = _seconds(validity)
    if until_s < wall_s:
        raise ValueError("the record has expired")
    return Record(_content(value), sequence, until_s)


def _path(content: bytes) -> bytes:
    cid = _CID_RAW_IDENTITY + protobuf.varint(len(content)) + content
    return _PATH + base64.b32encode(cid).rstrip(b"=").lower()


def _content(path: bytes) -> bytes:
    if not path.startswith(_PATH):
        raise ValueError("the record leads elsewhere")
    text = path[len(_PATH) :].upper()
    try:
        cid = base64.b32decode(text + b"=" * (-len(text) % 8))
    except binascii.Error as exc:
        raise ValueError("the record's path is no content identifier") from exc
    if not cid.startswith(_CID_RAW_IDENTITY):
        raise ValueError("the record's content is elsewhere")
    size, at = protobuf.read_varint(cid, len(_CID_RAW_IDENTITY))
    if size != len(cid) - at or size > MAX_CONTENT_BYTES:
        raise ValueError("the record's content has another length than it says")
    return cid[at:]


def _rfc3339(wall_s: float) -> bytes:
    """As Go writes it, with nanoseconds."""
    moment = datetime.fromtimestamp(int(wall_s), UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000000000Z").encode()


def _seconds(validity: bytes) -> float:
    try:
        text = validity.decode("ascii")
        whole = datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    except ValueError as exc:
        raise ValueError("the record's end is no time") from exc
    if not text.endswith("Z") or whole > datetime.max.replace(tzinfo=UTC) - timedelta(days=2):
        raise ValueError("the record's end is not in UTC")
    return whole.timestamp()


# DAG-CBOR (RFC 8949, canonical), as much as a record needs: one map, of text to numbers and byte strings.
_UNSIGNED, _BYTES, _TEXT, _MAP = 0, 2, 3, 5


def _cbor_head(kind: int, number: int) -> bytes:
    if number < 24:
        return bytes([kind << 5 | number])
    for code, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << (8 * size):
            return bytes([kind << 5 | code]) + number.to_bytes(size, "big")
    raise AssertionError("a number of more than 64 bits")


def _cbor_map(*pairs: tuple[str, int | bytes]) -> bytes:
    """`pairs` in canonical order: shorter names first."""
    out = _cbor_head(_MAP, len(pairs))
    for name, value in pairs:
        out += _cbor_head(_TEXT, len(name)) + name.encode()
        if isinstance(value, int):
            out += _cbor_head(_UNSIGNED, value)
        else:
            out += _cbor_head(_BYTES, len(value)) + value
    return out


def _read_cbor_map(raw: bytes) -> dict[str, int | bytes]:
    kind, count, at = _read_cbor_head(raw, 0)
    if kind != _MAP or count > 16:
        raise ValueError("the record's data is no small map")
    found: dict[str, int | bytes] = {}
    for _ in range(count):
        kind, size, at = _read_cbor_head(raw, at)
        name = raw[at : at + size]
        if kind != _TEXT or len(name) != size:
            raise ValueError("the record's data has a field without a name")
        at += size
        kind, number, at = _read_cbor_head(raw, at)
        value: int | bytes = number
        if kind in (_BYTES, _TEXT):
            value = raw[at : at + number]
            if len(value) != number:
                raise ValueError("the record's data ends early")
            at += number
        elif kind != _UNSIGNED:
            raise ValueError("the record's data has a value of an unknown kind")
        found[name.decode("utf-8", errors="replace")] = value
    if at != len(raw):
        raise ValueError("the record's data goes on")
    return found


def _read_cbor_head(raw: bytes, at: int) -> tuple[int, int, int]:
    if at >= len(raw):
        raise ValueError("the record's data ends early")
    kind, code = raw[at] >> 5, raw[at] & 31
    if code < 24:
        return kind, code, at + 1
    if code > 27:
        raise ValueError("the record's data has no definite length")
    size = 1 << (code - 24)
    number = raw[at + 1 : at + 1 + size]
    if len(number) != size:
        raise ValueError("the record's data ends early")
    return kind, int.from_bytes(number, "big"), at + 1 + size
