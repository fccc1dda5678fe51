"""How is a secret put where everybody can see it, and only one node can open it?

A sealed box to a peer id. The recipient's X25519 key follows from its Ed25519 identity (the birational map
of RFC 7748, section 4.1); the sender makes an ephemeral key, HKDF-SHA256 over the shared secret is bound to
both public keys and a purpose, ChaCha20-Poly1305 encrypts. Nothing tells who sealed it: what matters is
signed by whoever says so. Pure: the ephemeral key is passed in.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2p_network.core.ids import public_key_of
from p2p_network.identity import Identity

OVERHEAD_BYTES: Final = 32 + 16
_P: Final = 2**255 - 19
_NONCE: Final = bytes(12)  # each key is used once


def seal(recipient: str, purpose: str, message: bytes, ephemeral: bytes) -> bytes:
    """`message`, readable by the peer `recipient` only: ephemeral public key (32) | ciphertext | tag (16).

    `ephemeral`: 32 random bytes, new for every call. Raises ValueError if `recipient` is no peer id.
    """
    theirs = _montgomery(public_key_of(recipient))
    private = X25519PrivateKey.from_private_bytes(ephemeral)
    public = private.public_key().public_bytes_raw()
    shared = private.exchange(X25519PublicKey.from_public_bytes(theirs))
    return public + ChaCha20Poly1305(_key(shared, public, theirs, purpose)).encrypt(_NONCE, message, None)


def unseal(identity: Identity, purpose: str, box: bytes) -> bytes:
    """What was sealed to this identity. Raises ValueError if it wasn't, or for another purpose."""
    if len(box) < OVERHEAD_BYTES:
        raise ValueError("a sealed box is longer")
    private = X25519PrivateKey.from_private_bytes(hashlib.sha512(identity.seed).digest()[:32])
    ours = private.public_key().public_bytes_raw()
    public = box[:32]
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
        return ChaCha20Poly1305(_key(shared, public, ours, purpose)).decrypt(_NONCE, box[32:], None)
    except (InvalidTag, ValueError) as exc:
        raise ValueError("the box is not sealed to this node, or was changed") from exc


def _key(shared: bytes, public: bytes, theirs: bytes, purpose: str) -> bytes:
    info = b"kairos-p2p/sealed/v1/" + purpose.encode() + b"/" + public + theirs
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(shared)


def _montgomery(public: bytes) -> bytes:
    """The X25519 form of an Ed25519 public key: u = (1 + y) / (1 - y) mod 2^255 - 19."""
    y = int.from_bytes(public, "little") & ((1 << 255) - 1)
    if y >= _P or y == 1:
        raise ValueError("not a usable Ed25519 key")
    return ((1 + y) * pow(1 - y, -1, _P) % _P).to_bytes(32, "little")
