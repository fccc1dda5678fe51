"""Does a scenario of the simulator end with real processes as it ends in the simulator?"""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_bootstrap.cli.main import main

SCENARIO = """
description: what a lab can do to nodes, all of it within a quarter of a minute
regions: {east: [a, b, e], west: [c], north: [d]}
servers: 1
minimum_nodes: 4
nodes:
  a: {role: server}
  b: {role: agent}
  c: {role: agent, nat: port-restricted}
  d: {role: agent, nat: full-cone}
  e: {role: agent, joins: later, minimum_nodes: 64}
network: {loss: 0.02, region_delay: 20ms, links: [{between: [east, north], delay: 60ms, loss: 0.01}]}
faults:
  - {at: 2s, flap: [a, b], for: 4s, period: 1s}
  - {at: 3s, cut: [[c, north]], for: 3s}
  - {at: 4s, one_way: {from: [c], to: [a]}, for: 2s}
  - {when: DISCOVER, after: 1s, kill_agent: it, for: 1s}
  - {at: 6s, partition: [[a, b], [c, d]], for: 3s}
  - {at: 7s, power_cut: d, for: 2s}
  - {at: 8s, freeze: c, for: 2s}
  - {at: 9s, corrupt_ledger: d, for: 1s}
  - {at: 9s, network: {region_delay: 80ms, tail: 4ms}}
  - {at: 10s, reimage: b, for: 1s}
  - {at: 11s, corrupt: d, for: 1s}
heal: 13s
expect: {within: 5m, clusters_before_heal: 1}
"""


@pytest.mark.usefixtures("lab_root")
def test_a_scenario_ends_in_the_lab_as_in_the_simulator(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The verb compares roles, readiness, identities and addresses, and fails where they differ."""
    file = tmp_path / "rough.yaml"
    file.write_text(SCENARIO)
    code = main(["lab", "run", "--scenario", str(file), "--timeout", "150s"])
    said = capfd.readouterr()
    assert code == 0, said.err
    assert [line.split() for line in said.out.splitlines()[-5:]] == [
        ["a", "server", "ready", "kept", "kept"],
        ["b", "agent", "ready", "new", "new"],
        ["e", "agent", "ready", "kept", "kept"],
        ["c", "agent", "ready", "kept", "kept"],
        ["d", "agent", "ready", "new", "new"],
    ]
    for fault in (
        "flap: [a, b]",
        "cut: [[c, d]]",
        "kill_agent: ",
        "partition: [[a, b], [c, d]]",
        "power_cut: d",
        "freeze: c",
        "corrupt_ledger: d",
        "network: {",
        "reimage: b",
        "corrupt: d",
        "d: bootstrap%2Fkairos is damaged",
        "everything heals",
    ):
        assert fault in said.err
    assert "the lab and the simulator end alike" in said.err
