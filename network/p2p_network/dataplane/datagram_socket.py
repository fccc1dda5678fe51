"""How do many datagrams enter and leave the kernel in one call?

One `UdpSocket` per endpoint, for all peers. With UDP_SEGMENT one sendmsg carries up to 64 datagrams of equal
size, with UDP_GRO one recvmsg brings as many (Linux Documentation/networking/udp.rst); where the kernel or
the device lacks either, they go one by one. Fragments are never made: a datagram that is too large for the
path is dropped, and `path.PathMtu` finds out.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import socket
from collections.abc import Callable
from struct import Struct
from typing import Any, Final, Protocol

from p2p_network.core.errors import MeshError
from p2p_network.dataplane.loop import READ, WRITE, Loop
from p2p_network.dataplane.sockets import name_of, parse_endpoint
from p2p_network.marks import mark

Address = tuple[Any, ...]
"""As the socket module gives and takes it."""

_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_PROBE: Final = 3
_BUFFER_BYTES: Final = 4 << 20
_RECEIVE_BYTES: Final = 1 << 16
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(4)
_TURN: Final = 16
"""So many receives before other sockets get their turn."""
_NO_OFFLOAD: Final = (errno.EIO, errno.EINVAL, errno.EOPNOTSUPP)
FLIGHT_BYTES: Final = 128
"""Flights are padded to one size, so that no stranger can use an answer to amplify."""
CALL: Final = 1
ANSWER: Final = 2

_SEGMENT = Struct("@H")
_INT = Struct("@i")
_ID = Struct("!I")


class Waiting(Protocol):
    """Who wants to know when the socket takes datagrams again."""

    def on_writable(self) -> None: ...


class UdpSocket:
    """A bound UDP socket.

    Args:
        on_datagrams: (datagrams, bytes of each but the last, sender) for every receive.

    Raises:
        MeshError: the port is taken, or the address not of this machine; ValueError: no endpoint.
    """

    def __init__(
        self, loop: Loop, endpoint: str, on_datagrams: Callable[[UdpSocket, memoryview, int, Address], None]
    ) -> None:
        ip, port = parse_endpoint(endpoint)
        self._loop = loop
        self._on_datagrams = on_datagrams
        self._buffer = memoryview(mmap.mmap(-1, _RECEIVE_BYTES))
        self._buffers = [self._buffer]
        self._waiting: dict[Waiting, None] = {}
        self._segments = True
        self.is_ip6 = ":" in ip
        self.failed = 0
        """Sends that the kernel refused for another reason than a full buffer."""
        self._sock = socket.socket(socket.AF_INET6 if self.is_ip6 else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._sock.setblocking(False)
            if self.is_ip6:
                self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._prepare()
            self._sock.bind((ip, port))
        except OSError as exc:
            self._sock.close()
            raise MeshError(
                f"cannot listen on UDP {endpoint}: {exc.strerror}",
                hint=f"another program uses the port (ss -lnup sport = :{port}): "
                "stop it or choose another port",
            ) from exc
        loop.watch(self._sock.fileno(), READ, self._on_events)

    def _prepare(self) -> None:
        sock = self._sock
        mark(sock)
        for forced, plain in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
            try:
                sock.setsockopt(socket.SOL_SOCKET, forced, _BUFFER_BYTES)
            except OSError:  # not root: as much as everyone may have
                sock.setsockopt(socket.SOL_SOCKET, plain, _BUFFER_BYTES)
        with contextlib.suppress(OSError):  # before Linux 5.0
            sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        if self.is_ip6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)

    @property
    def endpoint(self) -> str:
        """Where it is bound."""
        return name_of(self._sock.getsockname())

    # --- sending ---------------------------------------------------------------------------------

    def send(self, data: memoryview, step: int, address: Address) -> bool:
        """Send datagrams of `step` bytes each (0: `data` is one); False, and nothing sent, when full.

        What the kernel refuses otherwise is lost, as on any path, and counted in `failed`.
        """
        try:
            if not step or len(data) <= step:
                self._sock.sendto(data, address)
            elif self._segments:
                self._sock.sendmsg([data], [(_SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(step))], 0, address)
            else:
                self._send_singly(data, step, address)
        except BlockingIOError:
            return False
        except OSError as exc:
            if self._segments and step and exc.errno in _NO_OFFLOAD:
                self._segments = False
                return self.send(data, step, address)
            self.failed += 1
        return True

    def _send_singly(self, data: memoryview, step: int, address: Address) -> None:
        for at in range(0, len(data), step):
            try:
                self._sock.sendto(data[at : at + step], address)
            except BlockingIOError:
                if not at:
                    raise
                return  # the rest is lost; the receiver makes do with what came

    def send_flight(self, kind: int, tag: bytes, flight: bytes, address: Address) -> None:
        """Send a flight of the handshake: `u32 kind | tag | flight`, padded. It may be lost."""
        data = _ID.pack(kind) + tag + flight
        with contextlib.suppress(OSError):
            self._sock.sendto(data.ljust(FLIGHT_BYTES, b"\0"), address)

    def wait(self, who: Waiting) -> None:
        """Call `who.on_writable` once the socket takes datagrams again."""
        self._waiting[who] = None
        self._loop.change(self._sock.fileno(), READ | WRITE)

    # --- receiving -------------------------------------------------------------------------------

    def _on_events(self, events: int) -> None:
        if events & WRITE:
            waiting, self._waiting = list(self._waiting), {}
            self._loop.change(self._sock.fileno(), READ)
            for who in waiting:
                who.on_writable()
        if events & ~WRITE:
            self._receive()

    def _receive(self) -> None:
        receive, buffers, view = self._sock.recvmsg_into, self._buffers, self._buffer
        for _ in range(_TURN):
            try:
                size, ancillary, _flags, address = receive(buffers, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error of some peer: told once, belongs to nobody here
                continue
            step = _INT.unpack(ancillary[0][2][:4])[0] if ancillary else size
            if size:
                self._on_datagrams(self, view[:size], step or size, address)
            if self._sock.fileno() < 0:
                return

    def close(self) -> None:
        """Close it."""
        self._loop.forget(self._sock.fileno())
        self._sock.close()
