"""Is this node well enough to bless the slot that it booted? A pure rule with a memory of how long.

    waiting -> healthy, held for `hold_s` -> bless (once)

Events are what the node sees of itself; the one effect is `Bless`. What counts as healthy is the
cloud-config's `p2p.bless.when`: in the mesh, with a role, or with a k3s that is ready. A node that falls
back from it begins the wait anew. Until it is blessed a slot on trial spends a try at each boot, so a
machine whose new image can't reach its mesh boots the old one next time (see `boot/slots.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, assert_never

from p2p_network.core.machine import Decision

When: TypeAlias = Literal["mesh", "role", "ready", "never"]
RETRY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Condition:
    """What the node sees of itself. `peers`: with a live channel; `known`: others of the mesh."""

    peers: int = 0
    known: int = 0
    role: str = ""
    ready: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A look at the node."""

    condition: Condition


@dataclass(frozen=True, slots=True)
class Blessed:
    """The slot was blessed, or needs no blessing."""


@dataclass(frozen=True, slots=True)
class BlessFailed:
    """The slot pointer could not be written."""

    error: str


@dataclass(frozen=True, slots=True)
class Bless:
    """Say that the running slot is healthy."""


Event: TypeAlias = Seen | Blessed | BlessFailed


class Health:
    """The machine.

    Args:
        when: what counts as healthy; `hold_s`: for how long without a break.
    """

    def __init__(self, when: When, hold_s: float) -> None:
        self._when = when
        self._hold_s = hold_s
        self._since: float | None = None  # healthy without a break since then
        self._asked = False
        self._retry_at: float | None = None
        self._done = when == "never"
        self._reason = "slots are not blessed by the agent (p2p.bless.when is never)" if self._done else ""

    @property
    def reason(self) -> str:
        """Why the slot is blessed, or not yet: one sentence."""
        return self._reason

    @property
    def done(self) -> bool:
        """Whether there is nothing left to decide."""
        return self._done

    def step(self, now: float, event: Event) -> Decision[Bless]:
        """Decide on one event. `now` is monotonic seconds."""
        if self._done:
            return Decision()
        match event:
            case Blessed():
                self._done = True
                return self._decide("the running slot is blessed, or needs no blessing")
            case BlessFailed(error):
                self._asked, self._retry_at = False, now + RETRY_S
                return self._decide(f"the running slot could not be blessed: {error}")
            case Seen(condition):
                return self._look(now, condition)
            case _:
                assert_never(event)

    def wake_at(self) -> float | None:
        """When to look again although nothing happened; None: never."""
        if self._done or self._asked or self._since is None:
            return None
        return max(self._since + self._hold_s, self._retry_at or 0.0)

    def _look(self, now: float, condition: Condition) -> Decision[Bless]:
        if lacking := lacks(condition, self._when):
            self._since = None
            return self._decide(f"the running slot is not blessed: {lacking}")
        if self._since is None:
            self._since = now
        due = self.wake_at()
        if due is None:
            return Decision()
        if now < due:
            return self._decide(f"the node is healthy; its slot is blessed if that lasts {self._hold_s:g} s")
        self._asked = True
        return self._decide(f"the node has been healthy for {self._hold_s:g} s", Bless())

    def _decide(self, reason: str, *effects: Bless) -> Decision[Bless]:
        changed, self._reason = reason != self._reason, reason
        return Decision(effects, reason if changed or effects else "")


def lacks(condition: Condition, when: When) -> str:
    """What keeps a node from being healthy, in a few words; "" if nothing does."""
    if condition.peers == 0 and condition.known > 0:
        return f"it has reached none of the {condition.known} other nodes of its mesh"
    if when == "mesh" and condition.peers == 0 and not condition.role:
        return "it has found no other node yet"
    if when in ("role", "ready") and not condition.role:
        return "it has no role yet"
    if when == "ready" and not condition.ready:
        return "its k3s is not ready yet"
    return ""
