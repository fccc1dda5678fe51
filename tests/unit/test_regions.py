"""Do coordinates find out who is near whom, and does what follows hold still?"""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_network.coordinates import ORIGIN, Coordinate, apart_s, moved, rtt_s
from p2p_network.core.ids import PeerId
from p2p_network.places import PUBLISH_EVERY_S, YOUNG_S, PeersKnown, Places, PublishPlace, Sampled, Tick
from p2p_network.regions import Located, infer, name_of
from p2p_roles.timing import LAN, SLOW, WAN, k3s_arguments, timing_of, worst_rtt_s

WIDE = {("a", "b"): 0.04, ("a", "c"): 0.1, ("b", "c"): 0.12}


def world(seed: int, rounds: int, per_region: int = 3) -> tuple[dict[PeerId, Places], dict[PeerId, str]]:
    """Nodes in three regions that have measured each other: access links and busy moments included."""
    chance = random.Random(seed)
    region = {PeerId(f"p{seed}-{r}-{i}"): r for r in "abc" for i in range(per_region)}
    access = {peer: chance.uniform(0, 0.003) for peer in region}
    nodes = {peer: Places(peer, 0.0) for peer in region}
    for turn in range(rounds):
        for peer, node in nodes.items():
            other = chance.choice([p for p in region if p != peer])
            r, s = sorted((region[peer], region[other]))
            rtt = WIDE.get((r, s), 0.0) + access[peer] + access[other] + chance.expovariate(1 / 0.004)
            node.step(turn * 0.4, Sampled(other, nodes[other].coordinate, rtt))
    return nodes, region


@pytest.mark.parametrize("seed", range(5))
def test_three_regions_are_found_by_round_trips_alone(seed: int) -> None:
    nodes, region = world(seed, rounds=120)
    found = infer([Located(p, "", n.coordinate) for p, n in nodes.items()])
    by_region = {r: {found[p].region for p in region if region[p] == r} for r in "abc"}
    assert all(len(names) == 1 for names in by_region.values()), by_region
    assert len(set.union(*by_region.values())) == 3
    for r in "abc":  # whoever has the smallest id of its region gave it its name
        leader = min(p for p in region if region[p] == r)
        assert by_region[r] == {name_of(leader)}
    a, b = next(p for p in region if region[p] == "a"), next(p for p in region if region[p] == "b")
    assert rtt_s(nodes[a].coordinate, nodes[b].coordinate) == pytest.approx(0.04, abs=0.012)


def test_an_unnamed_node_joins_the_named_region_it_is_near() -> None:
    nodes, region = world(3, rounds=120)
    first = {r: min(p for p in region if region[p] == r) for r in "abc"}
    located = [
        Located(
            p, {"a": "paris", "b": "tokyo"}.get(region[p], "") if p == first[region[p]] else "", n.coordinate
        )
        for p, n in nodes.items()
    ]
    found = infer(located)
    assert {found[p].region for p in region if region[p] == "a"} == {"paris"}
    assert {found[p].region for p in region if region[p] == "b"} == {"tokyo"}
    assert {found[p].source for p in region if region[p] == "c"} == {"group"}
    assert infer(list(reversed(located))) == found, "the order is no matter"


def test_without_measurements_nothing_is_said() -> None:
    found = infer([Located(PeerId("a"), "", None), Located(PeerId("b"), "", ORIGIN)])
    assert {(f.region, f.source) for f in found.values()} == {("", "unknown")}


sound = st.builds(
    Coordinate,
    *[st.floats(-29, 29)] * 3,
    st.floats(0, 29),
    st.floats(0, 1.5),
)


@settings(max_examples=200)
@given(own=sound, other=sound, rtt=st.floats(0, 1e9))
def test_no_sample_makes_a_coordinate_unsound(own: Coordinate, other: Coordinate, rtt: float) -> None:
    assert moved(own, other, rtt, (1.0, 2.0, 3.0)).is_sound


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 31.0])
def test_what_a_peer_says_is_checked(number: float) -> None:
    lie = Coordinate(number, 0, 0, 0, 1)
    assert not lie.is_sound
    node = Places(PeerId("a"), 0.0)
    node.step(0.0, Sampled(PeerId("b"), lie, 0.01))
    assert node.coordinate == ORIGIN
    assert node.measured == {PeerId("b"): 0.01}, "the round trip is our own"


def test_a_coordinate_is_told_seldom_and_only_when_it_matters() -> None:
    chance, told, last = random.Random(1), 0, 0.0
    node, there = Places(PeerId("a"), 0.0), Coordinate(0.05, 0, 0, 0.001, 0.1)
    for second in range(3600):
        rtt = 0.05 + chance.expovariate(1 / 0.005)
        for effect in node.step(float(second), Sampled(PeerId("b"), there, rtt)).effects:
            assert isinstance(effect, PublishPlace)
            assert told == 0 or last < YOUNG_S or second - last >= PUBLISH_EVERY_S
            told, last = told + 1, float(second)
    assert 1 < told < 40, "an hour of noise is no news"
    node.step(4000.0, PeersKnown(frozenset()))
    assert not node.measured
    assert not node.step(4001.0, Tick()).effects
    assert apart_s(node.coordinate, there) == pytest.approx(0.05, abs=0.01)


def test_times_follow_from_the_largest_round_trip_between_servers() -> None:
    me, b, c = PeerId("me"), PeerId("b"), PeerId("c")
    assert timing_of("auto", worst_rtt_s(me, (me,), {}, {})) == LAN
    assert timing_of("auto", worst_rtt_s(me, (me, b, c), {}, {})) == LAN, "nothing measured: k3s's own"
    assert timing_of("auto", worst_rtt_s(me, (me, b), {b: 0.08}, {})) == WAN
    far = worst_rtt_s(me, (me, b, c), {b: 0.2, c: 0.2}, {})
    assert far == pytest.approx(0.4), "without coordinates: the way over this node"
    near = {b: Coordinate(0.1, 0, 0, 0.001, 0.1), c: Coordinate(0.11, 0, 0, 0.001, 0.1)}
    assert worst_rtt_s(me, (me, b, c), {b: 0.2, c: 0.2}, near) == pytest.approx(0.2)
    assert timing_of("auto", far) == SLOW
    assert timing_of("slow", 0.001) == SLOW, "by hand"
    assert k3s_arguments(LAN, etcd=True) == {}
    slow = k3s_arguments(SLOW, etcd=True)
    assert slow["etcd-arg+"] == ["heartbeat-interval=1000", "election-timeout=10000"]
    assert slow["kube-controller-manager-arg+"] == [
        "leader-elect-lease-duration=60s",
        "leader-elect-renew-deadline=40s",
    ]
    assert "etcd-arg+" not in k3s_arguments(SLOW, etcd=False)
