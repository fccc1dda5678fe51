"""What is left on a disk after a power cut?

Only what was synced is sure. A write (of one name or of several as one transaction) is volatile until it
is synced; at a crash each unsynced write, alone, has reached the disk or has not, as chance decides: fsync
is honoured and nothing else is, not even order. (Files that may be torn: `sectors`.)
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]


class Disk:
    """Named immutable values with volatile and durable state."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._durable: dict[str, Any] = {}
        self._current: dict[str, Any] = {}
        self._unsynced: dict[int, dict[str, Any]] = {}
        self._version: dict[str, int] = {}  # name -> ticket of the durable value
        self._tickets = 0

    def write(self, values: Values) -> int:
        """Write without syncing, all or nothing; None removes a name. Returns a ticket for `sync`."""
        self._tickets += 1
        self._unsynced[self._tickets] = dict(values)
        _apply(self._current, values)
        return self._tickets

    def sync(self, ticket: int) -> None:
        """This write survives a crash (no effect if a crash came first)."""
        self._settle(ticket, self._unsynced.pop(ticket, {}))

    def read(self, name: str) -> Any:
        """The current value, as a running program sees it; None if there is none."""
        return self._current.get(name)

    def names(self, prefix: str = "") -> list[str]:
        """Names that hold a value, sorted."""
        return sorted(name for name in self._current if name.startswith(prefix))

    def crash(self) -> None:
        """Lose power: each unsynced write, alone, reached the disk or did not."""
        for ticket, values in self._unsynced.items():
            if self._chance.random() < 0.5:
                self._settle(ticket, values)
        self._unsynced.clear()
        self._current = dict(self._durable)

    def _settle(self, ticket: int, values: Values) -> None:
        """Make durable what no later write of the same name has replaced already."""
        newer = {name: value for name, value in values.items() if self._version.get(name, 0) < ticket}
        self._version.update(dict.fromkeys(newer, ticket))
        _apply(self._durable, newer)

    def lose(self, prefix: str = "") -> None:
        """Everything under `prefix` is gone: with "", a new, empty disk."""
        for held in (self._durable, self._current, *self._unsynced.values()):
            for name in [name for name in held if name.startswith(prefix)]:
                del held[name]


def _apply(held: dict[str, Any], values: Values) -> None:
    for name, value in values.items():
        if value is None:
            held.pop(name, None)
        else:
            held[name] = value
