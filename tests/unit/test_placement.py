"""Where may servers stand: spread and pack, growing, shrinking, and what is said about it?"""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_network.core.ids import PeerId
from p2p_roles.genesis.messages import Genesis, Timing, decode_value, encode_value
from p2p_roles.placement import SPREAD, Placement, choose, fault, may_initialise, of_genesis, removals
from p2p_roles.view import ViewNode


def node(name: str, region: str = "", wish="auto", **more) -> ViewNode:
    return ViewNode(PeerId(f"peer-{name}"), name, region, wish=wish, **more)


def nodes(**regions: int) -> list[ViewNode]:
    return [node(f"{region}{i}", region) for region, count in regions.items() for i in range(count)]


def regions_of(peers, among) -> dict[str, int]:
    by_peer = {n.peer: n.region for n in among}
    return dict(Counter(by_peer[p] for p in peers))


@given(
    regions=st.lists(st.sampled_from("abcd"), min_size=1, max_size=12),
    servers=st.sampled_from((1, 3, 5, 7)),
)
def test_spread_loses_no_majority_with_any_region(regions: list[str], servers: int) -> None:
    everyone = [node(str(i), r) for i, r in enumerate(regions)]
    choice = choose(SPREAD, everyone[:1], everyone[1:], servers)
    got = len(choice.servers)
    assert choice.servers[0] == everyone[0].peer
    assert len(set(choice.servers)) == got <= servers
    count = regions_of(choice.servers, everyone)
    if len(set(regions)) == 1:
        assert got == min(servers, len(regions)), "one place only: nothing to spread over"
        return
    assert got == 1 or max(count.values()) <= got // 2
    assert got % 2 == 1
    assert (got < servers) == bool(choice.remark)
    assert not fault(SPREAD, [n for n in everyone if n.peer in choice.servers])
    for a, b in itertools.permutations(set(regions), 2):  # as even as what is there allows
        assert count.get(a, 0) - count.get(b, 0) <= 1 or count.get(b, 0) == regions.count(b)
    more = got + 2  # no larger odd number could have been reached
    capacity = sum(min(n, more // 2) for n in Counter(regions).values())
    assert got == servers or more > servers or capacity < more


def test_two_regions_start_with_one_server_and_say_why() -> None:
    everyone = nodes(eu=3, us=2)
    choice = choose(SPREAD, everyone[:1], everyone[1:], 3)
    assert choice.servers == (everyone[0].peer,)
    assert choice.remark.startswith("1 of 3 servers: region eu, region us cannot hold 3 without a majority")
    assert "p2p.home_region" in choice.remark


def test_an_explicit_word_lifts_the_limit() -> None:
    everyone = nodes(eu=3, us=3)
    for first in everyone:
        rest = [n for n in everyone if n is not first]
        told = choose(Placement("spread", "eu"), [first], rest, 3)
        assert regions_of(told.servers, everyone) == {"eu": 2, "us": 1}
        assert not told.remark
        assert not fault(Placement("spread", "eu"), [n for n in everyone if n.peer in told.servers])
    forced = [node("a", "eu", "server"), node("b", "eu", "server"), node("c", "us")]
    assert len(choose(SPREAD, forced[:1], forced[1:], 3).servers) == 3


@pytest.mark.parametrize("home", ["eu", ""])
def test_pack_keeps_all_servers_at_home_and_only_starts_there(home: str) -> None:
    rule = Placement("pack", home)
    everyone = nodes(us=2, eu=4, ap=1)
    assert {n.region for n in may_initialise(rule, everyone)} == {"eu"}
    choice = choose(rule, everyone[2:3], everyone, 3)
    assert regions_of(choice.servers, everyone) == {"eu": 3}
    assert not choice.remark
    fewer = choose(rule, everyone[2:3], everyone, 5)
    assert regions_of(fewer.servers, everyone) == {"eu": 4}
    assert "4 of 5 servers: all stand in the home region" in fewer.remark


def test_zones_are_filled_evenly() -> None:
    everyone = [node(f"{z}{i}", "eu", zone=z) for z in "ab" for i in range(3)]
    chosen = choose(SPREAD, everyone[:1], everyone[1:], 4).servers
    zones = Counter(n.zone for n in everyone if n.peer in chosen)
    assert zones == {"a": 2, "b": 2}


def test_replacing_a_lost_region_grows_where_the_rule_allows() -> None:
    everyone = nodes(eu=2, us=2, ap=2)
    keep = [everyone[0], everyone[2]]  # ap's server is lost
    back = choose(SPREAD, keep, everyone, 3)
    assert regions_of(back.servers, everyone) == {"eu": 1, "us": 1, "ap": 1}
    without = choose(SPREAD, keep, nodes(eu=2, us=2), 3)  # the whole of ap is gone
    assert without.servers == tuple(n.peer for n in keep), "rather two than a majority in one place"
    assert without.remark


def test_shrinking_takes_from_the_fullest_place_first() -> None:
    keep = nodes(eu=3, us=1, ap=1)
    assert regions_of(removals(SPREAD, keep, 3), keep) == {"eu": 2}
    forced = [node("a", "eu", "server"), *nodes(eu=2, us=1)]
    assert PeerId("peer-a") not in removals(SPREAD, forced, 1)
    packed = removals(Placement("pack", "us"), nodes(eu=2, us=2, ap=1), 2)
    assert regions_of(packed, nodes(eu=2, us=2, ap=1)) == {"eu": 2, "ap": 1}
    dead_first = [*nodes(eu=2), node("d", "us", alive=False)]
    assert removals(SPREAD, dead_first, 2) == (PeerId("peer-d"),)


def test_what_is_wrong_is_said() -> None:
    assert "2 of 3 servers stand in region eu" in fault(SPREAD, nodes(eu=2, us=1))
    assert "us0: a server outside the home region" in fault(Placement("pack", "eu"), nodes(eu=2, us=1))
    assert not fault(SPREAD, nodes(eu=3))


def genesis(*servers: str, **more) -> Genesis:
    ids = tuple(f"peer-{n}" for n in servers)
    return Genesis("c1", ids[0], "10.144.0.1", "0" * 64, "", "v1", ids, "etcd", **more)


def test_the_rule_is_certified_and_bounded() -> None:
    said = genesis("a", placement="pack", home_region="eu", timing=Timing(1000, 10000, 60, 40), remark="x")
    assert decode_value(encode_value(said), 1) == said
    assert of_genesis(said) == Placement("pack", "eu")
    bad = (
        {"placement": "anywhere"},
        {"home_region": "x" * 501},
        {"remark": "x" * 501},
        {"timing": Timing(heartbeat_ms=-1)},
    )
    for wrong in bad:
        with pytest.raises(ValueError, match="within bounds"):
            decode_value(encode_value(genesis("a", **wrong)), 1)
