"""The name server on real sockets, and the machine's resolv.conf: changed, heard, put back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import trio

from p2p_bootstrap.node import resolving as resolving_module
from p2p_bootstrap.node.resolving import RESOLV_CONF, Resolving
from p2p_network.core.errors import MeshError
from p2p_network.core.ids import PeerId
from p2p_network.ledger.durable import DurableFiles
from p2p_network.names.answering import Answering
from p2p_network.names.server import NameServer
from p2p_network.names.zone import Host, zone_of

OWN = "127.0.0.1"
HOSTS = [
    Host(PeerId(f"peer{n:08d}"), f"n{n}", "east", f"10.144.0.{n}", "", n, alive=True, role="agent")
    for n in range(1, 100)
]


def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind((OWN, 0))
        return int(sock.getsockname()[1])


@asynccontextmanager
async def serving(upstream: tuple[str, ...] = (), *, is_local: bool = True) -> AsyncIterator[int]:
    answering = Answering((IPv4Network("10.144.0.0/16"),))
    answering.zone = zone_of("kairos", HOSTS, ())
    port = free_port()
    server = NameServer(answering, (OWN,), upstream=lambda: upstream, is_local=lambda _: is_local, port=port)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield port
        nursery.cancel_scope.cancel()


async def ask_udp(port: int, name: str, kind: str = "A") -> dns.message.Message:
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock, trio.fail_after(10):
        await sock.connect((OWN, port))
        await sock.send(dns.message.make_query(name, kind).to_wire())
        return dns.message.from_wire(await sock.recv(4096))


async def ask_tcp(stream: trio.SocketStream, name: str) -> dns.message.Message:
    raw = dns.message.make_query(name, "A").to_wire()
    await stream.send_all(len(raw).to_bytes(2, "big") + raw)
    got = b""
    while len(got) < 2 or len(got) < 2 + int.from_bytes(got[:2], "big"):
        got += await stream.receive_some(65536)
    return dns.message.from_wire(got[2:])


async def test_names_over_udp_and_tcp() -> None:
    async with serving() as port:
        assert str((await ask_udp(port, "n7.kairos.p2p")).answer[0][0]) == "10.144.0.7"
        assert (await ask_udp(port, "agents.kairos.p2p")).flags & dns.flags.TC
        async with await trio.open_tcp_stream(OWN, port) as stream:
            with trio.fail_after(10):
                assert len((await ask_tcp(stream, "agents.kairos.p2p")).answer[0]) == 99
                assert len((await ask_tcp(stream, "n1.kairos.p2p")).answer[0]) == 1


async def test_others_are_asked_by_udp_and_again_by_tcp_when_cut() -> None:
    asked: list[str] = []

    async def upstream_udp(sock: trio.socket.SocketType) -> None:
        while True:
            raw, sender = await sock.recvfrom(4096)
            query = dns.message.from_wire(raw)
            asked.append("udp")
            reply = dns.message.make_response(query)
            if "large" in str(query.question[0].name):
                reply.flags |= dns.flags.TC
            else:
                reply.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "192.0.2.9"))
            await sock.sendto(b"\0\0forged", sender)  # a guess with another id is passed over
            await sock.sendto(reply.to_wire(), sender)

    async def upstream_tcp(stream: trio.SocketStream) -> None:
        head = await stream.receive_some(2)
        query = dns.message.from_wire(await stream.receive_some(int.from_bytes(head, "big")))
        asked.append("tcp")
        reply = dns.message.make_response(query)
        reply.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "192.0.2.8"))
        raw = reply.to_wire()
        await stream.send_all(len(raw).to_bytes(2, "big") + raw)

    other = free_port()
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((OWN, other))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upstream_udp, sock)
            await nursery.start(
                lambda task_status: trio.serve_tcp(upstream_tcp, other, host=OWN, task_status=task_status)
            )
            async with serving((f"{OWN}#{free_port()}", f"{OWN}#{other}")) as port:  # the first one is dead
                for _ in range(2):
                    assert str((await ask_udp(port, "example.org")).answer[0][0]) == "192.0.2.9"
                assert asked == ["udp"], "the second time it was kept"
                assert str((await ask_udp(port, "large.org")).answer[0][0]) == "192.0.2.8"
                assert asked == ["udp", "udp", "tcp"]
            nursery.cancel_scope.cancel()


async def test_without_others_there_is_an_error_and_strangers_are_refused() -> None:
    async with serving() as port:
        assert (await ask_udp(port, "example.org")).rcode() == dns.rcode.SERVFAIL
    async with serving(is_local=False) as port:
        assert (await ask_udp(port, "example.org")).rcode() == dns.rcode.REFUSED


async def test_a_taken_port_is_told() -> None:
    async with serving() as port:
        second = NameServer(Answering(()), (OWN,), upstream=tuple, is_local=bool, port=port)
        with pytest.raises(MeshError, match=f"port {port}") as caught:
            await second.run()
        assert "p2p.dns" in caught.value.hint


# --- resolv.conf -----------------------------------------------------------------------------------

BEFORE = "# made by dhcp\nnameserver 192.0.2.53\n"


@pytest.fixture
def resolving(tmp_path: Path) -> tuple[Resolving, Path]:
    path = tmp_path / "resolv.conf"
    path.write_text(BEFORE)
    (tmp_path / "durable").mkdir()
    return Resolving(DurableFiles(tmp_path / "durable"), path=path), path


async def keep(made: Resolving) -> None:
    await made.keep("kp2p0", ("10.144.0.1",), "kairos.p2p", ("144.10.in-addr.arpa",))


async def test_the_file_is_changed_and_put_back(resolving: tuple[Resolving, Path]) -> None:
    made, path = resolving
    await keep(made)
    await keep(made)
    assert path.read_text().splitlines()[1:3] == ["nameserver 10.144.0.1", "nameserver 192.0.2.53"]
    assert made.upstream == ("192.0.2.53",)
    await made.restore()
    assert path.read_text() == BEFORE
    await made.restore()
    assert path.read_text() == BEFORE


async def test_resolved_asks_us_for_the_meshs_names_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    program = tmp_path / "resolvectl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    program.chmod(0o755)
    (tmp_path / "io.systemd.Resolve").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(resolving_module, "_RESOLVED", tmp_path / "io.systemd.Resolve")
    before = RESOLV_CONF.read_bytes() if RESOLV_CONF.exists() else b""
    made = Resolving(DurableFiles(tmp_path / "durable"))
    assert made.uses_resolved
    for _ in range(2):
        await made.keep("kp2p0", ("10.144.0.1", "fd00::1"), "kairos.p2p", ("144.10.in-addr.arpa",))
    await made.restore()
    await made.restore()
    assert said.read_text().splitlines() == [
        "dns kp2p0 10.144.0.1 fd00::1",
        "domain kp2p0 ~kairos.p2p ~144.10.in-addr.arpa",
        "default-route kp2p0 no",
        "revert kp2p0",
    ]
    assert (RESOLV_CONF.read_bytes() if RESOLV_CONF.exists() else b"") == before, "the file is resolved's"


async def test_what_a_crash_left_is_put_back_by_the_next_start(
    resolving: tuple[Resolving, Path], tmp_path: Path
) -> None:
    made, path = resolving
    await keep(made)
    again = Resolving(DurableFiles(tmp_path / "durable"), path=path)
    await again.restore()
    assert path.read_text() == BEFORE


async def test_another_writer_is_heard(resolving: tuple[Resolving, Path]) -> None:
    made, path = resolving
    await keep(made)
    path.write_text("nameserver 198.51.100.1\n")
    await keep(made)
    assert made.upstream == ("198.51.100.1",)
    assert "nameserver 10.144.0.1" in path.read_text()
    await made.restore()
    assert path.read_text() == "nameserver 198.51.100.1\n"


async def test_a_symbolic_link_and_a_missing_file_come_back_as_they_were(
    resolving: tuple[Resolving, Path], tmp_path: Path
) -> None:
    made, path = resolving
    real = path.rename(tmp_path / "real.conf")
    path.symlink_to(real)
    await keep(made)
    assert not path.is_symlink()
    assert real.read_text() == BEFORE
    await made.restore()
    assert path.is_symlink()
    assert path.read_text() == BEFORE
    path.unlink()
    await keep(made)
    assert path.exists()
    await made.restore()
    assert not path.exists()
