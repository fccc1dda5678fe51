"""Who listens for queries, and who is asked what the mesh doesn't know?

UDP and TCP on this node's VPN addresses, port 53. Queries for other names go to the machine's former
servers, one after the other, by UDP and again by TCP where the reply was cut. Everything is bounded: queries
under way, time per query, bytes and connections.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, Final, assert_never

import dns.message
import trio

from p2p_network.core import log
from p2p_network.core.errors import MeshError
from p2p_network.names.answering import Answer, Answering, Forward, Silence

PORT: Final = 53
_UPSTREAM_S: Final = 2.0
_IDLE_S: Final = 10.0
_MAX_UNDER_WAY: Final = 256
_MAX_CONNECTIONS: Final = 64
_MAX_QUERY_BYTES: Final = 4096
_SIZE_BYTES: Final = 2

logger = log.get(__name__)


class NameServer:
    """Answers on `addresses` until cancelled.

    Args:
        upstream: the servers ("ip" or "ip#port") to ask for other names, best first; may change.
        is_local: whether an address is one of this machine's.
        port: for tests that can't have 53.
    """

    def __init__(
        self,
        answering: Answering,
        addresses: Sequence[str],
        *,
        upstream: Callable[[], Sequence[str]],
        is_local: Callable[[str], bool],
        port: int = PORT,
    ) -> None:
        self._answering = answering
        self._addresses = tuple(addresses)
        self._upstream = upstream
        self._is_local = is_local
        self._port = port
        self._under_way = trio.CapacityLimiter(_MAX_UNDER_WAY)
        self._connections = trio.CapacityLimiter(_MAX_CONNECTIONS)

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve. Raises MeshError (port taken, address not there)."""
        async with contextlib.AsyncExitStack() as stack:
            opened = []
            for address in self._addresses:
                udp, tcp = await self._open(address)
                stack.callback(udp.close)
                stack.callback(tcp.close)
                opened.append((udp, tcp))
            log.event(logger, "network.names_served", address=" ".join(self._addresses))
            async with trio.open_nursery() as nursery:
                for udp, tcp in opened:
                    nursery.start_soon(self._serve_udp, udp, nursery)
                    nursery.start_soon(self._serve_tcp, tcp, nursery)
                task_status.started()

    async def _open(self, address: str) -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made: list[trio.socket.SocketType] = []
        try:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                sock = trio.socket.socket(family, kind)
                made.append(sock)
                if kind == socket.SOCK_STREAM:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                await sock.bind((address, self._port))
            made[1].listen(64)
        except OSError as exc:
            for sock in made:
                sock.close()
            raise MeshError(
                f"cannot answer DNS queries on {address} port {self._port}: {exc.strerror}",
                hint=f"another program may use it (ss -lnp sport = :{self._port}); or set p2p.dns to false",
            ) from exc
        return made[0], made[1]

    async def _serve_udp(self, sock: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            try:
                raw, sender = await sock.recvfrom(_MAX_QUERY_BYTES)
            except OSError as exc:  # an ICMP error to an earlier answer
                log.event(logger, "network.names_failed", logging.DEBUG, error=str(exc))
                continue
            if self._under_way.available_tokens < 1:
                continue  # the asker asks again
            nursery.start_soon(self._reply_udp, sock, raw, sender)

    async def _reply_udp(self, sock: trio.socket.SocketType, raw: bytes, sender: tuple[object, ...]) -> None:
        async with self._under_way:
            reply = await self._reply(raw, str(sender[0]), tcp=False)
        if reply:
            with contextlib.suppress(OSError):
                await sock.sendto(reply, sender)

    async def _serve_tcp(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            try:
                sock, sender = await listener.accept()
            except OSError as exc:
                log.event(logger, "network.names_failed", logging.DEBUG, error=str(exc))
                await trio.sleep(0.1)  # no descriptors left, say
                continue
            if self._connections.available_tokens < 1:
                sock.close()
                continue
            nursery.start_soon(self._reply_tcp, sock, str(sender[0]))

    async def _reply_tcp(self, sock: trio.socket.SocketType, sender: str) -> None:
        stream = trio.SocketStream(sock)
        async with self._connections, stream:
            with contextlib.suppress(trio.BrokenResourceError, trio.TooSlowError, OSError):
                while True:
                    with trio.fail_after(_IDLE_S):
                        raw = await _receive(stream)
                        if not raw:
                            return
                        reply = await self._reply(raw, sender, tcp=True)
                        if not reply:
                            return
                        await stream.send_all(len(reply).to_bytes(_SIZE_BYTES, "big") + reply)

    async def _reply(self, raw: bytes, sender: str, *, tcp: bool) -> bytes:
        is_local = self._is_local(str(ip_address(sender.partition("%")[0])))
        verdict = self._answering.ask(raw, trio.current_time(), is_local=is_local, tcp=tcp)
        match verdict:
            case Answer(reply):
                return reply
            case Silence():
                return b""
            case Forward(query):
                found = await self._ask_others(query)
                return self._answering.forwarded(query, found, trio.current_time(), tcp=tcp)
            case _:
                assert_never(verdict)

    async def _ask_others(self, query: dns.message.QueryMessage) -> bytes | None:
        raw = query.to_wire()
        for server in self._upstream():
            host, _, port = server.partition("#")
            target = (host, int(port or PORT))
            with contextlib.suppress(OSError, trio.TooSlowError, trio.BrokenResourceError):
                with trio.fail_after(_UPSTREAM_S):
                    reply = await _by_udp(raw, target)
                    if len(reply) > 2 and reply[2] & 2:  # cut
                        reply = await _by_tcp(raw, target) or reply
                if reply:
                    return reply
        return None


async def _by_udp(raw: bytes, target: tuple[str, int]) -> bytes:
    with trio.socket.socket(_family(target[0]), socket.SOCK_DGRAM) as sock:
        await sock.connect(target)
        await sock.send(raw)
        while True:  # a reply with another id is somebody's guess
            reply: bytes = await sock.recv(65535)
            if reply[:2] == raw[:2]:
                return reply


async def _by_tcp(raw: bytes, target: tuple[str, int]) -> bytes:
    async with await trio.open_tcp_stream(*target) as stream:
        await stream.send_all(len(raw).to_bytes(_SIZE_BYTES, "big") + raw)
        return await _receive(stream)


async def _receive(stream: trio.SocketStream) -> bytes:
    """One length-prefixed message; b"" at the end of the stream."""
    head = await _exactly(stream, _SIZE_BYTES)
    return await _exactly(stream, int.from_bytes(head, "big")) if head else b""


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    got = b""
    while len(got) < size:
        more = await stream.receive_some(size - len(got))
        if not more:
            return b""
        got += more
    return got


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
