"""What is in a network token, and which keys follow from it?

A token is one line of text that a person pastes into a cloud-config::

    kp2p1_<base64url of: checksum (4 bytes) | MessagePack of TokenBody>

The prefix names the format's version, so a newer token is refused with "upgrade" and not with "corrupt".
A cut or mistyped token fails its checksum (BLAKE2s over the body). A token of Kairos (base64 of YAML
with ``otp``, ``room``, ``rendezvous``, ``mdns``) is accepted too: its secrets seed our keys through
HKDF, so an old cloud-config boots unchanged into a mesh of its own.

From the 32-byte seed HKDF-SHA256 derives independent keys, one per use and per network id (`MeshKeys`);
two network ids on one token are strangers to each other.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2p_network import wire
from p2p_network.core.errors import TokenError

PREFIX: Final = "kp2p1_"
MAX_TOKEN_CHARS: Final = 16_384
MAX_BOOTSTRAP: Final = 32
MAX_GENERATION: Final = 1_000_000
DEFAULT_NETWORK_ID: Final = "kairos"

_VERSIONED = re.compile(r"^kp2p(\d{1,4})_")
_CHECKSUM_BYTES: Final = 4
_MAKE_NEW = "copy the whole line again, or make a new one with: kairos-p2p token generate"


class _TokenBody(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The wire form: an array, so the token stays short."""

    seed: bytes
    bootstrap: tuple[str, ...]
    dht: bool
    mdns: bool
    # absent before the first rotation, so that a token's text does not change
    generation: int = 1
    mesh_id: str = ""
    network_id: str = ""
    rendezvous: bytes = b""


class _FirstBody(msgspec.Struct, frozen=True, array_like=True):
    """The wire form of a first token."""

    seed: bytes
    bootstrap: tuple[str, ...]
    dht: bool
    mdns: bool


@dataclass(frozen=True, slots=True)
class NetworkToken:
    """The shared secret of a mesh, and how its members first find each other.

    Attributes:
        seed: 32 secret bytes.
        bootstrap: multiaddresses or host:port to dial first.
        dht: whether members look each other up in the DHT.
        mdns: whether members look for each other on the local network.
        origin: "kairos-p2p" or "kairos" (an EdgeVPN token).
        generation: how often the mesh's keys were rotated, from 1. From 2 on the token belongs to one mesh,
            and carries what does not change with a rotation:
        mesh_id, network_id, rendezvous: as `MeshKeys` has them; empty in generation 1.
    """

    seed: bytes
    bootstrap: tuple[str, ...] = ()
    dht: bool = True
    mdns: bool = True
    origin: str = "kairos-p2p"
    generation: int = 1
    mesh_id: str = ""
    network_id: str = ""
    rendezvous: bytes = b""

    def __repr__(self) -> str:  # never in a log, whatever prints this object
        return f"NetworkToken(<{self.fingerprint}>)"

    @property
    def fingerprint(self) -> str:
        """12 hex digits that name the token without giving it away."""
        return _derive(self.seed, "fingerprint", length=6).hex()


@dataclass(frozen=True, slots=True, repr=False)
class MeshKeys:
    """The keys of one network id on one token; each 32 bytes.

    Attributes:
        psk: libp2p private-network key.
        rendezvous: names the mesh in mDNS and the DHT without giving the token away.
        admission: seed of the mesh's authority, which certifies members (`admission.documents`).
        mesh_id: public name of the mesh, 16 hex digits; scopes signatures and addresses. Never changes.
        generation: of psk and admission.
    """

    psk: bytes
    rendezvous: bytes
    admission: bytes
    mesh_id: str
    generation: int = 1


def format_token(token: NetworkToken) -> str:
    """The line of text that `parse_token` reads."""
    fields: _FirstBody | _TokenBody = _FirstBody(token.seed, token.bootstrap, token.dht, token.mdns)
    if token.generation > 1:
        fields = _TokenBody(
            token.seed,
            token.bootstrap,
            token.dht,
            token.mdns,
            token.generation,
            token.mesh_id,
            token.network_id,
            token.rendezvous,
        )
    body = wire.encode(fields)
    raw = hashlib.blake2s(body, digest_size=_CHECKSUM_BYTES).digest() + body
    return PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def parse_token(text: str) -> NetworkToken:
    """Read a token of ours or of Kairos. Raises TokenError that never quotes the token."""
    text = "".join(text.split())
    if not text:
        raise TokenError("the network token is empty", hint="make one with: kairos-p2p token generate")
    if len(text) > MAX_TOKEN_CHARS:
        raise TokenError(
            f"the network token has {len(text)} characters, at most {MAX_TOKEN_CHARS} are possible",
            hint=_MAKE_NEW,
        )
    if versioned := _VERSIONED.match(text):
        if versioned[0] != PREFIX:
            raise TokenError(
                f"the network token has format version {versioned[1]}, this program reads version 1",
                hint="upgrade kairos-p2p on this node, or make a token with this version",
            )
        return _parse_ours(text[len(PREFIX) :])
    return _parse_kairos(text)


def mesh_keys(token: NetworkToken, network_id: str = DEFAULT_NETWORK_ID) -> MeshKeys:
    """The keys of `network_id` on this token. Deterministic.

    Raises TokenError if the token was made by a rotation of another network id.
    """

    def key(use: str, length: int = 32) -> bytes:
        return _derive(token.seed, f"{use}/{network_id}", length=length)

    if token.generation == 1:
        return MeshKeys(key("psk"), key("rendezvous"), key("admission"), key("mesh-id", 8).hex())
    if token.network_id != network_id:
        raise TokenError(
            f"the network token belongs to network id {token.network_id!r}, not {network_id!r}",
            hint="set p2p.network_id to it; a token that a rotation made is for one network id only",
        )
    return MeshKeys(key("psk"), token.rendezvous, key("admission"), token.mesh_id, token.generation)


def rotated(
    keys: MeshKeys, network_id: str, seed: bytes, *, bootstrap: tuple[str, ...], dht: bool, mdns: bool
) -> NetworkToken:
    """The token of the next generation of a mesh. `seed`: 32 new random bytes."""
    return NetworkToken(
        seed,
        bootstrap,
        dht,
        mdns,
        generation=keys.generation + 1,
        mesh_id=keys.mesh_id,
        network_id=network_id,
        rendezvous=keys.rendezvous,
    )


def _derive(seed: bytes, use: str, *, length: int = 32) -> bytes:
    info = b"kairos-p2p/token/v1/" + use.encode()
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info).derive(seed)


def _parse_ours(text: str) -> NetworkToken:
    try:
        # validate through the alphabet ourselves: urlsafe_b64decode drops foreign characters silently
        if not re.fullmatch(r"[A-Za-z0-9_-]*", text):
            raise ValueError("a character that no token has")
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if base64.urlsafe_b64encode(raw).rstrip(b"=") != text.encode():
            raise ValueError("bits behind the last byte")  # else a mistyped last character would pass
    except (ValueError, binascii.Error) as exc:
        raise TokenError("the network token is cut or mistyped: it is not base64url", hint=_MAKE_NEW) from exc
    checksum, body = raw[:_CHECKSUM_BYTES], raw[_CHECKSUM_BYTES:]
    if hashlib.blake2s(body, digest_size=_CHECKSUM_BYTES).digest() != checksum:
        raise TokenError("the network token is cut or mistyped: its checksum does not match", hint=_MAKE_NEW)
    try:
        fields = wire.decode(body, _TokenBody)
    except ValueError as exc:
        raise TokenError(f"the network token is damaged: {exc}", hint=_MAKE_NEW) from exc
    rotations = fields.generation > 1
    is_whole = (
        len(fields.seed) == 32
        and len(fields.bootstrap) <= MAX_BOOTSTRAP
        and 1 <= fields.generation <= MAX_GENERATION
        and len(fields.rendezvous) == (32 if rotations else 0)
        and re.fullmatch("[0-9a-f]{16}" if rotations else "", fields.mesh_id)
    )
    if not is_whole:
        raise TokenError("the network token is damaged: a field has a wrong size", hint=_MAKE_NEW)
    return NetworkToken(
        fields.seed,
        fields.bootstrap,
        fields.dht,
        fields.mdns,
        generation=fields.generation,
        mesh_id=fields.mesh_id,
        network_id=fields.network_id,
        rendezvous=fields.rendezvous,
    )


def _parse_kairos(text: str) -> NetworkToken:
    """A Kairos/EdgeVPN token: base64(YAML). The secrets in it seed ours; its OTP intervals don't apply."""
    not_a_token = TokenError(
        "this is no network token: it is neither kairos-p2p's (kp2p1_...) nor Kairos's (base64 of YAML); "
        "a cut or mistyped one looks like this too",
        hint=_MAKE_NEW,
    )
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        # BaseLoader: every scalar stays a text, so no constructor can fail or change a secret
        document: Any = yaml.load(raw.decode("utf-8"), Loader=yaml.BaseLoader)  # noqa: S506
    except (ValueError, OverflowError, yaml.YAMLError, RecursionError) as exc:
        raise not_a_token from exc
    if not isinstance(document, dict):
        raise not_a_token
    try:
        otp = document["otp"]
        texts = (otp["dht"]["key"], otp["crypto"]["key"], document["room"], document["rendezvous"])
        if not all(isinstance(text, str) for text in texts):  # a list of aliases may be huge: never str() it
            raise TypeError("a secret is no text")
        secrets = tuple(text.encode() for text in texts)
    except (KeyError, TypeError, UnicodeEncodeError) as exc:
        raise TokenError(
            "the Kairos token is incomplete: otp.dht.key, otp.crypto.key, room and rendezvous are needed",
            hint=_MAKE_NEW,
        ) from exc
    if any(len(secret) < 16 for secret in secrets[:2]):
        raise TokenError("the Kairos token is too weak: a key is under 16 characters", hint=_MAKE_NEW)
    material = b"".join(len(secret).to_bytes(4, "big") + secret for secret in secrets)
    seed = HKDF(
        algorithm=hashes.SHA256(), length=32, salt=b"kairos-p2p/kairos-token/v1", info=b"seed"
    ).derive(material)
    # EdgeVPN's `mdns` is a text, the name it announces itself by; only a plain "false" switches it off
    return NetworkToken(seed, mdns=document.get("mdns") != "false", origin="kairos")
