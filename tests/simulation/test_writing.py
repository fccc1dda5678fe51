"""Is a plan the same after it went through a scenario file? Every kind of fault, and every plan of chance."""

from __future__ import annotations

import dataclasses

from p2p_simulations.sim.chance import random_plan
from p2p_simulations.sim.fault_files import KINDS
from p2p_simulations.sim.files import parse_scenario
from p2p_simulations.sim.plan import Byzantine, Cut, Depart, Partition, Plan, PowerCut, Slow, Upgrade
from p2p_simulations.sim.writing import describe, render

EVERYTHING = """
regions: {east: [n1, n2], west: [n3, n4]}
minimum_nodes: 3
placement: pack
home_region: west
infer_regions: true
relay: false
dynamic_roles: true
nodes: {n1: {role: agent, zone: a, clock: -5m, slowness: 10, k3s: broken, boots: 3s, minimum_nodes: 2},
        n2: {nat: closed, k3s: stale}, n3: {nat: symmetric, joins: later, boots: 5s}}
network: {delay: 2ms, tail: 5ms, loss: 0.1,
          links: [{between: [east, west], delay: 200ms, tail: 40ms, loss: 0.2}]}
vpn: 10.144.0.0/28
chaos: 0.1
max_chaos: 3
faults:
  - {at: 1s, power_cut: east, for: 5s}
  - {at: 2s, kill_agent: n1}
  - {at: 3s, partition: [[east], [n3]], for: 1m}
  - {at: 4s, one_way: {from: [n1], to: [west]}, for: 20s}
  - {at: 5s, cut: [[n1, west], [n2, n3]], for: 20s}
  - {at: 6s, flap: [n1, n3], for: 30s, period: 500ms}
  - {at: 7s, network: {loss: 0.3}}
  - {at: 8s, clock: {n1: 4m}}
  - {at: 9s, drift: {n1: -0.01}}
  - {at: 10s, freeze: n2, for: 8s}
  - {at: 11s, slow_disk: {n1: 100}, for: 8s}
  - {at: 12s, slow_cpu: {n1: 50}}
  - {at: 13s, full_disk: n2, for: 8s}
  - {at: 14s, corrupt: n2, for: 2s}
  - {at: 15s, lose_ledger: n2, for: 2s}
  - {at: 15s, corrupt_ledger: n2, for: 2s}
  - {at: 16s, reimage: n2, for: 2s}
  - {at: 17s, break_k3s: n2}
  - {at: 18s, leave: n2}
  - {at: 19s, vanish: n2}
  - {at: 20s, upgrade: all, period: 20s}
  - {at: 21s, bad_upgrade: n1}
  - {at: 22s, forge: n1}
  - {at: 23s, replay: n1}
  - {at: 24s, equivocate: n1}
  - {at: 25s, backdate: n1}
  - {at: 60s, corrupt_snapshot: n2}
  - {at: 61s, backup: n2}
  - {at: 62s, restore: n3}
  - {at: 26s, rotate: n1}
  - {at: 27s, revoke: n4}
  - {at: 28s, recover: n1}
  - {at: 28s, drain: n1, for: 10m}
  - {at: 29s, upgrade_k3s: {at: n1, version: v1.36.1+k3s1, bad: [n3]}}
  - {when: INIT, after: 500ms, kill_agent: it}
  - {when: ELECT, partition: it}
heal: 2m
expect: {cluster: false, within: 5m, clusters_before_heal: 1, alarm: understated}
"""


def again(plan: Plan) -> Plan:
    return parse_scenario(render(plan).encode(), plan.name)


def test_every_kind_of_fault_is_read_and_written() -> None:
    plan = parse_scenario(EVERYTHING.encode(), "x.yaml")
    assert again(plan) == plan
    said = " ".join(describe(fault) for _, fault in plan.faults)
    assert [kind for kind in KINDS if f"{kind}:" not in said] == []
    faults = [fault for _, fault in plan.faults]
    assert faults[0] == PowerCut(("n1", "n2"), 5.0)
    assert faults[2] == Partition((("n1", "n2"), ("n3",)), 60.0)
    assert faults[4] == Cut((("n1", "n3"), ("n1", "n4"), ("n2", "n3")), 20.0)
    assert faults[10] == Slow("n1", "disk", 100.0, 8.0)
    assert faults[18] == Depart("n2", True)
    assert faults[20] == Upgrade(("n1", "n2", "n3", "n4"), True, 20.0)
    assert faults[25] == Byzantine("n1", "backdate")


def test_plans_of_chance_survive_being_written() -> None:
    for seed in range(60):
        once = again(random_plan(seed))  # times are kept to the millisecond
        assert again(once) == once
        assert (
            dataclasses.replace(once, faults=(), triggers=(), nodes=(), weather=once.weather).name == "chance"
        )
        assert len(once.faults) == len(random_plan(seed).faults)
