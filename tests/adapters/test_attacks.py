"""Whatever a member with a good key sends, on whatever protocol: do all others go on talking?"""

from __future__ import annotations

import gc
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.kad_dht.pb import kademlia_pb2
from multiaddr import Multiaddr

from p2p_network.core.errors import MeshError
from p2p_network.core.ids import PeerId
from p2p_network.host import dialer
from p2p_network.host.connections import Stream
from p2p_network.host.mesh import MeshHost
from p2p_network.identity import Identity
from p2p_network.tubes.flow import Opening
from p2p_network.tubes.tube import Tube

KAD = "/ipfs/kad/1.0.0"


def host(n: int, *, dht: bool = True) -> MeshHost:
    made = MeshHost(
        identity=Identity(n.to_bytes(32, "big")),
        psk=b"p" * 32,
        mesh_id="test",
        rendezvous=b"r" * 32,
        listen=["127.0.0.1:0"],
        mdns=False,
        dht=dht,
    )
    made.serve("echo", echo)
    made.serve_tubes(refuse)
    return made


async def echo(peer: PeerId, payload: bytes) -> bytes:
    return payload


async def refuse(tube: Tube, opening: Opening) -> None:
    await tube.refuse("no")


@asynccontextmanager
async def running(*hosts: MeshHost) -> AsyncIterator[trio.Nursery]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for one in hosts:
                await nursery.start(one.run)
            yield nursery
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


async def meet(one: MeshHost, other: MeshHost) -> None:
    one.learn(other.peer_id, other.addresses(), "ledger")
    await until(lambda: other.peer_id in one.connected() and one.peer_id in other.connected())


ATTACKS = {
    "garbage": os.urandom(200),
    "an oversized frame": b"\xff\xff\xff\xff" + bytes(4000),
    "a frame without end": b"\x7f\xff\xff" + bytes(100),
    "an oversized varint": b"\xff" * 9 + b"\x7f",
    "nothing in it": bytes(8),
    "a truncated frame": (300).to_bytes(4, "big") + b"abc",
    "msgpack nonsense": (5).to_bytes(4, "big") + b"\x95\x01\xc0\xc0\xc0",
}


async def test_garbage_on_every_protocol_costs_the_sender_its_streams_and_nobody_else_anything() -> None:
    victim, friend = host(1), host(2)
    async with running(victim, friend) as nursery:
        await meet(friend, victim)
        protocols = sorted(map(str, victim._host.get_mux().get_protocols()))
        assert {KAD, "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"} < set(protocols)
        assert len([p for p in protocols if p.startswith("/kairos-p2p/test/")]) == 4
        slow: list[Stream] = []
        for number, protocol in enumerate(protocols):
            attacker = host(10 + number, dht=False)
            await nursery.start(attacker.run)
            await meet(attacker, victim)
            link = attacker._links[victim.peer_id]
            assert link.current is not None
            conn = link.current
            async with trio.open_nursery() as senders:
                for data in ATTACKS.values():
                    senders.start_soon(_attack, attacker, conn, protocol, data)
            try:  # and one that says a byte and then nothing
                stream = await attacker._host.open_on(conn, protocol)
                await stream.write(b"\x00")
                slow.append(stream)
            except (MeshError, trio.BrokenResourceError):
                pass  # it has lost its connection already
            assert await friend.request(victim.peer_id, "echo", b"still there?") == b"still there?"
        assert friend.peer_id in victim.connected()
        late = host(9)
        await nursery.start(late.run)
        await meet(late, victim)
        assert await late.request(victim.peer_id, "echo", b"hello") == b"hello"


async def _attack(attacker: MeshHost, conn: Any, protocol: str, data: bytes) -> None:
    try:
        stream = await attacker._host.open_on(conn, protocol)
        await stream.write(data)
        with trio.move_on_after(0.3):
            await stream.read()
        await stream.reset()
    except (MeshError, trio.BrokenResourceError):
        pass


def _crowd(of: PeerId) -> bytes:
    """An answer that names five hundred providers, and wrong addresses for one that exists."""
    message = kademlia_pb2.Message()
    message.type = kademlia_pb2.Message.GET_PROVIDERS
    for number in range(500):
        provider = message.providerPeers.add()
        provider.id = os.urandom(38)
        provider.addrs.append(Multiaddr(f"/ip4/127.0.0.{number % 200 + 20}/tcp/9").to_bytes())
        wrong = message.providerPeers.add()
        wrong.id = _raw(of)
        wrong.addrs.append(Multiaddr(f"/ip4/127.0.0.1/tcp/{number + 2}").to_bytes())
    raw = bytes(message.SerializeToString())
    return _varint(len(raw)) + raw


def _raw(peer: PeerId) -> bytes:
    from libp2p.peer.id import ID

    return bytes(ID.from_base58(peer).to_bytes())


def _varint(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


@pytest.mark.parametrize("answer", ["crowd", "garbage", "endless", "silence"])
async def test_a_hostile_dht_node_leads_nobody_astray(answer: str) -> None:
    victim, friend, evil = host(1), host(2), host(3)
    asked = trio.Event()

    async def lie(stream: Any) -> None:
        asked.set()
        words = {"crowd": _crowd(friend.peer_id), "garbage": os.urandom(500), "endless": b"\xff" * 5000}
        if answer == "silence":
            await trio.sleep_forever()
        await stream.write(words[answer])

    async with running(victim, friend, evil):
        evil._host.set_stream_handler(KAD, lie)
        await meet(victim, evil)
        await meet(friend, victim)
        await asked.wait()
        if answer == "crowd":
            await until(lambda: len(victim.known()[friend.peer_id]) > 1)
            assert len(victim.known()) <= dialer.MAX_PEERS
        assert set(friend.addresses()) <= set(victim.known()[friend.peer_id])  # not crowded out
        assert await victim.request(friend.peer_id, "echo", b"hello") == b"hello"
        assert evil.peer_id in victim.connected()


@pytest.fixture
def without_logs() -> Iterator[None]:
    """Nothing is logged: pytest would keep it."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("without_logs")
async def test_members_that_come_and_go_leave_nothing_behind() -> None:
    """The short form of ``tests/bench/bench_mesh.py churn``: objects are counted instead of bytes."""
    visited = host(1)
    counts: list[Counter[str]] = []

    async def forget_events() -> None:
        async for _ in visited.events:
            pass

    async with running(visited) as nursery:
        nursery.start_soon(forget_events)
        for number in range(121):
            if number % 40 == 0:
                await until(lambda: not visited.connected() and not visited._links)
                gc.collect()
                counts.append(Counter(type(thing).__name__ for thing in gc.get_objects()))
            visitor = host(100 + number % 2)  # so few that the tables of addresses are full soon
            async with running(visitor):
                await meet(visitor, visited)
                assert await visitor.request(visited.peer_id, "echo", b"hello") == b"hello"
    # trio keeps up to a thousand deadlines that are over, each a scope in a tuple: not ours, and bounded
    growth = {
        kind: n / 80 for kind, n in (counts[3] - counts[1]).items() if kind not in ("CancelScope", "tuple")
    }
    # one connection that stays behind is some hundreds of objects; one that is still being closed, a dozen
    assert sum(growth.values()) < 50, growth
