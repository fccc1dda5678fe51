"""How does one column of the node tell another that something changed?

A `Signal` remembers that it was raised, not how often: whoever waits looks at the state anew. So nothing
is queued, nothing is lost, and a slow listener delays nobody.
"""

from __future__ import annotations

import trio


class Signal:
    """Raised by many, awaited by one."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = trio.Event()

    def raise_(self) -> None:
        """Something changed. Never blocks."""
        self._event.set()

    async def wait(self, timeout_s: float = float("inf")) -> bool:
        """Wait until raised and lower it again. False if `timeout_s` passed first."""
        with trio.move_on_after(timeout_s) as scope:
            await self._event.wait()
        self._event = trio.Event()
        return not scope.cancelled_caught
