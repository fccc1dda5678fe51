"""How do a node's activities wait, when nothing sleeps?

Coroutines in virtual time: `Tasks` are the activities of one life of one machine (or agent), driven by the
engine's heap. They wait for a `Future`, a moment, a `Signal` or a `Lock` and for nothing else, so a run is
repeatable. A crash drops all of them at whatever point they are: what they held in memory is gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar, cast

from p2p_simulations.world.engine import Engine, Timer

T = TypeVar("T")

_UNSET: Any = object()


class Future(Generic[T]):
    """A value that one task waits for. Setting it again has no effect."""

    __slots__ = ("_value", "_waiter")

    def __init__(self) -> None:
        self._value: T = _UNSET
        self._waiter: Callable[[], None] | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is a value."""
        return self._value is not _UNSET

    def set(self, value: T) -> None:
        """Give the value, if there is none yet; the waiting task goes on."""
        if self._value is _UNSET:
            self._value = value
            if self._waiter is not None:
                self._waiter()

    def on_set(self, waiter: Callable[[], None]) -> None:
        """Call `waiter` when the value comes."""
        self._waiter = waiter

    def __await__(self) -> Generator[Future[T], None, T]:
        if self._value is _UNSET:
            yield self
        return self._value


class Tasks:
    """The activities of one life.

    Args:
        resume_at: the earliest moment at which anything here may go on: later than now while the machine
            is frozen.
        touched: called with every step of an activity.
    """

    def __init__(self, engine: Engine, resume_at: Callable[[], float], touched: Callable[[], None]) -> None:
        self.engine = engine
        self.alive = True
        self._resume_at, self._touched = resume_at, touched
        self._running: dict[int, Coroutine[Any, Any, Any]] = {}
        self._number = 0

    def start(self, job: Coroutine[Any, Any, Any]) -> None:
        """Begin an activity, as an event of its own."""
        if not self.alive:
            job.close()
            return
        self._number += 1
        number = self._number
        self._running[number] = job
        self._plan(number)

    def call(self, action: Callable[[], None], delay_s: float = 0.0) -> Timer:
        """Do `action` after `delay_s` virtual seconds, unless this life is over by then."""
        moment = max(self.engine.now + delay_s, self._resume_at())
        return self.engine.at(moment, lambda: action() if self.alive else None)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        future: Future[None] = Future()
        self.engine.after(seconds, lambda: future.set(None))
        await future

    def end(self) -> None:
        """Everything stops where it is, for ever."""
        self.alive = False
        for job in self._running.values():
            job.close()
        self._running.clear()

    def _plan(self, number: int) -> None:
        self.call(lambda: self._step(number))

    def _step(self, number: int) -> None:
        job = self._running.get(number)
        if job is None:
            return
        self._touched()
        try:
            future = cast("Future[Any]", job.send(None))
        except StopIteration:
            self._running.pop(number, None)
            return
        except BaseException:
            self._running.pop(number, None)
            raise
        future.on_set(lambda: self._plan(number))


class Signal:
    """Raised by many, awaited by one; remembers that it was raised, not how often."""

    __slots__ = ("_raised", "_tasks", "_waiter")

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._raised = False
        self._waiter: Future[bool] | None = None

    def raise_(self) -> None:
        """Something changed."""
        self._raised = True
        if self._waiter is not None:
            self._waiter.set(True)

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until raised and lower it again. False if `timeout_s` passed first."""
        if not self._raised:
            future: Future[bool] = Future()
            self._waiter = future
            if timeout_s is not None:
                self._tasks.engine.after(timeout_s, lambda: future.set(False))
            await future
            self._waiter = None
        was, self._raised = self._raised, False
        return was


class Lock:
    """One holder; the others wait in the order in which they came."""

    __slots__ = ("_held", "_queue")

    def __init__(self) -> None:
        self._held = False
        self._queue: deque[Future[None]] = deque()

    @property
    def is_held(self) -> bool:
        """Whether somebody is inside."""
        return self._held

    async def acquire(self) -> None:
        """Wait for the lock."""
        if not self._held:
            self._held = True
            return
        turn: Future[None] = Future()
        self._queue.append(turn)
        await turn

    def release(self) -> None:
        """Hand it to the next in line."""
        assert self._held, "only a held lock is released"
        if self._queue:
            self._queue.popleft().set(None)
        else:
            self._held = False

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *exc: object) -> None:
        self.release()
