"""Traffic for the tests of the data plane: pings, and transfers that are compared byte by byte."""

from __future__ import annotations

import hashlib
import os
import socket
import threading

import trio
from two_planes import Place

TCP4, TCP6 = (socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET6, socket.SOCK_STREAM)
UDP4 = (socket.AF_INET, socket.SOCK_DGRAM)
BULK = os.urandom(1 << 20)
PATIENCE_S = 120.0
"""A connection inside waits ever longer between its attempts: after 10 s of nothing it may rest 20 more."""
_MAX_PACING_RATE = 47


def ping(place: Place, target: str, *options: str) -> str:
    return place.run("ping", "-n", "-c", "3", "-i", "0.05", "-W", "5", *options, target)


class Transfer:
    """A TCP connection from one place to another; both ends hash what they see.

    It carries `mib` MiB; or 0: goes on until `finish`, at `rate_mib` per second.
    """

    def __init__(
        self, source: Place, sink: Place, *, mib: int = 0, rate_mib: int = 0, six: bool = False
    ) -> None:
        kind, host = (TCP6, sink.inner6) if six else (TCP4, sink.inner)
        (listener,), (self._sender,) = sink.sockets(kind), source.sockets(kind)
        listener.bind((host, 0))
        listener.listen(1)
        listener.settimeout(PATIENCE_S)
        self._sender.settimeout(PATIENCE_S)
        self._listener, self._address, self._mib = listener, listener.getsockname()[:2], mib
        if rate_mib:
            self._sender.setsockopt(socket.SOL_SOCKET, _MAX_PACING_RATE, rate_mib << 20)
        self._is_enough = threading.Event()
        self._sent_bytes = self.received_bytes = 0
        self._hashes: dict[str, str] = {}
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._receive, self._send)]
        for thread in self._threads:
            thread.start()

    def _receive(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(PATIENCE_S)
        digest = hashlib.blake2b()
        with connection:
            while data := connection.recv(1 << 18):
                self.received_bytes += len(data)
                digest.update(data)
        self._hashes["received"] = digest.hexdigest()

    def _send(self) -> None:
        digest = hashlib.blake2b()
        with self._sender:
            self._sender.connect(self._address)
            while not self._is_enough.is_set() and not self._mib << 20 == self._sent_bytes > 0:
                block = self._sent_bytes.to_bytes(8, "big") + BULK[8:]
                self._sender.sendall(block)
                digest.update(block)
                self._sent_bytes += len(block)
        self._hashes["sent"] = digest.hexdigest()

    @property
    def running(self) -> bool:
        return self._threads[0].is_alive()

    def finish(self) -> None:
        """Send no more."""
        self._is_enough.set()

    async def arrived_unchanged(self) -> None:
        """Wait for the end and compare."""
        for thread in self._threads:
            await trio.to_thread.run_sync(thread.join, PATIENCE_S)
        self._listener.close()
        assert self.received_bytes == self._sent_bytes >= self._mib << 20
        assert self._hashes["sent"] == self._hashes["received"]
