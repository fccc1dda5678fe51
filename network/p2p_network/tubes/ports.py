"""How do local sockets and tubes meet, on both sides?

A door (`TcpDoor`, `UdpDoor`) listens here and opens a tube for each connection, or for each sender of
datagrams; `reach` is the other side: it connects to a program and takes the tube only once that worked, so
that the side that asked learns why not. Everything is bounded: connections of a door, flows, and how long a
flow of datagrams may be silent.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Final
from typing import Protocol as Protocol_

import trio

from p2p_network.core.errors import MeshError, P2PError
from p2p_network.tubes.flow import CHUNK_BYTES, MAX_DATAGRAM_BYTES, Protocol
from p2p_network.tubes.tube import Ended, Tube, join

MAX_OPEN: Final = 256
"""Connections, or flows, of one door."""
CONNECT_LIMIT_S: Final = 5.0
SILENCE_S: Final = 60.0
_REFUSED_S: Final = 0.1

Carry = Callable[[trio.SocketStream], Awaitable[None]]
"""What becomes of a connection. Raises P2PError."""
Note = Callable[[str], None]
"""Is told what went wrong with one connection, for people."""


class Datagrams(Protocol_):
    """What carries the datagrams of one flow: a tube, or a socket."""

    def send_datagram(self, data: bytes) -> bool:
        """Send one, or drop it (False)."""

    async def receive(self) -> bytes:
        """The next one. Raises Ended."""

    def abort(self, reason: str) -> None:
        """End the flow."""


class LocalDatagrams:
    """A flow to a program of this machine."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock

    @classmethod
    async def connect(cls, host: str, port: int) -> LocalDatagrams:
        """Raises MeshError."""
        try:
            family, kind, number, _, address = (
                await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
            )[0]
            sock = trio.socket.socket(family, kind, number)
            try:
                await sock.connect(address)
            except BaseException:
                sock.close()
                raise
        except OSError as exc:
            raise MeshError(f"{host}:{port}: {_cause(exc)}") from exc
        return cls(sock)

    def send_datagram(self, data: bytes) -> bool:
        """Send one, or drop it."""
        try:
            socket.socket.send(self._sock._sock, data)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True

    async def receive(self) -> bytes:
        """The next one. Raises Ended."""
        while True:
            try:
                return bytes(await self._sock.recv(MAX_DATAGRAM_BYTES))
            except ConnectionError:  # nobody listens there, or not yet
                await trio.sleep(_REFUSED_S)
            except OSError as exc:
                raise Ended(_cause(exc)) from exc

    def abort(self, _reason: str) -> None:
        """Close the socket."""
        self._sock.close()


async def carry_locally(stream: trio.SocketStream, host: str, port: int) -> None:
    """Carry a connection on to a program of this machine. Raises MeshError if it can't be reached."""
    try:
        with trio.fail_after(CONNECT_LIMIT_S):
            other = await trio.open_tcp_stream(host, port)
    except (OSError, trio.TooSlowError) as exc:
        cause = _cause(exc) if isinstance(exc, OSError) else "it does not answer"
        raise MeshError(f"{host}:{port}: {cause}") from exc

    async def one_way(source: trio.SocketStream, target: trio.SocketStream) -> None:
        while data := await source.receive_some(CHUNK_BYTES):
            await target.send_all(data)
        await target.send_eof()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one_way, stream, other)
            nursery.start_soon(one_way, other, stream)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        stream.socket.close()
        other.socket.close()


class TcpDoor:
    """A TCP port of this machine that leads into the mesh. Raises MeshError if it can't listen."""

    def __init__(self, listeners: list[trio.SocketListener]) -> None:
        self._listeners = listeners
        self.port: int = listeners[0].socket.getsockname()[1]

    @classmethod
    async def bind(cls, host: str, port: int) -> TcpDoor:
        """Listen. Port 0 takes a free one."""
        try:
            return cls(list(await trio.open_tcp_listeners(port, host=host)))
        except OSError as exc:
            raise cannot_listen("TCP", host, port, exc) from exc

    async def run(self, carry: Carry, note: Note) -> None:
        """Carry connections until cancelled; then all of them end."""
        places = trio.CapacityLimiter(MAX_OPEN)

        async def handle(stream: trio.SocketStream) -> None:
            try:
                places.acquire_nowait()
            except trio.WouldBlock:
                note(f"more than {MAX_OPEN} connections at once")
                stream.socket.close()
                return
            try:
                await carry(stream)
            except P2PError as exc:
                note(exc.message)
                stream.socket.close()
            finally:
                places.release()

        await trio.serve_listeners(handle, self._listeners)

    def close(self) -> None:
        """Listen no more."""
        for listener in self._listeners:
            listener.socket.close()


class UdpDoor:
    """A UDP port of this machine that leads into the mesh; each sender has a tube of its own."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self.port: int = sock.getsockname()[1]

    @classmethod
    async def bind(cls, host: str, port: int) -> UdpDoor:
        """Listen. Port 0 takes a free one. Raises MeshError."""
        sock = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            await sock.bind((host, port))
        except OSError as exc:
            sock.close()
            raise cannot_listen("UDP", host, port, exc) from exc
        return cls(sock)

    async def run(self, opener: Callable[[], Awaitable[Datagrams]], note: Note) -> None:
        """Carry datagrams until cancelled."""
        flows: dict[tuple[object, ...], trio.MemorySendChannel[bytes]] = {}
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    data, sender = await self._sock.recvfrom(MAX_DATAGRAM_BYTES)
                except ConnectionError:  # an answer that nobody took
                    continue
                if sender not in flows:
                    if len(flows) >= MAX_OPEN:
                        note(f"more than {MAX_OPEN} senders at once")
                        continue
                    flows[sender], waiting = trio.open_memory_channel[bytes](64)
                    nursery.start_soon(self._flow, opener, sender, waiting, flows, note)
                with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError):
                    flows[sender].send_nowait(data)

    async def _flow(
        self,
        opener: Callable[[], Awaitable[Datagrams]],
        sender: tuple[object, ...],
        waiting: trio.MemoryReceiveChannel[bytes],
        flows: dict[tuple[object, ...], trio.MemorySendChannel[bytes]],
        note: Note,
    ) -> None:
        async def answer(data: bytes) -> None:
            await self._sock.sendto(data, sender)

        try:
            await exchange(await opener(), waiting.receive, answer)
        except P2PError as exc:
            note(exc.message)
        finally:
            del flows[sender]
            waiting.close()

    def close(self) -> None:
        """Listen no more."""
        self._sock.close()


async def exchange(
    tube: Datagrams, receive: Callable[[], Awaitable[bytes]], send: Callable[[bytes], Awaitable[object]]
) -> None:
    """Carry datagrams both ways until the tube ends or both are silent for `SILENCE_S`."""

    async def outwards(scope: trio.CancelScope) -> None:
        while True:
            data = await receive()
            scope.deadline = trio.current_time() + SILENCE_S
            if data:  # an empty one would read as the end
                tube.send_datagram(data)

    try:
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            scope.deadline = trio.current_time() + SILENCE_S
            nursery.start_soon(outwards, scope)
            with contextlib.suppress(Ended):
                while data := await tube.receive():
                    scope.deadline = trio.current_time() + SILENCE_S
                    with contextlib.suppress(OSError):
                        await send(data)
            nursery.cancel_scope.cancel()
    finally:
        tube.abort("the flow has ended")


async def reach(tube: Tube, protocol: Protocol, host: str, port: int) -> None:
    """Connect to a program that this machine reaches, take the tube, and carry until either ends.

    What does not work is said to the other side.
    """
    if protocol == "udp":
        await _reach_udp(tube, host, port)
        return
    try:
        with trio.fail_after(CONNECT_LIMIT_S):
            stream = await trio.open_tcp_stream(host, port)
    except trio.TooSlowError:
        await tube.refuse(f"{host}:{port} does not answer")
        return
    except OSError as exc:
        await tube.refuse(f"{host}:{port}: {_cause(exc)}")
        return
    tube.take()
    await join(stream, tube)


async def _reach_udp(tube: Tube, host: str, port: int) -> None:
    try:
        local = await LocalDatagrams.connect(host, port)
    except MeshError as exc:
        await tube.refuse(exc.message)
        return
    tube.take()

    async def send(data: bytes) -> None:
        local.send_datagram(data)

    try:
        with contextlib.suppress(Ended):
            await exchange(tube, local.receive, send)
    finally:
        local.abort("")


def _cause(exc: OSError) -> str:
    """In words; trio's OSError for several addresses carries them as its cause."""
    inner = exc.__cause__
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    cause = inner if isinstance(inner, OSError) else exc
    return (cause.strerror or str(cause)).lower()


def cannot_listen(what: str, host: str, port: int, exc: OSError) -> MeshError:
    """The error of a port that can't be listened on."""
    if exc.errno == errno.EADDRINUSE:
        hint = f"another program uses it (ss -lnp sport = :{port}): choose another port"
    elif exc.errno in (errno.EACCES, errno.EPERM):
        hint = "ports below 1024 are for root: choose another"
    else:
        hint = "listen on an address that this machine has, such as 127.0.0.1"
    return MeshError(f"cannot listen on {what} {host}:{port}: {exc.strerror or exc}", hint=hint)
