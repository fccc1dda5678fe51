"""The data plane's edges on this machine: the loop, the client and its process, refusals of the kernel."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from p2p_network.core.errors import MeshError
from p2p_network.dataplane import messages, sockets, tun
from p2p_network.dataplane.client import DataPlane
from p2p_network.dataplane.cpu import ciphers_by_speed
from p2p_network.dataplane.loop import READ, Loop
from p2p_network.session import AES, CHACHA, PeerSession


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[DataPlane]:
    """A data plane without device: needs no root."""
    plane = await DataPlane.start_or_adopt(tmp_path / "run" / "plane.sock", log_path=tmp_path / "plane.log")
    yield plane
    with trio.CancelScope(shield=True):
        try:
            os.kill(plane.pid, 0)
        except ProcessLookupError:
            return
        await plane.stop()


def put(name: str = "b", session_id: bytes = bytes(16), **changes: object) -> messages.PutPeer:
    keys = PeerSession(session_id, CHACHA, bytes([1]) * 32, bytes([2]) * 32, 0x67, ("tcp",), 1420)
    fields: dict[str, object] = {
        "peer": name,
        "session": keys,
        "endpoints": ("127.0.0.1:1",),
        "allowed_ips": ("10.144.0.2/32",),
        "dial": False,
    }
    return messages.PutPeer(**{**fields, **changes})  # type: ignore[arg-type]


async def test_start_adopt_stop(plane: DataPlane, tmp_path: Path) -> None:
    assert not plane.adopted
    again = await DataPlane.start_or_adopt(tmp_path / "run" / "plane.sock", log_path=tmp_path / "plane.log")
    assert (again.adopted, again.pid) == (True, plane.pid)
    stats = await again.stats()
    assert (stats.pid, stats.configured, stats.peers) == (plane.pid, None, ())
    await plane.stop()
    with pytest.raises(MeshError, match="gone") as refused:
        await again.stats()
    assert refused.value.hint
    fresh = await DataPlane.start_or_adopt(tmp_path / "run" / "plane.sock", log_path=tmp_path / "plane.log")
    assert not fresh.adopted
    await fresh.stop()


async def test_two_starters_at_once_share_one_process(tmp_path: Path) -> None:
    found: list[DataPlane] = []

    async def start() -> None:
        found.append(await DataPlane.start_or_adopt(tmp_path / "plane.sock", log_path=tmp_path / "plane.log"))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(start)
    assert len({plane.pid for plane in found}) == 1
    await found[0].stop()


async def test_a_cancelled_request_leaves_the_client_usable(plane: DataPlane) -> None:
    for _ in range(20):
        with trio.CancelScope() as scope:
            scope.cancel()
            await plane.stats()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(plane.stats)
            nursery.start_soon(trio.lowlevel.checkpoint)
    assert (await plane.stats()).pid == plane.pid


async def test_peers_can_be_put_before_the_device_exists(plane: DataPlane) -> None:
    await plane.put_peer(put())
    await plane.put_peer(put(session_id=bytes([1]) * 16))
    peer = (await plane.stats()).peers[0]
    assert (peer.peer, peer.connected, peer.carrier) == ("b", False, "none")
    assert peer.session_id == bytes([1]) * 16, "a session that never carried is not kept beside its successor"
    await plane.drop_peer("b")
    await plane.drop_peer("b")
    assert (await plane.stats()).peers == ()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"allowed_ips": ("10.0.0.0.1",)}, "address"),
        ({"endpoints": ("host.example:1",)}, "endpoint"),
        ({"endpoints": ("::1:80",)}, "endpoint"),
        ({"endpoints": ("127.0.0.1:1",) * 17}, "too many"),
        (
            {"session": PeerSession(bytes(16), "rot13", bytes(32), bytes([1]) * 32, 0, ("tcp",), 1420)},
            "usable",
        ),
        ({"session": PeerSession(bytes(16), CHACHA, bytes(32), bytes(32), 0, ("tcp",), 1420)}, "usable"),
        (
            {"session": PeerSession(bytes(15), CHACHA, bytes(32), bytes([1]) * 32, 0, ("tcp",), 1420)},
            "usable",
        ),
    ],
)
async def test_bad_peers_are_refused_whole(plane: DataPlane, wrong: dict[str, object], why: str) -> None:
    with pytest.raises(MeshError, match=why) as refused:
        await plane.put_peer(put(**wrong))  # type: ignore[arg-type]
    assert refused.value.hint
    assert (await plane.stats()).peers == ()


async def test_one_session_belongs_to_one_peer(plane: DataPlane) -> None:
    await plane.put_peer(put("b"))
    with pytest.raises(MeshError, match="another peer"):
        await plane.put_peer(put("c"))


async def test_nonsense_on_the_control_socket_harms_nobody(plane: DataPlane, tmp_path: Path) -> None:
    path = str(tmp_path / "run" / "plane.sock")
    for nonsense in (b"\xff" * 64, b"\0\0\0\1x", bytes(4), b"\0\0\0\5\x81\xa4type"):
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(nonsense)
            with trio.fail_after(5):
                assert await stream.receive_some() == b""
    many = [await trio.open_unix_socket(path) for _ in range(20)]
    assert (await plane.stats()).pid == plane.pid
    for stream in many:
        await stream.aclose()


async def test_another_version_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "plane.sock"
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "while True:\n"
        "    c, _ = s.accept()\n"
        "    if c.recv(99): c.sendall(bytes([0, 0, 0, 3]) + b'?!?')\n"
    )
    process = await trio.lowlevel.open_process([sys.executable, "-c", script, str(path)])
    try:
        with trio.fail_after(10):
            while not path.exists():
                await trio.sleep(0.02)
        plane = await DataPlane.start_or_adopt(path, log_path=tmp_path / "plane.log")
        assert plane.pid != process.pid
        assert await process.wait() == -signal.SIGTERM
        await plane.stop()
    finally:
        if process.returncode is None:
            process.kill()


async def test_a_process_that_cannot_start_says_where_to_look(tmp_path: Path) -> None:
    (tmp_path / "plane.sock").mkdir()
    with pytest.raises(MeshError, match="did not start") as refused:
        await DataPlane.start_or_adopt(tmp_path / "plane.sock", log_path=tmp_path / "plane.log")
    assert str(tmp_path / "plane.log") in refused.value.hint


@pytest.mark.parametrize(
    ("number", "why", "hint"),
    [
        (errno.ENOENT, "no /dev/net/tun", "modprobe"),
        (errno.ENODEV, "no TUN driver", "modprobe"),
        (errno.EACCES, "cannot open", "root"),
    ],
)
def test_a_missing_tun_driver(monkeypatch: pytest.MonkeyPatch, number: int, why: str, hint: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tun.os, "open", refuse)
    with pytest.raises(MeshError, match=why) as refused:
        tun.Tun("kpx0")
    assert hint in refused.value.hint


@pytest.mark.parametrize(
    ("number", "why", "hint"),
    [
        (errno.EBUSY, "in use", "stop it"),
        (errno.EPERM, "not permitted", "root"),
        (errno.EINVAL, "exists", "another"),
    ],
)
def test_a_device_the_kernel_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, why: str, hint: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tun, "_open_device", lambda: os.open(tmp_path, os.O_RDONLY))
    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(MeshError, match=why) as refused:
        tun.Tun("kpx0")
    assert hint in refused.value.hint


@pytest.mark.parametrize(
    ("bits", "valid"), [(0x67, 0x67), (0x27, 0x07), (0x66, 0), (0xFFFF, 0x67), (0x61, 0x61), (0, 0)]
)
def test_only_offloads_that_the_kernel_accepts_are_asked_for(bits: int, valid: int) -> None:
    assert tun.valid_offloads(bits) == valid


def test_endpoints() -> None:
    for text in ("127.0.0.1:1", "[::1]:65535"):
        assert sockets.format_endpoint(*sockets.parse_endpoint(text)) == text
    for text in (
        "",
        "1.2.3.4",
        "1.2.3.4:",
        "1.2.3.4:65536",
        "1.2.3.4:-1",
        "::1:1",
        "[::1:1",
        "host:1",
        "1.2.3.4:١",
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            sockets.parse_endpoint(text)


def test_ciphers() -> None:
    assert ciphers_by_speed("processor: 0\nflags\t\t: fpu aes sse\n") == (AES, CHACHA)
    assert ciphers_by_speed("Features\t: fp asimd aes\n") == (AES, CHACHA)
    assert ciphers_by_speed("flags\t: fpu vaes\nmodel name: aes\n") == (CHACHA, AES)
    assert ciphers_by_speed("") == (CHACHA, AES)


def test_loop_runs_timers_in_order_and_not_those_cancelled() -> None:
    loop = Loop()
    seen: list[str] = []
    now = loop.now()
    loop.call_at(now + 0.02, lambda: (seen.append("second"), loop.stop()))  # type: ignore[func-returns-value]
    loop.call_at(now + 0.01, lambda: seen.append("first"))
    loop.call_at(now + 0.015, lambda: seen.append("never")).cancel()
    one, other = socket.socketpair()
    with one, other:
        loop.watch(one.fileno(), READ, lambda _: seen.append(one.recv(9).decode()))
        other.send(b"read")
        loop.run()
        loop.forget(one.fileno())
        loop.forget(one.fileno())
    loop.close()
    assert seen == ["read", "first", "second"]
