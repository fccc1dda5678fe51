"""What happens next in a process without threads?

An epoll loop with timers: each file descriptor has one callback, each timer one callback, and every
callback does a bounded piece of work and returns. A callback may get an event that is no longer true (its
descriptor was closed and reused within one round); all descriptors are non-blocking, so it then finds
nothing to do.
"""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable
from itertools import count
from typing import Final

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
_BATCH: Final = 64


class Timer:
    """A callback at a moment; `cancel` before it fires, or not at all."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Never fire. No effect afterwards."""
        self.callback = None


class Loop:
    """Runs callbacks until `stop`. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._running = False

    @staticmethod
    def now() -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events seen)` whenever `fd` is ready for one of `events` (or broken)."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def change(self, fd: int, events: int) -> None:
        """Watch `fd` for other events."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching; call it before the descriptor is closed. Unknown descriptors are no error."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call back once at `when`."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def stop(self) -> None:
        """Let `run` return after the current callback."""
        self._running = False

    def run(self) -> None:
        """Run until `stop`."""
        self._running = True
        poll, callbacks = self._epoll.poll, self._callbacks
        while self._running:
            for fd, events in poll(self._wait_s(), _BATCH):
                callback = callbacks.get(fd)
                if callback is not None:
                    callback(events)
            self._fire()

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()

    def _wait_s(self) -> float:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1.0

    def _fire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                callback()
