"""Does the swarm meet every fault there is, and are the bounds on messages and memory watched?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

import pytest

from p2p_simulations.sim.chance import random_plan
from p2p_simulations.sim.invariants import bounds
from p2p_simulations.sim.plan import (
    Byzantine,
    Depart,
    Fault,
    NodePlan,
    Plan,
    Recover,
    Slow,
    Upgrade,
    UpgradeK3s,
)
from p2p_simulations.sim.world import World, run_world
from p2p_simulations.world.net import Nat, Network

Nodes = Callable[..., tuple[NodePlan, ...]]
PLANS = 600


def test_chance_draws_every_fault() -> None:
    plans = [random_plan(seed) for seed in range(PLANS)]
    faults = [fault for plan in plans for _, fault in plan.faults]
    assert {type(fault) for fault in faults} == set(get_args(Fault))
    assert {fault.snapshot for fault in faults if isinstance(fault, Recover)} == {"", "latest"}
    assert {bool(fault.bad) for fault in faults if isinstance(fault, UpgradeK3s)} == {True, False}
    assert {fault.what for fault in faults if isinstance(fault, Slow)} == {"disk", "cpu"}
    assert {fault.said for fault in faults if isinstance(fault, Depart)} == {True, False}
    assert {fault.is_good for fault in faults if isinstance(fault, Upgrade)} == {True, False}
    lies = {fault.how for fault in faults if isinstance(fault, Byzantine)}
    assert lies == {"forge", "replay", "equivocate", "backdate"}
    nodes = [node for plan in plans for node in plan.nodes]
    assert {node.nat for node in nodes} == set(get_args(Nat))
    for field in ("joins_later", "k3s_broken", "stale_k3s"):
        assert {getattr(node, field) for node in nodes} == {True, False}, field
    assert {bool(plan.k3s.snapshots_s) for plan in plans} == {True, False}
    for field in ("replaces", "relays", "per_region", "recovers"):
        assert {getattr(plan, field) for plan in plans} == {True, False}, field
    weathers = [plan.weather for plan in plans]
    for field in ("loss", "duplication", "links"):
        assert any(getattr(weather, field) for weather in weathers), field
    assert any(plan.chaos for plan in plans)
    assert any(plan.triggers for plan in plans)


def _hidden(plan: Plan) -> Iterator[tuple[str, str]]:
    network = Network(World(plan, 1).engine, plan.weather)
    for node in plan.nodes:
        network.place(node.name, node.region, node.nat)
    for one in plan.nodes:
        for other in plan.nodes:
            if not network.may_meet(one.name, other.name):
                yield one.name, other.name


def test_everybody_has_a_way_to_everybody_before_anything_fails() -> None:
    for seed in range(150):
        plan = random_plan(seed)
        apart = set(_hidden(plan))
        for one, other in apart:
            ways = [n.name for n in plan.nodes if not {(one, n.name), (n.name, other)} & apart]
            assert plan.relays, f"seed {seed}"
            assert set(ways) - {one, other}, f"seed {seed}"


@pytest.mark.parametrize(
    ("bound", "value", "said"),
    [
        ("MAX_HELD_BYTES", (1 << 10, 1 << 10), "bytes in memory, more than"),
        ("MAX_BYTES_PER_S", 100.0, "bytes in 20 s"),
        ("MAX_MESSAGES_PER_S", 1.0, "messages in 20 s"),
    ],
)
def test_bounds_are_watched(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, bound: str, value: object, said: str
) -> None:
    plan = Plan("bounds", nodes(3), servers=1, minimum_nodes=3, heal_at_s=30.0)
    monkeypatch.setattr(bounds, bound, value)
    assert said in run_world(plan, 1).violation
