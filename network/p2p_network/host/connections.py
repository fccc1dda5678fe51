"""What is a libp2p connection to us, and what can be done with one stream or one connection?

The guards of py-libp2p that concern one connection; those of the swarm and of the host are in `guards.py`.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

import p2p_network.host.lean  # noqa: F401  (first: imports libp2p without what we never use)

# isort: split
from libp2p.abc import INetStream
from libp2p.network.connection.exceptions import RawConnError
from libp2p.stream_muxer.yamux.yamux import Yamux

from p2p_network.core import log
from p2p_network.core.errors import PeerUnreachable
from p2p_network.core.ids import PeerId
from p2p_network.host.addresses import Endpoint

logger = log.get(__name__)

RESET_LIMIT_S: Final = 2.0
MAX_ANSWERS: Final = 4096


class NotSpoken(PeerUnreachable):
    """A peer that does not speak a protocol of ours: a plain libp2p node."""


class MeshYamux(Yamux):  # type: ignore[misc]
    """Guard 6: a frame is written whole or not at all.

    Noise counts every message it encrypts. If a write is cancelled after encrypting and before sending, the
    next message can't be decrypted and the whole connection dies, with every stream on it. So frames are
    written under a shield; what ends a stuck write is `PrivateConnection.abort`, not cancellation.

    Guard 16: the task that reads never waits for a write. It answers pings and new streams itself; with both
    ends' buffers full, each would wait for the other to read, for ever. Its frames are put aside, and whoever
    writes next writes them first.
    """

    _reader: Any = None

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._answers: deque[bytes] = deque()
        self._answered = trio.Event()

    async def handle_incoming(self) -> None:
        self._reader = trio.lowlevel.current_task()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_answers)
            await super().handle_incoming()
            nursery.cancel_scope.cancel()

    async def _write_frame(self, data: bytes) -> None:
        if trio.lowlevel.current_task() is self._reader:
            if len(self._answers) >= MAX_ANSWERS:
                raise RawConnError("the other end asks for more answers than it reads")
            self._answers.append(data)
            self._answered.set()
            return
        with trio.CancelScope(shield=True):
            async with self._write_lock:
                await self._flush_answers()
                await self.secured_conn.write(data)

    async def _write_answers(self) -> None:
        with contextlib.suppress(Exception):  # the reader notices that the connection has ended
            while True:
                await self._answered.wait()
                self._answered = trio.Event()
                with trio.CancelScope(shield=True):
                    async with self._write_lock:
                        await self._flush_answers()

    async def _flush_answers(self) -> None:
        while self._answers:
            await self.secured_conn.write(self._answers.popleft())


class FencedTasks:
    """Guard A, the outer fence: stands in for libp2p's service manager.

    There, an exception in any task of any connection cancels all of them and ends the process. Here it ends
    that task.
    """

    is_running = True
    is_finished = False

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def run_task(self, async_fn: Callable[..., Awaitable[None]], *args: Any, **_: Any) -> None:
        self._nursery.start_soon(self._run, async_fn, args)

    async def wait_finished(self) -> None:
        await trio.sleep_forever()

    async def stop(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _run(self, async_fn: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> None:
        try:
            await async_fn(*args)
        except Exception as exc:
            log.event(logger, "host.libp2p_task_failed", detail=repr(exc))


class Stream:
    """A libp2p stream with two plain outcomes: bytes, or the end."""

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream
        self.connection = stream.swarm_conn
        self.peer = PeerId(str(stream.muxed_conn.peer_id))

    async def read(self) -> bytes:
        """Some bytes; b"" when the stream or its connection has ended, however it ended."""
        try:
            return bytes(await self._stream.read(65536))
        except Exception:
            return b""

    async def write(self, data: bytes) -> None:
        """Raises trio.BrokenResourceError when the stream has ended or the peer does not read for 5 s."""
        try:
            await self._stream.write(data)
        except Exception as exc:
            raise trio.BrokenResourceError(str(exc) or type(exc).__name__) from exc

    async def reset(self) -> None:
        """End it in both directions; never raises. Waits for the frame being written (see `abort`)."""
        await reset(self._stream)


async def reset(stream: INetStream) -> None:
    with trio.CancelScope(deadline=trio.current_time() + RESET_LIMIT_S, shield=True):
        try:
            await stream.reset()
        except Exception as exc:
            log.event(logger, "host.reset_failed", level=10, detail=repr(exc))


def is_alive(conn: Any) -> bool:
    """Whether a swarm connection can still carry streams."""
    return not (conn.is_closed or conn.muxed_conn.event_shutting_down.is_set())


def abort(conn: Any) -> None:
    """Close a connection's socket at once, whatever hangs on it. Everything on it then ends by itself.

    Guard F: libp2p's own close writes a farewell first and waits for it; to a peer that fell silent with
    full buffers that takes for ever.
    """
    conn.muxed_conn.private.abort()


def remote_of(conn: Any) -> Endpoint:
    """The other end's address, as this machine sees it."""
    remote: Endpoint = conn.muxed_conn.private.remote
    return remote


def via_of(conn: Any) -> PeerId | None:
    """The relay that carries it; None for a connection of our own."""
    via: PeerId | None = conn.muxed_conn.private.via
    return via


def why_of(conn: Any) -> str:
    """Why it runs through a relay; "" if it doesn't."""
    return str(conn.muxed_conn.private.why)


def is_inbound(conn: Any) -> bool:
    """Whether the other side dialled."""
    return bool(conn.direction.name == "INBOUND")


def peer_of(conn: Any) -> PeerId:
    """Who is at the other end, as Noise proved."""
    return PeerId(str(conn.muxed_conn.peer_id))
