"""Do nodes that know nothing but a rendezvous server find each other, and what does the server learn?"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from p2p_bootstrap.cli.main import main
from p2p_network.core.errors import MeshError, PeerUnreachable
from p2p_network.core.ids import public_key_of
from p2p_network.host import finding
from p2p_network.host import rendezvous as rendezvous_host
from p2p_network.host.addresses import parse_endpoint
from p2p_network.host.connections import NotSpoken
from p2p_network.host.guards import MeshBasicHost, MeshSwarm
from p2p_network.host.mesh import MeshHost
from p2p_network.host.rendezvous import RendezvousNotes, RendezvousServer
from p2p_network.identity import Identity
from p2p_network.meeting import notes, protobuf, rendezvous
from p2p_network.meeting.pace import Outcome, Pauses
from p2p_network.token import NetworkToken, format_token, mesh_keys

TOKEN = NetworkToken(bytes(range(32)))
KEYS = mesh_keys(TOKEN)
PSK = notes.meeting_psk(KEYS.rendezvous)
HURRIED = Pauses(first_s=0.0, alone_s=0.5, alone_cap_s=1.0, calm_s=3600.0, after_write_s=3600.0)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "SERVER_PAUSES", HURRIED)


def host(number: int, *servers: str) -> MeshHost:
    return MeshHost(
        identity=Identity(bytes([number]) * 32),
        psk=KEYS.psk,
        mesh_id=KEYS.mesh_id,
        rendezvous=KEYS.rendezvous,
        listen=["127.0.0.1:0"],
        mdns=False,
        dht=False,
        rendezvous_servers=servers,
    )


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not condition():
            await trio.sleep(0.05)


@asynccontextmanager
async def serving(listen: str = "127.0.0.1:0") -> AsyncIterator[RendezvousServer]:
    async with trio.open_nursery() as nursery:
        server = RendezvousServer(PSK, [listen])
        await nursery.start(server.run)
        yield server
        nursery.cancel_scope.cancel()


def visitor(number: int, server: str, found: set[str]) -> RendezvousNotes:
    return RendezvousNotes(
        Identity(bytes([number]) * 32).peer_id,
        KEYS.rendezvous,
        [server],
        addresses=lambda: [f"/ip4/192.0.2.{number}/tcp/4701"],
        learn=lambda peer, addresses, source: found.add(addresses[0]),
    )


@contextmanager
def program(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """What a user runs: the key from the token, and the server with the key."""
    verb = [sys.executable, "-m", "p2p_bootstrap.cli.main", "rendezvous"]
    made = subprocess.run([*verb, "key"], input=format_token(TOKEN).encode(), capture_output=True, check=True)
    (folder / "key").write_bytes(made.stdout)
    argv = [*verb, "serve", "--key-file", str(folder / "key"), "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_two_nodes_that_know_only_a_server_find_each_other(tmp_path: Path) -> None:
    """The server is a program of its own that comes later than the nodes, and knows only its key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one, two = host(1, f"127.0.0.1:{port}"), host(2, f"/ip4/127.0.0.1/tcp/{port}")
    async with trio.open_nursery() as nursery:
        await nursery.start(one.run)
        await nursery.start(two.run)
        with program(tmp_path, port) as process:
            await until(lambda: two.peer_id in one.connected() and one.peer_id in two.connected())
            process.send_signal(signal.SIGTERM)
            assert await trio.to_thread.run_sync(lambda: process.wait(30)) == 0
        nursery.cancel_scope.cancel()


async def test_the_server_learns_nothing_and_members_all() -> None:
    found: dict[int, set[str]] = {1: set(), 2: set(), 3: set()}
    async with serving() as server:
        for number in (1, 2, 3):
            guest = visitor(number, server.addresses()[0], found[number])
            assert await guest.look_once() is Outcome.WROTE
            assert guest._own_addresses()[0] == "/ip4/127.0.0.1/tcp/4701", "the server tells where it is seen"
        assert found == {
            1: set(),
            2: {"/ip4/192.0.2.1/tcp/4701"},
            3: {f"/ip4/192.0.2.{n}/tcp/4701" for n in (1, 2)},
        }
        (space,) = server.registry._kept.values()
        assert len(space) == 3
        members = [Identity(bytes([number]) * 32).peer_id for number in (1, 2, 3)]
        assert not set(space) & set(members), "they come with throw-away keys"
        for kept in space.values():
            assert len(kept.record) == notes.SINGLE_BYTES
            assert not [m for m in members if public_key_of(m) in kept.record]


@pytest.mark.parametrize("days", [-1, 1])
async def test_a_clock_that_is_a_day_wrong_is_found(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    found: set[str] = set()
    async with serving() as server:
        with monkeypatch.context() as patch:
            wrong = time.time() + days * notes.DAY_S
            patch.setattr(rendezvous_host, "time", SimpleNamespace(time=lambda: wrong))
            assert await visitor(1, server.addresses()[0], set()).look_once() is Outcome.WROTE
        assert await visitor(2, server.addresses()[0], found).look_once() is Outcome.WROTE
    assert found == {"/ip4/192.0.2.1/tcp/4701"}


async def test_without_the_servers_key_nobody_gets_in_not_even_with_the_meshs() -> None:
    async with serving() as server, trio.open_nursery() as nursery:
        endpoint, _ = parse_endpoint(server.addresses()[0])
        for psk in (KEYS.psk, b"q" * 32):
            swarm = MeshSwarm(os.urandom(32), psk)
            swarm.attach(nursery)
            with pytest.raises(PeerUnreachable):
                await swarm.reach([endpoint], None)
        mesh = host(4)
        await nursery.start(mesh.run)
        swarm = MeshSwarm(os.urandom(32), PSK)
        swarm.attach(nursery)
        with pytest.raises(PeerUnreachable):
            await swarm.reach([parse_endpoint(mesh.addresses()[0])[0]], None)
        swarm.abort_all()
        nursery.cancel_scope.cancel()


async def test_it_serves_nothing_else_and_goes_on_after_garbage() -> None:
    found: set[str] = set()
    async with serving() as server, trio.open_nursery() as nursery:
        swarm = MeshSwarm(os.urandom(32), PSK)
        swarm.attach(nursery)
        stranger = MeshBasicHost(swarm, lambda: ())
        conn = await swarm.reach([parse_endpoint(server.addresses()[0])[0]], None)
        for protocol in (f"/kairos-p2p/{KEYS.mesh_id}/1", "/kairos-p2p/admission/1", "/ipfs/kad/1.0.0"):
            with pytest.raises(NotSpoken):
                await stranger.open_on(conn, protocol)
        bad = [b"\xff" * 64, protobuf.varint(1 << 40), protobuf.framed(b"\x08\x09"), protobuf.framed(b"\xff")]
        bad.append(protobuf.framed(rendezvous.encode(rendezvous.Registered(0))))
        for raw in bad:
            stream = await stranger.open_on(conn, rendezvous.PROTOCOL)
            await stream.write(raw)
            with trio.fail_after(20):
                assert await stream.read() == b"", "it ends the stream"
        assert await visitor(1, server.addresses()[0], found).look_once() is Outcome.WROTE
        swarm.abort_all()
        nursery.cancel_scope.cancel()


async def test_a_server_that_is_away_costs_a_word_and_a_wrong_address_is_refused() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
    assert await visitor(1, nobody, set()).look_once() is Outcome.FAILED
    with pytest.raises(MeshError, match=r"rendezvous server: .* has no port"):
        visitor(1, "nowhere", set())


def test_a_key_is_told_apart_from_other_words(tmp_path: Path) -> None:
    assert rendezvous.parse_key(rendezvous.format_key(PSK) + "\n") == PSK
    (tmp_path / "key").write_text(format_token(TOKEN))
    assert main(["rendezvous", "serve", "--key-file", str(tmp_path / "key")]) == 2
    for wrong in ("", "kp2pr1_", "kp2pr1_AAAA", rendezvous.format_key(PSK)[:-2] + "AA", "kp2pr1_é"):
        with pytest.raises(ValueError, match="no key of a rendezvous server"):
            rendezvous.parse_key(wrong)
