"""How does a stranger's connection differ from a member's, before any other byte is understood?

libp2p's pre-shared-key protocol (specs/pnet "Private Networks"): each side sends a random 24-byte nonce and
then XORs everything with XSalsa20(key, nonce). XSalsa20 is Salsa20 keyed with HSalsa20(key, nonce[:16]) and
nonce[16:] (Bernstein, "Extending the Salsa20 nonce"). It hides and separates; it does not authenticate:
Noise, inside it, does.

A member who dials speaks first, and its first words are known (`GREETING`). So a listener can tell a
stranger by its first `NONCE_BYTES + len(GREETING)` bytes without having sent a single one itself.
Pure: the nonce is passed in.
"""

from __future__ import annotations

import struct
from typing import Final

from p2p_network.lean import absent

with absent("cffi"):  # it reads C headers at each start, for 50 ms; without it ctypes is taken, as fast here
    from Crypto.Cipher import Salsa20

NONCE_BYTES: Final = 24
KEY_BYTES: Final = 32
GREETING: Final = b"\x13/multistream/1.0.0\n"
"""What every libp2p dialler sends first (multistream-select 1.0.0, with its length prefix)."""

_SIGMA: Final = struct.unpack("<4I", b"expand 32-byte k")
_MASK: Final = 0xFFFFFFFF
# One double round: four column quarter-rounds, then four row quarter-rounds.
_QUARTERS: Final = (
    (0, 4, 8, 12),
    (5, 9, 13, 1),
    (10, 14, 2, 6),
    (15, 3, 7, 11),
    (0, 1, 2, 3),
    (5, 6, 7, 4),
    (10, 11, 8, 9),
    (15, 12, 13, 14),
)


def hsalsa20(key: bytes, block: bytes) -> bytes:
    """The 32-byte subkey of a 32-byte key and a 16-byte block: 20 Salsa20 rounds, no feed-forward."""
    assert len(key) == KEY_BYTES, "an XSalsa20 key has 32 bytes"
    assert len(block) == 16, "HSalsa20 takes 16 bytes of nonce"
    k = struct.unpack("<8I", key)
    n = struct.unpack("<4I", block)
    x = [_SIGMA[0], *k[:4], _SIGMA[1], *n, _SIGMA[2], *k[4:], _SIGMA[3]]
    for _ in range(10):
        for a, b, c, d in _QUARTERS:
            x[b] ^= _rotated(x[a] + x[d], 7)
            x[c] ^= _rotated(x[b] + x[a], 9)
            x[d] ^= _rotated(x[c] + x[b], 13)
            x[a] ^= _rotated(x[d] + x[c], 18)
    return struct.pack("<8I", x[0], x[5], x[10], x[15], x[6], x[7], x[8], x[9])


def _rotated(value: int, bits: int) -> int:
    value &= _MASK
    return ((value << bits) | (value >> (32 - bits))) & _MASK


class KeyStream:
    """One direction of a protected connection; encrypting and decrypting are the same XOR."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes, nonce: bytes) -> None:
        assert len(nonce) == NONCE_BYTES, "an XSalsa20 nonce has 24 bytes"
        self._cipher = Salsa20.new(key=hsalsa20(key, nonce[:16]), nonce=nonce[16:])

    def apply(self, data: bytes) -> bytes:
        """`data` XOR the next ``len(data)`` bytes of the key stream."""
        result: bytes = self._cipher.encrypt(data)
        return result
