"""What does the mesh's authority sign, and how is it checked?

The authority is an Ed25519 key that follows from the network token; each rotation makes a new *generation*
of it. Whoever holds the token holds the root, and can sign:

- `Certificate`: this peer is a member, with these limits;
- `Invitation` and `Withdrawal`: a join token may be redeemed, or no longer;
- `Revocation`: this peer is out, for ever;
- `Announcement`: generation n follows n-1 (signed by both keys), with a roster of so many members;
- `Seat`: one member's place in that roster, with the new keys sealed to it.

Every signature covers a purpose and the mesh id, so none verifies as another or in another mesh. All are
immutable: of two for one ledger key either says the same. Pure: keys, time and randomness are passed in.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

import msgspec

from p2p_network import wire
from p2p_network.core.ids import PeerId, peer_id_of
from p2p_network.identity import Identity, verify

Limit = Literal["any", "server", "agent"]
LIMITS: Final[tuple[Limit, ...]] = ("any", "server", "agent")

MAX_DOCUMENT_BYTES: Final = 2048
INVITE_ID_CHARS: Final = 16

_Peer = Annotated[str, msgspec.Meta(min_length=50, max_length=54)]
_Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Ms = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53))]
_Generation = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_Label = Annotated[str, msgspec.Meta(max_length=63)]
_Text = Annotated[str, msgspec.Meta(max_length=200)]
_Id = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{16})?$")]
_Signature = Annotated[bytes, msgspec.Meta(max_length=64)]


class _Document(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A statement and, last, the authority's signature over the rest."""


class Certificate(_Document, frozen=True, tag="c"):
    """A peer is a member.

    Attributes:
        generation: of the authority that signed.
        is_issuer: it holds the root, so it gets the new one when the keys are rotated.
        limit: the role it is confined to.
        region: the region it is confined to, "" for any.
        issued_ms, expires_ms: Unix milliseconds; 0 never expires.
        invite: the invitation that was redeemed for it, "" for none.
    """

    peer: _Peer
    generation: _Generation
    is_issuer: bool
    limit: Limit
    region: _Label
    issued_ms: _Ms
    expires_ms: _Ms
    invite: _Id
    signature: _Signature = b""


class Invitation(_Document, frozen=True, tag="i"):
    """The public part of a join token. `key`: its public key; `member_s`: how long its members stay."""

    id: _Id
    key: _Key
    generation: _Generation
    limit: Limit
    region: _Label
    uses: Annotated[int, msgspec.Meta(ge=1, le=10_000)]
    created_ms: _Ms
    expires_ms: _Ms
    member_s: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0
    signature: _Signature = b""


class Withdrawal(_Document, frozen=True, tag="w"):
    """An invitation is not to be redeemed any more."""

    id: _Id
    generation: _Generation
    at_ms: _Ms
    signature: _Signature = b""


class Revocation(_Document, frozen=True, tag="r"):
    """A peer is out. It may come back only as another, with a new identity."""

    peer: _Peer
    generation: _Generation
    at_ms: _Ms
    reason: _Text
    signature: _Signature = b""


class Announcement(_Document, frozen=True, tag="a"):
    """Generation `number` follows. Signed by the new key (`signature`) and the one before.

    Attributes:
        authority, previous: public keys of this generation and of the one before.
        members: seats in its roster; it is in force where all of them are known.
    """

    number: _Generation
    authority: _Key
    previous: _Key
    members: Annotated[int, msgspec.Meta(ge=1, le=10_000)]
    at_ms: _Ms
    by_previous: _Signature = b""
    signature: _Signature = b""


class Seat(_Document, frozen=True, tag="s"):
    """One member's place in a generation: its certificate, and the new keys sealed to it (`sealed`)."""

    peer: _Peer
    generation: _Generation
    certificate: Annotated[bytes, msgspec.Meta(max_length=512)]
    sealed: Annotated[bytes, msgspec.Meta(max_length=512)]
    signature: _Signature = b""


D = TypeVar("D", Certificate, Invitation, Withdrawal, Revocation, Announcement, Seat)

_PURPOSES: Final[dict[type[_Document], str]] = {
    Certificate: "member",
    Invitation: "invite",
    Withdrawal: "withdrawal",
    Revocation: "revocation",
    Announcement: "generation",
    Seat: "seat",
}


class Authority:
    """The root of one generation: what signs. `seed`: 32 secret bytes (`token.MeshKeys.admission`)."""

    __slots__ = ("_identity", "generation", "mesh_id", "public")

    def __init__(self, seed: bytes, mesh_id: str, generation: int) -> None:
        from p2p_network.core.ids import public_key_of

        self._identity = Identity(seed)
        self.public = public_key_of(self._identity.peer_id)
        self.mesh_id = mesh_id
        self.generation = generation

    def __repr__(self) -> str:
        return f"Authority({self.mesh_id}, generation {self.generation})"

    def signed(self, document: D) -> D:
        """The document with this authority's signature."""
        return msgspec.structs.replace(
            document, signature=self._identity.sign(_purpose(document, self.mesh_id), _covered(document))
        )

    def announced(self, document: Announcement) -> Announcement:
        """The announcement of the *next* generation with this one's signature; the next one signs then."""
        signature = self._identity.sign(f"next-{_purpose(document, self.mesh_id)}", _covered(document))
        return msgspec.structs.replace(document, by_previous=signature)


def is_signed(document: D, authority: bytes, mesh_id: str) -> bool:
    """Whether the authority with this public key signed the document, for this mesh."""
    return verify(peer_id_of(authority), _purpose(document, mesh_id), _covered(document), document.signature)


def is_announced(document: Announcement, mesh_id: str) -> bool:
    """Whether both generations that it names signed the announcement."""
    bare = msgspec.structs.replace(document, by_previous=b"")
    purpose = f"next-{_purpose(document, mesh_id)}"
    return verify(peer_id_of(document.previous), purpose, _covered(bare), document.by_previous) and is_signed(
        document, document.authority, mesh_id
    )


def encode(document: _Document) -> bytes:
    """Its bytes, for the ledger and the wire."""
    return wire.encode(document)


def decode(raw: bytes, kind: type[D]) -> D:
    """A document from untrusted bytes; its signature is not looked at. Raises ValueError."""
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"a document of {len(raw)} bytes; at most {MAX_DOCUMENT_BYTES} are taken")
    return wire.decode(raw, kind)


def certify(
    authority: Authority,
    peer: PeerId,
    *,
    issued_ms: int,
    is_issuer: bool = False,
    limit: Limit = "any",
    region: str = "",
    expires_ms: int = 0,
    invite: str = "",
) -> Certificate:
    """A member's certificate."""
    return authority.signed(
        Certificate(peer, authority.generation, is_issuer, limit, region, issued_ms, expires_ms, invite)
    )


def _purpose(document: _Document, mesh_id: str) -> str:
    return f"{_PURPOSES[type(document)]}/{mesh_id}"


def _covered(document: _Document) -> bytes:
    return wire.encode(msgspec.structs.replace(document, signature=b""))
