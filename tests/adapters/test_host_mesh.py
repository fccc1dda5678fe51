"""Real MeshHosts over loopback TCP: they find, greet, ask, lose and find each other again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from p2p_network.core.errors import LocalViolation, MeshError, PeerUnreachable, RemoteViolation
from p2p_network.core.ids import PeerId
from p2p_network.host import guards, links
from p2p_network.host import mesh as mesh_module
from p2p_network.host.addresses import parse_endpoint
from p2p_network.host.frames import MAX_PAYLOAD_BYTES
from p2p_network.host.guards import SelfReached
from p2p_network.host.mesh import MeshHost, PeerDown, PeerUp
from p2p_network.identity import Identity

PSK, OTHER_PSK = b"p" * 32, b"q" * 32


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed after 1.5 s instead of 5."""
    monkeypatch.setattr(mesh_module, "HEARTBEAT_S", 0.3)
    monkeypatch.setattr(links, "SILENCE_S", 1.5)
    monkeypatch.setattr(links, "FRESH_S", 0.25)


def identity(n: int) -> Identity:
    return Identity(bytes([n]) * 32)


def host(n: int, *, mdns: bool = False, dht: bool = False, **more: Any) -> MeshHost:
    settings: dict[str, Any] = {
        "psk": PSK,
        "mesh_id": "test",
        "rendezvous": b"r" * 32,
        "listen": ["127.0.0.1:0"],
        **more,
    }
    made = MeshHost(identity=identity(n), mdns=mdns, dht=dht, **settings)
    made.serve("echo", echo)
    return made


async def echo(peer: PeerId, payload: bytes) -> bytes:
    return payload


def where(h: MeshHost) -> str:
    _, _, ip, _, port = h.addresses()[0].split("/")
    return f"{ip}:{port}"


@asynccontextmanager
async def running(*hosts: MeshHost) -> AsyncIterator[trio.Nursery]:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for h in hosts:
                await nursery.start(h.run)
            yield nursery
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object], *, limit_s: float = 10) -> None:
    with trio.fail_after(limit_s):
        while not condition():
            await trio.sleep(0.01)


async def joined(*hosts: MeshHost) -> None:
    """Wait until each of these hosts has a channel to each other."""
    ids = {h.peer_id for h in hosts}
    await until(lambda: all(ids - {h.peer_id} <= h.connected() for h in hosts))


async def next_event(h: MeshHost, kind: type[Any]) -> Any:
    with trio.fail_after(15):
        while not isinstance(event := await h.events.receive(), kind):
            pass
    return event


# ---------------------------------------------------------------------- talking


async def test_a_bootstrap_address_without_id_is_enough_and_requests_go_both_ways() -> None:
    a = host(1)
    async with running(a) as nursery:
        b = host(2, bootstrap=[where(a)])
        await nursery.start(b.run)
        up_a, up_b = await next_event(a, PeerUp), await next_event(b, PeerUp)
        assert (up_a.peer, up_a.inbound) == (b.peer_id, True)
        assert (up_b.peer, up_b.inbound, up_b.address) == (a.peer_id, False, a.addresses()[0])
        assert await a.request(b.peer_id, "echo", b"from a") == b"from a"
        assert await b.request(a.peer_id, "echo", b"from b") == b"from b"
        # each learned from the other's hello where it can be dialled
        assert a.known() == {b.peer_id: b.addresses()}
        assert b.known() == {a.peer_id: a.addresses()}
        await until(lambda: a.round_trip_s(b.peer_id) is not None)
        assert a.round_trip_s(PeerId("nobody")) is None
        assert b.address_of(a.peer_id) == a.addresses()[0]
        assert b.address_of(PeerId("nobody")) == ""


@pytest.mark.parametrize("form", ["/ip4/127.0.0.1/tcp/{port}/p2p/{peer}", "localhost:{port}"])
async def test_other_forms_of_bootstrap_addresses(form: str) -> None:
    a = host(1)
    async with running(a) as nursery:
        b = host(2, bootstrap=[form.format(port=where(a).split(":")[1], peer=a.peer_id)])
        await nursery.start(b.run)
        await joined(a, b)


async def test_ipv6() -> None:
    try:
        a = host(1, listen=["[::1]:0"])
        async with running(a) as nursery:
            b = host(2, bootstrap=[a.addresses()[0]], listen=["[::1]:0", "127.0.0.1:0"])
            await nursery.start(b.run)
            await joined(a, b)
            up = await next_event(a, PeerUp)
            assert up.address.startswith("/ip6/::1/tcp/")
            assert len(b.addresses()) == 2
    except MeshError as exc:
        pytest.skip(f"no IPv6 loopback: {exc}")


async def test_many_requests_at_once_and_errors() -> None:
    async def broken(peer: PeerId, payload: bytes) -> bytes:
        raise ValueError("no")

    async def mute(peer: PeerId, payload: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    a, b = host(1), host(2)
    b.serve("broken", broken)
    b.serve("mute", mute)
    async with running(a, b):
        a.learn(b.peer_id, b.addresses(), "test")
        await joined(a, b)
        answers: list[bytes] = []

        async def ask(n: int) -> None:
            answers.append(await a.request(b.peer_id, "echo", os.urandom(2000) + bytes([n])))

        async with trio.open_nursery() as nursery:
            for n in range(200):
                nursery.start_soon(ask, n)
        assert sorted(answer[-1] for answer in answers) == list(range(200))
        with pytest.raises(RemoteViolation, match="ValueError"):
            await a.request(b.peer_id, "broken", b"")
        with pytest.raises(PeerUnreachable, match=r"within 0\.05 s"):
            await a.request(b.peer_id, "mute", b"", timeout_s=0.05)
        with pytest.raises(LocalViolation, match="in pieces"):
            await a.request(b.peer_id, "echo", bytes(MAX_PAYLOAD_BYTES + 1))
        with pytest.raises(LocalViolation):
            a.notify(b.peer_id, "echo", bytes(MAX_PAYLOAD_BYTES + 1))
        big = os.urandom(MAX_PAYLOAD_BYTES)
        assert await a.request(b.peer_id, "echo", big) == big


async def test_nobody_there() -> None:
    a = host(1)
    async with running(a):
        with pytest.raises(PeerUnreachable, match="no connection"):
            await a.request(identity(2).peer_id, "echo", b"")
        assert not a.notify(identity(2).peer_id, "echo", b"")


async def test_notifications() -> None:
    got: list[tuple[PeerId, bytes]] = []

    async def hint(peer: PeerId, payload: bytes) -> bytes:
        got.append((peer, payload))
        return b""

    a, b = host(1), host(2)
    b.serve("hint", hint)
    async with running(a, b):
        a.learn(b.peer_id, b.addresses(), "test")
        await joined(a, b)
        assert a.notify(b.peer_id, "hint", b"x")
        await until(lambda: got == [(a.peer_id, b"x")])


async def test_two_nodes_dialling_at_once_end_with_one_connection_and_channels_both_ways(
    impatient: None,
) -> None:
    for n in range(3):
        a, b = host(2 * n + 1), host(2 * n + 2)
        async with running(a, b):
            a.learn(b.peer_id, b.addresses(), "test")
            b.learn(a.peer_id, a.addresses(), "test")
            await joined(a, b)
            for _ in range(20):
                assert await a.request(b.peer_id, "echo", b"1") == b"1"
                assert await b.request(a.peer_id, "echo", b"2") == b"2"
            if n == 0:
                # the second connection falls silent and goes; the peer never counted as lost
                await until(partial(_one_connection, a, b))
                assert await a.request(b.peer_id, "echo", b"1") == b"1"
                assert not [e for e in _seen(a) + _seen(b) if isinstance(e, PeerDown)]


def _one_connection(a: MeshHost, b: MeshHost) -> bool:
    return _connections(a, b) == 1 == _connections(b, a)


def _connections(h: MeshHost, peer: MeshHost) -> int:
    link = h._links.get(peer.peer_id)
    return len(link.connections) if link is not None else 0


def _seen(h: MeshHost) -> list[object]:
    events: list[object] = []
    while True:
        try:
            events.append(h.events.receive_nowait())
        except trio.WouldBlock:
            return events


async def test_a_node_never_connects_to_itself() -> None:
    a = host(1)
    async with running(a) as nursery:
        b = host(2, bootstrap=[where(a)])
        await nursery.start(b.run)
        await joined(a, b)
        endpoint = parse_endpoint(b.addresses()[0])[0]
        with pytest.raises(SelfReached):
            await b._swarm.reach([endpoint], None)
        b.learn(b.peer_id, b.addresses(), "test")
        assert b.connected() == {a.peer_id}
        assert b.peer_id not in b.known()


# ---------------------------------------------------------------------- strangers


async def test_a_stranger_with_another_key_gets_in_nowhere() -> None:
    a = host(1)
    async with running(a) as nursery:
        stranger = host(2, psk=OTHER_PSK, bootstrap=[where(a)])
        await nursery.start(stranger.run)
        await until(lambda: a.rejected >= 2)
        assert a.connected() == stranger.connected() == frozenset()


async def test_garbage_on_the_port_is_closed_without_a_word_and_does_no_harm() -> None:
    a, b = host(1), host(2)
    async with running(a, b):
        port = int(where(a).split(":")[1])
        for garbage in (b"GET / HTTP/1.1\r\n\r\n" * 10, os.urandom(4096), bytes(100)):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(garbage)
            assert await _everything(stream) == b""
        await until(lambda: a.rejected == 3)
        a.learn(b.peer_id, b.addresses(), "test")
        await joined(a, b)


async def test_three_hundred_silent_strangers_do_not_keep_a_member_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guards, "HANDSHAKE_LIMIT_S", 1.0)
    a = host(1)
    async with running(a) as nursery:
        port = int(where(a).split(":")[1])
        strangers = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(300)]
        b = host(2, bootstrap=[where(a)])
        await nursery.start(b.run)
        await joined(a, b)
        # those that did not fit at the door were shown out, the rest time out
        await until(lambda: a.rejected == 300)
        assert await b.request(a.peer_id, "echo", b"x") == b"x"
        for stream in strangers:
            await stream.aclose()


async def _everything(stream: trio.SocketStream) -> bytes:
    data = b""
    with trio.fail_after(5):
        try:
            while more := await stream.receive_some():
                data += more
        except trio.BrokenResourceError:
            pass
    await stream.aclose()
    return data


async def test_a_malicious_member_loses_its_channel_and_nothing_else() -> None:
    a, b = host(1), host(2)
    async with running(a, b):
        a.learn(b.peer_id, b.addresses(), "test")
        await joined(a, b)
        link = b._links[a.peer_id]
        evil = await b._host.open_on(link.connections[0].conn, b._protocol)
        await evil.write(b"\xff" * 5000)
        await until(lambda: a.violations == 1)
        # the honest part of it comes back
        await next_event(a, PeerDown)
        await joined(a, b)
        assert await a.request(b.peer_id, "echo", b"x") == b"x"


# ---------------------------------------------------------------------- listening


async def test_a_taken_port_is_an_error_with_a_hint() -> None:
    a = host(1)
    async with running(a):
        b = host(2, listen=[where(a)])
        with pytest.raises(MeshError, match="another program uses TCP port") as caught:
            await b.run()
        assert "ss -ltnp" in caught.value.hint


@pytest.mark.parametrize("listen", [["203.0.113.7:0"], ["nonsense"], ["127.0.0.1:99999"], []])
async def test_addresses_that_cannot_be_listened_on(listen: Sequence[str]) -> None:
    with pytest.raises(MeshError):
        await host(1, listen=listen).run()


def test_a_malformed_bootstrap_address_is_an_error_with_a_hint() -> None:
    with pytest.raises(MeshError, match="no port") as caught:
        host(1, bootstrap=["10.0.0.1"])
    assert "HOST:PORT" in caught.value.hint


async def test_a_wildcard_listener_has_concrete_addresses() -> None:
    a = host(1, listen=["0.0.0.0:0"])
    async with running(a):
        assert a.addresses()
        assert not any("0.0.0.0" in address for address in a.addresses())


# ---------------------------------------------------------------------- discovery


async def test_the_dht_introduces_two_nodes_that_know_only_a_third() -> None:
    a = host(1, dht=True)
    async with running(a) as nursery:
        b, c = (host(n, dht=True, bootstrap=[where(a)]) for n in (2, 3))
        await nursery.start(b.run)
        await joined(a, b)
        await nursery.start(c.run)
        await joined(a, b, c)
        assert await c.request(b.peer_id, "echo", b"x") == b"x"


async def test_mdns_introduces_two_nodes_that_know_nobody() -> None:
    try:
        a, b = host(1, mdns=True), host(2, mdns=True)
        stranger = host(3, mdns=True, psk=OTHER_PSK, rendezvous=b"s" * 32)
        async with running(a, b, stranger):
            await joined(a, b)
            assert stranger.known() == {}
    except trio.TooSlowError:
        pytest.skip("no multicast on the loopback interface of this machine")


# ---------------------------------------------------------------------- loss and return


async def test_remembered_peers_are_dialled() -> None:
    a = host(1)
    async with running(a) as nursery:
        b = host(2, remembered={a.peer_id: a.addresses()})
        await nursery.start(b.run)
        await joined(a, b)


async def test_a_peer_that_restarts_at_the_same_address_is_found_again() -> None:
    a = host(1)
    async with running(a) as nursery:
        async with trio.open_nursery() as inner:
            b = host(2)
            await inner.start(b.run)
            port = where(b)
            b.learn(a.peer_id, a.addresses(), "test")
            await joined(a, b)
            inner.cancel_scope.cancel()
        down = await next_event(a, PeerDown)
        assert down.peer == b.peer_id
        again = host(2, listen=[port])
        await nursery.start(again.run)
        await joined(a, again)


CHILD = """
import sys, trio
from p2p_network.host.mesh import MeshHost
from p2p_network.identity import Identity

async def main():
    host = MeshHost(identity=Identity(b"\\x02" * 32), psk=b"p" * 32, mesh_id="test", rendezvous=b"r" * 32,
                    listen=["127.0.0.1:0"], bootstrap=[sys.argv[1]], mdns=False, dht=False)
    await host.run()

trio.run(main)
"""


async def test_kill_9_is_noticed_at_once_and_a_stopped_process_by_its_silence(impatient: None) -> None:
    a = host(1)
    async with running(a):
        with subprocess.Popen([sys.executable, "-c", CHILD, where(a)]) as child:
            try:
                assert (await next_event(a, PeerUp)).peer == identity(2).peer_id
                # a stopped process neither answers nor closes: the same as packets that vanish
                child.send_signal(signal.SIGSTOP)
                down = await next_event(a, PeerDown)
                assert "silent" in down.reason
                child.send_signal(signal.SIGCONT)
                await next_event(a, PeerUp)
                child.kill()
                assert "silent" not in (await next_event(a, PeerDown)).reason
            finally:
                child.kill()


async def test_it_stops_although_a_peer_takes_no_bytes() -> None:
    a, b = host(1), host(2)
    async with running(b):
        async with running(a):
            a.learn(b.peer_id, b.addresses(), "test")
            await joined(a, b)
            # nothing reads b's socket any more; a's writes fill the buffers and hang
            private = b._links[a.peer_id].connections[0].conn.muxed_conn.private
            private._wire.receive_some = lambda n=None: trio.sleep_forever()
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(_ignore_unreachable, a, b.peer_id)
        assert not a.addresses() or a.connected() == frozenset()


async def _ignore_unreachable(h: MeshHost, peer: PeerId) -> None:
    with pytest.raises(PeerUnreachable):
        await h.request(peer, "echo", bytes(MAX_PAYLOAD_BYTES), timeout_s=0.5)


class Wire:
    """A TCP relay that can be cut without either end noticing: nothing passes, nothing is closed."""

    def __init__(self, target: str) -> None:
        ip, port = target.split(":")
        self._target = (ip, int(port))
        self._whole = trio.Event()
        self._whole.set()
        self.address = ""

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, self._serve, 0)
            self.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            task_status.started()

    def cut(self) -> None:
        self._whole = trio.Event()

    def mend(self) -> None:
        self._whole.set()

    async def _serve(self, near: trio.SocketStream) -> None:
        await self._whole.wait()
        async with await trio.open_tcp_stream(*self._target) as far, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, near, far, nursery)
            nursery.start_soon(self._pump, far, near, nursery)

    async def _pump(self, source: Any, target: Any, nursery: trio.Nursery) -> None:
        try:
            while data := await source.receive_some():
                await self._whole.wait()
                await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await self._whole.wait()
        nursery.cancel_scope.cancel()


async def test_both_ends_notice_a_cut_wire_and_meet_again_when_it_is_mended(
    monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    monkeypatch.setattr(MeshHost, "addresses", lambda self: ())  # only the wire leads from one to the other
    a, b = host(1), host(2)
    async with running(a, b) as nursery:
        assert a._listener is not None
        wire = Wire(f"127.0.0.1:{a._listener.endpoints()[0].port}")
        await nursery.start(wire.run)
        b.learn(a.peer_id, [f"/ip4/127.0.0.1/tcp/{wire.address.split(':')[1]}"], "test")
        await joined(a, b)
        wire.cut()
        assert not (await a_and_b_down(a, b))
        wire.mend()
        await joined(a, b)
        assert await a.request(b.peer_id, "echo", b"x") == b"x"


async def a_and_b_down(a: MeshHost, b: MeshHost) -> frozenset[PeerId]:
    for h in (a, b):
        assert "silent" in (await next_event(h, PeerDown)).reason
    return a.connected() | b.connected()
