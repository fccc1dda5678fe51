"""Who becomes a server, and is the reason right?"""

from __future__ import annotations

import itertools

from p2p_network.core.ids import PeerId
from p2p_roles import assign
from p2p_roles.assign import Assignment
from p2p_roles.genesis.messages import Genesis
from p2p_roles.rules import authorize
from p2p_roles.view import View, ViewNode


def node(name: str, region: str = "", wish="auto", **more) -> ViewNode:
    return ViewNode(PeerId(f"peer-{name}"), name, region, wish=wish, **more)


def view(*nodes: ViewNode) -> View:
    return View(nodes[0].peer, "kairos", nodes, 0.0)


def genesis(*names: str) -> Genesis:
    servers = tuple(f"peer-{n}" for n in names)
    return Genesis("c1", servers[0], "10.144.0.1", "0" * 64, "", "v1", servers, "etcd")


def names(peers) -> list[str]:
    return [p.removeprefix("peer-") for p in peers]


def test_servers_are_spread_over_the_regions() -> None:
    nodes = [node(f"{r}{i}", r) for r in ("west", "east", "north") for i in range(3)]
    for permuted in itertools.islice(itertools.permutations(nodes), 50):
        world = view(*permuted)
        first = assign.rank(world)[0]
        chosen = assign.first_servers(world, first, 3).servers
        assert {world.by_peer[p].region for p in chosen} == {"west", "east", "north"}
        assert chosen == assign.first_servers(view(*nodes), first, 3).servers, (
            "the order of the view is no matter"
        )


def test_forced_servers_first_forced_agents_never() -> None:
    world = view(node("a", "r1", "agent"), node("b", "r1"), node("c", "r1", "server"), node("d", "r2"))
    assert names(assign.rank(world))[0] == "c"
    assert set(names(assign.rank(world))) == {"b", "c", "d"}
    assert names(assign.first_servers(world, PeerId("peer-c"), 2).servers) == ["c", "d"]
    two_forced = view(node("a", "r1", "server"), node("b", "r1", "server"), node("c", "r2"))
    assert set(names(assign.first_servers(two_forced, assign.rank(two_forced)[0], 2).servers)) == {"a", "b"}


def test_the_dead_and_the_failed() -> None:
    world = view(node("a"), node("b"), node("c", alive=False))
    ranked = assign.rank(world)
    assert "peer-c" not in ranked
    assert assign.rank(world, failed=(ranked[0],)) == tuple(reversed(ranked))
    both = (ranked[1], ranked[0])
    assert assign.rank(world, failed=both) == both, "the one that failed longest ago comes first"


def test_reasons() -> None:
    world = view(node("a", "west"), node("b", "east"), node("c", "west"), node("d", "east"))
    given_ = {PeerId("peer-d"): Assignment("agent", "agent: forced", 1, "c1")}
    said = assign.explain(world, genesis("a", "b", "c"), given_)
    assert said[PeerId("peer-a")] == "server: 1st of 3, 1st of region west, initialised the cluster"
    assert said[PeerId("peer-c")] == "server: 3rd of 3, 2nd of region west"
    assert said[PeerId("peer-d")] == "agent: forced"
    without = assign.explain(world, genesis("a"), {})
    assert without[PeerId("peer-b")] == "no role yet: waits for an assignment by the cluster's servers"
    assert "no quorum" in assign.explain(world, None, {})[PeerId("peer-a")]


def test_an_assignment_of_another_cluster_counts_for_nothing() -> None:
    old = {PeerId("peer-b"): Assignment("server", "old", 1, "another")}
    assert assign.role_of(PeerId("peer-b"), genesis("a"), old) is None
    assert authorize(PeerId("peer-b"), "server", genesis("a"), old).granted is None


def test_the_authoritys_word_counts_before_the_genesis() -> None:
    word = {PeerId("peer-b"): Assignment("agent", "agent: replaced", 1, "c1", fence=7)}
    assert assign.role_of(PeerId("peer-b"), genesis("a", "b"), word) == "agent"
    assert authorize(PeerId("peer-b"), "server", genesis("a", "b"), word).granted is None
    assert assign.decode(assign.encode(word[PeerId("peer-b")])).fence == 7
    assert assign.fence_of("assign/kairos/x", assign.encode(word[PeerId("peer-b")])) == 7
    assert assign.fence_of("assign/kairos/x", b"junk") == 0


def test_who_gets_which_secret() -> None:
    given_ = {PeerId("peer-c"): Assignment("agent", "agent: enough", 1, "c1")}
    g = genesis("a", "b")
    assert authorize(PeerId("peer-b"), "server", g, given_).granted == "server"
    assert authorize(PeerId("peer-c"), "agent", g, given_).granted == "agent"
    refused = authorize(PeerId("peer-c"), "server", g, given_)
    assert refused.granted is None
    assert "for servers only" in refused.reason
    assert authorize(PeerId("peer-x"), "agent", g, given_).granted is None
    assert authorize(PeerId("peer-b"), "server", None, given_).granted is None


def test_assignment_bytes() -> None:
    import pytest

    a = Assignment("agent", "agent: enough", 1, "c1")
    assert assign.decode(assign.encode(a)) == a
    for raw in (b"", b"x" * 9999, b"\x81\xa4role\xa5queen"):
        with pytest.raises(ValueError, match=r"."):
            assign.decode(raw)
