"""Packets through the control process between real TUN devices, when neither TCP nor UDP gets through."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest
import trio
import two_planes
from plane_traffic import BULK, Transfer, ping
from two_planes import PORT, Field, Place, session_pair, until

from p2p_network.core.errors import MeshError
from p2p_network.dataplane.client import DataPlane

WHY_NOT = two_planes.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"the data plane's lab {WHY_NOT}")


@pytest.fixture(scope="module")
def lab() -> Iterator[Field]:
    with Field(2, carriers=("tcp", "udp", "mesh")) as lab:
        yield lab


@pytest.fixture
async def planes(lab: Field) -> AsyncIterator[list[DataPlane]]:
    """Both with a session, and neither reaches the other."""
    one, two = lab.places
    planes = [await place.configured() for place in lab.places]
    block(one)
    keys, other_keys = session_pair(one, two)
    await planes[1].put_peer(one.as_peer(other_keys, dial=False))
    await planes[0].put_peer(two.as_peer(keys, dial=True))
    yield planes
    with trio.CancelScope(shield=True):
        unblock(one)
        for plane in planes:
            for peer in (await plane.stats()).peers:
                await plane.drop_peer(peer.peer)
            await plane.aclose()


def block(place: Place) -> None:
    """A firewall that drops what carriers send, both ways."""
    rules = [
        f"add rule inet kp {chain} {protocol} {port} {PORT} drop"
        for chain in ("out", "in")
        for protocol in ("tcp", "udp")
        for port in ("sport", "dport")
    ]
    for line in (
        "add table inet kp",
        "add chain inet kp out { type filter hook output priority 0 ; }",
        "add chain inet kp in { type filter hook input priority 0 ; }",
        *rules,
    ):
        place.run("nft", line)


def unblock(place: Place) -> None:
    place.run("nft", "delete", "table", "inet", "kp", check=False)


async def pinged(place: Place, target: str, *options: str) -> str:
    """In a thread: this process is the mesh."""
    return await trio.to_thread.run_sync(partial(ping, place, target, *options))


class Mesh:
    """What lies between the two control processes: a pipe that can be slow, and counts."""

    def __init__(self, *ends: trio.SocketStream) -> None:
        self.ends = ends
        self.carried: list[bytes] = []
        self.stuck = False

    async def run(self) -> None:
        one, two = self.ends
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, one, two)
            nursery.start_soon(self._pump, two, one)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some(1 << 15):
                while self.stuck:
                    await trio.sleep(0.02)
                self.carried.append(bytes(data))
                await sink.send_all(data)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.aclose_forcefully(sink)


async def opened(lab: Field, planes: list[DataPlane], nursery: trio.Nursery) -> Mesh:
    one, two = lab.places
    accepting = await planes[1].carry(one.name, dial=False)
    mesh = Mesh(await planes[0].carry(two.name, dial=True), accepting)
    nursery.start_soon(mesh.run)
    return mesh


async def test_packets_go_through_the_mesh_and_leave_it_at_once_for_a_direct_carrier(
    lab: Field, planes: list[DataPlane]
) -> None:
    one, two = lab.places
    with trio.fail_after(200):
        async with trio.open_nursery() as nursery:
            mesh = await opened(lab, planes, nursery)
            for plane in planes:
                stats = await until(plane, lambda s: s.peers[0].carrier == "mesh" and s.peers[0].rtt_ms)
                assert "through the mesh" in stats.peers[0].reason
            assert " 0% packet loss" in await pinged(
                one, two.inner, "-s", "1392", "-M", "do"
            )  # the inner MTU
            assert " 0% packet loss" in await pinged(two, one.inner6)
            transfer = Transfer(one, two, mib=24)
            await until(planes[0], lambda s: transfer.received_bytes > 1 << 20)
            unblock(one)
            await until(planes[0], lambda s: s.peers[0].carrier in ("tcp", "udp"))
            await until(planes[1], lambda s: s.peers[0].carrier in ("tcp", "udp"))
            await transfer.arrived_unchanged()
            # the way through the mesh was ended by both, and told to the control processes
            with trio.fail_after(60):
                while nursery.child_tasks:
                    await trio.sleep(0.02)
            assert BULK[4:64] not in b"".join(mesh.carried)


async def test_what_the_mesh_does_not_take_is_dropped_and_nothing_waits(
    lab: Field, planes: list[DataPlane]
) -> None:
    one, two = lab.places
    with trio.fail_after(200):
        async with trio.open_nursery() as nursery:
            mesh = await opened(lab, planes, nursery)
            await until(planes[0], lambda s: s.peers[0].carrier == "mesh")
            mesh.stuck = True
            for _ in range(400):
                one.run(
                    "ping",
                    "-n",
                    "-q",
                    "-c",
                    "50",
                    "-s",
                    "1300",
                    "-i",
                    "0.001",
                    "-W",
                    "0.001",
                    two.inner,
                    check=False,
                )
                stats = await planes[0].stats()
                if stats.peers and stats.peers[0].drops.get("queue_full"):
                    break
            assert stats.peers[0].drops["queue_full"] > 0
            assert stats.peers[0].queued_bytes <= 16 << 20
            mesh.stuck = False
            # the control process goes: so does this way, and a new one stands when it is back
            for end in mesh.ends:
                await trio.aclose_forcefully(end)
            await until(planes[0], lambda s: s.peers[0].carrier == "none")
            await opened(lab, planes, nursery)
            await until(planes[0], lambda s: s.peers[0].carrier == "mesh")
            assert " 0% packet loss" in await pinged(one, two.inner)
            nursery.cancel_scope.cancel()


async def test_a_way_that_no_session_wants_is_refused(lab: Field, planes: list[DataPlane]) -> None:
    with pytest.raises(MeshError, match="no session"):
        await planes[0].carry("a stranger", dial=True)
    # two ends of which none dials prove nothing, and carry nothing
    one, two = lab.places
    ends = [await planes[0].carry(two.name, dial=False), await planes[1].carry(one.name, dial=False)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Mesh(*ends).run)
        refused = (await planes[0].stats()).refused
        await until(planes[0], lambda s: s.refused > refused)
    assert not (await planes[0].stats()).peers[0].connected
