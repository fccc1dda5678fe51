"""Worlds that several tests of this lane play."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from p2p_simulations.sim.plan import K3sPlan, NodePlan, Partition, Plan, PowerCut, Trigger
from p2p_simulations.sim.world import Outcome

SCENARIOS = Path(__file__).parents[2] / "simulations" / "scenarios"


def _nodes(count: int, **facts: object) -> tuple[NodePlan, ...]:
    return tuple(NodePlan(f"n{i}", f"r{i % 3}", **facts) for i in range(1, count + 1))  # type: ignore[arg-type]


def _election_plan(seed: int) -> Plan:
    """A small world in which everything goes wrong while the genesis is decided."""
    chance = random.Random(f"election {seed}")
    count = chance.choice((3, 4, 4, 6))
    names = [f"n{i}" for i in range(1, count + 1)]
    half = tuple(chance.sample(names, count // 2))
    worst = (
        PowerCut(tuple(names), 1.0),
        Partition((half,), 25.0),
        PowerCut(half, 2.0),
    )
    triggers = tuple(
        Trigger(state, chance.uniform(0, 1.5), chance.choice(worst)) for state in ("ELECT", "ELECT", "INIT")
    )
    return Plan(
        "election",
        _nodes(count),
        servers=1,
        minimum_nodes=count,
        k3s=K3sPlan((1.0, 3.0)),
        triggers=triggers,
        chaos=chance.choice((0.0, 0.05)),
        heal_at_s=40.0,
    )


@pytest.fixture
def nodes() -> Callable[..., tuple[NodePlan, ...]]:
    """`nodes(count, **facts)`: machines n1, n2, ... in three regions."""
    return _nodes


@pytest.fixture
def election_plan() -> Callable[[int], Plan]:
    """`election_plan(seed)`: a world whose faults all come while the genesis is decided."""
    return _election_plan


@pytest.fixture
def scenarios() -> Path:
    """The folder of the shipped scenarios."""
    return SCENARIOS


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """A violated world is shown as its seed and the command that plays it again."""
    if isinstance(left, Outcome) and op == "==":
        return [f"{left.violation}; the same again: kairos-p2p sim replay {left.seed}"]
    return None
