"""``ensure_entities``, ``delete_entities``: lines of /etc/passwd, /etc/group, /etc/shadow and /etc/gshadow.

An entity is YAML: ``kind`` (user, group, shadow, gshadow) and the fields of such a line, under the names that
Kairos's tool for them uses. Ensuring a group joins its members with those that it has.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from p2p_bootstrap.cloudconfig.document import parse
from p2p_bootstrap.cloudconfig.nodes import ScalarNode
from p2p_bootstrap.stages import accounts
from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.model import Entity
from p2p_network.core.errors import BootError, nearest

# kind -> file, fields in the order of its lines (name: default; None: an id that is drawn)
_KINDS: Final[Mapping[str, tuple[str, Mapping[str, str | None]]]] = {
    "user": (
        accounts.PASSWD,
        {"username": "", "password": "x", "uid": None, "gid": "", "info": "", "homedir": "",
         "shell": "/bin/sh"},
    ),
    "group": (accounts.GROUP, {"group_name": "", "password": "x", "gid": None, "users": ""}),
    "shadow": (
        accounts.SHADOW,
        {"username": "", "password": "!", "last_changed": "", "minimum_changed": "0",
         "maximum_changed": "99999", "warn": "7", "inactive": "", "expire": "", "reserved": ""},
    ),
    "gshadow": (accounts.GSHADOW, {"name": "", "password": "!", "administrators": "", "members": ""}),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class EnsureEntity:
    """``ensure_entities``."""

    spec: Entity
    place: str

    def describe(self) -> str:
        """See `Action`."""
        return f"make sure of an entity{f' in {self.spec.path}' if self.spec.path else ''}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        kind, values = _read(context.render(self.spec.entity, self.place), self.place)
        default, fields = _KINDS[kind]
        file = self.spec.path or default
        text = context.root.text(file)
        name = accounts.check_name(values[next(iter(fields))])
        old = accounts.find(text, name) or []
        line = [name]
        for number, (field, spare) in enumerate(fields.items()):
            if number == 0:
                continue
            kept = old[number] if number < len(old) else ""
            value = values.get(field, kept or spare)
            if value is None or (value == "-1" and field in ("uid", "gid")):
                value = kept or str(accounts.free_id(text, system=False))
            if field == "users":
                value = ",".join(dict.fromkeys(one for one in f"{kept},{value}".split(",") if one))
            if field == "last_changed" and value in ("", "now"):
                value = kept or str(int(time.time() // 86400))
            line.append(value)
        mode = None if context.root.exists(file) else accounts.MODES[default]
        context.root.write(file, accounts.put(text, line).encode("utf-8", "surrogateescape"), mode)


@dataclass(frozen=True, slots=True)
class DeleteEntity:
    """``delete_entities``."""

    spec: Entity
    place: str

    def describe(self) -> str:
        """See `Action`."""
        return f"remove an entity{f' from {self.spec.path}' if self.spec.path else ''}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        kind, values = _read(context.render(self.spec.entity, self.place), self.place)
        default, fields = _KINDS[kind]
        file = self.spec.path or default
        text = context.root.text(file)
        name = accounts.check_name(values[next(iter(fields))])
        if accounts.find(text, name) is not None:
            context.root.write(file, accounts.drop(text, name).encode("utf-8", "surrogateescape"))


def _read(text: str, place: str) -> tuple[str, dict[str, str]]:
    """Kind and fields of an entity. Raises BootError or ConfigError."""
    root = parse(text.encode("utf-8", "surrogateescape"), f"{place} (entity)", header=False).checked()
    values = {
        key: entry.value.text for key, entry in root.entries.items() if isinstance(entry.value, ScalarNode)
    }
    kind = values.pop("kind", "")
    if kind not in _KINDS:
        raise BootError(f"{place}: an entity needs a kind", hint=f"one of {', '.join(_KINDS)}")
    _, fields = _KINDS[kind]
    for key in root.entries:
        if key != "kind" and key not in fields:
            near = nearest(key, fields)
            hint = f"did you mean {near!r}?" if near else f"a {kind} has {', '.join(fields)}"
            raise BootError(f"{place}: a {kind} has no field {key[:40]!r}", hint=hint)
    if not values.get(next(iter(fields))):
        raise BootError(f"{place}: the {kind} has no name", hint=f"add {next(iter(fields))}: NAME")
    return kind, values
