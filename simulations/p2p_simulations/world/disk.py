"""What is left on a disk after a power cut?

Only what was synced is sure. A write is volatile until `sync`; at a crash each unsynced write, alone, has
reached the disk or has not, as chance decides: fsync is honoured and nothing else is, not even order.
"""

from __future__ import annotations

import random


class Disk:
    """Named values with volatile and durable state."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._durable: dict[str, bytes | None] = {}
        self._volatile: dict[str, bytes | None] = {}

    def write(self, name: str, value: bytes | None) -> None:
        """Write without syncing; None removes."""
        self._volatile[name] = value

    def sync(self) -> None:
        """Everything written so far survives a crash."""
        self._durable.update(self._volatile)
        self._volatile.clear()

    def read(self, name: str) -> bytes | None:
        """The current value, as a running program sees it."""
        return self._volatile[name] if name in self._volatile else self._durable.get(name)

    def names(self, prefix: str = "") -> list[str]:
        """Names that hold a value, sorted."""
        merged = {**self._durable, **self._volatile}
        return sorted(n for n, v in merged.items() if v is not None and n.startswith(prefix))

    def crash(self) -> None:
        """Lose power: each unsynced write independently reached the disk or did not."""
        for name in sorted(self._volatile):
            if self._chance.random() < 0.5:
                self._durable[name] = self._volatile[name]
        self._volatile.clear()

    def wipe(self) -> None:
        """A new, empty disk."""
        self._durable.clear()
        self._volatile.clear()
