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
from p2p_network.regions import Located, infer, name_of, of_itself
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


SETTLED = 0.2


def at(x_s: float, error: float = SETTLED) -> Coordinate:
    return Coordinate(x_s, 0, 0, 0.001, error)


def unnamed(**where: Coordinate | None) -> list[Located]:
    return [Located(PeerId(peer), "", coordinate) for peer, coordinate in where.items()]


def test_equal_distances_are_no_line_that_nobody_gets_off() -> None:
    """Three regions, equally far from each other: a triangle, also where all began on one line."""
    equal, chance = 0.06, random.Random(1)
    nodes = {PeerId(p): Places(PeerId(p), 0.0) for p in ("a1", "a2", "b1", "b2", "c1", "c2")}
    line = {"a": -0.03, "b": 0.0, "c": 0.03}
    for peer, node in nodes.items():
        node.coordinate = at(line[peer[0]], error=1.5)
    for turn in range(120):
        for peer, node in nodes.items():
            other = chance.choice([p for p in nodes if p != peer])
            rtt = 0.004 + (equal if peer[0] != other[0] else 0.0) + chance.expovariate(1 / 0.002)
            node.step(turn * 0.4, Sampled(other, nodes[other].coordinate, rtt))
    assert max(node.coordinate.error for node in nodes.values()) < SETTLED
    assert rtt_s(nodes[PeerId("a1")].coordinate, nodes[PeerId("b1")].coordinate) == pytest.approx(
        0.064, abs=0.006
    )


def test_neighbours_that_decide_in_the_same_moment_give_one_name() -> None:
    """Each knows itself settled before the others are told so; what they measured is enough."""
    a, b, far = PeerId("a"), PeerId("b"), PeerId("far")
    mine = of_itself(b, unnamed(a=None, b=at(0.0), far=at(0.06)), {a: 0.003, far: 0.06})
    theirs = of_itself(a, unnamed(a=at(0.0), b=None, far=at(0.06)), {b: 0.003, far: 0.06})
    assert mine.inferred.region == theirs.inferred.region == name_of(a)
    assert mine.waits_for == (a,)
    assert not theirs.waits_for
    assert of_itself(far, unnamed(a=None, b=None, far=at(0.06)), {a: 0.06, b: 0.06}).inferred.leader == far


def test_who_may_be_a_neighbour_is_waited_for() -> None:
    a, b = PeerId("a"), PeerId("b")
    assert of_itself(b, unnamed(a=None, b=at(0.0)), {}).waits_for == (a,), "not measured yet"
    assert of_itself(a, unnamed(a=at(0.0), b=None), {}).waits_for == (), "the smaller id speaks first"
    young = of_itself(b, unnamed(a=at(0.06), b=at(0.0, error=1.0)), {a: 0.06})
    assert (young.inferred.source, young.waits_for) == ("unknown", (a,))
    once = of_itself(a, unnamed(a=at(0.0), b=at(0.02)), {b: 0.02}, young={b})
    assert once.waits_for == (b,), "the one round trip may have met a busy moment"
    assert not of_itself(a, unnamed(a=at(0.0), b=at(0.02)), {b: 0.02}).waits_for
    assert not of_itself(a, unnamed(a=at(0.0), b=at(0.06)), {b: 0.06}, young={b}).waits_for


def test_a_measured_round_trip_counts_for_more_than_a_coordinate_as_far_as_it_is_short() -> None:
    a, b = PeerId("a"), PeerId("b")
    west = Located(a, "west", at(0.02))
    itself = Located(b, "", at(0.0))
    assert of_itself(b, [west, itself], {a: 0.005}).inferred.region == "west"
    assert of_itself(b, [west, itself], {a: 0.02}).inferred.source == "group"
    near = Located(a, "west", at(0.004))  # a slow access link makes a round trip long, not the way
    assert of_itself(b, [near, itself], {a: 0.04}).inferred.region == "west"


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
