"""How do a node's activities wait, when nothing sleeps?

Coroutines in virtual time: `Tasks` are the activities of one life of one machine (or agent), driven by the
engine's heap. They wait for a `Future`, a moment, a `Signal` or a `Lock` and for nothing else, so a run is
repeatable. A crash drops all of them at whatever point they are: what they held in memory is gone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar, cast

from p2p_simulations.world.engine import Engine, Timer

T = TypeVar("T")

_UNSET: Any = object()
_SPINS = 1000
_ROUNDING_S = 1e-6  # a moment on a node's clock, carried over to the world's and back, may fall short


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
        failed: told what an activity ended with; True if this life's owner deals with it.
    """

    def __init__(
        self,
        engine: Engine,
        resume_at: Callable[[], float],
        touched: Callable[[], None],
        failed: Callable[[BaseException], bool] | None = None,
    ) -> None:
        self.engine = engine
        self.alive = True
        self._failed = failed
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
        except BaseException as exc:
            self._running.pop(number, None)
            if self._failed is not None and self._failed(exc):
                return
            raise
        future.on_set(lambda: self._plan(number))


class Spinning(AssertionError):
    """Somebody asks to be woken at once, again and again."""


class Signal:
    """Raised by many, awaited by one; remembers that it was raised, not how often.

    Args:
        clock: what moments are told by.
    """

    __slots__ = ("_clock", "_last", "_raised", "_tasks", "_waiter")

    def __init__(self, tasks: Tasks, clock: Callable[[], float]) -> None:
        self._tasks, self._clock = tasks, clock
        self._raised = False
        self._waiter: Future[bool] | None = None
        self._last = (-1.0, 0)

    def raise_(self) -> None:
        """Something changed."""
        self._raised = True
        if self._waiter is not None:
            self._waiter.set(True)

    async def wait(self, timeout_s: float = math.inf) -> bool:
        """Wait until raised and lower it again. False if `timeout_s` passed first."""
        if not self._raised:
            future: Future[bool] = Future()
            self._waiter, timer = future, None
            if timeout_s < math.inf:
                timer = self._tasks.engine.after(max(0.0, timeout_s), lambda: future.set(False))
            await future
            self._waiter = None
            if timer is not None:
                timer.cancel()
        was, self._raised = self._raised, False
        return was

    async def wait_until(self, moment: float) -> bool:
        """The same up to a moment, which is then reached. Raises Spinning."""
        if await self.wait(moment - self._clock() + _ROUNDING_S):
            return True
        now = round(self._clock(), 2)
        self._last = (now, self._last[1] + 1 if self._last[0] == now else 1)
        if self._last[1] > _SPINS:
            raise Spinning(f"woken again and again at {now:.2f} s")
        return False


class Event:
    """Happens once; awaited by any number."""

    __slots__ = ("_happened", "_waiting")

    def __init__(self) -> None:
        self._happened = False
        self._waiting: list[Future[None]] = []

    def set(self) -> None:
        """It has happened."""
        self._happened = True
        for future in self._waiting:
            future.set(None)
        self._waiting.clear()

    def is_set(self) -> bool:
        """Whether it has."""
        return self._happened

    async def wait(self) -> None:
        """Until it has."""
        if not self._happened:
            future: Future[None] = Future()
            self._waiting.append(future)
            await future


class Group:
    """Tasks that the block which opened the group waits for."""

    __slots__ = ("_living", "_none_left", "_tasks")

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._living = 0
        self._none_left = Event()

    def start_soon(self, job: Callable[..., Awaitable[Any]], /, *args: Any) -> None:
        """Begin a task."""
        self._living += 1
        self._tasks.start(self._run(job, args))

    async def _run(self, job: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        await job(*args)
        self._living -= 1
        if not self._living:
            self._none_left.set()

    async def __aenter__(self) -> Group:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None and self._living:
            await self._none_left.wait()


class Channel(Generic[T]):
    """What one task tells another, in order."""

    __slots__ = ("_items", "_sent")

    def __init__(self, tasks: Tasks) -> None:
        self._items: deque[T] = deque()
        self._sent = Signal(tasks, lambda: 0.0)

    def send(self, item: T) -> None:
        """Say something. Never blocks."""
        self._items.append(item)
        self._sent.raise_()

    def __aiter__(self) -> Channel[T]:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            await self._sent.wait()
        return self._items.popleft()


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
