"""In which order did things happen, when clocks disagree?

Hybrid logical clocks (Kulkarni et al. 2014): a `Stamp` is wall-clock milliseconds plus a counter; it
never goes back and always exceeds every stamp this node has accepted. Clocks may differ by a day, for a
machine without a battery starts with any time, and who is right is not to be known; a stamp further in the
future is refused, so one broken clock can't drag the whole mesh with it for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_AHEAD_MS = 24 * 3600 * 1000  # as far as the certificates of k3s are backdated (`p2p_roles.k3s.pki`)


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """A moment in the mesh's order. `wall_ms`: Unix milliseconds; `count`: breaks ties at one author."""

    wall_ms: int
    count: int


class HybridClock:
    """Issues stamps. Pure: the wall clock is passed in (`wall_s`, Unix seconds)."""

    __slots__ = ("_floor_ms", "_last")

    def __init__(self, last: Stamp = Stamp(0, 0)) -> None:
        self._last = last
        # it was later than this once, whatever the wall clock says now; no word of a peer moves it (but at
        # the next start), or else word upon word would drive all clocks on, a day each
        self._floor_ms = last.wall_ms

    @property
    def last(self) -> Stamp:
        """The highest stamp issued or accepted so far."""
        return self._last

    def issue(self, wall_s: float) -> Stamp:
        """The stamp of an event that happens here and now; higher than every one before."""
        wall_ms = self._look(wall_s)
        if wall_ms > self._last.wall_ms:
            self._last = Stamp(wall_ms, 0)
        else:
            self._last = Stamp(self._last.wall_ms, self._last.count + 1)
        return self._last

    def accept(self, stamp: Stamp, wall_s: float) -> bool:
        """Take note of a peer's stamp. False (and no effect) if it lies too far in the future."""
        self._look(wall_s)
        if stamp.wall_ms > self._floor_ms + MAX_AHEAD_MS:
            return False
        self._last = max(self._last, stamp)
        return True

    def skip(self) -> Stamp:
        """The first stamp of the next millisecond: the counter of this one has come to its end."""
        self._last = Stamp(self._last.wall_ms + 1, 0)
        return self._last

    def _look(self, wall_s: float) -> int:
        wall_ms = int(wall_s * 1000)
        self._floor_ms = max(self._floor_ms, wall_ms)
        return wall_ms
