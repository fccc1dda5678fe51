"""What is left of files after a power cut, when only fsync is honoured?

A disk of sectors behind the calls of an operating system (`p2p_network.state.System`). A program's calls are
first only noted (`Script`); whoever drives virtual time carries them out one by one, and may lose power
between any two. What was written and not synced is then on the disk sector by sector as chance decides: the
old ones, the new ones, or some of each (a torn write), at the old length or the new one; a name that was
made or moved, and whose directory was not synced, is there or not, whatever the order was. A sector may also
go bad: it can't be read, or (worse) reads as something else.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias, assert_never

SECTOR_BYTES: Final = 512


@dataclass(slots=True, eq=False)
class _Inode:
    """A file, whatever its names. `current` is in the page cache, `durable` on the disk."""

    current: bytes = b""
    durable: bytes = b""
    is_dirty: bool = False
    is_damaged: bool = False  # torn, or a sector of it went bad
    unreadable: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Create:
    """A file is made. `inode`: what it is."""

    path: str
    inode: _Inode


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes are put at the end of a file."""

    inode: _Inode
    data: bytes


@dataclass(frozen=True, slots=True)
class Sync:
    """A file's content is durable."""

    inode: _Inode


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    """All names are durable, moved or new."""


@dataclass(frozen=True, slots=True)
class Move:
    """A file gets another name, in place of what had it."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Unlink:
    """A name goes."""

    path: str


Call: TypeAlias = Create | Write | Sync | SyncDirectory | Move | Unlink
Script: TypeAlias = tuple[Call, ...]


class SectorDisk:
    """Files of one machine.

    Args:
        chance: what a power cut leaves, and where damage falls.
        has_room: asked before anything is written.
    """

    def __init__(self, chance: random.Random, has_room: Callable[[], bool] = lambda: True) -> None:
        self._chance, self._has_room = chance, has_room
        self._current: dict[str, _Inode] = {}
        self._durable: dict[str, _Inode] = {}
        self._unsynced_names: list[tuple[str, _Inode | None]] = []

    # ------------------------------------------------------------ for programs

    def calls(self) -> Calls:
        """The system's calls for one program: see `Calls`."""
        return Calls(self, self._has_room)

    def read(self, path: str) -> bytes:
        """The content, as a program sees it. Raises OSError."""
        inode = self._current.get(path)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        if inode.unreadable:
            raise OSError(errno.EIO, "Input/output error", path)
        return inode.current

    def names(self, prefix: str = "") -> list[str]:
        """Names of files, sorted."""
        return sorted(name for name in self._current if name.startswith(prefix))

    def carry_out(self, call: Call) -> None:
        """A call of a program takes effect."""
        match call:
            case Create(path, inode):
                self._name(path, inode)
            case Write(inode, data):
                inode.current += data
                inode.is_dirty = True
            case Sync(inode):
                inode.durable, inode.is_dirty = inode.current, False
            case SyncDirectory():
                for path, found in self._unsynced_names:
                    _put(self._durable, path, found)
                self._unsynced_names.clear()
            case Move(source, target):
                moved = self._current[source]
                self._name(target, moved)
                self._name(source, None)
            case Unlink(path):
                self._name(path, None)
            case _:
                assert_never(call)

    def _name(self, path: str, inode: _Inode | None) -> None:
        _put(self._current, path, inode)
        self._unsynced_names.append((path, inode))

    # ------------------------------------------------------------ what can happen to it

    def crash(self) -> None:
        """Lose power."""
        for path, inode in self._unsynced_names:
            if self._chance.random() < 0.5:
                _put(self._durable, path, inode)
        self._unsynced_names.clear()
        for inode in (*self._durable.values(), *self._current.values()):
            if inode.is_dirty:
                self._tear(inode)
            inode.current, inode.is_dirty = inode.durable, False
        self._current = dict(self._durable)

    def _tear(self, inode: _Inode) -> None:
        chance, old, new = self._chance, inode.durable, inode.current
        length = chance.choice((len(old), len(new)))
        left = bytearray()
        for start in range(0, length, SECTOR_BYTES):
            source = chance.choice((old, new))
            left += source[start : start + SECTOR_BYTES].ljust(SECTOR_BYTES, b"\0")
        inode.durable = bytes(left[:length])
        inode.is_damaged = inode.durable != new

    def corrupt(self, path: str) -> Literal["unreadable", "other bytes"]:
        """A sector under this file goes bad, and does not come back. Returns how it shows."""
        inode, chance = self._current[path], self._chance
        sector = chance.randrange(max(1, -(-len(inode.current) // SECTOR_BYTES)))
        inode.is_damaged = True
        if not inode.current or chance.random() < 0.3:
            inode.unreadable.add(sector)
            return "unreadable"
        at = min(sector * SECTOR_BYTES + chance.randrange(SECTOR_BYTES), len(inode.current) - 1)
        for _ in range(chance.randint(1, 8)):
            raw = bytearray(inode.current)
            raw[max(0, at - chance.randrange(8))] ^= chance.randint(1, 255)
            inode.current = inode.durable = bytes(raw)
        return "other bytes"

    @property
    def is_damaged(self) -> bool:
        """Whether some file is not what was written; temporary ones (``.tmp-...``) don't count."""
        return any(inode.is_damaged for path, inode in self._current.items() if "/." not in path)

    def lose(self) -> None:
        """A new, empty disk."""
        self._current.clear()
        self._durable.clear()
        self._unsynced_names.clear()


class Calls:
    """One program's calls: reads see the disk as it is, everything else is noted in order.

    `take` hands the notes over, once.
    """

    def __init__(self, disk: SectorDisk, has_room: Callable[[], bool]) -> None:
        self._disk, self._has_room = disk, has_room
        self._notes: list[Call] = []
        self._numbers: Iterator[int] = itertools.count(3)
        self._reading: dict[int, bytes] = {}
        self._writing: dict[int, _Inode | None] = {}  # None: a directory

    def take(self) -> Script:
        """What was called since the last time."""
        notes = tuple(self._notes)
        self._notes.clear()
        return notes

    def open(self, path: Path, flags: int, mode: int = 0o600, /) -> int:
        """See `os`, here and below."""
        fd = next(self._numbers)
        if flags & os.O_DIRECTORY:
            self._writing[fd] = None
        elif flags & os.O_CREAT:
            inode = self._writing[fd] = _Inode()
            self._notes.append(Create(str(path), inode))
        else:
            self._reading[fd] = self._disk.read(str(path))
        return fd

    def read(self, fd: int, count: int, /) -> bytes:
        head, self._reading[fd] = self._reading[fd][:count], self._reading[fd][count:]
        return head

    def write(self, fd: int, data: bytes, /) -> int:
        if not self._has_room():
            raise OSError(errno.ENOSPC, "No space left on device")
        inode = self._writing[fd]
        assert inode is not None, "nobody writes to a directory"
        self._notes.append(Write(inode, bytes(data)))
        return len(data)

    def fsync(self, fd: int, /) -> None:
        inode = self._writing[fd]
        self._notes.append(SyncDirectory() if inode is None else Sync(inode))

    def close(self, fd: int, /) -> None:
        self._reading.pop(fd, None)
        self._writing.pop(fd, None)

    def replace(self, source: Path, target: Path, /) -> None:
        self._notes.append(Move(str(source), str(target)))

    def unlink(self, path: Path, /) -> None:
        self._notes.append(Unlink(str(path)))


def _put(names: dict[str, _Inode], path: str, inode: _Inode | None) -> None:
    if inode is None:
        names.pop(path, None)
    else:
        names[path] = inode
