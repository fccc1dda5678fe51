"""What lies between the TCP socket, or the circuit through a relay, and Noise?

Guard D of `guards.py`: a libp2p raw connection that speaks pnet as the specification has it (`psk.py` is the
cipher), on a wire that can be cut at once from anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, Protocol

import trio

import p2p_network.host.lean  # noqa: F401  (first: imports libp2p without what we never use)

# isort: split
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from multiaddr import Multiaddr

from p2p_network.core.errors import MeshError
from p2p_network.core.ids import PeerId
from p2p_network.host.addresses import Endpoint
from p2p_network.host.psk import GREETING, NONCE_BYTES, KeyStream

NONCE_PATIENCE_S: Final = 0.2
"""How long a dialler may wait after its nonce before it gets ours."""


class Stranger(MeshError):
    """An inbound connection whose first bytes no member would send."""


class Wire(Protocol):
    """What carries the bytes. `via`: the relay, None for a TCP connection of our own; `why`: why a relay."""

    remote: Endpoint
    via: PeerId | None
    why: str

    async def send_all(self, data: bytes) -> None:
        """Raises trio.BrokenResourceError or trio.ClosedResourceError at the end."""

    async def receive_some(self, limit: int | None) -> bytes:
        """Up to `limit` bytes; b"" at the end. Raises as `send_all`."""

    def abort(self) -> None:
        """End it now; whoever reads or writes wakes up. Idempotent."""


class SocketWire:
    """A TCP connection. Raises OSError if it is gone already."""

    via: PeerId | None = None
    why = ""

    def __init__(self, stream: trio.SocketStream) -> None:
        peer = stream.socket.getpeername()
        self.remote = Endpoint(str(peer[0]).partition("%")[0], int(peer[1]))
        self._stream = stream

    async def send_all(self, data: bytes) -> None:
        """See `Wire`."""
        await self._stream.send_all(data)

    async def receive_some(self, limit: int | None) -> bytes:
        """See `Wire`."""
        return bytes(await self._stream.receive_some(limit))

    def abort(self) -> None:
        """See `Wire`."""
        self._stream.socket.close()


async def read_wire(wire: Wire, n: int | None) -> bytes:
    """Up to `n` bytes as libp2p wants them: b"" at the end. Raises ConnectionClosedError."""
    try:
        return await wire.receive_some(n if n is None else max(n, 1))
    except trio.ClosedResourceError:
        return b""
    except trio.BrokenResourceError as exc:
        raise ConnectionClosedError(f"connection closed: {exc}", transport="tcp") from exc


async def write_wire(wire: Wire, data: bytes) -> None:
    """Send all. Raises ConnectionClosedError, which is what libp2p expects of a connection that broke."""
    try:
        await wire.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
        raise ConnectionClosedError(f"connection closed: {exc}", transport="tcp") from exc


class PrivateConnection(RawConnection):  # type: ignore[misc]
    """Guard D: pnet as the specification has it, on a wire.

    libp2p ships Salsa20 with an 8-byte nonce, so it can't talk to other implementations. It also loses the
    remote address of an IPv6 connection, which this class keeps.

    `keys`: the pre-shared keys of the generations, the one in force first. A dialler uses that one; a
    listener takes any of them, and finds out which by the dialler's first words.
    """

    def __init__(self, carried_by: Wire, initiator: bool, keys: Sequence[bytes]) -> None:
        self.remote, self.via, self.why = carried_by.remote, carried_by.via, carried_by.why
        super().__init__(None, initiator, addresses=[Multiaddr(str(self.remote))])
        self._wire = carried_by
        self._keys = tuple(keys)
        self._key = self._keys[0]
        self._reading: KeyStream | None = None
        self._writing: KeyStream | None = None
        self._early = b""
        self._nonce = b""  # ours, if it was sent before anything else

    async def expect_greeting(self) -> None:
        """Read the first words of a dialler; raises Stranger unless they are those of a member.

        Nothing has been sent by then, so a port scanner doesn't even learn which protocol this is. Only a
        dialler that sends its nonce and then waits for ours, as js-libp2p does, gets that: random bytes.
        """
        nonce = await self._raw_exactly(NONCE_BYTES)
        words = await self._patiently(len(GREETING)) if self.via is None else b""
        words += await self._raw_exactly(len(GREETING) - len(words))
        for key in self._keys:
            reading = KeyStream(key, nonce)
            if reading.apply(words) == GREETING:
                self._key, self._reading, self._early = key, reading, GREETING
                return
        raise Stranger("it does not know the pre-shared key")

    async def read(self, n: int | None = None) -> bytes:
        """Up to `n` decrypted bytes; b"" at the end."""
        if self._early:
            size = len(self._early) if n is None else n
            head, self._early = self._early[:size], self._early[size:]
            return head
        if self._reading is None:
            self._reading = KeyStream(self._key, await self._raw_exactly(NONCE_BYTES))
        return self._reading.apply(await read_wire(self._wire, n))

    async def write(self, data: bytes) -> None:
        """Encrypt and send; the first call sends our nonce too. Raises ConnectionClosedError."""
        head = b""
        if self._writing is None:
            head = b"" if self._nonce else os.urandom(NONCE_BYTES)
            self._writing = KeyStream(self._key, self._nonce or head)
        await write_wire(self._wire, head + self._writing.apply(data))

    async def close(self) -> None:
        self.abort()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """Cut the wire now; whoever reads or writes it wakes up. Idempotent."""
        self._wire.abort()

    def get_remote_address(self) -> tuple[str, int]:
        return self.remote.host, self.remote.port

    async def _patiently(self, n: int) -> bytes:
        """The first bytes after the nonce; b"" if the other side waits, and then our nonce is on its way.

        Only for a socket: reading from a circuit must not be cancelled.
        """
        with trio.move_on_after(NONCE_PATIENCE_S) as patience:
            words = await read_wire(self._wire, n)
        if not patience.cancelled_caught:
            if not words:
                raise ConnectionClosedError("connection closed in the handshake", transport="tcp")
            return words
        self._nonce = os.urandom(NONCE_BYTES)
        try:
            await self._wire.send_all(self._nonce)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionClosedError(f"connection closed: {exc}", transport="tcp") from exc
        return b""

    async def _raw_exactly(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            more = await read_wire(self._wire, n - len(data))
            if not more:
                raise ConnectionClosedError("connection closed in the handshake", transport="tcp")
            data += more
        return data
