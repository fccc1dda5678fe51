"""What becomes of a cluster whose first server loses its power before, and right after, it is READY?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clusters import (
    ca_hashes,
    cluster_ids,
    cluster_inits,
    facts_for_ever,
    statuses,
    store,
    wait_ready,
    wait_stored,
)

from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.topology import make_topology

LabFactory = Callable[..., Lab]
pytestmark = pytest.mark.timeout(400)
NAMES = ("n1", "n2", "n3", "n4")


def in_state(lab: Lab, state: str) -> list[str]:
    return [name for name, seen in statuses(lab).items() if seen["role"]["state"] == state]


def test_the_first_server_dies_before_and_another_right_after_ready(lab: LabFactory) -> None:
    topology = make_topology({"here": NAMES}, servers=3, minimum_nodes=len(NAMES))
    mine = lab(topology, env={"K3S_SIMULATED_DELAY_READY_S": "4"})
    for name in NAMES:
        mine.start_agent(name)
    (first,) = mine.wait(lambda: in_state(mine, "INIT"), 60, "a node to initialise the cluster")
    known = statuses(mine, [first])[first]["node"]["peer"]
    mine.kill(first, "node")

    # it was chosen, but nobody joined it: the others give it up, and one of them begins anew
    (second,) = mine.wait(lambda: in_state(mine, "INIT"), 90, "another node to initialise a cluster")
    mine.wait(lambda: in_state(mine, "JOIN"), 60, "another to join it")
    store(mine, second, "precious")
    mine.kill(second, "node")

    # READY is said once and for ever: nobody begins a third time, and both come back to what there is
    mine.boot(second)
    mine.boot(first)
    formed = wait_ready(mine)
    assert {facts[4] for facts in facts_for_ever(formed).values()} == {2}
    assert formed[first]["node"]["peer"] == known
    assert len(cluster_ids(formed)) == 1
    assert len(ca_hashes(mine)) == 1
    assert cluster_inits(mine) == []
    wait_stored(mine, second, "precious")
    assert sorted(s["role"]["role"] for s in formed.values()) == ["agent", "server", "server", "server"]
