"""Does a cluster that lost its majority come back as one, whoever comes back when and in what order?"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from p2p_simulations.sim.k3s import DATA
from p2p_simulations.sim.plan import (
    CorruptCopy,
    Fault,
    K3sPlan,
    KillAgent,
    MakeBackup,
    NodePlan,
    Partition,
    Plan,
    PowerCut,
    Recover,
    Reimage,
    RestoreBackup,
)
from p2p_simulations.sim.world import World

Nodes = Callable[..., tuple[NodePlan, ...]]
QUICK = K3sPlan((2.0, 6.0))


def played(plan: Plan, seed: int) -> World:
    world = World(plan, seed, keep_trace=True)
    try:
        world.run()
    except AssertionError as exc:
        pytest.fail("\n".join([*world.engine.trace[-60:], f"seed {seed}: {exc}"]))
    finally:
        world.close()
    return world


@pytest.mark.parametrize("seed", range(1, 3))
def test_two_of_three_servers_lose_power_the_third_brings_the_cluster_back(nodes: Nodes, seed: int) -> None:
    """At the end the two come back, with their disks: fenced, they join anew."""
    chance = random.Random(seed)
    names = [f"n{i}" for i in range(1, 6)]
    dead = tuple(chance.sample(names[:3], 2))
    machines = tuple(replace(n, wish="server" if n.name in names[:3] else "agent") for n in nodes(5))
    orders = tuple(
        (150.0 + 15 * i, Recover(name)) for i, name in enumerate(n for n in names if n not in dead)
    )
    crash = chance.choice([n for n in names if n not in dead])
    plan = Plan(
        "majority lost",
        machines,
        servers=3,
        minimum_nodes=5,
        k3s=QUICK,
        faults=(
            (90.0, PowerCut(dead, None)),
            *orders,
            (150.0 + chance.uniform(0, 12), KillAgent((crash,), 2.0)),
        ),
        heal_at_s=260.0,
    )
    world = played(plan, seed)
    ready = world.checkers.votes.ready("kairos")
    assert ready is not None
    held = [m.disk.read(DATA) for m in world.machines.values()]
    stores = {data.store for data in held if data.role == "server"}
    assert len(stores) == 1, f"all are in one datastore: {stores}"
    assert ready[0] >= 2, "a recovery was decided"
    assert ready[1].continues is not None


def test_servers_that_have_not_heard_of_a_recovery_are_waited_for(nodes: Nodes) -> None:
    """A cut right after the decision: two of three go on, so the third may not begin etcd anew."""
    machines = tuple(replace(n, wish="server" if n.name in ("n1", "n2", "n3") else "agent") for n in nodes(6))
    waited = 0
    for cut_after_s in (0.04, 0.05, 0.06, 0.08):
        faults = ((150.0, Recover("n4", "latest")), (150.0 + cut_after_s, Partition((("n2", "n3"),), 60.0)))
        plan = Plan(
            "cut off",
            machines,
            servers=3,
            minimum_nodes=6,
            k3s=K3sPlan((2.0, 6.0), snapshots_s=20.0),
            faults=faults,
            heal_at_s=250.0,
        )
        world = played(plan, 1)
        ready = world.checkers.votes.ready("kairos")
        assert ready is not None
        assert ready[0] <= 2, "one recovery at most was decided"
        waited += any("could go on without this server" in line for line in world.engine.trace)
    assert waited, "none of the cuts came between the decision and what follows from it"


def test_a_damaged_copy_of_a_snapshot_is_noticed_and_another_one_used(nodes: Nodes) -> None:
    """The disks of two of three servers are lost; the newest copy of the third is bad, and one more."""
    machines = tuple(replace(n, wish="server" if n.name in ("n1", "n2", "n3") else "agent") for n in nodes(5))
    faults = (
        (120.0, Reimage("n1", 60.0)),
        (120.0, Reimage("n2", 60.0)),
        (149.9, CorruptCopy("n3")),
        (149.9, CorruptCopy("n4")),
        (150.0, Recover("n4", "latest")),
    )
    snapshots = K3sPlan((2.0, 6.0), snapshots_s=20.0)
    plan = Plan(
        "bad copies", machines, servers=3, minimum_nodes=5, k3s=snapshots, faults=faults, heal_at_s=250.0
    )
    world = played(plan, 1)
    trace = "\n".join(world.engine.trace)
    assert "a sector under the copy of" in trace
    assert "is damaged" in trace, "its checksum told"
    assert "from the snapshot" in trace, "another copy was whole"


def restored(machines: tuple[NodePlan, ...], *faults: tuple[float, Fault]) -> Plan:
    """A backup is made; then this happens."""
    return Plan(
        "restored",
        machines,
        servers=3,
        minimum_nodes=7,
        k3s=K3sPlan((2.0, 6.0), snapshots_s=20.0),
        faults=((100.0, MakeBackup("n1")), *faults),
        heal_at_s=300.0,
    )


def test_a_backup_becomes_a_cluster_on_machines_that_are_new(nodes: Nodes) -> None:
    """All servers, and with them all keys to the copies of snapshots, are lost."""
    wishes = {"n1": "server", "n2": "server", "n3": "server", "n4": "auto"}
    machines = tuple(replace(n, wish=wishes.get(n.name, "agent")) for n in nodes(7))
    burnt = tuple((130.0, Reimage(f"n{i}", 20.0 + 10 * i)) for i in (1, 2, 3))
    world = played(restored(machines, *burnt, (200.0, RestoreBackup("n1"))), 1)
    assert not world.verdict.exempt()
    ready = world.checkers.votes.ready("kairos")
    assert ready is not None
    assert ready[1].ca_hash in {e.ca_hash for e in world.etcds.values() if not e.reset}, "the CA is the same"
    assert any("from the snapshot backup-n1" in line for line in world.engine.trace)


def test_a_backup_is_not_restored_over_servers_that_go_on_unseen(nodes: Nodes) -> None:
    """Two of three are cut off when it is ordered, and take writes; the new one waits until they stopped."""
    wishes = {"n1": "server", "n2": "server", "n3": "server", "n4": "auto"}
    machines = tuple(replace(n, wish=wishes.get(n.name, "agent")) for n in nodes(7))
    cut = Partition((("n1", "n2"),), 60.0)
    world = played(restored(machines, (195.0, cut), (200.0, RestoreBackup("n4"))), 1)
    assert any("could go on without this server" in line for line in world.engine.trace)
    ready = world.checkers.votes.ready("kairos")
    assert ready is not None
    assert ready[0] == 2


@pytest.mark.parametrize("seed", range(1, 2))
def test_the_power_of_the_whole_site_fails_and_comes_back_in_any_order(nodes: Nodes, seed: int) -> None:
    chance = random.Random(seed)
    cuts = tuple((100.0, PowerCut((f"n{i}",), chance.uniform(1, 60))) for i in range(1, 6))
    plan = Plan("site", nodes(5), servers=3, minimum_nodes=5, k3s=QUICK, faults=cuts, heal_at_s=200.0)
    world = played(plan, seed)
    ready = world.checkers.votes.ready("kairos")
    assert ready is not None
    assert ready[0] == 1, "roles unchanged: nothing had to be decided again"
