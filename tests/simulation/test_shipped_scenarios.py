"""Do the scenarios that double as documentation end as they say, and does in each happen what it is about?"""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_simulations.sim.files import parse_scenario
from p2p_simulations.sim.world import run_world
from p2p_simulations.sim.writing import render

STORIES = {
    "byzantine-member": (
        "the key belongs to another node",
        "neither a quorum nor the mesh's authority certified this value",
    ),
    "churn": ("it said that it leaves", "w1       has left", "vanish: w2"),
    "clock-skew": ("drift: {n2: 0.01}",),
    "drained-servers": (
        "n1: alive -> away: drained until",
        "n1: away -> alive",
        "nobody takes its place meanwhile",
        'patches the Node n1: {"unschedulable": true}',
        'patches the Node n1: {"unschedulable": null}',
        "n3: away -> suspect: not back when it was to be",
        "deletes the Node n3",
        "n4 becomes a server",
    ),
    "flapping-link": ("cut: ",),
    "full-disk": ("n2       AGENT ENDED: no space left on device", "n3       AGENT ENDED"),
    "k3s-upgrade": (
        "goes on to v1.36.1+k3s1",
        "all nodes run v1.36.1+k3s1",
        "k3s v1.36.2+k3s1 does not start on this machine",
        "those that had changed are back",
    ),
    "behind-nat": ("h1       reaches o1 through c2", "h1       reaches o1 through c1"),
    "machines-replaced": ("rows of the ledger are damaged", "deletes the Node n1", "n2       MEMBER: server"),
    "lost-disks": ("n4       a sector under durable/", "n4       AGENT ENDED: durable/", "damaged"),
    "lost-region": ("partition: [[berlin, munich]]",),
    "power-cut": ("k3s initialises a cluster",),
    "region-cut-off": ("alive -> suspect", "partition: [[n4, n5], [n1, n2, n3]]"),
    "reimaged-machine": ("reimage: n5", "minimum_nodes is understated: 6 nodes were seen"),
    "restored-cluster": (
        "n4       an operator orders a recovery by n3 from the snapshot",
        "begins",
        "n1       MEMBER: server",
    ),
    "rolling-restart": ("power_cut: n5",),
    "rolling-upgrade": (
        "n3       the active slot is blessed",
        "n4       the watchdog resets it",
        "power_cut: n2",
    ),
    "slow-wan": ("certified OUTCOME(1)",),
    "split-before-genesis": ("everything heals",),
    "token-rotation": (
        "generation 3 is announced by",
        "does not rotate: only 1 of 6",
        "n6: dead -> left: it was revoked",
    ),
    "understated-minimum": ("minimum_nodes is understated",),
}


def test_every_scenario_has_its_story(scenarios: Path) -> None:
    assert {path.stem for path in scenarios.glob("*.yaml")} == set(STORIES)


@pytest.mark.parametrize("name", STORIES)
def test_a_shipped_scenario_ends_well_and_is_about_what_it_says(scenarios: Path, name: str) -> None:
    text = (scenarios / f"{name}.yaml").read_text()
    assert text.startswith("# ")  # a person is told first what it shows
    plan = parse_scenario(text.encode(), name)
    outcome = run_world(plan, 2, keep_trace=True)
    assert not outcome.violation, "\n".join([*outcome.trace[-40:], f"seed 2: {outcome.violation}"])
    assert not outcome.exempt
    trace = "\n".join(outcome.trace)
    assert [words for words in STORIES[name] if words not in trace] == []
    assert parse_scenario(render(plan).encode(), name) == plan
