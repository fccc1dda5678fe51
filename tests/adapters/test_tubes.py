"""Tubes between two real hosts: bytes arrive whole, nobody sends beyond the credit, ends are clean."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest
import trio

from p2p_network.core.errors import MeshError, PeerUnreachable
from p2p_network.core.ids import PeerId
from p2p_network.host.mesh import MeshHost
from p2p_network.identity import Identity
from p2p_network.tubes.flow import WINDOW_BYTES, Opening
from p2p_network.tubes.tube import Ended, Tube, join


def host(n: int, **more: Any) -> MeshHost:
    made = MeshHost(
        identity=Identity(bytes([n]) * 32),
        psk=b"p" * 32,
        mesh_id="test",
        rendezvous=b"r" * 32,
        listen=["127.0.0.1:0"],
        mdns=False,
        dht=False,
        **more,
    )
    made.serve_tubes(take)
    return made


async def joined(*hosts: MeshHost) -> None:
    ids = {h.peer_id for h in hosts}
    with trio.fail_after(20):
        while not all(ids - {h.peer_id} <= h.connected() for h in hosts):
            await trio.sleep(0.01)


WEB = Opening("tcp", service="web")


async def take(tube: Tube, opening: Opening) -> None:
    """ "web": an echo; "mute": takes bytes and reads none; "hash": answers once, at the end."""
    if opening.service not in ("web", "mute", "hash"):
        await tube.refuse("no such service here")
        return
    tube.take()
    if opening.service == "mute":
        await trio.sleep_forever()
    digest = hashlib.sha256()
    while data := await tube.receive():
        digest.update(data)
        if opening.service == "web":
            await tube.send(data)
    if opening.service == "hash":
        await tube.send(digest.digest())
    await tube.end()


async def test_tubes_carry_bytes_whole_with_bounds_and_clean_ends() -> None:
    a = host(1)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(a.run)
            _, _, ip, _, port = a.addresses()[0].split("/")
            b = host(2, bootstrap=[f"{ip}:{port}"])
            await nursery.start(b.run)
            await check(a, b, nursery)
            nursery.cancel_scope.cancel()


async def check(a: MeshHost, b: MeshHost, nursery: trio.Nursery) -> None:
    await joined(a, b)

    # many at once, each whole, in both directions
    async def exchange(size_bytes: int) -> None:
        tube = await b.open_tube(a.peer_id, WEB)
        sent = os.urandom(size_bytes)
        got = bytearray()

        async def back() -> None:
            while data := await tube.receive():
                got.extend(data)

        async with trio.open_nursery() as both:
            both.start_soon(back)
            await tube.send(sent)
            await tube.end()
        assert bytes(got) == sent
        await tube.closed.wait()
        assert tube.reason == "both sides ended it"

    async with trio.open_nursery() as all_at_once:
        for size_bytes in (0, 1, 70_000, 3 * WINDOW_BYTES, 3 * WINDOW_BYTES):
            all_at_once.start_soon(exchange, size_bytes)

    # half-closed: what is said after our end still arrives
    tube = await a.open_tube(b.peer_id, Opening("tcp", service="hash"))
    await tube.send(b"x" * 100_000)
    await tube.end()
    assert await tube.receive() == hashlib.sha256(b"x" * 100_000).digest()
    assert await tube.receive() == b""

    # a program that does not read stops its sender at the window, and nobody else
    stuck = await b.open_tube(a.peer_id, Opening("tcp", service="mute"))
    with trio.move_on_after(0.5) as scope:
        await stuck.send(bytes(4 * WINDOW_BYTES))
    assert scope.cancelled_caught
    assert stuck.tx_bytes <= WINDOW_BYTES
    assert not stuck.send_datagram(bytes(60_000))
    await exchange(100_000)
    stuck.abort("enough")
    with pytest.raises(Ended, match="enough"):
        await stuck.receive()

    with pytest.raises(MeshError, match="no such service here"):
        await b.open_tube(a.peer_id, Opening("tcp", service="other"))
    with pytest.raises(PeerUnreachable):
        await b.open_tube(PeerId("nobody"), WEB)

    # a peer that sends beyond its credit loses the tube, and only that
    cheat = await b.open_tube(a.peer_id, Opening("tcp", service="mute"))
    cheat._ledger.credit = 1 << 30
    with pytest.raises(Ended):
        await cheat.send(bytes(64 * WINDOW_BYTES))
    assert a.violations == 1
    assert a.connected() == {b.peer_id}

    # a TCP connection through one: and a program that goes away ends the other side's
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    tube = await b.open_tube(a.peer_id, WEB)
    near = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
    far = await listener.accept()
    nursery.start_soon(join, far, tube)
    await near.send_all(b"hello")
    assert await near.receive_some(100) == b"hello"
    await near.send_eof()
    assert await near.receive_some(100) == b""
    await tube.closed.wait()
    await listener.aclose()
