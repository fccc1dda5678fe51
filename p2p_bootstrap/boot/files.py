"""How are files written so that a power cut leaves the old or the new, and paths kept inside the new root?"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any, Final

from p2p_network.core.errors import BootError

MAX_BYTES: Final = 64 * 1024 * 1024
MAX_LINKS: Final = 40


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file, new or in place of the old one; durable on return."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make durable which names a folder holds."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read(path: Path, limit_bytes: int = MAX_BYTES) -> bytes | None:
    """A file's content, None if it isn't there. Raises BootError if it is larger than it may be."""
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except FileNotFoundError:
        return None
    if len(data) > limit_bytes:
        raise BootError(f"{path} is larger than {limit_bytes} bytes", hint="is it the right file?")
    return data


def read_text(path: Path, limit_bytes: int = MAX_BYTES) -> str:
    """A file's text, "" if it isn't there."""
    return (read(path, limit_bytes) or b"").decode("utf-8", "replace")


def read_map(path: Path) -> dict[str, Any] | None:
    """A JSON map, None if the file isn't there. Raises BootError if it is damaged."""
    raw = read(path)
    if raw is None:
        return None
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise BootError(
            f"{path} is damaged", hint="restore it from a backup, or reset this node from recovery"
        )
    return document


def resolve(root: str, path: str) -> str:
    """Where `path` leads inside `root`, symbolic links read as after the switch. Raises BootError."""
    parts, done, links = [p for p in path.split("/") if p], "", 0
    while parts:
        part = parts.pop(0)
        if part == ".":
            continue
        if part == "..":
            done = os.path.dirname(done).rstrip("/")
            continue
        here = f"{root.rstrip('/')}{done}/{part}"
        if os.path.islink(here):
            links += 1
            if links > MAX_LINKS:
                raise BootError(f"{path} leads nowhere: its symbolic links go round", hint="mend the image")
            target = os.readlink(here)
            parts = [p for p in target.split("/") if p] + parts
            done = "" if target.startswith("/") else done
        else:
            done = f"{done}/{part}"
    return f"{root.rstrip('/')}{done}" or "/"


def straight(path: str) -> None:
    """Raises BootError if `path` goes through a symbolic link: a mount there would land elsewhere."""
    normal = os.path.normpath(path)
    real = os.path.realpath(normal)
    if real != normal:
        raise BootError(
            f"{path} goes through a symbolic link, to {real}",
            hint="name the place itself in the layout, not a link to it",
        )
