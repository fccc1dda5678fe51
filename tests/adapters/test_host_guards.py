"""Each guard against a defect of py-libp2p 0.8.1, and the defect itself.

A test named ``upstream_...`` passes as long as libp2p still has the defect. When one fails after an upgrade:
drop the guard (network/UPSTREAM.md).
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from p2p_network.core.errors import MeshError, PeerUnreachable
from p2p_network.host import connections, guards
from p2p_network.host.addresses import Endpoint
from p2p_network.host.guards import MeshBasicHost, MeshSwarm
from p2p_network.host.listener import Doorway, Listener
from p2p_network.host.private import PrivateConnection, SocketWire, Stranger, Wire
from p2p_network.host.psk import GREETING, NONCE_BYTES, KeyStream
from p2p_network.identity import Identity

# isort: split
import libp2p
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.pnet.psk_conn import PskConn
from libp2p.stream_muxer.yamux.yamux import FLAG_SYN, TYPE_PING, YAMUX_HEADER_FORMAT, Yamux
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

PSK = b"p" * 32
ECHO = "/echo/1"


class Node:
    """A listening MeshSwarm with one handler, without the mesh around it."""

    def __init__(self, n: int) -> None:
        self.identity = Identity(bytes([n]) * 32)
        self.swarm = MeshSwarm(self.identity.seed, PSK)
        self.host = MeshBasicHost(self.swarm, lambda: ())
        self.host.set_stream_handler(ECHO, self._echo)
        self.refused: list[MeshError] = []

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        self.listener = await Listener.bind(["127.0.0.1:0"])
        self.endpoint = self.listener.endpoints()[0]
        async with trio.open_nursery() as nursery:
            self.swarm.attach(nursery)
            nursery.start_soon(self.listener.serve, self._admit)
            task_status.started()
        self.listener.close()

    async def _admit(self, stream: trio.SocketStream, trusted: Callable[[], None]) -> None:
        try:
            await self.swarm.admit(SocketWire(stream), trusted)
        except MeshError as exc:
            self.refused.append(exc)

    async def _echo(self, raw: Any) -> None:
        stream = connections.Stream(raw)
        while data := await stream.read():
            if data == b"raise":
                raise RuntimeError("a handler's bug")
            await stream.write(data)

    async def echo(self, conn: Any, data: bytes) -> bytes:
        stream = await self.host.open_on(conn, ECHO)
        await stream.write(data)
        answer = await stream.read()
        await stream.reset()
        return answer


@asynccontextmanager
async def nodes(*numbers: int) -> AsyncIterator[list[Node]]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            made = [Node(n) for n in numbers]
            for node in made:
                await nursery.start(node.run)
            yield made
            nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- 1 (C): deaf after 250 inbound connections


async def test_260_connections_that_came_and_went_leave_room_for_the_next() -> None:
    async with nodes(1, 2) as (server, client):
        for _ in range(260):
            conn = await client.swarm.reach([server.endpoint], server.identity.peer_id)
            connections.abort(conn)
        conn = await client.swarm.reach([server.endpoint], None)
        assert await client.echo(conn, b"x") == b"x"
        with trio.fail_after(5):
            while len(server.swarm.get_connections()) > 1:
                await trio.sleep(0.01)


async def test_upstream_1_a_place_is_never_given_back() -> None:
    def made() -> Any:
        keys = libp2p.create_new_ed25519_key_pair()
        noise = NoiseTransport(keys, noise_privkey=libp2p.create_new_x25519_key_pair().private_key)
        return libp2p.new_host(key_pair=keys, sec_opt={NOISE_ID: noise})

    server, client = made(), made()
    with trio.fail_after(15):
        async with server.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]), client.run([]):
            limiter = server.get_network()._inbound_limiter
            await client.connect(info_from_p2p_addr(server.get_addrs()[0]))
            await client.disconnect(server.get_id())
            while server.get_network().get_connections():
                await trio.sleep(0.01)
            await trio.sleep(0.2)
            assert limiter.borrowed_tokens == 1


# ---------------------------------------------------------------- 2, 3 (A): one exception ends the process


@pytest.mark.parametrize("protocol", [ECHO, None])
async def test_a_handlers_exception_and_garbage_end_one_stream(protocol: str | None) -> None:
    async with nodes(1, 2) as (server, client):
        conn = await client.swarm.reach([server.endpoint], server.identity.peer_id)
        if protocol is None:
            raw = await conn.new_stream()
            await raw.write(b"\x13/multistream/1.0.0\n\x03\xff\xfe\n" + os.urandom(50))
            stream = connections.Stream(raw)
        else:
            stream = await client.host.open_on(conn, protocol)
            await stream.write(b"raise")
        while await stream.read():
            pass
        assert await client.echo(conn, b"still there") == b"still there"


async def test_without_the_fence_it_ends_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unfenced() -> None:
        async with nodes(1, 2) as (server, client):
            server.swarm.set_stream_handler(server.host._swarm_stream_handler)
            monkeypatch.setattr(connections.FencedTasks, "_run", lambda self, fn, args: fn(*args))
            conn = await client.swarm.reach([server.endpoint], server.identity.peer_id)
            stream = await client.host.open_on(conn, ECHO)
            await stream.write(b"raise")
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await unfenced()
    assert caught.group_contains(RuntimeError, match="a handler's bug")


async def test_too_many_streams_on_one_connection_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "MAX_STREAMS_PER_CONNECTION", 3)
    async with nodes(1, 2) as (server, client):
        conn = await client.swarm.reach([server.endpoint], server.identity.peer_id)
        kept = [await client.host.open_on(conn, ECHO) for _ in range(3)]
        with pytest.raises(PeerUnreachable):
            await client.host.open_on(conn, ECHO)
        await kept[0].write(b"x")
        assert await kept[0].read() == b"x"


# ---------------------------------------------------------------- 5: plaintext


async def test_a_member_that_offers_plaintext_is_refused() -> None:
    async with nodes(1) as (server,):
        tcp = await trio.open_tcp_stream(server.endpoint.host, server.endpoint.port)
        conn = PrivateConnection(SocketWire(tcp), True, (PSK,))
        offer = PLAINTEXT_PROTOCOL_ID.encode() + b"\n"
        await conn.write(GREETING + bytes([len(offer)]) + offer)
        answer = b""
        while b"na\n" not in answer:
            answer += await conn.read(100)
        assert answer == GREETING + b"\x03na\n"
        conn.abort()
        with trio.fail_after(5):
            while not server.refused:
                await trio.sleep(0.01)
        assert not server.swarm.get_connections()


def test_upstream_5_plaintext_is_offered_by_default() -> None:
    offered = libp2p.new_swarm().upgrader.security_multistream.transports
    assert PLAINTEXT_PROTOCOL_ID in offered


# ---------------------------------------------------------------- 16: who reads waits for who writes


@pytest.mark.parametrize(("muxer", "survives"), [(connections.MeshYamux, True), (Yamux, False)])
async def test_what_comes_is_read_although_an_answer_cannot_be_written(
    muxer: Any, survives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(1, 2) as (server, client):
        for node in (server, client):
            node.swarm.upgrader.muxer_multistream.add_transport(guards.YAMUX_ID, muxer)
        conn = await client.swarm.reach([server.endpoint], server.identity.peer_id)
        ours = server.swarm.get_connections()[0].muxed_conn
        async with ours._write_lock:  # as a writer does whose peer takes no bytes
            before = len(ours.streams)
            ping = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_PING, FLAG_SYN, 0, 1)
            await conn.muxed_conn._write_frame(ping)
            await conn.muxed_conn.open_stream()
            with trio.move_on_after(10 if survives else 1) as scope:
                while len(ours.streams) == before:
                    await trio.sleep(0.01)
        assert scope.cancelled_caught is not survives


# ---------------------------------------------------------------- 6: a cancelled write kills the connection


class Interrupting:
    """A wire that cancels the writer right after its data was encrypted."""

    def __init__(self, stream: Wire, scope: trio.CancelScope) -> None:
        self._stream = stream
        self._scope = scope
        self.abort = stream.abort

    async def send_all(self, data: bytes) -> None:
        self._scope.cancel()
        await self._stream.send_all(data)

    async def receive_some(self, n: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(n))


@pytest.mark.parametrize(("muxer", "survives"), [(connections.MeshYamux, True), (Yamux, False)])
async def test_a_cancelled_write_costs_no_more_than_its_stream(
    muxer: Any, survives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "OPEN_LIMIT_S", 1.0)
    async with nodes(1, 2) as (server, client):
        for node in (server, client):
            node.swarm.upgrader.muxer_multistream.add_transport(guards.YAMUX_ID, muxer)
        conn = await client.swarm.reach([server.endpoint], server.identity.peer_id)
        stream = await client.host.open_on(conn, ECHO)
        private, scope = conn.muxed_conn.private, trio.CancelScope()
        whole = private._wire
        with scope:
            private._wire = Interrupting(whole, scope)
            await stream.write(b"interrupted")
            await trio.lowlevel.checkpoint()
        private._wire = whole
        try:
            answer = await client.echo(conn, b"next")
        except PeerUnreachable:
            answer = b""
        assert (answer == b"next") is survives


# ---------------------------------------------------------------- 7, 8, 9, 12: dialling


async def test_all_addresses_are_tried_at_once_and_a_mute_one_holds_nobody_up() -> None:
    mute = await trio.open_tcp_listeners(0, host="127.0.0.1")
    dead = Endpoint("127.0.0.1", 1)
    silent = Endpoint("127.0.0.1", mute[0].socket.getsockname()[1])
    async with nodes(1, 2) as (server, client):
        peer = server.identity.peer_id
        conn = await client.swarm.reach([dead, silent, server.endpoint], peer)
        assert connections.remote_of(conn) == server.endpoint
    await mute[0].aclose()


async def test_a_mute_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "HANDSHAKE_LIMIT_S", 0.2)
    mute = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with nodes(1) as (client,):
        with pytest.raises(PeerUnreachable, match="TooSlow"):
            await client.swarm.reach([Endpoint("127.0.0.1", mute[0].socket.getsockname()[1])], None)
    await mute[0].aclose()


async def test_a_failure_blocks_nobody() -> None:
    async with nodes(1, 2) as (server, client):
        peer = server.identity.peer_id
        for _ in range(3):
            with pytest.raises(PeerUnreachable):
                await client.swarm.reach([Endpoint("127.0.0.1", 1)], peer)
        await client.swarm.reach([server.endpoint], peer)


async def test_somebody_else_at_a_known_address_is_refused() -> None:
    async with nodes(1, 2) as (server, client):
        with pytest.raises(PeerUnreachable):
            await client.swarm.reach([server.endpoint], Identity(b"x" * 32).peer_id)
        assert not client.swarm.get_connections()


async def test_whoever_answers_is_accepted_when_nobody_was_expected() -> None:
    async with nodes(1, 2) as (server, client):
        conn = await client.swarm.reach([server.endpoint], None)
        assert connections.peer_of(conn) == server.identity.peer_id
        assert not connections.is_inbound(conn)


async def test_the_dht_dials_through_the_same_door() -> None:
    async with nodes(1, 2) as (server, client):
        peer_id = server.swarm.self_id
        with pytest.raises(guards.SwarmException):
            await client.swarm.dial_peer(peer_id)
        address = Multiaddr(f"{server.endpoint}/p2p/{peer_id}")
        client.swarm.peerstore.add_addrs(peer_id, [address], 60)
        (conn,) = await client.swarm.dial_peer(peer_id)
        assert isinstance(conn.muxed_conn.private, PrivateConnection)
        assert await client.swarm.dial_peer(peer_id) == [conn]


# ---------------------------------------------------------------- D: the pre-shared key as specified


async def test_pnet_on_the_wire_is_that_of_the_specification() -> None:
    async with nodes(1) as (server,):
        tcp = await trio.open_tcp_stream(server.endpoint.host, server.endpoint.port)
        nonce = os.urandom(NONCE_BYTES)
        writing = KeyStream(PSK, nonce)
        await tcp.send_all(nonce[:10])  # in two pieces: a nonce need not come whole
        await tcp.send_all(nonce[10:] + writing.apply(GREETING))
        data = b""
        while len(data) < NONCE_BYTES + len(GREETING):
            data += await tcp.receive_some()
        assert KeyStream(PSK, data[:NONCE_BYTES]).apply(data[NONCE_BYTES:]) == GREETING
        await tcp.aclose()


async def test_a_stranger_gets_not_one_byte() -> None:
    async with nodes(1) as (server,):
        tcp = await trio.open_tcp_stream(server.endpoint.host, server.endpoint.port)
        nonce = os.urandom(NONCE_BYTES)
        await tcp.send_all(nonce + KeyStream(b"q" * 32, nonce).apply(GREETING))
        assert await tcp.receive_some() == b""
        assert isinstance(server.refused[0], Stranger)


async def test_a_dialler_that_waits_for_our_nonce_gets_it_and_nothing_else_before_its_greeting() -> None:
    """js-libp2p speaks only once it has the other side's nonce."""
    async with nodes(1) as (server,):
        tcp = await trio.open_tcp_stream(server.endpoint.host, server.endpoint.port)
        nonce = os.urandom(NONCE_BYTES)
        await tcp.send_all(nonce)
        theirs = await tcp.receive_some()
        assert len(theirs) == NONCE_BYTES
        await tcp.send_all(KeyStream(PSK, nonce).apply(GREETING))
        data = b""
        while len(data) < len(GREETING):
            data += await tcp.receive_some()
        assert KeyStream(PSK, theirs).apply(data) == GREETING
        await tcp.aclose()
        tcp = await trio.open_tcp_stream(server.endpoint.host, server.endpoint.port)
        await tcp.send_all(nonce)
        assert len(await tcp.receive_some()) == NONCE_BYTES
        await tcp.send_all(KeyStream(b"q" * 32, nonce).apply(GREETING))
        assert await tcp.receive_some() == b""
        assert isinstance(server.refused[-1], Stranger)


async def test_upstream_d_the_librarys_nonce_has_8_bytes() -> None:
    class Sink:
        sent = b""

        async def write(self, data: bytes) -> None:
            self.sent += data

    sink = Sink()
    await PskConn(sink, PSK.hex()).write(b"x" * 10)  # type: ignore[arg-type]
    assert len(sink.sent) == 8 + 10


# ---------------------------------------------------------------- E, F, G: ports, farewells, chatter


async def test_upstream_e_two_listeners_share_one_port() -> None:
    async def ignore(stream: Any) -> None:
        """Never called."""

    first, second = TCP().create_listener(ignore), TCP().create_listener(ignore)
    await first.listen(Multiaddr("/ip4/127.0.0.1/tcp/0"))
    await second.listen(first.get_addrs()[0])
    assert first.get_addrs() == second.get_addrs()
    await first.close()
    await second.close()


class Stuck:
    """A wire to a peer that reads nothing: a write ends only when the wire is cut."""

    def __init__(self, stream: Wire) -> None:
        self._stream = stream
        self._closed = trio.Event()
        self.entered = trio.Event()

    def abort(self) -> None:
        self._stream.abort()
        self._closed.set()

    async def send_all(self, data: bytes) -> None:
        self.entered.set()
        await self._closed.wait()
        raise trio.ClosedResourceError

    async def receive_some(self, n: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(n))


async def test_an_abort_ends_a_connection_whose_peer_reads_nothing() -> None:
    async with nodes(1, 2) as (server, client):
        conn = await client.swarm.reach([server.endpoint], server.identity.peer_id)
        private = conn.muxed_conn.private
        private._wire = stuck = Stuck(private._wire)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_expect_unreachable, client, conn)
            await stuck.entered.wait()
            connections.abort(conn)
            while client.swarm.get_connections():
                await trio.sleep(0.01)


async def test_upstream_f_a_close_waits_for_a_peer_that_reads_nothing() -> None:
    async with nodes(1, 2) as (server, client):
        for node in (server, client):
            node.swarm.upgrader.muxer_multistream.add_transport(guards.YAMUX_ID, Yamux)
        conn = await client.swarm.reach([server.endpoint], server.identity.peer_id)
        private = conn.muxed_conn.private
        private._wire = Stuck(private._wire)
        with trio.move_on_after(0.2) as limit:
            await conn.close()
        assert limit.cancelled_caught
        private.abort()


async def _expect_unreachable(client: Node, conn: Any) -> None:
    with pytest.raises(PeerUnreachable):
        await client.host.open_on(conn, ECHO)


def test_importing_the_host_installs_no_log_handler_and_loads_no_http_client() -> None:
    script = (
        "import logging, sys; import p2p_network.host.mesh, p2p_network.host.discovery;"
        "assert not logging.getLogger().handlers;"
        "assert not {'httpx', 'requests'} & set(sys.modules), 'hollow modules were left behind';"
        "import httpx; assert httpx.Client.__module__.startswith('httpx')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_machine_without_name_servers_starts() -> None:
    """Defect H: every swarm makes a resolver, which raises when /etc/resolv.conf names no server."""
    script = (
        "import dns.resolver as r\n"
        "def none(self, f): raise r.NoResolverConfiguration\n"
        "r.BaseResolver.read_resolv_conf = none\n"
        "from p2p_network.host.guards import MeshSwarm\n"
        "MeshSwarm(bytes(32), bytes(32))\n"
        "from multiaddr.resolvers import DNSResolver\n"
        "try: DNSResolver()\n"
        "except r.NoResolverConfiguration: raise SystemExit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert done.returncode == 7, "libp2p's resolvers no longer need the guard"


def test_a_key_of_a_kind_that_is_not_imported_is_refused_as_an_unknown_one() -> None:
    """In a process of its own: in this one another test may have imported all kinds."""
    script = """
import p2p_network.host.mesh
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.exceptions import MissingDeserializerError
from libp2p.crypto.keys import KeyType
from libp2p.crypto.pb import crypto_pb2
from libp2p.crypto.serialization import deserialize_public_key
for kind in (KeyType.RSA, KeyType.Secp256k1):
    words = crypto_pb2.PublicKey(key_type=kind.value, data=bytes(33)).SerializeToString()
    try:
        deserialize_public_key(words)
    except MissingDeserializerError:
        continue
    raise SystemExit(f"{kind} is taken")
ours = create_new_key_pair(bytes(32)).public_key
assert deserialize_public_key(ours.serialize()).to_bytes() == ours.to_bytes()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_library_is_silent() -> None:
    """In a process of its own: this one imports all of libp2p, which turns its logging on."""
    script = (
        "import logging; import p2p_network.host.mesh;"
        "assert not logging.getLogger('libp2p.network.swarm').isEnabledFor(logging.ERROR)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# ---------------------------------------------------------------- the doorway


async def test_a_crowd_pushes_itself_out() -> None:
    door = Doorway(limit=4)
    member = door.enter("10.0.0.9")
    crowd = [door.enter("10.0.0.1") for _ in range(10)]
    assert not member.cancel_called
    assert [scope.cancel_called for scope in crowd] == [True] * 7 + [False] * 3
    assert len(door) == 4
    door.leave(member)
    door.leave(member)
    assert len(door) == 3
