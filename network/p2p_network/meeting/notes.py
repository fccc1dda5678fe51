"""How do members leave word of where they are in a public place, so that only members can read it?

All follows from the rendezvous key and the day: for each day there are eight boxes, each with a signing key
of its own (what a public DHT files it under), a namespace for rendezvous servers, and a key that seals what
is in them (ChaCha20-Poly1305). Whoever doesn't have the rendezvous key sees blobs of one size under names
that are new every day; a key of yesterday's box says nothing of today's. Days are counted from 1970, UTC;
readers take the day before and the day after too, since clocks differ.

A member writes into the box that its peer id chooses, and keeps what others wrote there: of each member its
latest note, of too many the latest ones. A note says nothing that has to be believed: what is dialled by it
must prove its membership like everybody.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2p_network import wire
from p2p_network.core.endpoints import join
from p2p_network.core.ids import PeerId, peer_id_of, public_key_of, stable_hash
from p2p_network.host.addresses import Endpoint, endpoints_of
from p2p_network.identity import Identity

DAY_S: Final = 86_400
BOXES: Final = 8
MAX_NOTES: Final = 12
MAX_NOTE_ADDRESSES: Final = 6
BOX_BYTES: Final = 2048
"""What a sealed box has, full or empty: its size says nothing."""
SINGLE_BYTES: Final = 320
"""What a sealed single note has."""
MAX_AGE_S: Final = 2 * DAY_S
REFRESH_S: Final = 4 * 3600
FRESH_S: Final = 6 * 3600
_OVERHEAD_BYTES: Final = 12 + 16
_LENGTH_BYTES: Final = 2


class _Note(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    key: bytes
    addresses: tuple[bytes, ...]
    written_s: int


@dataclass(frozen=True, slots=True)
class Note:
    """Where a member can be dialled, by its own words. `written_s`: seconds since 1970."""

    peer: PeerId
    endpoints: tuple[Endpoint, ...]
    written_s: int


def day_of(wall_s: float) -> int:
    """The number of the day, UTC."""
    return int(wall_s // DAY_S)


def days_around(wall_s: float) -> tuple[int, int, int]:
    """The days whose boxes may be in use: today first, then the one before and the one after."""
    today = day_of(wall_s)
    return today, today - 1, today + 1


def box_of(peer: PeerId) -> int:
    """Into which of the boxes a member writes."""
    return stable_hash("box", peer) % BOXES


def box_seed(rendezvous: bytes, day: int, box: int) -> bytes:
    """The 32-byte seed of a box's Ed25519 key."""
    return _derived(rendezvous, f"box/{day}/{box}")


def public_key(seed: bytes) -> bytes:
    """The raw public key of a box's seed."""
    return public_key_of(Identity(seed).peer_id)


def namespace(rendezvous: bytes, day: int) -> str:
    """The namespace of the mesh at rendezvous servers, 32 hex digits."""
    return _derived(rendezvous, f"namespace/{day}")[:16].hex()


def meeting_psk(rendezvous: bytes) -> bytes:
    """The pre-shared key between members and their rendezvous servers, 32 bytes. Not the mesh's own."""
    return _derived(rendezvous, "rendezvous-psk")


def note_of(peer: PeerId, addresses: Iterable[str], wall_s: float) -> Note:
    """A member's note; what can't be dialled from elsewhere (loopback) only if there is nothing else."""
    found = endpoints_of(addresses)
    outside = tuple(endpoint for endpoint in found if not endpoint.is_loopback) or found
    return Note(peer, outside[:MAX_NOTE_ADDRESSES], int(wall_s))


def seal(rendezvous: bytes, day: int, notes: Sequence[Note], nonce: bytes, size: int = BOX_BYTES) -> bytes:
    """Notes that only members can read, in exactly `size` bytes; the last ones are left out if need be.

    `nonce`: 12 random bytes.
    """
    packed = [_packed(note) for note in notes[:MAX_NOTES]]
    room = size - _OVERHEAD_BYTES - _LENGTH_BYTES
    while len(body := wire.encode(packed)) > room:
        packed.pop()
    body = (len(body).to_bytes(_LENGTH_BYTES, "big") + body).ljust(room + _LENGTH_BYTES, b"\0")
    return nonce + ChaCha20Poly1305(_derived(rendezvous, f"seal/{day}")).encrypt(nonce, body, None)


def unseal(rendezvous: bytes, day: int, sealed: bytes) -> tuple[Note, ...]:
    """Inverse of `seal`. Raises ValueError on anything that nobody with the key sealed for that day."""
    if not _OVERHEAD_BYTES + _LENGTH_BYTES <= len(sealed) <= BOX_BYTES:
        raise ValueError(f"a box has at most {BOX_BYTES} bytes, this has {len(sealed)}")
    try:
        cipher = ChaCha20Poly1305(_derived(rendezvous, f"seal/{day}"))
        body = cipher.decrypt(sealed[:12], sealed[12:], None)
    except InvalidTag as exc:
        raise ValueError("sealed by nobody of this mesh") from exc
    size = int.from_bytes(body[:_LENGTH_BYTES], "big")
    found = wire.decode(body[_LENGTH_BYTES : _LENGTH_BYTES + size], tuple[_Note, ...])
    return tuple(_unpacked(note) for note in found[:MAX_NOTES])


def merged(notes: Iterable[Note], own: Note | None, wall_s: float) -> tuple[Note, ...]:
    """What belongs into a box: each member's latest note, the latest first, none that is too old.

    A note from the future counts as written now: a wrong clock must not push others out for ever.
    """
    latest: dict[PeerId, Note] = {}
    for note in (*notes, *((own,) if own is not None else ())):
        written_s = min(note.written_s, int(wall_s))
        kept = latest.get(note.peer)
        is_ours = own is not None and note.peer == own.peer
        if wall_s - written_s > MAX_AGE_S or (is_ours and note is not own):
            continue
        if kept is None or kept.written_s < written_s:
            latest[note.peer] = Note(note.peer, note.endpoints, written_s)
    return tuple(sorted(latest.values(), key=lambda note: (-note.written_s, note.peer))[:MAX_NOTES])


def wants_writing(notes: Sequence[Note], own: Note, wall_s: float) -> bool:
    """Whether a member should write its note into a box that has these.

    Not if a fresh one of its own is there, nor if the box is full of others' fresh ones: they are as good for
    who looks for the mesh, and members do not push each other out.
    """
    if not own.endpoints:
        return False
    here = next((note for note in notes if note.peer == own.peer), None)
    if here is not None:
        return here.endpoints != own.endpoints or not -DAY_S < wall_s - here.written_s < REFRESH_S
    return sum(1 for note in notes if wall_s - note.written_s < FRESH_S) < MAX_NOTES


def _derived(rendezvous: bytes, use: str) -> bytes:
    info = b"kairos-p2p/meeting/v1/" + use.encode()
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(rendezvous)


def _packed(note: Note) -> _Note:
    addresses = tuple(
        ipaddress.ip_address(endpoint.host).packed + endpoint.port.to_bytes(2, "big")
        for endpoint in note.endpoints[:MAX_NOTE_ADDRESSES]
    )
    return _Note(public_key_of(note.peer), addresses, note.written_s)


def _unpacked(note: _Note) -> Note:
    if len(note.key) != 32 or len(note.addresses) > MAX_NOTE_ADDRESSES or not 0 <= note.written_s < 1 << 40:
        raise ValueError("a note that no member writes")
    texts = []
    for packed in note.addresses:
        if len(packed) not in (6, 18):
            raise ValueError("an address of neither 6 nor 18 bytes")
        host, port = str(ipaddress.ip_address(packed[:-2])), int.from_bytes(packed[-2:], "big")
        texts.append(join(host, port))
    return Note(peer_id_of(note.key), endpoints_of(texts), note.written_s)
