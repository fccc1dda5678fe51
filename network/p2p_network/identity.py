"""Who am I, and did this peer say that?

An Ed25519 key per node. The peer id contains the public key (`core.ids`), so `verify` needs no key
look-up. Every signature covers a purpose string first: a signature made for one purpose never verifies
for another. Where the key rests on disk is `state.py`'s business.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2p_network.core.ids import PeerId, peer_id_of, public_key_of


class Identity:
    """A node's key pair. `seed`: the 32 secret bytes."""

    __slots__ = ("_key", "peer_id", "seed")

    def __init__(self, seed: bytes) -> None:
        assert len(seed) == 32, "an Ed25519 seed has 32 bytes"
        self.seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.peer_id: PeerId = peer_id_of(self._key.public_key().public_bytes_raw())

    def sign(self, purpose: str, message: bytes) -> bytes:
        """A 64-byte signature over `message` for one purpose."""
        return self._key.sign(_tagged(purpose, message))

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"


def verify(peer: str, purpose: str, message: bytes, signature: bytes) -> bool:
    """Whether `peer` signed `message` for this purpose. False, never an exception, on any garbage."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key_of(peer)).verify(signature, _tagged(purpose, message))
    except (InvalidSignature, ValueError):
        return False
    return True


def _tagged(purpose: str, message: bytes) -> bytes:
    tag = purpose.encode()
    return b"kairos-p2p/v1/" + len(tag).to_bytes(2, "big") + tag + message
