"""The data plane between network namespaces: real processes, real TUN devices, real faults."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
import two_planes
from fake_peers import FakePeer, got_nothing
from plane_traffic import BULK, PATIENCE_S, TCP4, UDP4, Transfer, ping
from two_planes import Field, carries, connect, session_pair, until

from p2p_network.core.errors import MeshError
from p2p_network.dataplane import records
from p2p_network.dataplane.client import DataPlane
from p2p_network.dataplane.messages import Configure, Stats

WHY_NOT = two_planes.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"the data plane's lab {WHY_NOT}")

UDP_SEGMENT = 103


@pytest.fixture(scope="module")
def lab() -> Iterator[Field]:
    with Field(3, hub=True) as lab:
        yield lab


@pytest.fixture
async def planes(lab: Field) -> AsyncIterator[list[DataPlane]]:
    """Three configured data planes without peers."""
    planes = [await place.configured() for place in lab.places]
    for place in lab.places:
        lab.plug(place)
    yield planes
    with trio.CancelScope(shield=True):
        for place in lab.places:
            plane = await place.plane()
            for peer in (await plane.stats()).peers:
                await plane.drop_peer(peer.peer)
            await plane.aclose()
        for plane in planes:
            await plane.aclose()


async def test_ping_over_both_protocols_inside_and_outside(lab: Field, planes: list[DataPlane]) -> None:
    one, two, _ = lab.places
    for six in (False, True):
        await connect(one, two, six=six)
        for target in (two.inner, two.inner6):
            assert " 0% packet loss" in ping(one, target)
            assert " 0% packet loss" in ping(one, target, "-s", "3000")  # fragments
    stats = await until(planes[0], lambda s: s.peers[0].rtt_ms is not None)
    peer = stats.peers[0]
    assert peer.carrier == "tcp"
    assert peer.endpoint == f"[{two.outer6}]:{two_planes.PORT}"
    assert peer.rx_packets > 0
    assert peer.tx_bytes > 0


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
async def test_bulk_tcp_arrives_unchanged_both_ways(lab: Field, planes: list[DataPlane], six: bool) -> None:
    one, two, _ = lab.places
    await connect(one, two)
    there, back = Transfer(one, two, mib=32, six=six), Transfer(two, one, mib=32, six=six)
    await there.arrived_unchanged()
    await back.arrived_unchanged()
    sent = (await planes[0].stats()).peers[0]
    assert sent.tx_bytes / sent.tx_packets > 3000, "no super-packets: offloads are off"


@pytest.mark.parametrize("offloads", [0x67, 0x07, 0x00])
async def test_peers_get_only_packets_they_can_take(
    lab: Field, planes: list[DataPlane], offloads: int
) -> None:
    """UDP in super-packets of 20 segments, and TCP, with ever less capable peers."""
    one, two, _ = lab.places
    await connect(one, two, offloads=offloads)
    capability = (await planes[0].stats()).capability
    assert capability is not None
    assert (await planes[0].stats()).offloads == offloads & capability.offloads

    def exchange() -> None:
        (sink,), (source,) = two.sockets(UDP4), one.sockets(UDP4)
        with sink, source:
            sink.settimeout(PATIENCE_S)
            sink.bind((two.inner, 0))
            source.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 1000)
            for number in range(20):
                batch = b"".join(bytes([number, part]) + BULK[2:1000] for part in range(20))
                source.sendto(batch, sink.getsockname())
                assert b"".join(sink.recv(2000) for _ in range(20)) == batch

    await trio.to_thread.run_sync(exchange)
    await Transfer(one, two, mib=8).arrived_unchanged()


async def test_packets_go_on_while_controllers_are_killed(lab: Field, planes: list[DataPlane]) -> None:
    one, two, _ = lab.places
    await connect(one, two)
    before = (await planes[0].stats()).peers[0]
    transfer = Transfer(one, two, mib=96)
    script = (
        "import sys, trio\nfrom pathlib import Path\nfrom p2p_network.dataplane.client import DataPlane\n"
        "async def main():\n"
        "    plane = await DataPlane.start_or_adopt(Path(sys.argv[1]), log_path=Path(sys.argv[2]))\n"
        "    while True:\n"
        "        await plane.stats()\n"
        "        print(plane.pid, flush=True)\n"
        "trio.run(main)\n"
    )
    controller = subprocess.Popen(
        [sys.executable, "-c", script, str(one.control), str(one.log)], stdout=subprocess.PIPE
    )
    with controller:
        assert controller.stdout is not None
        assert int(await trio.to_thread.run_sync(controller.stdout.readline)) == planes[0].pid
        controller.kill()
    await transfer.arrived_unchanged()
    adopted = await DataPlane.start_or_adopt(one.control, log_path=one.log)
    assert adopted.adopted
    assert adopted.pid == planes[0].pid
    after = (await adopted.stats()).peers[0]
    assert after.session_id == before.session_id
    await adopted.configure(one.config((f"0.0.0.0:{two_planes.PORT}", f"[::]:{two_planes.PORT}")))
    assert " 0% packet loss" in ping(one, two.inner)
    await adopted.aclose()


async def test_sessions_are_replaced_under_traffic(lab: Field, planes: list[DataPlane]) -> None:
    one, two, _ = lab.places
    await connect(one, two)
    there, back = Transfer(one, two, mib=128), Transfer(two, one, mib=128)
    replaced = 0
    while there.running and replaced < 10:
        await connect(one, two)
        replaced += 1
    assert replaced >= 3
    await there.arrived_unchanged()
    await back.arrived_unchanged()
    stats = (await planes[0].stats()).peers[0]
    assert stats.connects >= replaced
    assert stats.pending_session_id == b""
    await until(planes[0], lambda s: not s.peers[0].drops.get("no_carrier"), seconds=0.1)


async def test_session_the_other_side_lacks_leaves_the_old_one_at_work(
    lab: Field, planes: list[DataPlane]
) -> None:
    one, two, _ = lab.places
    await connect(one, two)
    before = (await planes[0].stats()).peers[0].session_id
    keys, other_keys = session_pair(one, two)
    await planes[0].put_peer(two.as_peer(keys, dial=True))
    await until(planes[1], lambda s: s.refused > 0)
    stats = (await planes[0].stats()).peers[0]
    assert (stats.session_id, stats.pending_session_id) == (before, keys.session_id)
    assert " 0% packet loss" in ping(one, two.inner)
    await planes[1].put_peer(one.as_peer(other_keys, dial=False))
    await until(planes[0], lambda s: carries(s, two, keys.session_id))


async def test_reset_connection_is_dialled_again(lab: Field, planes: list[DataPlane]) -> None:
    one, two, _ = lab.places
    await connect(one, two)
    for number in (1, 2):
        transfer = Transfer(one, two, mib=16)
        one.run("ss", "-K", "dst", two.outer, "dport", "=", str(two_planes.PORT))
        await until(planes[0], lambda s, n=number: s.peers[0].connects > n)  # type: ignore[misc]
        await transfer.arrived_unchanged()


async def test_black_hole_is_noticed_and_healed(lab: Field, planes: list[DataPlane]) -> None:
    one, two, three = lab.places
    await connect(one, two)
    await connect(one, three)
    lab.unplug(two)
    with one.sockets(UDP4)[0] as blast:
        blast.setblocking(False)
        blast.connect((two.inner, 9))

        def fill() -> None:
            for _ in range(500):
                with contextlib.suppress(BlockingIOError):
                    blast.send(BULK[:1300])

        for _ in range(40):
            fill()
        # The stuck peer's queue is its own: another peer's packets pass.
        assert " 0% packet loss" in ping(one, three.inner)
        await Transfer(one, three, mib=16).arrived_unchanged()
        assert carries(await planes[0].stats(), three)
        await until(planes[0], lambda s: not carries(s, two))
        fill()  # how much the first ones filled is up to the scheduler; these find no connection

    def lost(stats: Stats) -> set[str]:
        return set(next(p for p in stats.peers if p.peer == two.name).drops)

    await until(planes[0], lambda s: bool(lost(s) & {"queue_full", "no_carrier"}))
    lab.plug(two)
    await until(planes[0], lambda s: carries(s, two))
    assert " 0% packet loss" in ping(one, two.inner)


async def test_stuck_peer_fills_only_its_own_queue(lab: Field, planes: list[DataPlane]) -> None:
    """The peer's process is stopped: its connection lives, and takes nothing."""
    one, two, three = lab.places
    await connect(one, two)
    await connect(one, three)
    os.kill(planes[1].pid, signal.SIGSTOP)
    try:
        with one.sockets(UDP4)[0] as blast:
            blast.connect((two.inner, 9))

            def fill() -> None:
                for _ in range(500):
                    blast.send(BULK[:1300])

            with trio.fail_after(PATIENCE_S):
                while True:
                    await trio.to_thread.run_sync(fill)
                    stuck = next(p for p in (await planes[0].stats()).peers if p.peer == two.name)
                    if stuck.drops:
                        break
        assert " 0% packet loss" in ping(one, three.inner)
        await Transfer(one, three, mib=16).arrived_unchanged()
    finally:
        os.kill(planes[1].pid, signal.SIGCONT)
    await until(planes[0], lambda s: carries(s, two))


async def test_no_peer_can_send_as_another(lab: Field, planes: list[DataPlane]) -> None:
    one, two, three = lab.places
    await connect(one, two)
    await connect(three, one)
    two_planes.run("ip", "-n", three.netns, "addr", "add", f"{two.inner}/32", "dev", "kp2p0")
    try:
        three.run("ping", "-c", "2", "-i", "0.05", "-W", "1", "-I", two.inner, one.inner, check=False)
    finally:
        two_planes.run("ip", "-n", three.netns, "addr", "del", f"{two.inner}/32", "dev", "kp2p0")
    peers = {p.peer: p for p in (await planes[0].stats()).peers}
    assert peers[three.name].drops.get("spoofed", 0) >= 2
    assert "spoofed" not in peers[two.name].drops
    assert peers[three.name].rx_packets == 0


async def test_what_is_for_nobody_is_dropped_and_counted(lab: Field, planes: list[DataPlane]) -> None:
    one, _, _ = lab.places
    before = (await planes[0].stats()).drops
    for target in ("10.144.9.9", "10.144.255.255", "224.0.0.9"):
        one.run("ping", "-b", "-c", "1", "-W", "0.1", "-I", "kp2p0", target, check=False)

    def more(drops: dict[str, int], reason: str) -> int:
        return drops.get(reason, 0) - before.get(reason, 0)

    await until(planes[0], lambda s: more(s.drops, "no_route") >= 1 and more(s.drops, "multicast") >= 2)


async def test_strangers_and_replays_get_no_byte_back(lab: Field, planes: list[DataPlane]) -> None:
    fake = FakePeer(lab)
    await fake.introduce(planes[0])
    refused = (await planes[0].stats()).refused

    def attack() -> None:
        sock, flight, _ = fake.greet(1)
        sock.close()
        tampered = flight[:-1] + bytes([flight[-1] ^ 1])
        wrong = (flight, tampered, os.urandom(72), b"GET / HTTP/1.1\r\n" + bytes(100), b"short", b"")
        connections = [fake.connect() for _ in wrong]
        for sock, attempt in zip(connections, wrong, strict=True):
            sock.sendall(attempt)
        for sock in connections:
            with sock:
                assert got_nothing(sock)

    await trio.to_thread.run_sync(attack)
    stats = await until(planes[0], lambda s: s.refused >= refused + 7)
    assert not stats.peers[0].connected
    sock, _, _ = await trio.to_thread.run_sync(fake.greet, 2)
    sock.close()


async def test_replayed_records_are_refused(lab: Field, planes: list[DataPlane]) -> None:
    """A recording of a whole connection, played again, carries nothing."""
    fake = FakePeer(lab)
    await fake.introduce(planes[0])

    def record() -> tuple[bytes, bytes]:
        sock, flight, sealer = fake.greet(1)
        frame = memoryview(bytearray(200))
        size = sealer.seal_into(records.control_entry(records.PING, 1), frame)
        with sock:
            sock.sendall(frame[:size])
            assert sock.recv(1), "a pong"
        return flight, bytes(frame[:size])

    flight, first_record = await trio.to_thread.run_sync(record)
    await until(planes[0], lambda s: s.peers[0].connects == 1 and not s.peers[0].connected)

    def replay() -> None:
        with fake.connect() as sock:
            sock.sendall(flight + first_record)
            assert got_nothing(sock)
        sock, _, _ = fake.greet(2)  # a fresh preface does not make an old record good
        with sock:
            sock.sendall(first_record)
            assert got_nothing(sock)

    await trio.to_thread.run_sync(replay)
    stats = (await planes[0].stats()).peers[0]
    assert (stats.connects, stats.connected) == (1, False)


async def test_forged_packets_are_dropped_and_counted(lab: Field, planes: list[DataPlane]) -> None:
    one, two, three = lab.places
    fake = FakePeer(lab)
    await fake.introduce(planes[0])

    def packet(source: str, target: str, *, total: int = 28) -> bytes:
        head = bytes([0x45, 0]) + total.to_bytes(2, "big") + bytes([0, 0, 0, 0, 64, 17, 0, 0])
        return head + socket.inet_aton(source) + socket.inet_aton(target) + bytes(8)

    honest = packet(three.inner, one.inner)
    plain = bytes(10)
    entries = {
        "forged": [
            (plain, packet(three.inner, one.inner, total=29)),
            (plain, b"\x00" * 28),
            (bytes([0, 1, 0, 0, 100, 0, 0, 0, 0, 0]), honest),  # segments without a checksum
            (bytes([1, 0, 0, 0, 0, 0, 27, 0, 6, 0]), honest),  # checksum outside
            (bytes([0, 77, 0, 0, 0, 0, 0, 0, 0, 0]), honest),
        ],
        "spoofed": [(plain, packet(two.inner, one.inner))],
        "foreign": [(plain, packet(three.inner, "192.0.2.1"))],
        "multicast": [(plain, packet(three.inner, "224.0.0.1"))],
    }

    def send() -> socket.socket:
        sock, _, sealer = fake.greet(1)
        frame = memoryview(bytearray(4096))
        batch = b"".join(records.packet_entry(*entry) for kind in entries.values() for entry in kind)
        sock.sendall(frame[: sealer.seal_into(batch + records.packet_entry(plain, honest), frame)])
        return sock

    with await trio.to_thread.run_sync(send):
        stats = (await until(planes[0], lambda s: s.peers[0].rx_packets > 0)).peers[0]
    assert stats.rx_packets == 1
    assert stats.drops == {reason: len(kind) for reason, kind in entries.items()}


async def test_one_process_per_socket_and_stale_files_are_replaced(
    lab: Field, planes: list[DataPlane]
) -> None:
    one = lab.places[0]
    argv = [sys.executable, "-m", "p2p_network.dataplane", "--socket", str(one.control)]
    second = await trio.run_process(argv, check=False, capture_stderr=True)
    assert second.returncode == 7
    assert (await planes[0].stats()).pid == planes[0].pid
    os.kill(planes[0].pid, signal.SIGKILL)
    assert one.daemon is not None
    await trio.to_thread.run_sync(one.daemon.wait)
    with pytest.raises(MeshError, match="gone"):
        await planes[0].stats()
    assert one.control.exists()
    one.control.unlink()
    one.control.write_text("stale")
    script = (
        "import sys, trio\nfrom pathlib import Path\nfrom p2p_network.dataplane.client import DataPlane\n"
        "plane = trio.run(lambda: DataPlane.start_or_adopt(Path(sys.argv[1]), log_path=Path(sys.argv[2])))\n"
        "print(plane.pid, plane.adopted)\n"
    )
    said = one.run(sys.executable, "-c", script, str(one.control), str(one.log)).split()
    assert said[1] == "False"
    # Its starter is gone; it is not.
    plane = await DataPlane.start_or_adopt(one.control, log_path=one.log)
    assert plane.adopted
    assert plane.pid == int(said[0])
    assert one.control.stat().st_mode & 0o777 == 0o600
    await plane.stop()
    assert not one.control.exists()


async def test_the_device_goes_with_the_process(lab: Field, planes: list[DataPlane]) -> None:
    one, two, _ = lab.places
    assert "kp2p0" in one.run("ip", "link")
    await planes[0].stop()
    assert "kp2p0" not in one.run("ip", "link")
    assert two.daemon is not None
    os.kill(planes[1].pid, signal.SIGTERM)
    assert await trio.to_thread.run_sync(two.daemon.wait, PATIENCE_S) == 0
    assert "kp2p0" not in two.run("ip", "link")
    assert not two.control.exists()


async def test_what_the_kernel_refuses_comes_back_with_a_hint(lab: Field, planes: list[DataPlane]) -> None:
    one = lab.places[0]
    config = one.config((f"0.0.0.0:{two_planes.PORT}", f"[::]:{two_planes.PORT}"))

    def changed(**fields: object) -> Configure:
        return Configure(
            **{name: fields.get(name, getattr(config, name)) for name in config.__struct_fields__}
        )

    with one.sockets(TCP4)[0] as taken:
        taken.bind(("0.0.0.0", 4799))
        taken.listen(1)
        with pytest.raises(MeshError, match=r"cannot listen on .*:4799") as refused:
            await planes[0].configure(changed(listen=("0.0.0.0:4799",)))
        assert "stop it or choose another port" in refused.value.hint
    for fields, why in (
        ({"device": "wire"}, "exists"),
        ({"device": "much-too-long-a-name"}, "no device name"),
        ({"mtu": 100}, "MTU"),
        ({"listen": ("somewhere:1",)}, "endpoint"),
        ({"addresses": ("10.0.0.0.1",)}, "address"),
    ):
        with pytest.raises(MeshError, match=why) as refused:
            await planes[0].configure(changed(**fields))
        assert refused.value.hint
    stats = await planes[0].stats()
    assert stats.configured == config, "what failed must leave what was in force"
    more = await planes[0].configure(changed(listen=(*config.listen, "127.0.0.1:0"), mtu=1400))
    assert more.listen[:2] == config.listen
    assert len(more.listen) == 3
    assert "mtu 1400" in one.run("ip", "link", "show", "kp2p0")
    assert (await planes[0].configure(config)).listen == config.listen
    other = one.folder / "run" / "second.sock"
    argv = [sys.executable, "-m", "p2p_network.dataplane", "--socket", str(other)]
    with two_planes.ended(subprocess.Popen(one.exec(*argv))):
        with trio.fail_after(two_planes.DEADLINE_S):
            while not other.exists():
                await trio.sleep(0.02)
        second = await DataPlane.start_or_adopt(other, log_path=one.log)
        with pytest.raises(MeshError, match="in use by another process"):
            await second.configure(changed(listen=("127.0.0.1:0",)))
        await second.aclose()


async def test_a_removed_device_is_noticed_and_made_again(lab: Field, planes: list[DataPlane]) -> None:
    one, two, _ = lab.places
    await connect(one, two)
    two_planes.run("ip", "-n", one.netns, "link", "del", "kp2p0")
    stats = await until(planes[0], lambda s: s.configured is None)
    assert carries(stats, two), "peers stay connected without a device"
    await one.configured()
    assert " 0% packet loss" in ping(one, two.inner)


async def test_netlink_brings_the_device_up_twice_and_cleans_it(lab: Field, planes: list[DataPlane]) -> None:
    one = lab.places[0]
    script = (
        "from p2p_network import netlink\n"
        "print(netlink.bring_up('kp2p0', ['10.144.0.1/16', 'fd77:1:2:3::1/64'], 1400))\n"
        "print(netlink.bring_up('kp2p0', ['10.144.0.1/16', 'fd77:1:2:3::1/64'], 1420))\n"
        "print(netlink.bring_up('kp2p0', ['10.144.7.7/16'], 1420))\n"
        "print(netlink.device_exists('kp2p0'), netlink.device_exists('nowhere'))\n"
        "print(netlink.local_addresses(exclude=['kp2p0']))\n"
        "from p2p_network.core.errors import MeshError\n"
        "try: netlink.bring_up('nowhere', [], 1400)\n"
        "except MeshError as exc: print(exc.message)\n"
    )
    said = one.run(sys.executable, "-c", script).splitlines()
    assert said[0] == said[1] == "('10.144.0.1/16', 'fd77:1:2:3::1/64')"
    assert said[3:] == ["True False", f"('{one.outer}', '{one.outer6}')", "there is no device nowhere"]
    shown = one.run("ip", "addr", "show", "dev", "kp2p0")
    assert "inet 10.144.7.7/16" in shown
    assert "10.144.0.1/" not in shown
    assert "fd77" not in shown
    await planes[0].stop()
