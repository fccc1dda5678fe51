"""How does a new data plane go on where an old one stops?

Blocking, before the loop of the new one runs. It asks the old one on its control socket, and gets what that
one was told, the sessions' keys, and the open TUN device: addresses, routes and packets that wait stay where
they are. Then the old one ends, and the new one dials. Connections are new, so no key is used twice.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from p2p_network import wire
from p2p_network.dataplane.messages import (
    FRAME_HEAD_BYTES,
    MAX_FRAME_BYTES,
    Estate,
    Failed,
    HandOver,
    Reply,
)

PATIENCE_S: Final = 5.0


def take_over(path: str) -> tuple[Estate, int | None]:
    """What the data plane on this control socket leaves, and its device's descriptor; then it ends.

    Raises OSError (nobody there, or it says nothing) and ValueError (it says something else).
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(path)
        request = wire.encode(HandOver())
        sock.sendall(len(request).to_bytes(FRAME_HEAD_BYTES, "big") + request)
        head, fds, _, _ = socket.recv_fds(sock, FRAME_HEAD_BYTES, 1)
        device = fds[0] if fds else None
        try:
            reply: Reply = wire.decode(_rest(sock, head), Reply)  # type: ignore[arg-type]
            if not isinstance(reply, Estate):
                raise ValueError(reply.message if isinstance(reply, Failed) else "it leaves nothing")
            if (reply.config is None) != (device is None):
                raise ValueError("a configuration without a device, or the other way round")
        except BaseException:
            if device is not None:
                os.close(device)
            raise
        return reply, device


def _rest(sock: socket.socket, head: bytes) -> bytes:
    """The frame that begins with `head`."""
    head += _exactly(sock, FRAME_HEAD_BYTES - len(head))
    size = int.from_bytes(head, "big")
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {size} bytes")
    return _exactly(sock, size)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise OSError("it closed the connection")
        data += chunk
    return bytes(data)


def hand_over(sock: socket.socket, frame: bytes, device: int | None) -> None:
    """Send the answer with the device beside it. Waits, since nothing follows it. Raises OSError."""
    sock.settimeout(PATIENCE_S)
    sent = socket.send_fds(sock, [frame], [] if device is None else [device])
    sock.sendall(frame[sent:])
