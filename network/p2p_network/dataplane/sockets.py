"""How are TCP sockets for carriers made?

Endpoints are text, "ip:port" or "[ip]:port", always addresses and never names: resolving would block the
loop.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from p2p_network.core import endpoints
from p2p_network.core.errors import MeshError
from p2p_network.marks import mark

_BEARS_LOSS: Final = b"bbr"
"""A little loss on the outer path must not stop everything inside: 1.87 against 0.29 Gbit/s at 1 %."""
_NEAR: Final = b"cubic"
"""Where the path is short and loses nothing: bbr's pacing costs a seventh of the processor's time there."""
_TCP_NOTSENT_LOWAT: Final = 25  # include/uapi/linux/tcp.h; Python's socket module has no name for it
_UNSENT_BYTES: Final = 1 << 20
"""More than this waits in the peer's queue, where it can still be dropped or take another way."""
_LEAST_UNSENT_BYTES: Final = 128 << 10
_UNSENT_S: Final = 0.02
_BACKLOG: Final = 128
_HEADERS4: Final = 40
_HEADERS6: Final = 60
_TCP_INFO_BYTES: Final = 168
# offsets in struct tcp_info (include/uapi/linux/tcp.h)
_BACKOFF: Final = 4
_RTT: Final = 68  # microseconds
_TOTAL_RETRANS: Final = 100
_SEGS_OUT: Final = 136
_MIN_RTT: Final = 148
_UNKNOWN: Final = 0xFFFFFFFF
_DELIVERY_RATE: Final = 160  # bytes per second
_U32: Final = struct.Struct("@I")
_U64: Final = struct.Struct("@Q")


def parse_endpoint(text: str) -> tuple[str, int]:
    """(ip, port) of "ip:port" or "[ip]:port". Raises ValueError."""
    try:
        return endpoints.split_ip(text, lowest=0)
    except ValueError as exc:
        raise ValueError(f"{text!r} is no endpoint: {exc}") from None


def packed_ip(endpoint: str) -> bytes:
    """The 4 or 16 raw bytes of an endpoint's address. Raises ValueError."""
    return ip_address(parse_endpoint(endpoint)[0]).packed


def format_endpoint(ip: str, port: int) -> str:
    """Inverse of `parse_endpoint`."""
    return endpoints.join(ip, port)


def listen(endpoint: str) -> socket.socket:
    """A listening socket.

    Raises MeshError (port taken, address not of this machine), ValueError for no endpoint.
    """
    ip, port = parse_endpoint(endpoint)
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in ip:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        prepare(sock)
        sock.bind((ip, port))
        sock.listen(_BACKLOG)
    except OSError as exc:
        sock.close()
        raise MeshError(f"cannot listen on {endpoint}: {exc.strerror}", hint=_listen_hint(exc, port)) from exc
    return sock


def connect(endpoint: str, path_bytes: int = 0) -> socket.socket:
    """A socket that is connecting. Raises OSError if that fails at once (no route, say).

    `path_bytes`: its segments are to fit into packets of so many bytes; 0: as the kernel likes.
    """
    ip, port = parse_endpoint(endpoint)
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        prepare(sock)
        if path_bytes:
            headers = _HEADERS6 if ":" in ip else _HEADERS4
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, path_bytes - headers)
        code = sock.connect_ex((ip, port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, errno.errorcode.get(code, "connect failed"))
    except OSError:
        sock.close()
        raise
    return sock


def prepare(sock: socket.socket) -> None:
    """Settings that listening sockets hand on to those they accept."""
    mark(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    with contextlib.suppress(OSError):  # the kernel may lack it
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _NEAR)


def bear_loss(sock: socket.socket) -> bool:
    """Let the connection go on at full speed in spite of some loss; False if the kernel can't."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _BEARS_LOSS)
    except OSError:  # it lacks it, or doesn't allow it
        return False
    return True


@functools.cache
def can_bear_loss() -> bool:
    """Whether `bear_loss` would work on this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        return bear_loss(sock)


def suit_rate(sock: socket.socket) -> None:
    """Let the kernel hold about as much unsent as the path takes in `_UNSENT_S`.

    More would be delay; it waits in the peer's queue, where small flows pass it.
    """
    with contextlib.suppress(OSError):
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        rate = _U64.unpack_from(info, _DELIVERY_RATE)[0] if len(info) >= _DELIVERY_RATE + 8 else 0
        if rate:
            wanted = min(_UNSENT_BYTES, max(_LEAST_UNSENT_BYTES, int(rate * _UNSENT_S)))
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, wanted)


@dataclass(frozen=True, slots=True)
class TcpFacts:
    """What the kernel says of a connection; zeros for what it doesn't.

    Attributes:
        sent, again: segments, and how many of them were sent again.
        timeouts: retransmission time-outs in a row.
        rtt_ms, min_rtt_ms: the round trip, smoothed, and the shortest one lately.
    """

    sent: int = 0
    again: int = 0
    timeouts: int = 0
    rtt_ms: float = 0.0
    min_rtt_ms: float = 0.0


def tcp_facts(sock: socket.socket) -> TcpFacts:
    """What is known of a connection; nothing if it is none of TCP."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return TcpFacts()
    sent, again, rtt_us, min_rtt_us = (
        _U32.unpack_from(info, at)[0] if len(info) >= at + 4 else 0
        for at in (_SEGS_OUT, _TOTAL_RETRANS, _RTT, _MIN_RTT)
    )
    timeouts = info[_BACKOFF] if len(info) > _BACKOFF else 0
    shortest_us = 0 if min_rtt_us == _UNKNOWN else min_rtt_us
    return TcpFacts(sent, again, timeouts, rtt_us / 1e3, shortest_us / 1e3)


def name_of(address: tuple[object, ...]) -> str:
    """The endpoint of a socket address; IPv4-mapped and scoped addresses in their plain form."""
    return format_endpoint(str(address[0]).partition("%")[0], int(str(address[1])))


def _listen_hint(exc: OSError, port: int) -> str:
    if exc.errno == errno.EADDRINUSE:
        return f"another program uses port {port} (ss -ltnp sport = :{port}): stop it or choose another port"
    if exc.errno == errno.EADDRNOTAVAIL:
        return "the address is not one of this machine's; use 0.0.0.0 or [::] for all of them"
    if exc.errno in (errno.EACCES, errno.EPERM):
        return "ports below 1024 need root or CAP_NET_BIND_SERVICE"
    if exc.errno == errno.EAFNOSUPPORT:
        return "the kernel has no IPv6; listen on 0.0.0.0 only"
    return "choose another address or port"
