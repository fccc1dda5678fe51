"""How does a promise survive a power cut?

`DurableFiles` keeps the state of cores that must never be forgotten, first of all what a genesis acceptor
promised: a forgotten promise could make two clusters. One small file per key, replaced atomically and
fsynced before `set` returns, with a checksum inside. It is not in the ledger's database, since that may be
thrown away and come back from peers, and this may not: damage here is an error, never an empty answer.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final
from urllib.parse import quote

from p2p_network import wire
from p2p_network.core.errors import MeshError
from p2p_network.state import System, explain, read_file, replace_atomically, sync_directory

MAX_DURABLE_BYTES: Final = 1 << 20
_MAX_FILE_BYTES: Final = MAX_DURABLE_BYTES + 4096
_MAGIC: Final = b"kp2p-durable-1\n"
_CHECKSUM_BYTES: Final = 16


class SealedFiles:
    """A map from key to bytes: one file with a checksum for each, in a directory that is there. Blocking."""

    def __init__(self, directory: Path, system: System = os) -> None:
        self._directory, self._system = directory, system

    def get(self, key: str) -> bytes | None:
        """What was last set; None if never. Raises MeshError if the file is damaged or can't be read."""
        path = self._path(key)
        try:
            raw = read_file(path, _MAX_FILE_BYTES, self._system)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise explain(exc, path) from exc
        return self._parse(path, key, raw)

    def set(self, key: str, value: bytes) -> None:
        """Keep `value`: when this returns, a power cut can't undo it. Raises MeshError if it can't."""
        assert len(value) <= MAX_DURABLE_BYTES, f"{len(value)} bytes are too many for a durable value"
        path = self._path(key)
        body = wire.encode((key, value))
        try:
            replace_atomically(path, _MAGIC + _checksum(body) + body, self._system)
        except OSError as exc:
            raise explain(exc, path) from exc

    def _path(self, key: str) -> Path:
        name = quote(key, safe="")
        if not 0 < len(name) <= 200 or name.startswith("."):
            name = "h-" + hashlib.blake2b(key.encode(), digest_size=20).hexdigest()
        return self._directory / name

    def _parse(self, path: Path, key: str, raw: bytes) -> bytes:
        found, value = self._decode(path, raw)
        if found != key:
            raise self._damaged(path, f"it holds {found!r} instead of {key!r}")
        return value

    def _decode(self, path: Path, raw: bytes) -> tuple[str, bytes]:
        checksum, body = raw[len(_MAGIC) :][:_CHECKSUM_BYTES], raw[len(_MAGIC) + _CHECKSUM_BYTES :]
        if not raw.startswith(_MAGIC) or checksum != _checksum(body):
            raise self._damaged(path, "its checksum does not match")
        try:
            return wire.decode(body, tuple[str, bytes])
        except ValueError as exc:
            raise self._damaged(path, "its content has a wrong form") from exc

    def _damaged(self, path: Path, why: str) -> MeshError:
        return MeshError(
            f"{path} is damaged: {why}",
            hint="this file holds a promise to the other nodes: restore it from a backup, or take the node "
            f"out of the cluster and let it join as a new one with an empty {self._directory.parent}",
        )


class DurableFiles(SealedFiles):
    """`SealedFiles` in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        """Create the directory if need be. Raises MeshError or NotPermitted with what to do."""
        super().__init__(directory)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(directory.parent)
            for leftover in directory.glob(".tmp-*"):
                leftover.unlink()
            # a process that was killed before it had synced a new name left one that can be read, and that a
            # power cut would still undo
            sync_directory(directory)
        except OSError as exc:
            raise explain(exc, directory) from exc

    def keys(self) -> frozenset[str]:
        """All keys ever set. Raises MeshError if a file is damaged."""
        found = set()
        for path in self._directory.iterdir():
            if path.name.startswith("."):
                continue
            try:
                raw = read_file(path, _MAX_FILE_BYTES)
            except OSError as exc:
                raise explain(exc, path) from exc
            found.add(self._decode(path, raw)[0])
        return frozenset(found)


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES).digest()
