"""How does one tube run: who reads, who writes, and what ends it?

A trio adapter around `flow`. One task reads the mesh stream without a break, one writes; programs call
`send`, `receive`, `end`. However a tube ends, both tasks end, the stream is reset, and everybody who waits
learns why.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from p2p_network.host.channel import ByteStream
from p2p_network.tubes.flow import (
    CHUNK_BYTES,
    MAX_REASON_CHARS,
    Kind,
    Ledger,
    Opening,
    Reader,
    Violation,
    decode_opening,
    frame,
    open_frame,
)

OPEN_LIMIT_S: Final = 15.0
GOODBYE_LIMIT_S: Final = 10.0
_BATCH_BYTES: Final = 1 << 17
_MAX_WAITING: Final = 4
"""Frames that wait for the writer before `send` waits too."""


class Refused(Exception):
    """The other side does not take the tube; its words."""


class Ended(Exception):
    """The tube broke before its end."""


class Tube:
    """One end. `run` must run for anything to happen.

    Args:
        opens: whether this side opened it.
    """

    def __init__(self, stream: ByteStream, *, opens: bool, heard: Callable[[], None] = lambda: None) -> None:
        self.peer = stream.peer
        self.reason = ""
        self.rx_bytes = self.tx_bytes = 0
        self._stream = stream
        self._opens = opens
        self._heard = heard
        self._ledger = Ledger()
        self._reader = Reader()
        self._out: deque[bytes] = deque()
        self._in: deque[bytes] = deque()
        self._changed = trio.Event()
        self._written = trio.Event()
        self._scope = trio.CancelScope()
        self._first: tuple[Kind, bytes] | None = None
        self._has_ended = self._peer_has_ended = self._is_over = False
        self.closed = trio.Event()

    @property
    def violated(self) -> bool:
        """Whether the other side broke the protocol."""
        return self.reason.startswith("violation: ")

    @property
    def is_whole(self) -> bool:
        """Whether both sides said that they have no more."""
        return self._has_ended and self._peer_has_ended

    # ------------------------------------------------------------ for programs

    async def open(self, opening: Opening) -> None:
        """Ask the other side. Raises Refused, Ended."""
        self._put(open_frame(opening))
        kind, payload = await self._greeting()
        if kind is Kind.REFUSE:
            self.abort("refused")
            raise Refused(payload.decode(errors="replace")[:MAX_REASON_CHARS])
        if kind is not Kind.TAKE:
            self.abort("violation: no answer to the opening")
            raise Ended(self.reason)

    async def opening(self) -> Opening:
        """What the other side wants. Raises Ended."""
        kind, payload = await self._greeting()
        try:
            if kind is not Kind.OPEN:
                raise Violation("no opening")
            return decode_opening(payload)
        except Violation as exc:
            self.abort(f"violation: {exc}")
            raise Ended(self.reason) from exc

    def take(self) -> None:
        """Yes."""
        self._put(frame(Kind.TAKE))

    async def refuse(self, why: str) -> None:
        """No; ends the tube once that was said."""
        self._put(frame(Kind.REFUSE, why.encode()[:MAX_REASON_CHARS]))
        with trio.move_on_after(GOODBYE_LIMIT_S):
            await self.closed.wait()
        self.abort("refused")

    async def send(self, data: bytes) -> None:
        """Send bytes, waiting for credit. Raises Ended."""
        view = memoryview(data)
        while view:
            chunk = bytes(view[:CHUNK_BYTES])
            view = view[len(chunk) :]
            while self._is_over or len(self._out) >= _MAX_WAITING or not self._ledger.may_send(chunk):
                await self._wait()
            self._data(chunk)

    def send_datagram(self, data: bytes) -> bool:
        """Send one datagram; False if it was dropped, for lack of credit or because the tube has ended."""
        if self._is_over or self._has_ended or not self._ledger.may_send(data):
            return False
        self._data(data)
        return True

    async def receive(self) -> bytes:
        """Some bytes, or one datagram; b"" at the end (of a stream). Raises Ended."""
        while not self._in:
            if self._peer_has_ended:
                return b""
            await self._wait()
        data = self._in.popleft()
        if credit := self._ledger.taken(data):
            self._put(credit)
        return data

    async def end(self) -> None:
        """Nothing more will be sent; what comes can still be received. Raises Ended."""
        if not self._has_ended:
            self._has_ended = True
            self._put(frame(Kind.END))
            self._say_goodbye()

    def abort(self, reason: str) -> None:
        """End it now; the first reason counts."""
        self.reason = self.reason or reason
        self._is_over = True
        self._scope.cancel()
        self._notify()

    # ------------------------------------------------------------ running

    async def run(self) -> None:
        """Carry frames until the tube ends. Raises nothing but cancellation."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_all)
                    await self._read_all()
                    nursery.cancel_scope.cancel()
        finally:
            self.abort("this node closed it")
            self.closed.set()
            await self._stream.reset()

    async def _read_all(self) -> None:
        try:
            while data := await self._stream.read():
                self._heard()
                for kind, payload in self._reader.feed(data):
                    self._accept(kind, payload)
                self._notify()
                if self.reason:
                    return
            if not self.is_whole:
                self.abort("the connection with the peer ended")
        except Violation as exc:
            self.abort(f"violation: {exc}")

    def _accept(self, kind: Kind, payload: bytes) -> None:
        if self._first is None:
            self._first = (kind, payload)
            return
        match kind:
            case Kind.DATA if not self._peer_has_ended:
                self._ledger.received(payload)
                self.rx_bytes += len(payload)
                self._in.append(payload)
            case Kind.CREDIT:
                self._ledger.granted(payload)
            case Kind.END if not self._peer_has_ended:
                self._peer_has_ended = True
                self._say_goodbye()
            case Kind.BYE if self._opens and self.is_whole:
                self.abort("both sides ended it")
            case _:
                raise Violation(f"{kind.name} out of place")

    def _say_goodbye(self) -> None:
        """After both ends the side that took the tube says so, and the one that opened it closes."""
        if self.is_whole and not self._opens:
            self._put(frame(Kind.BYE))
        if self.is_whole:
            self._scope.deadline = trio.current_time() + GOODBYE_LIMIT_S

    async def _write_all(self) -> None:
        try:
            while True:
                while not self._out:
                    self._written = trio.Event()
                    await self._written.wait()
                parts, size = [], 0
                while self._out and size < _BATCH_BYTES:
                    parts.append(self._out.popleft())
                    size += len(parts[-1])
                await self._stream.write(b"".join(parts))
                self._notify()
        except trio.BrokenResourceError as exc:
            self.abort(f"the peer takes no more bytes: {exc}")

    # ------------------------------------------------------------ parts

    async def _greeting(self) -> tuple[Kind, bytes]:
        try:
            with trio.fail_after(OPEN_LIMIT_S):
                while self._first is None:
                    await self._wait()
        except trio.TooSlowError as exc:
            self.abort("no answer in time")
            raise Ended(self.reason) from exc
        return self._first

    def _data(self, chunk: bytes) -> None:
        self._ledger.sent(chunk)
        self.tx_bytes += len(chunk)
        self._put(frame(Kind.DATA, chunk))

    def _put(self, data: bytes) -> None:
        if not self._is_over:
            self._out.append(data)
            self._written.set()

    async def _wait(self) -> None:
        """Until something changed. Raises Ended."""
        if self._is_over:
            raise Ended(self.reason)
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


async def join(stream: trio.SocketStream, tube: Tube) -> None:
    """Carry bytes between a TCP connection and a tube until both have ended, or one breaks."""

    async def outwards() -> None:
        try:
            while data := await stream.receive_some(CHUNK_BYTES):
                await tube.send(bytes(data))
            await tube.end()
        except (trio.BrokenResourceError, trio.ClosedResourceError, Ended):
            tube.abort("the program broke its connection off")

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outwards)
            while data := await tube.receive():
                await stream.send_all(data)
            await stream.send_eof()
    except* (trio.BrokenResourceError, trio.ClosedResourceError, Ended):
        tube.abort("the program broke its connection off")
    finally:
        with contextlib.suppress(OSError):
            stream.socket.close()
