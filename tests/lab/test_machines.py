"""Do nodes with wrong clocks and slow disks form one cluster, and is a clock that is far too fast told?"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from clusters import (
    ca_hashes,
    cluster_ids,
    cluster_inits,
    statuses,
    store,
    wait_ready,
    wait_stored,
)

from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.topology import make_topology

LabFactory = Callable[..., Lab]
pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        not (shutil.which("strace") and shutil.which("faketime")), reason="needs strace and faketime"
    ),
]


def test_clocks_an_hour_wrong_and_a_slow_disk_form_a_cluster_and_a_clock_days_wrong_is_told(
    lab: LabFactory,
) -> None:
    topology = make_topology(
        {"here": ("late", "slow", "early", "future")},
        servers=3,
        minimum_nodes=3,
        clocks={"late": -3600.0, "early": 3600.0, "future": 30 * 3600.0},
        slow_disks={"slow": 0.2},
        nodes={"future": {"p2p": {"role": "agent"}}},
    )
    mine = lab(topology, agents=True)
    whole = ["late", "slow", "early"]
    seen = wait_ready(mine, whole, 240)
    assert {s["role"]["role"] for s in seen.values()} == {"server"}
    assert len(cluster_ids(seen)) == len(ca_hashes(mine)) == 1
    assert cluster_inits(mine) == []
    store(mine, "late", "precious")
    wait_stored(mine, "slow", "precious")
    mine.wait(lambda: "ledger.clock_ahead" in mine.node("slow").log_path.read_text(), 60, "it to be told")
    told = next(line for line in mine.node("slow").log_path.read_text().splitlines() if "clock_ahead" in line)
    assert statuses(mine, ["future"])["future"]["node"]["peer"] in told
    assert "set the clock" in told
