"""Who speaks without the pre-shared key, with whom, and about what?

This module, and nothing else: a client of a public Kademlia DHT. It shares nothing with the mesh's host: a
throw-away key for each round, connections that it dials itself and closes at the end of the round, Noise and
Yamux on them without the pre-shared key. On a connection it asks ``/ipfs/kad/1.0.0`` (and identify, where it
is seen from), and serves nothing: whatever protocol the other side opens a stream for is refused. It listens
nowhere, so nobody finds it, and a DHT takes it for a client. What comes back goes to `meeting.kad`, which
believes none of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

import p2p_network.host.lean  # noqa: F401  (first: imports libp2p without what we never use)

# isort: split
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from p2p_network.core import log
from p2p_network.core.errors import PeerUnreachable
from p2p_network.host.addresses import Endpoint
from p2p_network.host.connections import MeshYamux
from p2p_network.host.foreign_keys import read_foreign_keys
from p2p_network.host.outgoing import open_stream
from p2p_network.host.private import SocketWire, read_wire, write_wire
from p2p_network.meeting import kad, protobuf, witness
from p2p_network.meeting.witness import Witnesses

logger = log.get(__name__)

CONNECT_LIMIT_S: Final = 4.0
HANDSHAKE_LIMIT_S: Final = 6.0
ASK_LIMIT_S: Final = 10.0
"""For everything: a node that takes longer is passed over."""
MAX_CONNECTIONS: Final = 64
MAX_ENDPOINTS: Final = 4
MAX_REFUSALS: Final = 16
REFUSAL_LIMIT_S: Final = 5
MAX_ENTRANCES: Final = 32
MAX_NAME_DEPTH: Final = 3

NameRecords = Callable[[str], Awaitable[Sequence[bytes]]]
"""The TXT records of a DNS name; raises OSError."""


class _OpenConnection(RawConnection):  # type: ignore[misc]
    """A TCP connection without the pre-shared key."""

    def __init__(self, wire: SocketWire) -> None:
        super().__init__(None, True, addresses=[Multiaddr(str(wire.remote))])
        self._wire = wire

    async def read(self, n: int | None = None) -> bytes:
        return await read_wire(self._wire, n)

    async def write(self, data: bytes) -> None:
        await write_wire(self._wire, data)

    async def close(self) -> None:
        self._wire.abort()
        await trio.lowlevel.checkpoint()

    def get_remote_address(self) -> tuple[str, int]:
        return self._wire.remote.host, self._wire.remote.port


class PublicClient:
    """One round's conversations with nodes of a public DHT; made by `public_client`."""

    def __init__(self, nursery: trio.Nursery, first: Sequence[kad.Peer], *, private_too: bool) -> None:
        read_foreign_keys()
        keys = ed25519_key_pair(os.urandom(32))
        noise = NoiseTransport(keys, noise_privkey=x25519_key_pair().private_key)
        limit = int(HANDSHAKE_LIMIT_S)
        self._upgrader = TransportUpgrader({NOISE_ID: noise}, {YAMUX_ID: MeshYamux}, negotiate_timeout=limit)
        self._select = MultiselectClient()
        self._nursery = nursery
        self._private_too = private_too
        self._muxed: dict[bytes, tuple[Any, SocketWire]] = {}
        self._wires: set[SocketWire] = set()
        self._useless: set[bytes] = set()
        self.first = tuple(first)
        self.asked = 0
        self.witnesses = Witnesses()

    async def get(
        self, key: bytes, is_good: Callable[[bytes], bool], *, enough: int, limit_s: float
    ) -> tuple[tuple[bytes, ...], tuple[kad.Peer, ...]]:
        """The good values that nodes close to a key have under it, and the closest nodes that answered.

        After `limit_s` seconds: what was found by then.
        """
        values: dict[bytes, None] = {}
        request = kad.get_value(key)

        async def ask(peer: kad.Peer) -> tuple[kad.Peer, ...]:
            answer = kad.read_answer(await self._ask(peer, request), private_too=self._private_too)
            if answer.value and answer.value not in values and is_good(answer.value):
                values[answer.value] = None
            return answer.closer

        closest = await self._look_up(kad.LookUp(key, self.first, enough=enough), ask, limit_s)
        return tuple(values), closest

    async def put(self, key: bytes, value: bytes, closest: Iterable[kad.Peer]) -> int:
        """Ask nodes to keep a value; how many did."""
        request, kept = kad.put_value(key, value), 0

        async def put(peer: kad.Peer) -> None:
            nonlocal kept
            try:
                kad.read_answer(await self._ask(peer, request), private_too=False)
                kept += 1
            except (PeerUnreachable, ValueError) as exc:
                log.event(logger, "public_dht.not_kept", level=10, detail=str(exc))

        async with trio.open_nursery() as nursery:
            for peer in closest:
                nursery.start_soon(put, peer)
        return kept

    def abort(self) -> None:
        """Cut every connection."""
        for wire in self._wires:
            wire.abort()

    async def _look_up(
        self, look_up: kad.LookUp, ask: Callable[[kad.Peer], Awaitable[tuple[kad.Peer, ...]]], limit_s: float
    ) -> tuple[kad.Peer, ...]:
        moved = trio.Event()

        async def one(peer: kad.Peer) -> None:
            try:
                look_up.answered(peer, await ask(peer))
            except (PeerUnreachable, ValueError) as exc:
                look_up.failed(peer)
                log.event(logger, "public_dht.no_answer", level=10, detail=str(exc))
            moved.set()

        with trio.move_on_after(limit_s):
            async with trio.open_nursery() as nursery:
                while not look_up.is_over:
                    while (peer := look_up.ask()) is not None:
                        nursery.start_soon(one, peer)
                    moved = trio.Event()
                    await moved.wait()
                nursery.cancel_scope.cancel()
        return look_up.closest()

    async def _ask(self, peer: kad.Peer, request: bytes) -> bytes:
        """One question on a stream of its own. Raises PeerUnreachable, ValueError."""
        self.asked += 1
        if peer.id in self._useless:
            raise PeerUnreachable("it gave no answer before")
        try:
            with trio.fail_after(ASK_LIMIT_S):
                known = self._muxed.get(peer.id)
                living = known is not None and not known[0].event_shutting_down.is_set()
                muxed = known[0] if known is not None and living else await self._connect(peer)
                return await self._asked_on(muxed, kad.PROTOCOL, request)
        except (PeerUnreachable, ValueError):
            raise
        except Exception as exc:  # a library's, about what a stranger did
            if isinstance(exc, trio.TooSlowError):
                self._useless.add(peer.id)
            raise PeerUnreachable(f"{peer.endpoints[0]}: {exc!r}") from exc

    async def _asked_on(self, muxed: Any, protocol: str, request: bytes) -> bytes:
        """Open a stream, say something (or nothing), and read one message."""
        stream = await muxed.open_stream()
        try:
            await self._select.select_one_of(
                [protocol], MultiselectCommunicator(stream), int(HANDSHAKE_LIMIT_S)
            )
            if request:
                await stream.write(protobuf.framed(request))
            heard = b""
            while (found := protobuf.unframed(heard, kad.MAX_MESSAGE_BYTES)) is None:
                more = await stream.read(16384)
                if not more:
                    raise PeerUnreachable("it closed the stream")
                heard += more
            return found[0]
        finally:
            with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
                await stream.reset()

    async def _connect(self, peer: kad.Peer) -> Any:
        failure = PeerUnreachable("no address")
        for endpoint in peer.endpoints[:MAX_ENDPOINTS]:
            try:
                muxed, wire = await self._reach(endpoint, ID(peer.id))
            except PeerUnreachable as exc:
                failure = exc
                continue
            self._muxed[peer.id] = muxed, wire
            if len(self._muxed) > MAX_CONNECTIONS:  # the oldest was asked long ago
                self._muxed.pop(next(iter(self._muxed)))[1].abort()
            if not self.witnesses.are_enough:
                self._nursery.start_soon(self._call_as_witness, muxed, wire.remote)
            return muxed
        self._useless.add(peer.id)
        raise failure

    async def _call_as_witness(self, muxed: Any, remote: Endpoint) -> None:
        """Ask a node at which address it sees us."""
        try:
            with trio.fail_after(ASK_LIMIT_S):
                seen = witness.observed_in(await self._asked_on(muxed, witness.PROTOCOL, b""))
        except Exception as exc:  # a library's, about what a stranger did
            log.event(logger, "public_dht.no_witness", level=10, detail=repr(exc))
            return
        if seen is not None and (self._private_too or not seen.is_private):
            self.witnesses.heard(remote.host, seen.host)

    async def _reach(self, endpoint: Endpoint, expected: ID) -> tuple[Any, SocketWire]:
        try:
            with trio.fail_after(CONNECT_LIMIT_S):
                wire = SocketWire(await open_stream(endpoint.host, endpoint.port))
        except (OSError, trio.TooSlowError) as exc:
            raise PeerUnreachable(f"{endpoint}: {str(exc) or 'no answer'}") from exc
        self._wires.add(wire)
        try:
            with trio.fail_after(HANDSHAKE_LIMIT_S):
                raw = _OpenConnection(wire)
                secured = await self._upgrader.security_multistream.secure_outbound(raw, expected)
                if secured.get_remote_peer() != expected:
                    raise PeerUnreachable("another node answers")
                muxer = await self._upgrader.muxer_multistream.select_transport(secured)
                muxed = muxer(secured, expected)
                self._nursery.start_soon(self._run, muxed, wire)
                await muxed.event_started.wait()
        except BaseException as exc:
            wire.abort()
            self._wires.discard(wire)
            if isinstance(exc, PeerUnreachable) or not isinstance(exc, Exception):
                raise
            raise PeerUnreachable(f"{endpoint}: {exc!r}") from exc
        return muxed, wire

    async def _run(self, muxed: Any, wire: SocketWire) -> None:
        """A connection's reader, until it ends; streams of the other side are reset."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve_nothing, muxed)
                await muxed.start()
                nursery.cancel_scope.cancel()
        except Exception as exc:
            log.event(logger, "public_dht.connection_failed", level=10, detail=repr(exc))
        finally:
            wire.abort()
            self._wires.discard(wire)

    async def _serve_nothing(self, muxed: Any) -> None:
        """Refuse every protocol, politely: js-libp2p closes a connection whose streams are reset."""
        async with trio.open_nursery() as nursery:
            while True:
                stream = await muxed.accept_stream()
                if len(nursery.child_tasks) < MAX_REFUSALS:
                    nursery.start_soon(self._refuse, stream)
                else:
                    await stream.reset()

    async def _refuse(self, stream: Any) -> None:
        with contextlib.suppress(Exception), trio.move_on_after(REFUSAL_LIMIT_S):
            await Multiselect({}).negotiate(MultiselectCommunicator(stream), int(REFUSAL_LIMIT_S))
        with contextlib.suppress(Exception), trio.CancelScope(shield=True), trio.move_on_after(1):
            await stream.reset()


@asynccontextmanager
async def public_client(entrances: Sequence[str], names: NameRecords) -> Any:
    """A client for one round; its connections end with the block. Raises PeerUnreachable: no way in."""
    first = await _entered(entrances, names)
    if not first:
        raise PeerUnreachable("no way into the public DHT: none of its addresses could be resolved")
    async with trio.open_nursery() as nursery:
        client = PublicClient(nursery, first, private_too=any(map(_is_private, first)))
        try:
            yield client
        finally:
            client.abort()
            nursery.cancel_scope.cancel()


def _is_private(peer: kad.Peer) -> bool:
    """Whether a DHT that is entered there is one of a private network."""
    return any(endpoint.is_private for endpoint in peer.endpoints)


async def _entered(texts: Sequence[str], names: NameRecords) -> list[kad.Peer]:
    """The nodes to begin with, dnsaddr names resolved, bounded."""
    found: dict[bytes, kad.Peer] = {}
    asked: set[str] = set()
    level = list(texts)
    for _ in range(MAX_NAME_DEPTH + 1):
        behind: list[str] = []
        for text in level:
            try:
                entrance = kad.entrance(text)
            except ValueError:
                continue
            if entrance.endpoint is not None:
                known = found.get(entrance.id)
                endpoints = (*(known.endpoints if known else ()), entrance.endpoint)
                if known is not None or len(found) < MAX_ENTRANCES:
                    found[entrance.id] = kad.Peer(entrance.id, endpoints[: kad.MAX_PEER_ADDRESSES])
            elif entrance.name not in asked and len(asked) < MAX_ENTRANCES:
                asked.add(entrance.name)
                try:
                    behind += kad.dnsaddr_texts(await names(f"_dnsaddr.{entrance.name}"))
                except OSError as exc:
                    log.event(logger, "public_dht.no_name", level=10, detail=str(exc))
        level = behind
    return list(found.values())
