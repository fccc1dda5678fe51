"""Is a new k3s brought to a cluster without its servers going all at once?"""

from __future__ import annotations

import pytest

from p2p_bootstrap.node.authority import Authority
from p2p_simulations.sim.files import parse_scenario
from p2p_simulations.sim.world import run_world

_REVOKED = b"""
regions: {here: [n1, n2, n3, n4, n5]}
servers: 3
minimum_nodes: 5
nodes: {n1: {role: server}, n2: {role: server}, n3: {role: server}, n4: {role: agent}, n5: {role: agent}}
k3s: {start: [1s, 3s]}
faults:
  - {at: 60s, revoke: n3}
  - {at: 61s, kill_agent: n1, for: 2s}
  - {at: 61s, kill_agent: n2, for: 2s}
  - {at: 61s, kill_agent: n4, for: 2s}
  - {at: 61s, kill_agent: n5, for: 2s}
  - {at: 2m, upgrade_k3s: {at: n1, version: v1.36.1+k3s1}}
heal: 4m
"""


def test_no_server_is_taken_down_while_a_revoked_one_that_nobody_knows_counts_in_the_quorum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of three are left: without one of them nothing could be written."""
    plan = parse_scenario(_REVOKED, "revoked.yaml")
    outcome = run_world(plan, 1, keep_trace=True)
    assert not outcome.violation
    assert any("counts as a server and is no node of the mesh" in line for line in outcome.trace)

    monkeypatch.setattr(Authority, "lost", lambda self, view: ())
    assert "upgrades a server with" in run_world(plan, 1).violation
