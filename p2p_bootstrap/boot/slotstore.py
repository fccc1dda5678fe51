"""How do the slot pointer, its journal and the images get onto the state partition, and off it?

The partition is mounted read-only in normal life; it becomes writable for the moment of a change. Every
action of `slots` is done here, durable before the next one starts, so that it may be interrupted anywhere.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol, assert_never

from p2p_bootstrap.boot import files, slots
from p2p_bootstrap.boot.slots import Action, SlotTable
from p2p_network.core.errors import BootError

MAX_JOURNAL_BYTES: Final = 64 * 1024
_CHUNK_BYTES: Final = 1 << 20


class Remount(Protocol):
    """Makes a mount read-only or writable."""

    def __call__(self, target: str, *, read_only: bool) -> None: ...


class SlotStore:
    """The slots on one mounted state partition.

    Args:
        root: where it is mounted.
        remount: how to make it writable; None: it is, or can't be made so.
        in_use: the path of the image that runs, "" if that is unknown: it is never removed.
    """

    def __init__(self, root: Path, remount: Remount | None = None, in_use: str = "") -> None:
        self.root = root
        self._remount = remount
        self._in_use = in_use

    def table(self) -> SlotTable:
        """The pointer. Raises BootError if it is damaged."""
        return slots.parse(files.read_text(self._at(slots.POINTER), slots.BLOCK_BYTES))

    def journal(self) -> str:
        """The journal's text, "" if there is none."""
        return files.read_text(self._at(slots.JOURNAL), MAX_JOURNAL_BYTES)

    def images(self) -> frozenset[str]:
        """Paths of the image files that are there."""
        folder = self._at("/cOS")
        return (
            frozenset(f"/cOS/{path.name}" for path in folder.glob("*.img"))
            if folder.is_dir()
            else frozenset()
        )

    def count_try(self) -> str:
        """Take one try off. Returns a remark, "" if nothing is on trial."""
        before = self.table()
        after = slots.count_try(before)
        if after == before:
            return ""
        with self.writable():
            self._flip(after)
        return f"active is on trial: {after.tries_left} tries are left after this one"

    def bless(self, running: str) -> str:
        """The running slot proved healthy. Returns what that means."""
        before = self.table()
        after, reason = slots.bless(before, running, self._in_use)
        if after != before:
            with self.writable():
                self._flip(after)
        return reason

    def upgrade(self, source: BinaryIO, running: str, *, tries: int = slots.DEFAULT_TRIES) -> SlotTable:
        """Write a new image from `source` and point active to it, on trial. Returns the new table.

        Raises BootError if there is no room, or what was written is not what was read.
        """
        digest = hashlib.sha256()
        size = 0
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
        source.seek(0)
        with self.writable():
            self.recover()
            status = os.statvfs(self.root)
            free = status.f_bavail * status.f_frsize
            if size + _CHUNK_BYTES > free:
                raise BootError(
                    f"the new image has {size} bytes, {self.root} has room for {free}",
                    hint="nothing was changed; remove what is no slot from the state partition",
                )
            intent = slots.intend_upgrade(
                self.table(), running, digest.hexdigest(), tries=tries, in_use=self._in_use
            )
            for action in slots.upgrade_actions(intent, self._in_use):
                self.perform(action, source)
        return self.table()

    def recover(self) -> tuple[str, ...]:
        """Finish or undo an interrupted upgrade. Returns what was done."""
        actions = slots.replay(self.journal(), self.table(), self.images(), self._in_use)
        if actions:
            with self.writable():
                for action in actions:
                    self.perform(action, None)
        return tuple(map(slots.describe, actions))

    def perform(self, action: Action, source: BinaryIO | None) -> None:
        """Do one action, durable on return."""
        match action:
            case slots.WriteJournal(intent):
                self._at("/cOS").mkdir(exist_ok=True)
                files.replace(self._at(slots.JOURNAL), slots.render_intent(intent))
            case slots.WriteImage(path, sha256):
                assert source is not None, "only an upgrade writes images"
                self._write_image(self._at(path), sha256, source)
            case slots.FlipPointer(table):
                self._flip(table)
            case slots.RemoveImage(path):
                self._remove(path)
            case slots.RemoveJournal():
                self._remove(slots.JOURNAL)
            case _:
                assert_never(action)

    @contextmanager
    def writable(self) -> Iterator[None]:
        """The partition, writable for a moment."""
        probe = self.root / ".kairos-p2p-probe"
        try:
            probe.write_bytes(b"")
            probe.unlink()
            changed = False
        except OSError as exc:
            if exc.errno != errno.EROFS or self._remount is None:
                raise BootError(
                    f"{self.root} can't be written: {exc.strerror}",
                    hint="run this as root, on the node itself",
                ) from exc
            self._remount(str(self.root), read_only=False)
            changed = True
        try:
            yield
        finally:
            if changed and self._remount is not None:
                self._remount(str(self.root), read_only=True)

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _flip(self, table: SlotTable) -> None:
        self._at("/cOS").mkdir(exist_ok=True)
        files.replace(self._at(slots.POINTER), slots.render(table), 0o644)

    def _remove(self, path: str) -> None:
        self._at(path).unlink(missing_ok=True)
        files.sync_folder(self._at("/cOS"))

    def _write_image(self, path: Path, sha256: str, source: BinaryIO) -> None:
        source.seek(0)
        with path.open("wb") as file:
            while chunk := source.read(_CHUNK_BYTES):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            # what counts is what the disk gives back, not what memory still holds
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        files.sync_folder(path.parent)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        if digest.hexdigest() != sha256:
            path.unlink()
            raise BootError(
                f"{path} reads back differently than it was written", hint="the disk may be failing"
            )
