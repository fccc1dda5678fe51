"""What is in a join token?

One line that lets its holder ask for a certificate, and nothing more: the pre-shared key and the public
authority of one generation, the key pair of one invitation, and where to dial. It can't certify anybody,
expires, and can be withdrawn. Upper-case base32 behind ``KP2PJ1-``: a QR code holds it in its compact
alphanumeric mode, and a person may type it in any case. Pure: the seed is passed in.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Final

import msgspec

from p2p_network import wire
from p2p_network.core.errors import TokenError
from p2p_network.identity import Identity
from p2p_network.token import DEFAULT_NETWORK_ID, MAX_BOOTSTRAP, MAX_GENERATION, MAX_TOKEN_CHARS

JOIN_PREFIX: Final = "KP2PJ1-"
SEED_BYTES: Final = 16

_VERSIONED = re.compile(r"^KP2PJ(\d{1,4})-")
_CHECKSUM_BYTES: Final = 4
_ASK = "copy the whole line again, or ask for a new one: kairos-p2p token invite"


class _Body(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    seed: bytes
    invite: bytes
    mesh: bytes
    generation: int
    psk: bytes
    rendezvous: bytes
    authority: bytes
    expires_s: int
    bootstrap: tuple[str, ...]
    flags: int
    network_id: str


@dataclass(frozen=True, slots=True, repr=False)
class JoinToken:
    """A join token.

    Attributes:
        seed: 16 secret bytes, from which the invitation's key follows.
        invite: 16 hex digits, the invitation's name.
        mesh_id, network_id, generation, psk, rendezvous: as in `token.MeshKeys`.
        authority: public key of that generation's authority.
        expires_s: Unix seconds.
        bootstrap, dht, mdns: as in `token.NetworkToken`.
    """

    seed: bytes
    invite: str
    mesh_id: str
    generation: int
    psk: bytes
    rendezvous: bytes
    authority: bytes
    expires_s: int
    bootstrap: tuple[str, ...] = ()
    dht: bool = True
    mdns: bool = True
    network_id: str = DEFAULT_NETWORK_ID

    def __repr__(self) -> str:  # never in a log, whatever prints this object
        return f"JoinToken(invite {self.invite})"

    @property
    def key(self) -> Identity:
        """The invitation's key pair."""
        return invite_key(self.seed)


def invite_key(seed: bytes) -> Identity:
    """The key pair that follows from a join token's seed."""
    return Identity(hashlib.blake2b(seed, digest_size=32, person=b"kp2p invite").digest())


def is_join_token(text: str) -> bool:
    """Whether a text means to be a join token, of whatever version."""
    return _VERSIONED.match("".join(text.split()).upper()) is not None


def format_join_token(token: JoinToken) -> str:
    """The line of text that `parse_join_token` reads."""
    body = wire.encode(
        _Body(
            token.seed,
            bytes.fromhex(token.invite),
            bytes.fromhex(token.mesh_id),
            token.generation,
            token.psk,
            token.rendezvous,
            token.authority,
            token.expires_s,
            token.bootstrap,
            token.dht + 2 * token.mdns,
            "" if token.network_id == DEFAULT_NETWORK_ID else token.network_id,
        )
    )
    raw = hashlib.blake2s(body, digest_size=_CHECKSUM_BYTES).digest() + body
    return JOIN_PREFIX + base64.b32encode(raw).decode().rstrip("=")


def parse_join_token(text: str) -> JoinToken:
    """Read a join token. Raises TokenError that never quotes it. Whether it has expired is not asked."""
    text = "".join(text.split()).upper()
    versioned = _VERSIONED.match(text)
    if versioned is None or len(text) > MAX_TOKEN_CHARS:
        raise TokenError("this is no join token: it does not begin with KP2PJ1-", hint=_ASK)
    if versioned[0] != JOIN_PREFIX:
        raise TokenError(
            f"the join token has format version {versioned[1]}, this program reads version 1",
            hint="upgrade kairos-p2p on this node, or make a token with this version",
        )
    encoded = text[len(JOIN_PREFIX) :]
    try:
        raw = base64.b32decode(encoded + "=" * (-len(encoded) % 8))
        if base64.b32encode(raw).rstrip(b"=") != encoded.encode():
            raise ValueError("bits behind the last byte")
    except (ValueError, binascii.Error) as exc:
        raise TokenError("the join token is cut or mistyped: it is not base32", hint=_ASK) from exc
    checksum, body = raw[:_CHECKSUM_BYTES], raw[_CHECKSUM_BYTES:]
    if hashlib.blake2s(body, digest_size=_CHECKSUM_BYTES).digest() != checksum:
        raise TokenError("the join token is cut or mistyped: its checksum does not match", hint=_ASK)
    try:
        fields = wire.decode(body, _Body)
    except ValueError as exc:
        raise TokenError(f"the join token is damaged: {exc}", hint=_ASK) from exc
    sizes = (fields.seed, 16), (fields.invite, 8), (fields.mesh, 8), (fields.psk, 32)
    more = (fields.rendezvous, 32), (fields.authority, 32)
    if (
        any(len(value) != size for value, size in (*sizes, *more))
        or not 1 <= fields.generation <= MAX_GENERATION
        or not 0 <= fields.expires_s < 1 << 40
        or len(fields.bootstrap) > MAX_BOOTSTRAP
    ):
        raise TokenError("the join token is damaged: a field has a wrong size", hint=_ASK)
    return JoinToken(
        fields.seed,
        fields.invite.hex(),
        fields.mesh.hex(),
        fields.generation,
        fields.psk,
        fields.rendezvous,
        fields.authority,
        fields.expires_s,
        fields.bootstrap,
        bool(fields.flags & 1),
        bool(fields.flags & 2),
        fields.network_id or DEFAULT_NETWORK_ID,
    )
