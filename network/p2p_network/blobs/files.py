"""Where do a blob's bytes rest, and what is there after a power cut?

An adapter for a thread. A blob that is being fetched is ``<target>.part``; it becomes the target by one
rename when it is whole and on the disk, so a file with its final name is never torn.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from p2p_network.blobs.transfer import PIECE_BYTES, Manifest, Piece


def manifest_of(path: Path) -> Manifest:
    """Reads the whole file. Raises OSError."""
    pieces, size = [], 0
    with path.open("rb") as file:
        while data := file.read(PIECE_BYTES):
            pieces.append(hashlib.sha256(data).digest())
            size += len(data)
    return Manifest(size, tuple(pieces))


def read_piece(path: Path, index: int) -> bytes:
    """One piece; b"" behind the end. Raises OSError."""
    with path.open("rb") as file:
        file.seek(index * PIECE_BYTES)
        return file.read(PIECE_BYTES)


class Partial:
    """A blob on its way to `target`. Raises OSError."""

    def __init__(self, target: Path, manifest: Manifest) -> None:
        self._target = target
        self._part = target.with_name(f"{target.name}.part")
        self._manifest = manifest
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def have(self) -> set[int]:
        """The pieces that an earlier transfer left, checked."""
        found = set()
        for index in range(len(self._manifest.pieces)):
            data = os.pread(self._file, self._manifest.size_of(index), index * PIECE_BYTES)
            if self._manifest.holds(index, data):
                found.add(index)
        return found

    def write(self, piece: Piece) -> None:
        """Keep one more."""
        view = memoryview(piece.data)
        offset = piece.offset
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    def digest(self) -> str:
        """SHA-256 of what there is, in hexadecimal digits; reads it whole."""
        found = hashlib.sha256()
        for offset in range(0, self._manifest.size_bytes, PIECE_BYTES):
            size = min(PIECE_BYTES, self._manifest.size_bytes - offset)
            found.update(os.pread(self._file, size, offset))
        return found.hexdigest()

    def finish(self) -> None:
        """It is whole: durable, under its name."""
        os.ftruncate(self._file, self._manifest.size_bytes)
        os.fsync(self._file)
        os.replace(self._part, self._target)
        sync_dir(self._target.parent)

    def close(self) -> None:
        """What is there stays for the next transfer."""
        os.close(self._file)


def sync_dir(folder: Path) -> None:
    """Make a rename in it durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
