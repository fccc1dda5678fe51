"""How is an initramfs written? The kernel's cpio format ("newc"), in pure Python, reproducible.

Every entry belongs to root and has no time; the same tree gives the same bytes. Device nodes need no root.
"""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

TRAILER: Final = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """What is at a path. `mode` with the file type's bits; `device`: (major, minor) of a node."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(data: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(stat.S_IFREG | mode, data)


def link(target: str) -> Entry:
    """A symbolic link."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def folder(mode: int = 0o755) -> Entry:
    """A directory."""
    return Entry(stat.S_IFDIR | mode)


def character_device(major: int, minor: int, mode: int = 0o600) -> Entry:
    """A character device's node."""
    return Entry(stat.S_IFCHR | mode, device=(major, minor))


def archive(tree: Mapping[str, Entry]) -> bytes:
    """The archive of `tree` (path without a leading slash -> entry); missing parents are made."""
    entries = dict(tree)
    for path in tree:
        while path := posixpath.dirname(path):
            entries.setdefault(path, folder())
    parts = [_record(number, path, entries[path]) for number, path in enumerate(sorted(entries), start=1)]
    parts.append(_record(0, TRAILER, Entry(0)))
    return _padded(b"".join(parts), 512)


def _record(number: int, path: str, entry: Entry) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name, 4) + _padded(entry.data, 4)


def _padded(data: bytes, to: int) -> bytes:
    return data + bytes(-len(data) % to)
