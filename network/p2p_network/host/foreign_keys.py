"""How does a node of the public DHT prove who it is, if its key is not of our kind?

Many of them have RSA keys, few ECDSA ones. Members have Ed25519 keys only, and `lean.py` leaves libp2p's
readers of all others out; these here are small, read public keys only, and are put in when the client of the
public DHT starts. The swarm of the mesh goes on refusing them (`MeshSwarm`).
"""

from __future__ import annotations

import functools
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

import p2p_network.host.lean  # noqa: F401  (first: imports libp2p without what we never use)

# isort: split
from libp2p.crypto import serialization
from libp2p.crypto.keys import KeyType, PublicKey

MAX_KEY_BYTES: Final = 2048
MAX_RSA_BITS: Final = 8192


class ForeignKey(PublicKey):  # type: ignore[misc]
    """A public key of a kind that no member has. Raises ValueError if it is not one."""

    def __init__(self, kind: KeyType, raw: bytes) -> None:
        if len(raw) > MAX_KEY_BYTES:
            raise ValueError(f"a public key of {len(raw)} bytes")
        self._kind = kind
        self._raw = raw
        self._key = _read(kind, raw)

    def to_bytes(self) -> bytes:
        """As it came."""
        return self._raw

    def get_type(self) -> KeyType:
        """Of which kind."""
        return self._kind

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether this key signed."""
        try:
            if isinstance(self._key, rsa.RSAPublicKey):
                self._key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            else:
                self._key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


def _read(kind: KeyType, raw: bytes) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    if kind is KeyType.Secp256k1:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), raw)
    key = load_der_public_key(raw)
    if kind is KeyType.RSA and isinstance(key, rsa.RSAPublicKey) and 2048 <= key.key_size <= MAX_RSA_BITS:
        return key
    if kind is KeyType.ECDSA and isinstance(key, ec.EllipticCurvePublicKey):
        return key
    raise ValueError(f"no {kind.name} key that is safe to take")


def read_foreign_keys() -> None:
    """Let libp2p's Noise read public keys of every kind that the public DHT has. Idempotent."""
    for kind in (KeyType.RSA, KeyType.Secp256k1, KeyType.ECDSA):
        reading = serialization.key_type_to_public_key_deserializer
        reading.setdefault(kind.value, functools.partial(ForeignKey, kind))
