"""Is an idle path left in peace where no NAT stands on it, kept open where one does, and watched in use?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
import two_planes
from plane_traffic import ping
from two_planes import Field, Place, connect, until

from p2p_network.dataplane.client import DataPlane
from p2p_network.dataplane.messages import SetReach
from p2p_network.dataplane.pulse import BEAT_S

WHY_NOT = two_planes.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"the data plane's lab {WHY_NOT}")
RESTS_S = 4 * BEAT_S


@pytest.fixture
def lab() -> Iterator[Field]:
    with Field(2) as lab:
        yield lab


def packets(place: Place) -> int:
    """What the data plane of a place sent so far, on either carrier."""
    return int(place.run("nft", "list", "counter", "inet", "kp", "sent").split("packets ")[1].split()[0])


def count_packets(place: Place) -> None:
    rules = [f"{kind} {end} {two_planes.PORT}" for kind in ("tcp", "udp") for end in ("dport", "sport")]
    place.run(
        "nft",
        "add table inet kp; add counter inet kp sent; "
        "add chain inet kp out { type filter hook output priority 0; }; "
        + "; ".join(f"add rule inet kp out {rule} counter name sent" for rule in rules),
    )


async def rests(*places: Place) -> None:
    """Until none of them has sent anything for `RESTS_S`."""
    with trio.fail_after(two_planes.DEADLINE_S):
        before, since = [packets(p) for p in places], trio.current_time()
        while trio.current_time() - since < RESTS_S:
            await trio.sleep(BEAT_S / 4)
            now = [packets(p) for p in places]
            if now != before:
                before, since = now, trio.current_time()


async def set_idle(plane: DataPlane, about: Place, idle_s: float) -> None:
    allowed = (f"{about.inner}/32", f"{about.inner6}/128")
    await plane.set_reach(SetReach(about.name, allowed, guarded=False, idle_s=idle_s))


async def test_an_idle_path_is_asked_only_as_often_as_nat_needs(lab: Field) -> None:
    one, two = lab.places
    planes = [await place.configured() for place in lab.places]
    await connect(one, two)
    for place in lab.places:
        place.run("sysctl", "-qw", f"net.ipv6.conf.{place.device}.router_solicitations=0")
        place.run("ip", "link", "set", place.device, "multicast", "off")
        count_packets(place)
    await set_idle(planes[0], two, 0.0)
    await set_idle(planes[1], one, 0.0)
    await rests(one, two)
    assert all([(await plane.stats()).peers[0].connected for plane in planes])

    # behind a NAT: this side asks as often as it was told to, and the other only answers
    await set_idle(planes[0], two, BEAT_S)
    before = packets(one)
    with trio.fail_after(two_planes.DEADLINE_S):
        while packets(one) < before + 4:
            await trio.sleep(BEAT_S / 4)
    await set_idle(planes[0], two, 0.0)
    await rests(one, two)

    # a path that died while it rested: the first packets find out, and what comes next finds it healed
    connects = (await planes[0].stats()).peers[0].connects
    for kind in ("tcp", "udp"):
        one.run("nft", "add", "rule", "inet", "kp", "out", "meta", "l4proto", kind, "drop")
    one.run("ping", "-n", "-c", "1", "-W", "1", two.inner, check=False)
    await until(planes[0], lambda s: not s.peers[0].connected)
    one.run("nft", "delete", "table", "inet", "kp")
    await until(planes[0], lambda s: s.peers[0].connected and s.peers[0].connects > connects)
    await until(planes[1], lambda s: s.peers[0].connected)
    assert " 0% packet loss" in ping(one, two.inner)
    for plane in planes:
        await plane.aclose()
