"""Packets over datagrams between real TUN devices: whole, in spite of loss, small paths and forgery."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
import two_planes
from fake_peers import FakeCaller, bundle
from plane_traffic import PATIENCE_S, Transfer, ping
from two_planes import Field, Place, connect, until

from p2p_network.dataplane import preface, records
from p2p_network.dataplane.client import DataPlane
from p2p_network.dataplane.datagram_socket import ANSWER, CALL, FLIGHT_BYTES
from p2p_network.dataplane.messages import PeerStats

WHY_NOT = two_planes.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"the data plane's lab {WHY_NOT}")


@pytest.fixture(scope="module")
def lab() -> Iterator[Field]:
    """Two places on a link whose manners a test can change."""
    with Field(2, link="delay_ms=0") as lab:
        yield lab


@pytest.fixture
async def planes(lab: Field) -> AsyncIterator[list[DataPlane]]:
    """Both use datagrams only."""
    lab.shape("delay_ms=0 loss=0 reorder=0 mtu=0")
    planes = []
    for place in lab.places:
        place.carriers = ("udp",)
        planes.append(await place.configured())
    yield planes
    with trio.CancelScope(shield=True):
        for plane in planes:
            for peer in (await plane.stats()).peers:
                await plane.drop_peer(peer.peer)
            await plane.aclose()


async def only_peer(plane: DataPlane) -> PeerStats:
    return (await plane.stats()).peers[0]


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
async def test_bulk_arrives_unchanged_both_ways(lab: Field, planes: list[DataPlane], six: bool) -> None:
    one, two = lab.places
    await connect(one, two, six=six)
    there, back = Transfer(one, two, mib=4, six=six), Transfer(two, one, mib=4)
    await there.arrived_unchanged()
    await back.arrived_unchanged()
    sent = await only_peer(planes[0])
    assert sent.carrier == "udp"
    assert sent.tx_bytes / sent.tx_packets > 2000, "no super-packets: offloads are off"
    assert not sent.drops.keys() & {"unauthentic", "forged"}


async def test_bulk_arrives_in_spite_of_loss_and_reordering(lab: Field, planes: list[DataPlane]) -> None:
    one, two = lab.places
    await connect(one, two)
    lab.shape("loss=0.02 reorder=0.02 reorder_ms=3 delay_ms=2")
    there, back = Transfer(one, two, mib=2), Transfer(two, one, mib=2, six=True)
    await there.arrived_unchanged()
    await back.arrived_unchanged()
    stats = await until(planes[0], lambda s: bool(s.peers[0].loss))
    assert 0 < (stats.peers[0].loss or 0) < 0.2
    assert not stats.peers[0].drops.keys() & {"unauthentic", "forged"}


async def test_a_path_that_takes_less_is_found_and_told(lab: Field, planes: list[DataPlane]) -> None:
    one, two = lab.places
    lab.shape("mtu=1400")
    await connect(one, two)
    large = ("ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1380", two.inner)
    with trio.fail_after(PATIENCE_S):  # "Frag needed and DF set (mtu = 1311)"
        while "mtu" not in await trio.to_thread.run_sync(lambda: one.run(*large, check=False)):
            pass
    assert " 0% packet loss" in ping(one, two.inner, "-s", "1200", "-M", "do")
    await Transfer(one, two, mib=1).arrived_unchanged()
    assert (await only_peer(planes[0])).drops["too_big"] > 0


async def test_a_peer_that_changes_its_address_keeps_its_association(
    lab: Field, planes: list[DataPlane]
) -> None:
    one, two = lab.places
    await connect(one, two)
    connects = (await only_peer(planes[1])).connects
    other = "192.0.2.77"
    one.run("sysctl", "-qw", "net.ipv4.conf.all.promote_secondaries=1")
    one.run("ip", "addr", "add", f"{other}/24", "dev", "wire")
    one.run("ip", "addr", "del", f"{one.outer}/24", "dev", "wire")
    try:
        await until(planes[1], lambda s: s.peers[0].endpoint == f"{other}:{two_planes.PORT}")
        assert " 0% packet loss" in ping(two, one.inner)
        assert (await only_peer(planes[1])).connects == connects
    finally:
        one.run("ip", "addr", "replace", f"{one.outer}/24", "dev", "wire")
        one.run("ip", "addr", "del", f"{other}/24", "dev", "wire")


async def test_carriers_change_under_traffic_and_no_connection_is_lost(lab: Field) -> None:
    one, two = lab.places
    planes = []
    for place in lab.places:
        place.carriers = ("tcp", "udp")
        planes.append(await place.configured())
    lab.shape("delay_ms=0 loss=0 reorder=0 mtu=0")
    await connect(one, two)
    await until(planes[0], lambda s: s.peers[0].carrier == "tcp")
    transfer = Transfer(one, two, rate_mib=4)

    async def moves_on() -> None:
        """Also the answers: the sender sends no more than its window without them."""
        seen = transfer.received_bytes
        with trio.fail_after(PATIENCE_S):
            while transfer.received_bytes < seen + (8 << 20):
                await trio.sleep(0.02)

    for _ in range(2):
        one.run("nft", "add", "table", "inet", "kp")
        one.run("nft", "add", "chain", "inet", "kp", "out", "{ type filter hook output priority 0 ; }")
        one.run("nft", "add", "rule", "inet", "kp", "out", "tcp", "dport", str(two_planes.PORT), "drop")
        one.run("ss", "-K", "dst", two.outer, "dport", "=", str(two_planes.PORT))
        stats = await until(planes[0], lambda s: s.peers[0].carrier == "udp")
        assert stats.peers[0].reason == "only UDP reaches it"
        # the other end was told nothing: its own packets must find out
        await until(planes[1], lambda s: s.peers[0].carrier == "udp")
        await moves_on()
        one.run("nft", "delete", "table", "inet", "kp")
        await until(planes[0], lambda s: s.peers[0].carrier == "tcp")
        await moves_on()
    transfer.finish()
    await transfer.arrived_unchanged()
    for plane in planes:
        for peer in (await plane.stats()).peers:
            await plane.drop_peer(peer.peer)
        await plane.aclose()


async def test_large_records_find_a_way_where_large_packets_vanish(lab: Field) -> None:
    """A router that drops what is too large, and says nothing: pings pass, the carrier's records do not."""
    one, two = lab.places
    planes = []
    for place in lab.places:
        place.carriers = ("tcp", "udp")
        planes.append(await place.configured())
    lab.shape("mtu=1400")
    await connect(one, two)
    await Transfer(one, two, mib=1).arrived_unchanged()
    await Transfer(two, one, mib=1).arrived_unchanged()
    # TCP was given up, and comes back with segments that fit
    await until(planes[0], lambda s: s.peers[0].carrier == "tcp" and s.peers[0].connects > 1)
    await Transfer(one, two, mib=4).arrived_unchanged()
    await Transfer(two, one, mib=4).arrived_unchanged()
    lab.shape("mtu=0")
    for plane in planes:
        for peer in (await plane.stats()).peers:
            await plane.drop_peer(peer.peer)
        await plane.aclose()


class Pods(Place):
    """A place as its pods see it: behind a vxlan device, as flannel makes it, over the VPN's."""

    @property
    def inner(self) -> str:
        return f"10.42.0.{self.index}"

    def add_vxlan(self, own: Place, far: Place) -> None:
        tunnel = ("type", "vxlan", "id", "1", "dev", own.device, "local", own.inner, "remote", far.inner)
        self.run("ip", "link", "add", "flannel.1", *tunnel, "dstport", "8472")
        self.run("ip", "addr", "add", f"{self.inner}/24", "dev", "flannel.1")
        self.run("ip", "link", "set", "flannel.1", "up")


@pytest.mark.parametrize("kind", ["tcp", "udp"])
async def test_bulk_between_pods_behind_vxlan(lab: Field, kind: str) -> None:
    """Its MTU is 50 less than the VPN's, and so are the segments: nothing is cut on the way."""
    one, two = lab.places
    lab.shape("delay_ms=0 loss=0 reorder=0 mtu=0")
    planes = []
    for place in lab.places:
        place.carriers = (kind,)
        planes.append(await place.configured())
    await connect(one, two)
    for place in lab.places:  # what smaller paths were found by tests before this one
        place.run("ip", "route", "flush", "cache")
    fragments = ("nstat", "-asz", "IpFragCreates")
    before = one.run(*fragments)
    pods = [Pods(**{f.name: getattr(p, f.name) for f in dataclasses.fields(p)}) for p in (one, two)]
    try:
        pods[0].add_vxlan(one, two)
        pods[1].add_vxlan(two, one)
        assert f"mtu {two_planes.MTU - 50}" in one.run("ip", "link", "show", "flannel.1")
        await Transfer(pods[0], pods[1], mib=4).arrived_unchanged()
        await Transfer(pods[1], pods[0], mib=4).arrived_unchanged()
        largest = str(two_planes.MTU - 50 - 28)
        assert " 0% packet loss" in ping(one, pods[1].inner, "-M", "do", "-s", largest)
        for plane in planes:
            assert not (await only_peer(plane)).drops.keys() & {"too_big", "forged", "unsupported"}
        assert one.run(*fragments) == before
    finally:
        for place in lab.places:
            place.run("ip", "link", "del", "flannel.1", check=False)
    for plane in planes:
        for peer in (await plane.stats()).peers:
            await plane.drop_peer(peer.peer)
        await plane.aclose()


async def test_strangers_get_no_byte_back(lab: Field, planes: list[DataPlane]) -> None:
    fake = FakeCaller(lab)
    await fake.introduce(planes[0])

    def attack() -> None:
        with fake.sock:
            call, _ = fake.call(1)
            tcp = preface.make_preface(fake.keys, os.urandom(32), 1)  # of the other kind of carrier
            for data in (
                *(call[:-60], call[:40] + bytes([call[40] ^ 1]) + call[41:], os.urandom(128), b"x", b""),
                CALL.to_bytes(4, "big") + tcp + bytes(FLIGHT_BYTES - 4 - len(tcp)),
                ANSWER.to_bytes(4, "big") + bytes(124),
                os.urandom(1400),
            ):
                fake.put(data)
            assert fake.answer() == b""

    await trio.to_thread.run_sync(attack)
    stats = await planes[0].stats()
    assert not stats.peers[0].connected


async def test_replayed_and_forged_datagrams_carry_nothing(lab: Field, planes: list[DataPlane]) -> None:
    fake = FakeCaller(lab)
    await fake.introduce(planes[0])
    ping_entry = records.control_entry(records.PING, 1)

    def play() -> None:
        with fake.sock:
            call, sealer = fake.greet(1)
            fake.put(call)
            assert fake.answer(PATIENCE_S), "a call that was repeated in time gets the same answer"
            first = bundle(sealer, ping_entry)
            fake.put(first)
            assert fake.answer(PATIENCE_S), "a pong"
            while fake.answer():
                pass
            fake.put(first)
            late = bundle(sealer, ping_entry)
            fake.put(late[:-1] + bytes([late[-1] ^ 1]))
            fake.put(late[:11] + bytes([3, 200, 255]) + late[14:])
            pings = [fake.answer() for _ in range(2)]
            assert not any(len(p) == 45 + 12 for p in pings), "no pong to a replay or a forgery"
            fake.put(call)
            old_call, _ = fake.call(1)
            fake.put(old_call)

    await trio.to_thread.run_sync(play)
    stats = await until(planes[0], lambda s: s.peers[0].drops.get("unauthentic", 0) >= 3 and s.refused >= 1)
    assert stats.peers[0].rx_packets == 0


async def test_nobody_is_amplified(lab: Field, planes: list[DataPlane]) -> None:
    """An answer is never longer than the call, whoever seems to have sent it."""
    fake = FakeCaller(lab)
    await fake.introduce(planes[0])
    call, _ = fake.call(1)
    with fake.sock:
        fake.put(call)
        answer = await trio.to_thread.run_sync(fake.answer, PATIENCE_S)
    assert 0 < len(answer) <= len(call)
