"""What becomes of the situations that everybody asks about?"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from p2p_simulations.sim.plan import (
    Expectations,
    K3sPlan,
    KillAgent,
    LoseLedger,
    NodePlan,
    Partition,
    Plan,
    PowerCut,
    Reimage,
    Trigger,
)
from p2p_simulations.sim.world import Outcome, run_world

Nodes = Callable[..., tuple[NodePlan, ...]]
QUICK = K3sPlan((2.0, 6.0))
SEEDS = (1, 2)


def played(plan: Plan, seed: int) -> Outcome:
    outcome = run_world(plan, seed, keep_trace=True)
    assert not outcome.violation, "\n".join([*outcome.trace[-40:], f"seed {seed}: {outcome.violation}"])
    assert not outcome.exempt
    return outcome


@pytest.mark.parametrize("seed", SEEDS)
def test_two_halves_apart_before_the_genesis_found_at_most_one_cluster(nodes: Nodes, seed: int) -> None:
    plan = Plan(
        "halves",
        nodes(5),
        servers=3,
        minimum_nodes=5,
        k3s=QUICK,
        triggers=(Trigger("ELECT", 0.3, Partition((("n1", "n2"),), None)),),
        heal_at_s=120.0,
        expect=Expectations(clusters_before_healing=1),
    )
    played(plan, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_initiator_that_dies_before_ready_is_replaced_and_fenced(nodes: Nodes, seed: int) -> None:
    plan = Plan(
        "initiator",
        nodes(4),
        servers=1,
        minimum_nodes=4,
        k3s=QUICK,
        triggers=(Trigger("INIT", 1.0, PowerCut((), None)),),
        heal_at_s=120.0,
        expect=Expectations(clusters_before_healing=1),
    )
    trace = played(plan, seed).trace
    assert any("certified OUTCOME(1)" in line and "Abort" in line for line in trace)
    assert any("certified OUTCOME(2)" in line and "Ready" in line for line in trace)
    assert any("sets aside what k3s has of epoch 1" in line for line in trace)


@pytest.mark.parametrize("hours", [-1, 1, -20])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_clock_that_is_hours_wrong_keeps_nobody_out(nodes: Nodes, seed: int, hours: int) -> None:
    first, *others = nodes(5)
    wrong = NodePlan(first.name, first.region, clock_offset_s=3600.0 * hours)
    plan = Plan("clock", (wrong, *others), servers=3, minimum_nodes=5, k3s=QUICK, heal_at_s=90.0)
    trace = played(plan, seed).trace
    ready = {line.split()[1] for line in trace if "MEMBER" in line and float(line.split()[0]) < 90}
    assert ready == {"n1", "n2", "n3", "n4", "n5"}


@pytest.mark.parametrize("seed", [1, 11])
def test_a_clock_far_ahead_does_not_capture_the_genesis(nodes: Nodes, seed: int) -> None:
    """Nobody takes its records, so nobody could join it. It is in once the mesh's time has caught up."""
    fast, *others = nodes(5)
    wrong = NodePlan(fast.name, fast.region, clock_offset_s=24 * 3600.0 + 600.0)
    expect = Expectations(within_s=1600.0)
    plan = Plan(
        "clock", (wrong, *others), servers=3, minimum_nodes=4, k3s=QUICK, heal_at_s=90.0, expect=expect
    )
    trace = played(plan, seed).trace
    assert not any("n1       INIT" in line for line in trace)
    ready = {line.split()[1] for line in trace if "MEMBER" in line and float(line.split()[0]) < 90}
    assert ready == {"n2", "n3", "n4", "n5"}


@pytest.mark.parametrize("seed", SEEDS)
def test_an_understated_minimum_is_reported(nodes: Nodes, seed: int) -> None:
    plan = Plan(
        "understated",
        nodes(5),
        servers=1,
        minimum_nodes=2,
        k3s=QUICK,
        heal_at_s=30.0,
        expect=Expectations(alarm="understated"),
    )
    played(plan, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_ledgers_lost_everywhere_come_back_from_what_is_durable(nodes: Nodes, seed: int) -> None:
    """The authority of the cluster is known by certificates; a late node still gets its assignment."""
    *early, last = nodes(4)
    late = NodePlan(last.name, last.region, boots_at_s=80.0)
    lost = tuple((40.0 + number, LoseLedger(node.name, 5.0)) for number, node in enumerate(early))
    plan = Plan("ledgers", (*early, late), servers=1, minimum_nodes=3, k3s=QUICK, faults=lost, heal_at_s=90.0)
    outcome = run_world(plan, seed, keep_trace=True)
    assert not outcome.violation, "\n".join([*outcome.trace[-40:], outcome.violation])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_machine_that_is_imaged_anew_comes_back_as_a_new_node(nodes: Nodes, seed: int) -> None:
    plan = Plan(
        "image",
        nodes(4),
        servers=1,
        minimum_nodes=4,
        k3s=QUICK,
        faults=((1.5, Reimage("n2", 10.0)),),
        heal_at_s=60.0,
    )
    played(plan, seed)


@pytest.mark.parametrize("seed", [108, 138])
def test_an_initiator_that_learns_at_its_restart_that_it_is_done_runs_no_cluster_init(
    seed: int,
) -> None:
    """The start that it wanted waits for the address; in that time READY comes from the others."""
    chance = random.Random(f"r{seed}")
    plan = Plan(
        "restart",
        tuple(NodePlan(f"n{number + 1}", f"r{number}") for number in range(3)),
        servers=1,
        minimum_nodes=3,
        k3s=K3sPlan((0.5, 1.0)),
        triggers=(Trigger("INIT", chance.uniform(0.5, 6), KillAgent((), chance.uniform(0.2, 2))),),
        chaos=0.05,
        heal_at_s=60.0,
    )
    played(plan, seed)
