"""Do rotation and revocation hold over partitions, power cuts and a lossy network, and is a lapse noticed?"""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_network.admission.trust import Cause, Trust, Verdict
from p2p_simulations.sim.files import parse_scenario
from p2p_simulations.sim.plan import Plan
from p2p_simulations.sim.world import run_world


def shipped(scenarios: Path) -> Plan:
    path = scenarios / "token-rotation.yaml"
    return parse_scenario(path.read_bytes(), path.name)


@pytest.mark.parametrize("seed", [1, 2])
def test_two_rotations_and_a_revocation_with_members_away(scenarios: Path, seed: int) -> None:
    outcome = run_world(shipped(scenarios), seed, keep_trace=True)
    assert outcome.violation == ""
    assert sum("is announced by" in line for line in outcome.trace) == 2
    assert any("does not rotate: only 1 of 6" in line for line in outcome.trace)


def test_a_judge_that_lets_the_revoked_in_is_found_out(
    scenarios: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Trust, "verdict", lambda self, peer, now_ms: Verdict(Cause.NONE, self.certificate_of(peer))
    )
    outcome = run_world(shipped(scenarios), 1)
    assert "revoked" in outcome.violation
