"""Which users and groups does a root have, and how is one added, changed or removed? Pure, on texts.

/etc/passwd, /etc/group and /etc/shadow are edited line by line: what is not asked for stays as it is,
comments and unknown lines too. Ids: people from 1000, system accounts from 999 downwards; a free home
folder's owner is taken again, so that a user who comes back on an immutable system owns their files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from p2p_network.core.errors import BootError

PASSWD: Final = "/etc/passwd"  # noqa: S105 - a path
GROUP: Final = "/etc/group"
SHADOW: Final = "/etc/shadow"
GSHADOW: Final = "/etc/gshadow"
MODES: Final = {PASSWD: 0o644, GROUP: 0o644, SHADOW: 0o600, GSHADOW: 0o600}
FIELDS: Final = {PASSWD: 7, GROUP: 4, SHADOW: 9, GSHADOW: 4}
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?")
_PEOPLE: Final = range(1000, 60000)
_SYSTEM: Final = range(999, 99, -1)


@dataclass(frozen=True, slots=True)
class Account:
    """A line of /etc/passwd."""

    name: str
    uid: int
    gid: int
    home: str


def check_name(name: str) -> str:
    """A user's or group's name. Raises BootError."""
    if not _NAME.fullmatch(name):
        raise BootError(f"{name[:40]!r} is no name of a user or group", hint="letters, digits, - _ and .")
    return name


def rows(text: str) -> Iterable[list[str]]:
    """The lines that are accounts, split."""
    return (line.split(":") for line in text.splitlines() if ":" in line and not line.startswith("#"))


def find(text: str, name: str) -> list[str] | None:
    """The fields of a name."""
    return next((row for row in rows(text) if row[0] == name), None)


def account(passwd: str, name: str) -> Account | None:
    """A user by name, or by number if `name` is one."""
    for row in rows(passwd):
        if len(row) >= 6 and (row[0] == name or row[2] == name) and row[2].isdigit() and row[3].isdigit():
            return Account(row[0], int(row[2]), int(row[3]), row[5])
    return None


def group_id(group: str, name: str) -> int | None:
    """A group's number, by name or number."""
    if name.isdigit():
        return int(name)
    row = find(group, name)
    return int(row[2]) if row and len(row) > 2 and row[2].isdigit() else None


def put(text: str, fields: Sequence[str]) -> str:
    """Replace the line of that name, or append one. Raises BootError for fields that fit in no line."""
    if any(":" in field or "\n" in field or "\0" in field for field in fields):
        raise BootError(f"{fields[0]}: a field contains a colon or a line break", hint="remove it")
    line = ":".join(fields)
    lines = text.splitlines()
    for number, old in enumerate(lines):
        if old.split(":")[0] == fields[0] and not old.startswith("#"):
            lines[number] = line
            return "\n".join(lines) + "\n"
    return "\n".join([*lines, line]) + "\n"


def drop(text: str, name: str) -> str:
    """Without the line of that name."""
    lines = [line for line in text.splitlines() if line.split(":")[0] != name or line.startswith("#")]
    return "".join(f"{line}\n" for line in lines)


def add_member(group: str, name: str, member: str) -> str:
    """With `member` in the group. Raises BootError if there is no such group."""
    row = find(group, name)
    if row is None:
        raise BootError(f"there is no group {name}", hint="add the group to the image, or remove it here")
    row = [*row, "", "", ""][:4]
    members = [one for one in row[3].split(",") if one]
    if member in members:
        return group
    return put(group, [*row[:3], ",".join([*members, member])])


def free_id(text: str, *, system: bool, wanted: int | None = None) -> int:
    """A number that no line of passwd or group has; `wanted` if that one is free."""
    taken = {int(row[2]) for row in rows(text) if len(row) > 2 and row[2].isdigit()}
    if wanted is not None and wanted not in taken:
        return wanted
    for number in _SYSTEM if system else _PEOPLE:
        if number not in taken:
            return number
    raise BootError("no free user or group number is left", hint="remove accounts that nobody uses")


def ids_of(passwd: str, group: str, text: str) -> tuple[int | None, int | None]:
    """``user``, ``user:group``, ``:group`` or numbers, as ids. Raises BootError if there is no such name."""
    name, colon, group_name = text.partition(":")
    uid = gid = None
    if name:
        found = account(passwd, name)
        if found is None and not name.isdigit():
            raise BootError(
                f"there is no user {name[:40]}", hint="create it in an earlier step, or use a number"
            )
        uid = found.uid if found else int(name)
        gid = found.gid if found else None
    if colon and group_name:
        gid = group_id(group, group_name)
        if gid is None:
            raise BootError(f"there is no group {group_name[:40]}", hint="create it in an earlier step")
    return uid, gid
