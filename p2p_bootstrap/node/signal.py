"""How does one column of the node tell another that something changed? `runtime.Signal`, on trio."""

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
        return await self.wait_until(trio.current_time() + timeout_s)

    async def wait_until(self, moment: float) -> bool:
        """The same up to a moment of trio's clock, which is then reached; at once if it is past."""
        with trio.move_on_at(moment) as scope:
            await self._event.wait()
        self._event = trio.Event()
        return not scope.cancelled_caught
