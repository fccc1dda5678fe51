"""What becomes of several regions: where do the servers stand, by which times, and who loses what?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from p2p_roles.genesis.messages import Genesis
from p2p_roles.placement import Placement
from p2p_roles.timing import LAN, SLOW
from p2p_simulations.sim import faults
from p2p_simulations.sim.k3s import DATA, DROP_IN, DropIn
from p2p_simulations.sim.plan import Fault, K3sPlan, NodePlan, Partition, Plan, PowerCut
from p2p_simulations.sim.world import World
from p2p_simulations.world.net import Weather

QUICK = K3sPlan((2.0, 6.0))


def nodes(**regions: int) -> tuple[NodePlan, ...]:
    return tuple(NodePlan(f"{r}{i}", r) for r, count in regions.items() for i in range(1, count + 1))


def plan(where: tuple[NodePlan, ...], **more) -> Plan:
    facts = {"servers": 3, "minimum_nodes": len(where), "k3s": QUICK, "heal_at_s": 90.0}
    return Plan("regions", where, **(facts | more))


@contextmanager
def played(what: Plan, seed: int) -> Iterator[World]:
    """A world at its happy end; it fails with the checkers' words."""
    world = World(what, seed)
    try:
        world.run()
        assert not world.verdict.exempt()
        yield world
    finally:
        world.close()


def genesis(world: World, scope: str = "kairos") -> Genesis:
    ready = world.checkers.votes.ready(scope)
    assert ready is not None
    return ready[1]


def places(world: World, scope: str = "kairos") -> dict[str, int]:
    """Servers by region."""
    return dict(Counter(world.machine_of(p).plan.region for p in genesis(world, scope).servers))


def test_three_regions_get_a_server_each() -> None:
    with played(plan(nodes(east=3, west=2, north=1)), 1) as world:
        assert places(world) == {"east": 1, "west": 1, "north": 1}


def test_two_regions_get_one_server_unless_one_is_named() -> None:
    with played(plan(nodes(east=2, west=2)), 2) as world:
        assert len(genesis(world).servers) == 1
        assert "p2p.home_region" in genesis(world).remark
    with played(plan(nodes(east=2, west=2), placement=Placement("spread", "west")), 2) as world:
        assert places(world) == {"east": 1, "west": 2}


def test_pack_stands_at_home_also_when_others_boot_first() -> None:
    where = tuple(
        NodePlan(n.name, n.region, boots_at_s=20.0 if n.region == "west" else 0.0)
        for n in nodes(east=3, west=3)
    )
    packed = plan(where, minimum_nodes=4, placement=Placement("pack", "west"))
    with played(packed, 3) as world:
        assert set(places(world)) == {"west"}


@pytest.mark.parametrize("seed", [1, 2])
def test_a_slow_world_gets_slow_times_the_same_on_all_servers(seed: int) -> None:
    slow = Weather(region_delay_s=0.2)
    with played(plan(nodes(east=2, west=2, north=2), weather=slow), seed) as world:
        assert genesis(world).timing == SLOW
        drop_ins: list[DropIn] = [m.disk.read(DROP_IN) for m in world.machines.values()]
        assert {d.timing for d in drop_ins if d.role == "server"} == {SLOW}
    near = Weather(region_delay_s=0.002)
    with played(plan(nodes(east=2, west=2, north=2), weather=near), seed) as world:
        assert genesis(world).timing == LAN


@pytest.mark.parametrize("seed", [1, 25, 34, 46, 56, 84])
def test_regions_that_nobody_named_are_found_before_the_genesis(seed: int) -> None:
    """Neighbours decided in the same moment, each for a region of its own (25), so that one place held a
    majority of the servers (56, 84); or all stood on one line, and some never knew where (34, 46)."""
    found = plan(nodes(east=2, west=2, north=2), infers_regions=True, weather=Weather(region_delay_s=0.04))
    with played(found, seed) as world:
        assert places(world) == {"east": 1, "west": 1, "north": 1}
        said: dict[str, set[str]] = {}
        for machine in world.machines.values():
            assert machine.agent is not None
            said.setdefault(machine.plan.region, set()).add(machine.agent.places.region)
        assert all(len(names) == 1 for names in said.values()), said
        assert len(set.union(*said.values())) == 3


@pytest.mark.parametrize(
    "fault", [PowerCut(("north1", "north2"), None), Partition((("north1", "north2"),), None)]
)
def test_a_region_gone_leaves_a_majority_and_one_that_returns_is_let_in(fault: Fault) -> None:
    """For ten minutes and more; what the cut-off side has is not thrown away."""
    what = plan(nodes(east=2, west=2, north=2), faults=((120.0, fault),), heal_at_s=800.0)
    world = World(what, 5)
    seen: list[object] = []

    def look() -> None:
        here = [m for m in world.machines.values() if m.plan.region != "north"]
        seen.extend(m.agent is not None and m.agent.bootstrap.status.ready for m in here)
        seen.append(world.machines["north1"].disk.read(DATA))

    world.engine.at(760.0, look)
    try:
        world.run()
        assert seen[:-1] == [True] * 4
        assert seen[-1] is not None
        assert world.machines["north1"].disk.read(DATA) == seen[-1]
        assert len(world.etcds) == 1
    finally:
        world.close()


def test_a_person_confirms_what_was_measured_and_it_outlives_a_power_cut() -> None:
    silent = plan(nodes(east=2, west=2), unsaid_regions=True, weather=Weather(region_delay_s=0.04))
    with played(silent, 6) as world:
        agents = {m.name: m.agent for m in world.machines.values() if m.agent is not None}
        assert {a.places.region for a in agents.values()} == {""}, "shown only, until a person agrees"
        assert len(genesis(world).servers) == 3, "as long as nobody names a region there is one place"
        told: list[object] = []

        async def agree() -> None:
            told.extend((await agents["east1"].places.confirm_all()).values())

        agents["east1"].tasks.start(agree())
        world.engine.run(world.engine.now + 60.0)
        assert len(told) == 4
        regions = {name: agent.places.region for name, agent in agents.items()}
        assert regions["east1"] == regions["east2"] != regions["west1"] == regions["west2"]
        assert {agent.places.how for agent in agents.values()} == {"confirmed"}
        faults.happen(world, PowerCut(tuple(agents), 5.0))
        world.engine.run(world.engine.now + 120.0)
        again = {m.name: m.agent.places.region for m in world.machines.values() if m.agent is not None}
        assert again == regions


def test_a_cluster_per_region_on_one_mesh() -> None:
    what = plan(nodes(east=3, west=3), minimum_nodes=3, per_region=True)
    with played(what, 4) as world:
        assert places(world, "kairos/east") == {"east": 3}
        assert places(world, "kairos/west") == {"west": 3}
        assert len(world.etcds) == 2
