"""What do two nodes show each other before anything else is said on a connection?

The dialler sends a `Claim`, the other one an `Answer` with its own claim, each a length-framed message on a
stream of its own, before any other protocol is dispatched. Noise has proven both peer ids by then, and a
certificate names its peer, so a captured claim is worth nothing on any other connection. Who is refused
learns one word (and, if it was revoked, the authority's proof of it), nothing else.

A claim carries the chain of generations and the latest revocations too: a member that was away learns both
before it admits anybody. Pure.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from p2p_network import wire
from p2p_network.core.ids import PeerId, peer_id_of
from p2p_network.identity import Identity, verify

MAX_CLAIM_BYTES: Final = 128 * 1024
MAX_LINKS: Final = 64
MAX_REVOCATIONS: Final = 256

_Raw = Annotated[bytes, msgspec.Meta(max_length=2048)]


class Redemption(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Proof that the claimant holds a join token: `signature` by the invitation's key (see `redeem`)."""

    invite: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class Claim(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who I am to this mesh.

    Attributes:
        certificate: `documents.Certificate`; b"" before the first admission.
        links: `documents.Announcement`, oldest first.
        revocations: `documents.Revocation`, newest first.
        redemption: of somebody who holds a join token and no certificate yet.
    """

    mesh_id: Annotated[str, msgspec.Meta(max_length=32)]
    certificate: _Raw
    links: Annotated[tuple[_Raw, ...], msgspec.Meta(max_length=MAX_LINKS)] = ()
    revocations: Annotated[tuple[_Raw, ...], msgspec.Meta(max_length=MAX_REVOCATIONS)] = ()
    redemption: Redemption | None = None


class Answer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the other one says to a claim.

    Attributes:
        cause: why not (`trust.Cause`); "" admits.
        claim: its own, only if it admits.
        certificate: the one just issued for a redemption.
        proof: the claimant's revocation, if that is the cause.
    """

    cause: Annotated[str, msgspec.Meta(max_length=32)]
    claim: Claim | None = None
    certificate: _Raw = b""
    proof: _Raw = b""


def encode(message: Claim | Answer) -> bytes:
    """Its bytes."""
    return wire.encode(message)


def decode_claim(raw: bytes) -> Claim:
    """A claim from untrusted bytes. Raises ValueError."""
    _check(raw)
    return wire.decode(raw, Claim)


def decode_answer(raw: bytes) -> Answer:
    """An answer from untrusted bytes. Raises ValueError."""
    _check(raw)
    return wire.decode(raw, Answer)


def redeem(key: Identity, mesh_id: str, invite: str, claimant: PeerId, via: PeerId) -> Redemption:
    """Proof for one connection: made by the join token's `key` for this claimant and this member."""
    return Redemption(invite, key.sign(f"redeem/{mesh_id}", wire.encode((invite, claimant, via))))


def is_redeemed(key: bytes, mesh_id: str, proof: Redemption, claimant: str, via: str) -> bool:
    """Whether the holder of the invitation's key made this proof, for these two peers."""
    message = wire.encode((proof.invite, claimant, via))
    return verify(peer_id_of(key), f"redeem/{mesh_id}", message, proof.signature)


def _check(raw: bytes) -> None:
    if len(raw) > MAX_CLAIM_BYTES:
        raise ValueError(f"{len(raw)} bytes; at most {MAX_CLAIM_BYTES} are taken")
