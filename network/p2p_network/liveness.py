"""What do nodes say about who is there, and who can say it?

Three words, all small. `Ask`: "do you hear this member?", to another member that may have a channel with
it. `Alive`: a node's own signed word that it is there, either over the nonce of whoever asked (so it is of
now), or without one as a refutation (so it outdoes the suspicion of a lower incarnation). `Suspicion`: "I
no longer hear this member as of this incarnation". A suspicion proves nothing and needs no signature:
whoever hears it looks for himself. That a node is there nobody but the node can say, so a member that lies
can't keep a dead one alive, and can't kill a living one.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec

from p2p_network import wire
from p2p_network.identity import Identity, verify

ASK_METHOD: Final = "alive.ask"
PING_METHOD: Final = "alive.ping"
TELL_METHOD: Final = "alive.tell"
NONCE_BYTES: Final = 16
MAX_INCARNATION: Final = 1 << 48
MAX_WORD_BYTES: Final = 512
_PURPOSE: Final = "alive"

T = TypeVar("T")

_Peer = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_Incarnation = Annotated[int, msgspec.Meta(ge=0, le=MAX_INCARNATION)]
_Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
_Nonce = Annotated[bytes, msgspec.Meta(max_length=NONCE_BYTES)]


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """Get me this member's word over this nonce."""

    peer: _Peer
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


class Alive(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    """`peer` is there, says `peer`. `nonce`: of whoever asked; b"" in a refutation."""

    peer: _Peer
    incarnation: _Incarnation
    nonce: _Nonce
    signature: _Signature


class Suspicion(msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True):
    """`peer` was not heard any more, as of this incarnation."""

    peer: _Peer
    incarnation: _Incarnation


Word: TypeAlias = Alive | Suspicion


def vouch(identity: Identity, mesh_id: str, incarnation: int, nonce: bytes) -> Alive:
    """This node's own word."""
    signature = identity.sign(_PURPOSE, _signed(mesh_id, incarnation, nonce))
    return Alive(identity.peer_id, incarnation, nonce, signature)


def is_genuine(alive: Alive, mesh_id: str) -> bool:
    """Whether the node itself said so, in this mesh."""
    return verify(alive.peer, _PURPOSE, _signed(mesh_id, alive.incarnation, alive.nonce), alive.signature)


def decode_ask(raw: bytes) -> Ask:
    """Raises ValueError on anything else."""
    return _bounded(raw, Ask)


def decode_alive(raw: bytes) -> Alive:
    """Raises ValueError on anything else."""
    return _bounded(raw, Alive)


def decode_word(raw: bytes) -> Word:
    """Raises ValueError on anything else."""
    return _bounded(raw, Word)  # type: ignore[arg-type]


def _bounded(raw: bytes, as_type: type[T]) -> T:
    if len(raw) > MAX_WORD_BYTES:
        raise ValueError(f"{len(raw)} bytes; at most {MAX_WORD_BYTES}")
    return wire.decode(raw, as_type)


def _signed(mesh_id: str, incarnation: int, nonce: bytes) -> bytes:
    return wire.encode((mesh_id, incarnation, nonce))
