"""How are nodes named?

A `PeerId` is libp2p's: base58btc of the identity multihash of the protobuf-encoded Ed25519 public key
(libp2p "peer ids" specification). The key is *inside* the id, so a signature by a peer can be checked
with nothing but its id.
"""

from __future__ import annotations

import hashlib
from typing import NewType

PeerId = NewType("PeerId", str)

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_INDEX = {c: i for i, c in enumerate(_ALPHABET)}
# multihash identity (0x00), length 36, protobuf {1: KeyType Ed25519 = 1, 2: 32 bytes}
_ED25519_PREFIX = bytes.fromhex("002408011220")


def base58_encode(data: bytes) -> str:
    """base58btc of `data`; leading zero bytes become leading "1"s."""
    number = int.from_bytes(data, "big")
    digits = []
    while number:
        number, rest = divmod(number, 58)
        digits.append(_ALPHABET[rest])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(digits))


def base58_decode(text: str) -> bytes:
    """Inverse of `base58_encode`. Raises ValueError on a character outside the alphabet."""
    number = 0
    for char in text:
        try:
            number = number * 58 + _INDEX[char]
        except KeyError:
            raise ValueError(f"{char!r} is not a base58 character") from None
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id of a raw 32-byte Ed25519 public key."""
    assert len(public_key) == 32, "an Ed25519 public key has 32 bytes"
    return PeerId(base58_encode(_ED25519_PREFIX + public_key))


def public_key_of(peer: str) -> bytes:
    """The raw 32-byte Ed25519 public key inside a peer id. Raises ValueError if it is not one."""
    if not 50 <= len(peer) <= 54:
        raise ValueError(f"a peer id has 52 characters, this has {len(peer)}")
    raw = base58_decode(peer)
    if len(raw) != 38 or not raw.startswith(_ED25519_PREFIX):
        raise ValueError("not the id of an Ed25519 key")
    return raw[6:]


def short(peer: str) -> str:
    """The last 8 characters: enough for a person to tell peers apart (the first 8 are all alike)."""
    return peer[-8:]


def stable_hash(*parts: str | bytes | int) -> int:
    """A 64-bit hash that is the same on every machine and in every run (BLAKE2b)."""
    h = hashlib.blake2b(digest_size=8)
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        h.update(len(raw).to_bytes(4, "big"))
        h.update(raw)
    return int.from_bytes(h.digest(), "big")
