"""How often does a node look into a public place?

Soon and often while it is alone, seldom once it has found the mesh: then it only keeps its own note alive and
now and then looks whether others are there whom it doesn't know. What can't be reached (a machine that boots,
a site that is cut off) is tried again soon, then ever more seldom. Pure; monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds: before the first look; between the looks of a node that is alone, and of one that is not."""

    first_s: float
    alone_s: float
    alone_cap_s: float
    calm_s: float
    after_write_s: float


class Outcome(Enum):
    """Of a look: nobody there answered, it was looked, or this node's note was written too."""

    FAILED = "failed"
    LOOKED = "looked"
    WROTE = "wrote"


class Pace:
    """When to look next. `jitter`: a number from 0 to 1, so that nodes don't all look at the same time."""

    def __init__(self, pauses: Pauses, jitter: Callable[[], float]) -> None:
        self._pauses = pauses
        self._jitter = jitter
        self._due: float | None = None
        self._pause_s = pauses.alone_s
        self._alone = True
        self._told: tuple[str, ...] = ()

    def is_due(self, now: float, *, alone: bool, addresses: tuple[str, ...]) -> bool:
        """Whether to look now. Never without an address to be found at."""
        if not addresses:
            return False
        if self._due is None:
            self._due = now + self._pauses.first_s
        lost = alone and not self._alone
        moved = bool(self._told) and addresses != self._told
        if lost or moved:
            self._pause_s = self._pauses.alone_s
            self._due = min(self._due, now + self._pause_s)
        self._alone = alone
        self._told = addresses
        return now >= self._due

    def looked(self, now: float, outcome: Outcome) -> None:
        """A look has ended. What was written another may have overwritten since: that is looked at sooner."""
        if self._alone or outcome is Outcome.FAILED:
            pause_s = self._pause_s
            cap_s = self._pauses.alone_cap_s if self._alone else self._pauses.calm_s
            self._pause_s = min(pause_s * 2, cap_s)
        else:
            self._pause_s = self._pauses.alone_s
            pause_s = self._pauses.after_write_s if outcome is Outcome.WROTE else self._pauses.calm_s
        self._due = now + pause_s * (0.75 + 0.5 * self._jitter())
