"""Where do the bytes of many connections lie before they are whole records?

Pure. One buffer for all: a connection's unfinished record stays where it was read, and is copied only when
another connection needs the room. Of a long record nothing but its end and the next one's head is read: so
each lies at the beginning of the buffer, where the processor's cache still has it.
"""

from __future__ import annotations

import mmap
from typing import Final

from p2p_network.dataplane.records import MAX_FRAME_BYTES, SIZE_BYTES, begun_size

_BYTES: Final = 2 * MAX_FRAME_BYTES
_LONG_BYTES: Final = 1 << 15
_SHORT_BYTES: Final = 1 << 10


class Unfinished:
    """What one connection has received of a record that isn't whole yet."""

    __slots__ = ("aside", "at", "end")

    def __init__(self) -> None:
        self.aside = b""
        self.at = self.end = 0

    def __bool__(self) -> bool:
        return bool(self.aside) or self.end > self.at


class Inbox:
    """The buffer. Between `take_up` and `leave` it belongs to one connection."""

    __slots__ = ("_holder", "buffer", "view")

    def __init__(self) -> None:
        self.buffer = mmap.mmap(-1, _BYTES)  # mapped and not made: what is never touched takes no memory
        self.view = memoryview(self.buffer)
        self._holder: Unfinished | None = None

    def take_up(self, what: Unfinished) -> memoryview:
        """Where to receive; what was begun lies before it, from `what.at` to `what.end`.

        Raises RecordViolation if what was begun is no record.
        """
        if self._holder is not what:
            if self._holder is not None:
                self._holder.aside = bytes(self.view[self._holder.at : self._holder.end])
                self._holder.at = self._holder.end = 0
            self._holder = what
            what.at, what.end = 0, len(what.aside)
            self.view[: what.end] = what.aside
            what.aside = b""
        missing = begun_size(self.buffer, what.at, what.end) - (what.end - what.at)
        room = missing + SIZE_BYTES if missing > _LONG_BYTES else _BYTES - what.end
        return self.view[what.end : what.end + room]

    def leave(self, what: Unfinished, at: int, end: int) -> None:
        """The records before `at` are done with; up to `end` something was begun."""
        size = end - at
        if size <= _SHORT_BYTES or at + MAX_FRAME_BYTES + SIZE_BYTES > _BYTES:
            self.buffer.move(0, at, size)
            at, end = 0, size
        what.at, what.end = at, end

    def forget(self, what: Unfinished) -> None:
        """Its connection is closed."""
        what.aside, what.at, what.end = b"", 0, 0
        if self._holder is what:
            self._holder = None
