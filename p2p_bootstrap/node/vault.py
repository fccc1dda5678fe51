"""Where do copies of snapshots rest, and how do they become one again?

A folder of sealed files, ``<digest>.sealed``, named by the SHA-256 of what is inside. The key comes from the
cluster's server token, so any server can open them and nobody else, wherever they lie. An adapter for a
thread. The space it may take is bounded: the newest of each server stay.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from p2p_network.blobs import sealing
from p2p_network.blobs.files import sync_dir
from p2p_network.blobs.sealing import Damaged, Header
from p2p_network.core.errors import RoleError
from p2p_roles.recovery import SnapshotFacts

KIND: Final = "etcd-snapshot"
SPACE: Final = "snapshots"
_BLOCK_BYTES: Final = 1 << 20


class Vault:
    """Sealed snapshots below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[str, int, int], SnapshotFacts] = {}

    def path_of(self, digest: str) -> Path:
        """Where that snapshot lies, or would."""
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ValueError("a digest has 64 hex digits")
        return self.folder / f"{digest}.sealed"

    def find(self, digest: str) -> Path | None:
        """Its file, if it is here."""
        try:
            path = self.path_of(digest)
        except ValueError:
            return None
        return path if path.is_file() else None

    def entries(self) -> list[SnapshotFacts]:
        """All, newest first. What can't be read is left out. Blocks."""
        found, known = [], {}
        for path in sorted(self.folder.glob("*.sealed")) if self.folder.is_dir() else []:
            with suppress(OSError, Damaged, KeyError, ValueError):
                info = path.stat()
                key = (path.name, info.st_size, info.st_mtime_ns)
                facts = self._known.get(key) or _facts_of(path, info.st_size)
                known[key] = facts
                found.append(facts)
        self._known = known
        return sorted(found, key=lambda s: (-s.created_s, s.digest))

    def seal_in(self, source: Path, facts: SnapshotFacts, secret: bytes) -> None:
        """Keep a snapshot. Raises OSError, RoleError if the file is not what `facts` say."""
        header = Header(
            KIND,
            {
                "name": facts.name,
                "digest": facts.digest,
                "created_s": f"{facts.created_s:.3f}",
                "node": facts.node,
            },
            facts.size_bytes,
            bytes.fromhex(facts.digest)[: sealing.SALT_BYTES],
        )
        hashed = hashlib.sha256()
        try:
            blocks = sealing.seal(header, sealing.key_of(header, secret), read_blocks(source, hashed))
            write_whole(self.path_of(facts.digest), blocks, lambda: hashed.hexdigest() == facts.digest)
        except ValueError as exc:
            raise RoleError(f"{source.name} changed while it was copied: {exc}") from exc

    def copy_of(self, digest: str) -> Path:
        """Where another copy of that snapshot may be put, to be tried."""
        return self.path_of(digest).with_suffix(".copy")

    def unseal(self, digest: str, secret: bytes, target: Path) -> None:
        """Write the snapshot in clear to `target`. Raises RoleError, OSError.

        A copy beside this vault's own (`copy_of`) is tried first: if it is whole, it takes its place, else it
        goes.
        """
        path, copy = self.path_of(digest), self.copy_of(digest)
        if copy.is_file():
            with suppress(RoleError):
                self._unseal(copy, digest, secret, target)
                os.replace(copy, path)
                sync_dir(self.folder)
                return
            copy.unlink()
        self._unseal(path, digest, secret, target)

    def _unseal(self, path: Path, digest: str, secret: bytes, target: Path) -> None:
        hashed = hashlib.sha256()
        try:
            with path.open("rb") as file:
                header = sealing.read_header(file)
                content = hash_blocks(sealing.unseal(header, sealing.key_of(header, secret), file), hashed)
                write_whole(target, content, lambda: hashed.hexdigest() == digest)
        except ValueError as exc:
            raise RoleError(
                f"the copy of the snapshot {digest[:12]} on this machine cannot be used: {exc}",
                hint="another node may have a whole one: kairos-p2p cluster snapshot list",
            ) from exc

    def prune(self, *, keep: int, max_bytes: int, spared: frozenset[str] = frozenset()) -> list[str]:
        """Remove all but the newest of each server, and the oldest of all beyond `max_bytes`; what went.
        `spared`: digests that stay."""
        gone, total = [], 0
        count: dict[str, int] = {}
        for index, facts in enumerate(self.entries()):
            count[facts.node] = count.get(facts.node, 0) + 1
            total += facts.size_bytes
            if facts.digest in spared:
                continue
            if count[facts.node] > keep or (index > 0 and total > max_bytes):
                self.path_of(facts.digest).unlink(missing_ok=True)
                gone.append(facts.name)
        for part in self.folder.glob("*.part") if self.folder.is_dir() else []:
            digest = part.name.partition(".")[0]
            if self.find(digest) is not None:
                part.unlink(missing_ok=True)
        return gone


def _facts_of(path: Path, size: int) -> SnapshotFacts:
    with path.open("rb") as file:
        header = sealing.read_header(file)
    about = header.about
    if header.kind != KIND or f"{about['digest']}.sealed" != path.name or size != sealing.sealed_size(header):
        raise Damaged("it is another thing, or torn")
    return SnapshotFacts(
        about["name"], about["digest"], header.size_bytes, float(about["created_s"]), about["node"]
    )


def read_blocks(path: Path, hashed: hashlib._Hash) -> Iterator[bytes]:
    """A file, block by block, hashed on the way."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            hashed.update(block)
            yield block


def hash_blocks(blocks: Iterator[bytes], hashed: hashlib._Hash) -> Iterator[bytes]:
    """The same blocks, hashed on the way."""
    for block in blocks:
        hashed.update(block)
        yield block


def write_whole(target: Path, blocks: Iterator[bytes], is_right: object = None) -> None:
    """Write a file that is there whole and durable, or not at all. Raises OSError, ValueError."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        with open(part, "wb", opener=lambda p, f: os.open(p, f, 0o600)) as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if callable(is_right) and not is_right():
            raise ValueError("its checksum is another one")
        os.replace(part, target)
        sync_dir(target.parent)
    finally:
        part.unlink(missing_ok=True)
