"""When is a path asked for a sign of life, and when is it given up?

Pure. Once a second while packets flow and shortly after. An idle path as often as the control process says:
where a router translates addresses, often enough that it keeps the way open (it forgets an idle UDP flow
after 30 s, RFC 4787 asks for more); elsewhere never, so that a mesh at rest is quiet. The first packet after
a rest is followed by a question within a second.
"""

from __future__ import annotations

from typing import Final

BEAT_S: Final = 1.0
ACTIVE_S: Final = 10.0
"""So long after the last packet, or its own beginning, a path counts as in use."""
IDLE_S: Final = 15.0
"""Between two questions to an idle path of which nothing is known."""
SUSPECT_S: Final = 1.5
"""A path that was asked and says nothing for so long is used only if there is no other."""
SILENCE_S: Final = 5.0
"""... and for so long, is gone."""


class Pulse:
    """Of one path. Times are monotonic seconds."""

    __slots__ = ("_asked_at", "_began_at", "_waiting_since")

    def __init__(self, now: float) -> None:
        self._began_at = now
        self._asked_at = float("-inf")
        self._waiting_since: float | None = None

    def due(self, now: float, active_at: float, idle_s: float = IDLE_S) -> bool:
        """Whether to ask now. Counts as asked.

        Args:
            active_at: when a packet went either way last.
            idle_s: between two questions while nothing does; 0: none.
        """
        in_use = now - max(active_at, self._began_at) < ACTIVE_S
        # a question that was not answered is asked again: the end must not wait for a packet
        if not in_use and not idle_s and self._waiting_since is None:
            return False
        # half a beat early: the caller comes by once a beat, and never quite on time
        if now - self._asked_at < (BEAT_S if in_use else idle_s) - BEAT_S / 2:
            return False
        self._asked_at = now
        if self._waiting_since is None:
            self._waiting_since = now
        return True

    def is_suspect(self, now: float, last_received: float) -> bool:
        """Whether it was asked and has said nothing since for longer than a healthy path takes."""
        asked = self._waiting_since
        return asked is not None and last_received < asked and now - asked > SUSPECT_S

    def is_gone(self, now: float, last_received: float) -> bool:
        """Whether it was asked and has said nothing since for too long."""
        if self._waiting_since is None:
            return False
        if last_received >= self._waiting_since:
            self._waiting_since = None
            return False
        return now - self._waiting_since > SILENCE_S
