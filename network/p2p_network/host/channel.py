"""How do many requests share one stream, and what ends it?

`Channel` is the caller's end (it opened the stream), `serve` the callee's. Each has one task that reads and
one that writes; everybody else only puts frames into the `Outbox`. Nothing here waits without a bound, and
nothing a peer sends can do more than end its own channel: a frame that is oversized, meaningless, cut short
or out of place is a violation, and the reason says so.

Bounds per channel: `MAX_CALLS` requests in flight, `OUTBOX_BYTES` waiting to be written, `MAX_HANDLERS`
handlers running and `INBOX_BYTES` of requests waiting for one; whatever comes on top is refused at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

import trio

from p2p_network.core import log
from p2p_network.core.errors import LocalViolation, PeerUnreachable, RemoteViolation
from p2p_network.core.ids import PeerId
from p2p_network.host.frames import (
    MAX_METHOD_CHARS,
    MAX_PAYLOAD_BYTES,
    Failure,
    Frame,
    FrameReader,
    Hello,
    Notify,
    Ping,
    Pong,
    Reply,
    Request,
    Welcome,
    frame_bytes,
)

logger = log.get(__name__)

Handler = Callable[[PeerId, bytes], Awaitable[bytes]]

MAX_CALLS: Final = 256
MAX_HANDLERS: Final = 32
OUTBOX_BYTES: Final = 8 << 20
INBOX_BYTES: Final = 8 << 20
BATCH_BYTES: Final = 64 << 10
GREETING_LIMIT_S: Final = 5.0
FRAME_LIMIT_S: Final = 30.0
"""A frame begun must be finished by then, however many bytes trickle in."""


class ByteStream(Protocol):
    """What a channel runs on."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        ...

    async def read(self) -> bytes:
        """Some bytes; b"" at the end."""
        ...

    async def write(self, data: bytes) -> None:
        """Raises trio.BrokenResourceError at the end."""
        ...

    async def reset(self) -> None:
        """End it."""
        ...


class Violation(Exception):
    """The peer broke the channel's protocol."""


class Outbox:
    """Frames waiting for the writer. Bounded in bytes; heartbeats go first."""

    def __init__(self, limit_bytes: int = OUTBOX_BYTES) -> None:
        self._limit = limit_bytes
        self._frames: deque[bytes] = deque()
        self._size = 0
        self._filled = trio.Event()
        self._drained = trio.Event()
        self.closed = False

    def put(self, frame: bytes, *, first: bool = False) -> bool:
        """Queue a frame; False if there is no room or nobody writes any more. Never blocks."""
        limit = self._limit + (BATCH_BYTES if first else 0)
        if self.closed or self._size + len(frame) > limit:
            return False
        (self._frames.appendleft if first else self._frames.append)(frame)
        self._size += len(frame)
        self._filled.set()
        return True

    async def put_when_room(self, frame: bytes) -> bool:
        """Queue a frame, waiting for room; False when nobody writes any more."""
        while not self.put(frame):
            if self.closed:
                return False
            self._drained = trio.Event()
            await self._drained.wait()
        return True

    async def take(self) -> bytes:
        """The next frames, joined up to `BATCH_BYTES`."""
        while not self._frames:
            self._filled = trio.Event()
            await self._filled.wait()
        parts = [self._frames.popleft()]
        size = len(parts[0])
        while self._frames and size + len(self._frames[0]) <= BATCH_BYTES:
            parts.append(self._frames.popleft())
            size += len(parts[-1])
        self._size -= size
        self._drained.set()
        return b"".join(parts)

    def close(self) -> None:
        """Nobody writes any more."""
        self.closed = True
        self._drained.set()


class _End:
    """What both ends share: the reading loop, the writing loop, and why it ended."""

    def __init__(self, stream: ByteStream, heard: Callable[[], None]) -> None:
        self.peer = stream.peer
        self.reason = ""
        self._stream = stream
        self._heard = heard
        self._outbox = Outbox()
        self._frames = FrameReader()
        self._frame_since: float | None = None
        self._scope = trio.CancelScope()
        self.ended = trio.Event()

    def end(self, reason: str) -> None:
        """Close the channel; the first reason counts. Does not wait."""
        self.reason = self.reason or reason
        self._outbox.close()
        self._scope.cancel()

    @property
    def violated(self) -> bool:
        """Whether the peer broke the protocol."""
        return self.reason.startswith("violation: ")

    def check(self, now: float) -> None:
        """Once a second: end the channel if the peer has been sending one frame for too long."""
        if self._frame_since is not None and now - self._frame_since > FRAME_LIMIT_S:
            self.end(f"violation: a frame unfinished after {FRAME_LIMIT_S:.0f} s")

    async def _run(self, hello: Frame | None, accept: Callable[[Frame], Awaitable[None]]) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    if hello is not None:
                        self._outbox.put(frame_bytes(hello))
                    nursery.start_soon(self._write_all)
                    await self._read_all(accept)
                    nursery.cancel_scope.cancel()
        finally:
            self.end("this node closed it")
            self.ended.set()
            await self._stream.reset()

    async def _read_all(self, accept: Callable[[Frame], Awaitable[None]]) -> None:
        try:
            while data := await self._stream.read():
                self._heard()
                for frame in self._frames.feed(data):
                    self._frame_since = None
                    await accept(frame)
                if not self._frames.cut_short:
                    self._frame_since = None
                elif self._frame_since is None:
                    self._frame_since = trio.current_time()
            if self._frames.cut_short:
                raise Violation("the stream ended inside a frame")
            self.end("the peer closed the channel")
        except (Violation, ValueError) as exc:
            self.end(f"violation: {exc}")

    async def _write_all(self) -> None:
        try:
            while True:
                await self._stream.write(await self._outbox.take())
        except trio.BrokenResourceError as exc:
            self.end(f"the peer takes no more bytes: {exc}")


class Channel(_End):
    """The caller's end. `heard` is called whenever bytes arrive."""

    def __init__(self, stream: ByteStream, heard: Callable[[], None]) -> None:
        super().__init__(stream, heard)
        self.round_trip_s: float | None = None
        self.welcome: Welcome | None = None
        self._greeted = trio.Event()
        self._calls: dict[int, tuple[trio.Event, list[Reply | Failure]]] = {}
        self._next_id = 1
        self._ping: tuple[int, float] = (0, 0.0)

    async def run(self, hello: Hello) -> None:
        """Carry requests until the channel ends; `reason` then says why. Raises nothing."""
        try:
            await self._run(hello, self._accept)
        finally:
            self._greeted.set()
            for done, _ in self._calls.values():
                done.set()

    async def wait_greeted(self) -> bool:
        """Whether the callee answered our `Hello`, within `GREETING_LIMIT_S`."""
        with trio.move_on_after(GREETING_LIMIT_S):
            await self._greeted.wait()
        return self.welcome is not None and not self.ended.is_set()

    async def wait_idle(self) -> None:
        """Return when no request waits for its answer any more."""
        while self._calls:
            done, _ = next(iter(self._calls.values()))
            await done.wait()
            await trio.lowlevel.checkpoint()

    def ping(self, now: float) -> None:
        """Send a heartbeat; its answer sets `round_trip_s`."""
        if self.welcome is not None:
            self._ping = (self._ping[0] + 1, now)
            self._outbox.put(frame_bytes(Ping(self._ping[0])), first=True)

    def notify(self, method: str, payload: bytes) -> bool:
        """Send without an answer. False if it could not even be queued."""
        return not self._outbox.closed and self._outbox.put(frame_bytes(Notify(method, payload)))

    async def request(self, method: str, payload: bytes, *, timeout_s: float) -> bytes:
        """Send and wait for the answer.

        Raises PeerUnreachable (no answer in time, or the channel ended), RemoteViolation (the peer's handler
        failed or refused; the message is the peer's).
        """
        if self._outbox.closed:
            raise PeerUnreachable(f"the channel has ended: {self.reason}")
        if len(self._calls) >= MAX_CALLS:
            raise PeerUnreachable(f"{MAX_CALLS} requests are waiting for an answer already")
        number, self._next_id = self._next_id, self._next_id + 1
        done, answers = trio.Event(), list[Reply | Failure]()
        self._calls[number] = (done, answers)
        try:
            with trio.move_on_after(timeout_s) as scope:
                if await self._outbox.put_when_room(frame_bytes(Request(number, method, payload))):
                    await done.wait()
        finally:
            del self._calls[number]
        if answers:
            answer = answers[0]
            if isinstance(answer, Reply):
                return answer.payload
            raise RemoteViolation(f"{method} failed: {answer.message}", peer=self.peer)
        if scope.cancelled_caught:
            raise PeerUnreachable(f"no answer to {method} within {timeout_s:.3g} s")
        raise PeerUnreachable(f"the channel ended before {method} was answered: {self.reason}")

    async def _accept(self, frame: Frame) -> None:
        match frame:
            case Reply(id=number) | Failure(id=number):
                # one that nobody waits for any more came after its timeout
                if number in self._calls:
                    done, answers = self._calls[number]
                    answers.append(frame)
                    done.set()
                elif number >= self._next_id:
                    raise Violation("an answer to a request never made")
            case Pong(count):
                if count == self._ping[0]:
                    self.round_trip_s = trio.current_time() - self._ping[1]
            case Welcome() if self.welcome is None:
                self.welcome = frame
                self._greeted.set()
            case _:
                raise Violation(f"{type(frame).__name__} is not for the caller")


class Served(_End):
    """The callee's end: runs the handlers for one peer's stream."""

    def __init__(
        self,
        stream: ByteStream,
        heard: Callable[[], None],
        handlers: Mapping[str, Handler],
        greeted: Callable[[Hello], Welcome],
    ) -> None:
        super().__init__(stream, heard)
        self._handlers = handlers
        self._greet = greeted
        self._greeted = False
        self._slots = trio.CapacityLimiter(MAX_HANDLERS)
        self._waiting_bytes = 0

    async def run(self) -> None:
        """Serve until the channel ends; `reason` then says why. Raises nothing."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._run(None, self._accept)
            nursery.cancel_scope.cancel()

    async def _accept(self, frame: Frame) -> None:
        match frame:
            case Hello() if not self._greeted:
                self._greeted = True
                self._outbox.put(frame_bytes(self._greet(frame)), first=True)
            case _ if not self._greeted:
                raise Violation("the first frame is not Hello")
            case Ping(count):
                self._outbox.put(frame_bytes(Pong(count)), first=True)
            case Request() | Notify():
                self._dispatch(frame)
            case _:
                raise Violation(f"{type(frame).__name__} is not for the callee")

    def _dispatch(self, frame: Request | Notify) -> None:
        size = len(frame.payload) + MAX_METHOD_CHARS
        if self._waiting_bytes + size > INBOX_BYTES:
            self._refuse(frame, "busy: too many requests are waiting")
        elif frame.method not in self._handlers:
            self._refuse(frame, "no such method")
        else:
            self._waiting_bytes += size
            self._nursery.start_soon(self._handle, frame, size)

    def _refuse(self, frame: Request | Notify, why: str) -> None:
        if isinstance(frame, Request):
            self._outbox.put(frame_bytes(Failure(frame.id, why)))

    async def _handle(self, frame: Request | Notify, size: int) -> None:
        answer: Reply | Failure
        number = frame.id if isinstance(frame, Request) else 0
        try:
            async with self._slots:
                answer = Reply(number, await self._handlers[frame.method](self.peer, frame.payload))
            if len(answer.payload) > MAX_PAYLOAD_BYTES:
                raise LocalViolation(f"an answer of {len(answer.payload)} bytes")
        except Exception as exc:
            log.event(
                logger,
                "host.handler_failed",
                level=30,
                peer=self.peer,
                method=frame.method,
                detail=repr(exc),
            )
            # the peer learns the kind, not the text: it may name files or hold secrets
            answer = Failure(number, f"the handler failed ({type(exc).__name__})")
        finally:
            self._waiting_bytes -= size
        if isinstance(frame, Request):
            await self._outbox.put_when_room(frame_bytes(answer))
