"""Who may give orders to the data plane, and how do they arrive?

A unix stream socket of mode 0600; a caller must be root or this process's own user (SO_PEERCRED). Requests
and replies are those of `messages`, each framed by its length. Callers come and go: packets flow without
any. After a `Carry` that was answered with `Done` the connection is no caller's any more: it carries packets.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

from p2p_network import wire
from p2p_network.core import log
from p2p_network.dataplane.loop import READ, WRITE, Loop
from p2p_network.dataplane.messages import (
    FRAME_HEAD_BYTES,
    MAX_FRAME_BYTES,
    Carry,
    Done,
    Estate,
    Reply,
    Request,
)
from p2p_network.dataplane.succession import hand_over

MAX_CALLERS: Final = 8
_BACKLOG: Final = 64
_CHUNK_BYTES: Final = 1 << 16
_PEERCRED = struct.Struct("3i")

logger = log.get(__name__)


class ControlServer:
    """Listens on `path`. Raises OSError if it can't.

    Args:
        answer: turns a request into a reply.
        device: the descriptor that goes with an `Estate`, or None.
        carry: takes the socket of a `Carry` that was answered with `Done`.
    """

    def __init__(
        self,
        loop: Loop,
        path: str,
        answer: Callable[[Request], Reply],
        carry: Callable[[Carry, socket.socket], None],
        device: Callable[[], int | None],
    ) -> None:
        self._loop = loop
        self._carry = carry
        self._device = device
        self._path = path
        self._answer = answer
        self._callers: dict[Caller, None] = {}
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # stale: the caller of this constructor holds the lock
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        before = os.umask(0o177)
        try:
            self._listener.bind(path)
        finally:
            os.umask(before)
        self._listener.listen(_BACKLOG)
        loop.watch(self._listener.fileno(), READ, self._accept)

    def _accept(self, _events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        pid, uid, _gid = _PEERCRED.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        )
        if uid not in (0, os.geteuid()):
            log.event(
                logger, "network.control_refused", pid=pid, reason=f"user {uid} is neither root nor ours"
            )
            sock.close()
            return
        if len(self._callers) >= MAX_CALLERS:
            next(iter(self._callers)).close()
        sock.setblocking(False)
        caller = Caller(self._loop, sock, self._answer, self._forget, self._carry, self._device)
        self._callers[caller] = None

    def _forget(self, caller: Caller) -> None:
        self._callers.pop(caller, None)

    def close(self) -> None:
        """Stop listening, end all callers, remove the socket file."""
        for caller in list(self._callers):
            caller.flush_and_close()
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


class Caller:
    """One connection to the control socket."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        answer: Callable[[Request], Reply],
        forget: Callable[[Caller], None],
        carry: Callable[[Carry, socket.socket], None],
        device: Callable[[], int | None],
    ) -> None:
        self._loop, self._sock, self._answer, self._forget = loop, sock, answer, forget
        self._carry, self._device = carry, device
        self._received = bytearray()
        self._unsent = b""
        loop.watch(sock.fileno(), READ, self._on_events)

    def _on_events(self, events: int) -> None:
        try:
            if events & WRITE:
                self._send(b"")
            if events & ~WRITE:
                self._receive()
        except (OSError, ValueError) as exc:
            log.event(logger, "network.control_lost", reason=str(exc))
            self.close()

    def _receive(self) -> None:
        try:
            data = self._sock.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        self._received += data
        while len(self._received) >= FRAME_HEAD_BYTES:
            size = int.from_bytes(self._received[:FRAME_HEAD_BYTES], "big")
            if size > MAX_FRAME_BYTES:
                raise ValueError(f"a request of {size} bytes is too long")
            end = FRAME_HEAD_BYTES + size
            if len(self._received) < end:
                return
            frame = bytes(self._received[FRAME_HEAD_BYTES:end])
            del self._received[:end]
            request: Request = wire.decode(frame, Request)  # type: ignore[arg-type]
            answer = self._answer(request)
            body = wire.encode(answer)
            reply = len(body).to_bytes(FRAME_HEAD_BYTES, "big") + body
            if isinstance(answer, Estate):
                hand_over(self._sock, reply, self._device())
                return
            self._send(reply)
            if isinstance(request, Carry) and isinstance(answer, Done):
                self._hand_over(request)
                return

    def _hand_over(self, request: Carry) -> None:
        """From here on these bytes are a carrier's."""
        if self._received or self._unsent:
            raise ValueError("a caller that is to carry packets says nothing else")
        self._loop.forget(self._sock.fileno())
        self._forget(self)
        self._carry(request, self._sock)

    def _send(self, data: bytes) -> None:
        self._unsent += data
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            sent = 0
        self._unsent = self._unsent[sent:]
        self._loop.change(self._sock.fileno(), READ | WRITE if self._unsent else READ)

    def flush_and_close(self) -> None:
        """Send what is left, as far as it goes without waiting; then close."""
        with contextlib.suppress(OSError):
            self._send(b"")
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._received.clear()
        self._loop.forget(self._sock.fileno())
        self._sock.close()
        self._forget(self)
