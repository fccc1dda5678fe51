"""How is a file kept from everyone who lacks the key, and noticed when it is torn or changed?

Pure but for `cryptography`. A sealed file is a magic word, a header (public: `Header`) and chunks, each
under ChaCha20-Poly1305 with a nonce of its own that also says which chunk is the last (STREAM, Hoang et al.
2015): so a chunk that is changed, moved, repeated or missing fails, and so does a cut end. The header is
bound to every chunk. Keys come from a secret of high entropy (HKDF) or from a passphrase (scrypt).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from p2p_network import wire

MAGIC: Final = b"kairos-p2p sealed 1\n"
CHUNK_BYTES: Final = 64 * 1024
TAG_BYTES: Final = 16
SALT_BYTES: Final = 16
MAX_HEADER_BYTES: Final = 64 * 1024
_SCRYPT: Final = (1 << 15, 8, 1)  # 32 MiB, about 0.1 s
_MAX_SCRYPT_N: Final = 1 << 20


class Damaged(ValueError):
    """It is no sealed file, it is torn, or the key is another one."""


class Header(msgspec.Struct, frozen=True):
    """What everyone may read.

    Attributes:
        kind: what is inside, e.g. "etcd-snapshot".
        about: names, sizes and times; nothing secret.
        size_bytes: of what is inside.
        salt: of the key derivation; never used twice with one secret for different contents.
        scrypt: (n, r, p) if the key comes from a passphrase; () if from a secret.
    """

    kind: str
    about: dict[str, str]
    size_bytes: int
    salt: bytes
    scrypt: tuple[int, ...] = ()


def with_passphrase(header: Header) -> Header:
    """The same header, for a key from a passphrase."""
    return msgspec.structs.replace(header, scrypt=_SCRYPT)


def key_of(header: Header, secret: bytes) -> bytes:
    """The key that `secret` (or passphrase) gives for this file. Raises Damaged on absurd costs."""
    if not header.scrypt:
        info = b"kairos-p2p " + header.kind.encode()
        return HKDF(hashes.SHA256(), 32, header.salt, info).derive(secret)
    if len(header.scrypt) != 3 or not (2 <= header.scrypt[0] <= _MAX_SCRYPT_N):
        raise Damaged("the header asks for an absurd key derivation")
    n, r, p = header.scrypt
    if not (1 <= r <= 16 and 1 <= p <= 4) or n & (n - 1):
        raise Damaged("the header asks for an absurd key derivation")
    return Scrypt(header.salt, 32, n, r, p).derive(secret)


def preamble(header: Header) -> bytes:
    """The beginning of a sealed file."""
    raw = wire.encode(header)
    return MAGIC + len(raw).to_bytes(4, "big") + raw


def read_header(file: Any) -> Header:
    """The header of an open file, which stands at the first chunk afterwards. Raises Damaged, OSError."""
    if file.read(len(MAGIC)) != MAGIC:
        raise Damaged("it does not begin like a sealed file of kairos-p2p")
    length = int.from_bytes(file.read(4), "big")
    if length > MAX_HEADER_BYTES:
        raise Damaged("its header is too long")
    raw = file.read(length)
    try:
        header = wire.decode(raw, Header)
    except ValueError as exc:
        raise Damaged("its header is damaged") from exc
    # Bytes that say the same in another way would be bound to the chunks as if they were those written.
    is_as_written = len(raw) == length and wire.encode(header) == raw
    if not is_as_written or header.size_bytes < 0 or not 8 <= len(header.salt) <= 64:
        raise Damaged("its header is damaged")
    return header


def sealed_size(header: Header) -> int:
    """How long the sealed file is."""
    chunks = max(1, -(-header.size_bytes // CHUNK_BYTES))
    return len(preamble(header)) + header.size_bytes + chunks * TAG_BYTES


def seal(header: Header, key: bytes, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The sealed file, piece by piece. `blocks`: the content, in pieces of any size.

    Raises ValueError if the content has another size than the header says.
    """
    yield preamble(header)
    cipher, bound = ChaCha20Poly1305(key), _bound(header)
    waiting, index, total = b"", 0, 0
    for block in blocks:
        waiting += block
        total += len(block)
        while len(waiting) > CHUNK_BYTES:
            yield cipher.encrypt(_nonce(index, last=False), waiting[:CHUNK_BYTES], bound)
            waiting, index = waiting[CHUNK_BYTES:], index + 1
    if total != header.size_bytes:
        raise ValueError(f"the content has {total} bytes, {header.size_bytes} were announced")
    yield cipher.encrypt(_nonce(index, last=True), waiting, bound)


def unseal(header: Header, key: bytes, file: Any) -> Iterator[bytes]:
    """The content of a file behind its header. Raises Damaged; what came before is genuine then, too."""
    cipher, bound = ChaCha20Poly1305(key), _bound(header)
    left, index = header.size_bytes, 0
    while True:
        size = min(CHUNK_BYTES, left)
        is_last = left <= CHUNK_BYTES
        raw = file.read(size + TAG_BYTES)
        if len(raw) != size + TAG_BYTES:
            raise Damaged("it was cut short")
        try:
            yield cipher.decrypt(_nonce(index, last=is_last), raw, bound)
        except InvalidTag:
            why = (
                "the passphrase or key is another one, or its first bytes were changed" if index == 0 else ""
            )
            raise Damaged(why or f"it was changed about byte {index * CHUNK_BYTES}") from None
        left, index = left - size, index + 1
        if is_last:
            break
    if file.read(1):
        raise Damaged("something was appended to it")


def _bound(header: Header) -> bytes:
    return hashlib.sha256(preamble(header)).digest()


def _nonce(index: int, *, last: bool) -> bytes:
    return b"\0" * 4 + (index << 1 | last).to_bytes(8, "big")
