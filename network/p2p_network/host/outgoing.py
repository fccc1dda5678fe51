"""How is a TCP connection made that carries the mesh?"""

from __future__ import annotations

import socket
from ipaddress import ip_address

import trio

from p2p_network.marks import mark


async def open_stream(host: str, port: int) -> trio.SocketStream:
    """Connect a marked socket to an address; names are resolved by trio, and not marked. Raises OSError."""
    try:
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        return await trio.open_tcp_stream(host, port)
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        mark(sock)
        await sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)
