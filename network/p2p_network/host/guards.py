"""Which defects of py-libp2p 0.8.1 do we live with, and what stands between them and the node?

All of it is here, in `connections.py`, in `private.py` and in `lean.py`; the rest of `host` uses only what
these export. Each guard names its defect and has a test that fails without it
(tests/adapters/test_host_guards.py); network/UPSTREAM.md, whose letters and numbers these are, tells how to
reproduce each and when to drop it.

The shape: `MeshSwarm` is libp2p's Swarm with the outer layer replaced. It neither listens nor dials by
itself: `admit` takes an accepted TCP stream, `reach` dials, both put `PrivateConnection` (pnet) under Noise
under Yamux, both have limits of their own. Swarm's service loop, auto-connector, pruner, retries and
negative cache never run.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

import p2p_network.host.lean  # noqa: F401  (first: imports libp2p without what we never use)

# isort: split
from libp2p.abc import INetConn, INetStream
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from p2p_network.core import log
from p2p_network.core.errors import MeshError, PeerUnreachable
from p2p_network.core.ids import PeerId, public_key_of, short
from p2p_network.host.addresses import Endpoint, endpoints_of
from p2p_network.host.connections import (
    FencedTasks,
    MeshYamux,
    NotSpoken,
    Stream,
    is_alive,
    is_inbound,
    peer_of,
    reset,
)
from p2p_network.host.gate import ADMISSION_LIMIT_S, Gate, Passage, Refused, ask_admission, give_admission
from p2p_network.host.outgoing import open_stream
from p2p_network.host.private import PrivateConnection, SocketWire, Stranger, Wire

logger = log.get(__name__)

CONNECT_LIMIT_S: Final = 3.0
HANDSHAKE_LIMIT_S: Final = 5.0
OPEN_LIMIT_S: Final = 5.0
DIALLED_GENERATIONS: Final = 2
MAX_CONNECTIONS: Final = 1024
MAX_STREAMS_PER_CONNECTION: Final = 128
ADMISSION_PROTOCOL: Final = "/kairos-p2p/admission/1"


class MeshSwarm(Swarm):  # type: ignore[misc]
    """Swarm without its own listening, dialling, retrying, pruning and reporting."""

    def __init__(self, seed: bytes, psk: bytes, gate: Gate | None = None) -> None:
        keys = ed25519_key_pair(seed)
        self_id = ID.from_pubkey(keys.public_key)
        peerstore = PeerStore()
        peerstore.add_key_pair(self_id, keys)
        # Guard 5: libp2p's default offers plaintext, and a peer may choose it. Only Noise, only Yamux.
        noise = NoiseTransport(keys, noise_privkey=x25519_key_pair().private_key)
        upgrader = TransportUpgrader(
            {NOISE_ID: noise}, {YAMUX_ID: MeshYamux}, negotiate_timeout=int(HANDSHAKE_LIMIT_S)
        )
        config = ConnectionConfig(
            max_connections=MAX_CONNECTIONS,
            high_watermark=MAX_CONNECTIONS,
            low_watermark=0,
            min_connections=0,
            max_connections_per_peer=8,
        )
        super().__init__(self_id, peerstore, upgrader, [], RetryConfig(max_retries=0), config)
        self._psk = psk
        self.gate = gate
        self.open_admission: Callable[[Any], Awaitable[Stream]] | None = None  # set by the host
        self._private: weakref.WeakSet[PrivateConnection] = weakref.WeakSet()
        self.on_connected: Callable[[Any], None] = lambda conn: None
        self.on_disconnected: Callable[[Any], None] = lambda conn: None

    def abort_all(self) -> None:
        """Close the socket of every connection at once."""
        for conn in self._private:
            conn.abort()

    def attach(self, nursery: trio.Nursery) -> None:
        """Run the tasks of all connections in `nursery`."""
        self._manager = FencedTasks(nursery)

    # Guard E: nothing connects behind our back, and no observer can stall or break a connection.
    async def notify_connected(self, conn: INetConn) -> None:
        """Too early: `_through_the_gate` tells."""

    async def notify_disconnected(self, conn: INetConn) -> None:
        self.on_disconnected(conn)

    async def notify_opened_stream(self, stream: INetStream) -> None:
        """Nobody listens."""

    async def notify_closed_stream(self, stream: INetStream) -> None:
        """Nobody listens."""

    def _schedule_auto_connect(self) -> None:
        """The dialler decides."""

    def _schedule_prune(self) -> None:
        """The mesh decides."""

    async def admit(self, wire: Wire, trusted: Callable[[], None]) -> None:
        """Make an accepted wire a connection, within `HANDSHAKE_LIMIT_S`; calls `trusted` then.

        Returns when the connection has ended. Guard 1 (C): libp2p's own way in holds one of 250 places until
        the process ends, even when the connection was closed long ago; then the node is deaf.
        Guard 12: a wrong pre-shared key is noticed at the first bytes instead of after 30 s.
        Raises Stranger, PeerUnreachable. The wire is cut in every case.
        """
        conn = self._protected(wire, initiator=False)
        greeted = False
        try:
            with trio.fail_after(HANDSHAKE_LIMIT_S):
                await conn.expect_greeting()
                greeted = True
                secured = await self.upgrader.upgrade_security(conn, False)
                muxed = await self._muxed(secured, conn)
            if self.gate is None:
                trusted()
            swarm_conn = await self.add_conn(muxed, direction="inbound")
            await self._through_the_gate(swarm_conn)
            trusted()
            await muxed.event_closed.wait()
        except Refused:
            conn.abort()
            raise
        except Exception as exc:
            conn.abort()
            if not greeted:
                raise Stranger(f"{conn.remote} does not speak as a member: {exc!r}") from exc
            raise PeerUnreachable(f"inbound handshake with {conn.remote} failed: {exc!r}") from exc
        except BaseException:
            conn.abort()
            raise

    async def reach(self, endpoints: Sequence[Endpoint], expected: PeerId | None) -> Any:
        """Dial all endpoints at once; the first to finish the handshake becomes a connection.

        Guards 7 (libp2p tries the first TCP address only), 8 (one failure blocks a peer for 60 s), 9 (a mute
        server hangs the dial for ever). `expected` None accepts whoever answers, for this dial only; Noise
        still proves that they hold the key of the id they name. Raises PeerUnreachable, SelfReached.
        """
        failures: list[Exception] = []
        winner: list[tuple[Any, PrivateConnection]] = []

        async def attempt(endpoint: Endpoint, scope: trio.CancelScope) -> None:
            try:
                result = await self._secured(endpoint, expected)
            except MeshError as exc:
                failures.append(exc)
                return
            if winner:
                result[1].abort()
                return
            winner.append(result)
            scope.cancel()

        async with trio.open_nursery() as nursery:
            for endpoint in endpoints:
                nursery.start_soon(attempt, endpoint, nursery.cancel_scope)
        if not winner:
            if any(isinstance(failure, SelfReached) for failure in failures):
                raise SelfReached("it is this node itself")
            raise PeerUnreachable("; ".join(map(str, failures)) or "no address to dial")
        return await self._finished(*winner[0])

    async def probe(self, endpoint: Endpoint, expected: PeerId) -> None:
        """See whether this peer answers there (TCP, PSK, Noise), and close. Raises PeerUnreachable."""
        _, conn = await self._secured(endpoint, expected)
        conn.abort()

    async def reach_over(self, open_wire: Callable[[], Awaitable[Wire]], expected: PeerId) -> Any:
        """A connection with one peer over wires that somebody else opens, one for each generation of keys.

        Raises PeerUnreachable, and what `open_wire` raises.
        """
        failure = PeerUnreachable("no pre-shared key")
        for key in self._keys()[:DIALLED_GENERATIONS]:
            try:
                return await self._finished(*await self._secured_over(await open_wire(), key, expected))
            except _OtherKey as exc:
                failure = exc
        raise failure

    async def _finished(self, secured: Any, conn: PrivateConnection) -> Any:
        """The rest of the way of a connection that we dialled: streams, and the gate."""
        try:
            with trio.fail_after(HANDSHAKE_LIMIT_S):
                muxed = await self._muxed(secured, conn)
            swarm_conn = await self.add_conn(muxed, direction="outbound")
            await self._through_the_gate(swarm_conn)
            return swarm_conn
        except Refused:
            conn.abort()
            raise
        except Exception as exc:
            conn.abort()
            raise PeerUnreachable(f"{conn.remote}: {exc!r}") from exc
        except BaseException:
            conn.abort()
            raise

    async def dial_peer(self, peer_id: ID) -> list[Any]:
        """What the DHT calls to ask a peer we have no connection with."""
        living = [conn for conn in self.get_connections(peer_id) if is_alive(conn)]
        if living:
            return living
        endpoints = endpoints_of(str(address).partition("/p2p/")[0] for address in self._addresses(peer_id))
        try:
            return [await self.reach(endpoints, PeerId(str(peer_id)))]
        except PeerUnreachable as exc:
            raise SwarmException(str(exc)) from exc

    def _protected(self, wire: Wire, *, initiator: bool, keys: Sequence[bytes] = ()) -> PrivateConnection:
        conn = PrivateConnection(wire, initiator, keys or self._keys())
        self._private.add(conn)
        return conn

    def _keys(self) -> tuple[bytes, ...]:
        return (self._psk,) if self.gate is None else self.gate.keys()

    async def _through_the_gate(self, conn: Any) -> None:
        """Nothing is said on a connection before both sides admit each other. Raises Refused."""
        passage: Passage = conn.muxed_conn.passage
        if self.gate is not None:
            try:
                with trio.fail_after(ADMISSION_LIMIT_S):
                    if not is_inbound(conn):
                        await self._ask_admission(conn, self.gate)
                        passage.settle(None)
                    await passage.settled.wait()
            except trio.TooSlowError:
                passage.settle(Refused("it showed no certificate in time", cause="silent"))
            except Refused as exc:
                passage.settle(exc)
            except BaseException:
                passage.settle(Refused("the connection ended", cause="silent"))
                raise
            if passage.error is not None:
                raise passage.error
        self.on_connected(conn)

    async def _ask_admission(self, conn: Any, gate: Gate) -> None:
        assert self.open_admission is not None, "a swarm with a gate has a host"
        stream = await self.open_admission(conn)
        try:
            await ask_admission(stream, gate, peer_of(conn))
        finally:
            await stream.reset()

    def _addresses(self, peer_id: ID) -> list[Multiaddr]:
        return list(self.peerstore.addrs(peer_id)) if self.peerstore.has_peer(peer_id) else []

    async def _secured(self, endpoint: Endpoint, expected: PeerId | None) -> tuple[Any, PrivateConnection]:
        """TCP, PSK and Noise with one endpoint, which may still have the keys before the last rotation."""
        failure = PeerUnreachable("no pre-shared key")
        for key in self._keys()[:DIALLED_GENERATIONS]:
            try:
                return await self._secured_with(key, endpoint, expected)
            except _OtherKey as exc:
                failure = exc
        raise failure

    async def _secured_with(
        self, key: bytes, endpoint: Endpoint, expected: PeerId | None
    ) -> tuple[Any, PrivateConnection]:
        try:
            with trio.fail_after(CONNECT_LIMIT_S):
                stream = await open_stream(endpoint.host, endpoint.port)
        except (OSError, trio.TooSlowError) as exc:
            raise PeerUnreachable(f"{endpoint}: {str(exc) or 'no answer'}") from exc
        try:
            wire = SocketWire(stream)
        except OSError as exc:
            stream.socket.close()
            raise PeerUnreachable(str(exc)) from exc
        return await self._secured_over(wire, key, expected)

    async def _secured_over(
        self, wire: Wire, key: bytes, expected: PeerId | None
    ) -> tuple[Any, PrivateConnection]:
        """PSK and Noise on a wire, which is cut if that fails."""
        conn, endpoint = self._protected(wire, initiator=True, keys=(key,)), wire.remote
        wanted = None if expected is None else ID.from_base58(expected)
        try:
            with trio.fail_after(HANDSHAKE_LIMIT_S):
                secured = await self.upgrader.security_multistream.secure_outbound(conn, wanted)
            found = secured.get_remote_peer()
            if found == self.self_id:
                raise SelfReached("it is this node itself")
            if wanted is not None and found != wanted:
                raise PeerUnreachable(f"{endpoint}: another node answers, {short(str(found))}")
        except MeshError:
            conn.abort()
            raise
        except Exception as exc:
            conn.abort()
            kind = PeerUnreachable if isinstance(exc, trio.TooSlowError) else _OtherKey
            raise kind(f"{endpoint}: handshake failed: {exc!r}") from exc
        except BaseException:
            conn.abort()
            raise
        return secured, conn

    async def _muxed(self, secured: Any, conn: PrivateConnection) -> Any:
        public_key_of(str(secured.get_remote_peer()))  # members have Ed25519 keys, and no others
        muxer = await self.upgrader.muxer_multistream.select_transport(secured)
        muxed = muxer(secured, secured.get_remote_peer())
        muxed.private = conn
        muxed.passage = Passage()
        return muxed


class _OtherKey(PeerUnreachable):
    """It closed at our first words: it may have another pre-shared key."""


class SelfReached(PeerUnreachable):
    """A dialled address turned out to be our own."""


class MeshBasicHost(BasicHost):  # type: ignore[misc]
    """BasicHost, for the DHT and for stream negotiation only."""

    def __init__(
        self, swarm: MeshSwarm, addresses: Callable[[], Sequence[str]], admission: str = ADMISSION_PROTOCOL
    ) -> None:
        super().__init__(
            swarm,
            negotiate_timeout=int(OPEN_LIMIT_S),
            addrs_factory=lambda _: [Multiaddr(text) for text in addresses()],
            disable_identify_address_discovery=True,
        )
        self.swarm = swarm
        swarm.notifees.clear()
        self.remove_stream_handler(ID_PUSH)
        swarm.set_stream_handler(self.fenced_stream_handler)
        swarm.open_admission = lambda conn: self.open_on(conn, admission)
        self._admission_only = Multiselect({TProtocol(admission): self._never})

    async def fenced_stream_handler(self, stream: INetStream) -> None:
        """Guard A (2, 3): an exception in a handler, or garbage in the negotiation, ends that stream only."""
        try:
            if len(stream.swarm_conn.streams) > MAX_STREAMS_PER_CONNECTION:
                raise PeerUnreachable("too many streams")
            if self.swarm.gate is None or await self._has_passed(stream, self.swarm.gate):
                await self._swarm_stream_handler(stream)
        except Exception as exc:
            log.event(
                logger,
                "host.stream_failed",
                level=10,
                peer=str(stream.muxed_conn.peer_id),
                detail=repr(exc),
            )
            await reset(stream)

    async def _has_passed(self, stream: INetStream, gate: Gate) -> bool:
        """Whether a stream may be dispatched; on a connection without a verdict only the admission's is.

        Raises Refused.
        """
        conn = stream.swarm_conn
        passage: Passage = conn.muxed_conn.passage
        if not passage.settled.is_set() and is_inbound(conn) and not passage.claimed:
            passage.claimed = True
            try:
                with trio.fail_after(ADMISSION_LIMIT_S):
                    await self._admission_only.negotiate(MultiselectCommunicator(stream), int(OPEN_LIMIT_S))
                    await give_admission(Stream(stream), gate, peer_of(conn), passage)
            except Exception as exc:
                passage.settle(Refused(f"no admission: {exc!r}", cause="malformed"))
            return False
        # the other side may be a message ahead of us
        with trio.move_on_after(ADMISSION_LIMIT_S):
            await passage.settled.wait()
        if not passage.admitted:
            raise passage.error or Refused("it showed no certificate in time", cause="silent")
        return True

    async def _never(self, stream: INetStream) -> None:
        """The admission's streams are served in `_has_passed`."""

    async def open_on(self, conn: Any, protocol: str) -> Stream:
        """A stream of `protocol` on one given connection. Raises PeerUnreachable within `OPEN_LIMIT_S`."""
        stream: INetStream | None = None
        try:
            with trio.fail_after(OPEN_LIMIT_S):
                stream = await conn.new_stream()
                await self.multiselect_client.select_one_of(
                    [protocol], MultiselectCommunicator(stream), int(OPEN_LIMIT_S)
                )
        except Exception as exc:
            if stream is not None:
                await reset(stream)
            refused = isinstance(exc, MultiselectClientError) and "not supported" in str(exc)
            raise (NotSpoken if refused else PeerUnreachable)(f"no {protocol} stream: {exc!r}") from exc
        return Stream(stream)
