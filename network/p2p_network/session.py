"""How do two nodes agree on the keys of a data-plane session, over a mesh request that is already
authenticated?

One round trip: `offer` -> `answer` -> `conclude`. Both sides make an ephemeral X25519 key; HKDF-SHA256 over
the shared secret is bound to the whole exchange (offer and answer as sent, hence both public keys, the
session id and everything negotiated), both peer ids and the mesh id. One 32-byte key per direction. Who
listened in, or changed a byte, or answers for another peer, ends up with other keys. Pure: private keys and
ids are passed in.

Negotiated: cipher (AES-256-GCM only if it is the first wish of both, else ChaCha20-Poly1305), offloads
(intersection of the TUN_F bits), MTU (minimum), carriers (those of both, in the offerer's order).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2p_network import wire
from p2p_network.core.errors import RemoteViolation

AES: Final = "aes-256-gcm"
CHACHA: Final = "chacha20-poly1305"
CIPHERS: Final = (AES, CHACHA)

SESSION_ID_BYTES: Final = 16
KEY_BYTES: Final = 32
MTU_MIN: Final = 1280
"""IPv6 asks for it; nothing below is accepted."""
MTU_MAX: Final = 65535

_PURPOSE: Final = "kairos-p2p data session v1"
_MAX_CHOICES: Final = 8
_MAX_OFFLOADS: Final = 0xFFFF


class SessionOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the asking node wants.

    Attributes:
        session_id: 16 random bytes, new for every session.
        public_key: ephemeral X25519 key.
        ciphers: names of `CIPHERS`, best first.
        offloads: TUN_F bits of packets this node's kernel can take.
        carriers: ways to carry packets, best first ("tcp").
        mtu: largest inner packet, bytes.
    """

    session_id: bytes
    public_key: bytes
    ciphers: tuple[str, ...]
    offloads: int
    carriers: tuple[str, ...]
    mtu: int


class SessionAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the asked node chose; every field is final."""

    session_id: bytes
    public_key: bytes
    cipher: str
    offloads: int
    carriers: tuple[str, ...]
    mtu: int


class PeerSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A session's secrets and choices, as the data-plane process needs them. Printing it shows no key."""

    session_id: bytes
    cipher: str
    send_key: bytes
    receive_key: bytes
    offloads: int
    carriers: tuple[str, ...]
    mtu: int

    def __repr__(self) -> str:
        return f"PeerSession({self.session_id.hex()}, {self.cipher}, {self.offloads:#x}, {self.mtu})"


def offer(
    private_key: X25519PrivateKey,
    session_id: bytes,
    *,
    ciphers: Sequence[str],
    offloads: int,
    carriers: Sequence[str] = ("tcp",),
    mtu: int,
) -> SessionOffer:
    """The first message. `private_key` and `session_id` are fresh random for every call."""
    assert len(session_id) == SESSION_ID_BYTES, "a session id has 16 bytes"
    assert ciphers, "at least one cipher"
    assert set(ciphers) <= set(CIPHERS), "ciphers are names of CIPHERS"
    assert MTU_MIN <= mtu <= MTU_MAX, "an inner MTU lies between 1280 and 65535"
    return SessionOffer(
        session_id=session_id,
        public_key=private_key.public_key().public_bytes_raw(),
        ciphers=tuple(ciphers),
        offloads=offloads,
        carriers=tuple(carriers),
        mtu=mtu,
    )


def answer(
    own_private: X25519PrivateKey,
    peer_offer: SessionOffer,
    *,
    self_id: str,
    peer_id: str,
    mesh_id: str,
    ciphers: Sequence[str],
    offloads: int,
    carriers: Sequence[str] = ("tcp",),
    mtu: int,
) -> tuple[SessionAnswer, PeerSession]:
    """Choose and answer. Raises RemoteViolation if the offer is malformed or nothing in it suits."""
    _check_common(peer_offer.session_id, peer_offer.public_key, peer_offer.mtu, peer_offer.offloads, peer_id)
    if len(peer_offer.ciphers) > _MAX_CHOICES or len(peer_offer.carriers) > _MAX_CHOICES:
        raise RemoteViolation("the session offer lists too many choices", peer=peer_id)
    common_carriers = tuple(c for c in peer_offer.carriers if c in carriers)
    if not common_carriers:
        raise RemoteViolation(
            f"no common carrier: it has {_listed(peer_offer.carriers)}, this node {_listed(carriers)}",
            peer=peer_id,
            hint="update the older of the two nodes",
        )
    chosen = SessionAnswer(
        session_id=peer_offer.session_id,
        public_key=own_private.public_key().public_bytes_raw(),
        cipher=_choose_cipher(peer_offer.ciphers, ciphers, peer_id),
        offloads=peer_offer.offloads & offloads,
        carriers=common_carriers,
        mtu=min(peer_offer.mtu, mtu),
    )
    secret = _shared_secret(own_private, chosen.public_key, peer_offer.public_key, peer_id)
    theirs, ours = _directions(secret, peer_offer, chosen, offerer=peer_id, answerer=self_id, mesh_id=mesh_id)
    return chosen, _session(chosen, send_key=ours, receive_key=theirs)


def conclude(
    own_private: X25519PrivateKey,
    own_offer: SessionOffer,
    peer_answer: SessionAnswer,
    *,
    self_id: str,
    peer_id: str,
    mesh_id: str,
) -> PeerSession:
    """The offerer's session. Raises RemoteViolation if the answer is not one to `own_offer`."""
    got = peer_answer
    _check_common(got.session_id, got.public_key, got.mtu, got.offloads, peer_id)
    if got.session_id != own_offer.session_id:
        raise RemoteViolation("it answered for another session", peer=peer_id)
    beyond = (
        got.cipher not in own_offer.ciphers
        or got.offloads & ~own_offer.offloads
        or got.mtu > own_offer.mtu
        or not got.carriers
        or not set(got.carriers) <= set(own_offer.carriers)
    )
    if beyond:
        raise RemoteViolation("its answer chose what was not offered", peer=peer_id)
    secret = _shared_secret(own_private, own_offer.public_key, got.public_key, peer_id)
    ours, theirs = _directions(secret, own_offer, got, offerer=self_id, answerer=peer_id, mesh_id=mesh_id)
    return _session(got, send_key=ours, receive_key=theirs)


def _check_common(session_id: bytes, public_key: bytes, mtu: int, offloads: int, peer_id: str) -> None:
    if len(session_id) != SESSION_ID_BYTES or len(public_key) != KEY_BYTES:
        raise RemoteViolation("its session id or public key has the wrong length", peer=peer_id)
    if not MTU_MIN <= mtu <= MTU_MAX:
        raise RemoteViolation(f"its MTU {mtu} lies outside {MTU_MIN}..{MTU_MAX}", peer=peer_id)
    if not 0 <= offloads <= _MAX_OFFLOADS:
        raise RemoteViolation("its offload bits are out of range", peer=peer_id)


def _choose_cipher(offered: Sequence[str], own: Sequence[str], peer_id: str) -> str:
    if AES in offered[:1] and AES in own[:1]:
        return AES
    for cipher in (CHACHA, AES):
        if cipher in offered and cipher in own:
            return cipher
    raise RemoteViolation(
        f"no common cipher: it has {_listed(offered)}, this node {_listed(own)}",
        peer=peer_id,
        hint="update the older of the two nodes",
    )


def _listed(words: Sequence[str]) -> str:
    return ", ".join(word[:40] for word in words) or "none"


def _shared_secret(
    own_private: X25519PrivateKey, own_public: bytes, peer_public: bytes, peer_id: str
) -> bytes:
    if peer_public == own_public:
        raise RemoteViolation("it sent this node's own key back", peer=peer_id)
    try:
        # Raises ValueError for a point of low order, whose shared secret would be all zero.
        return own_private.exchange(X25519PublicKey.from_public_bytes(peer_public))
    except ValueError as exc:
        raise RemoteViolation("its public key gives an all-zero secret", peer=peer_id) from exc


def _directions(
    secret: bytes, sent: SessionOffer, chosen: SessionAnswer, *, offerer: str, answerer: str, mesh_id: str
) -> tuple[bytes, bytes]:
    """Keys (offerer to answerer, answerer to offerer)."""
    info = wire.encode((_PURPOSE, mesh_id, offerer, answerer, sent, chosen))
    both = HKDF(SHA256(), 2 * KEY_BYTES, salt=sent.session_id, info=info).derive(secret)
    return both[:KEY_BYTES], both[KEY_BYTES:]


def _session(chosen: SessionAnswer, *, send_key: bytes, receive_key: bytes) -> PeerSession:
    return PeerSession(
        session_id=chosen.session_id,
        cipher=chosen.cipher,
        send_key=send_key,
        receive_key=receive_key,
        offloads=chosen.offloads,
        carriers=chosen.carriers,
        mtu=chosen.mtu,
    )
