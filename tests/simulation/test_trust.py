"""Do rotation and revocation hold over partitions, power cuts and a lossy network, and is a lapse noticed?"""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_bootstrap.node.issuing import Issuing
from p2p_network.admission import voting
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


AT_ONCE = """
regions: {{east: 3, west: 2}}
servers: 1
minimum_nodes: 5
faults:
{faults}
heal: 100s
expect: {{within: 5m}}
"""
TOGETHER = "  - {at: 60s, rotate: n1}\n  - {at: 60s, rotate: n4}\n  - {at: 60s, rotate: n5}"
UNNOTICED = """
  - {at: 59900ms, partition: [[n1, n2, n3], [n4, n5]], for: 20s}
  - {at: 60s, rotate: n1}
  - {at: 60s, rotate: n4}
"""


@pytest.mark.parametrize("seed", range(4))
def test_rotations_at_the_same_time_come_to_the_same_keys(seed: int) -> None:
    plan = parse_scenario(AT_ONCE.format(faults=TOGETHER).encode(), "together.yaml")
    outcome = run_world(plan, seed, keep_trace=True)
    assert outcome.violation == ""
    told = [line for line in outcome.trace if "is announced by" in line]
    assert told
    assert all("generation 2" in line for line in told)


@pytest.mark.parametrize("seed", range(4))
def test_of_two_sides_that_don_t_know_yet_that_they_are_parted_one_rotates(seed: int) -> None:
    plan = parse_scenario(AT_ONCE.format(faults=UNNOTICED).encode(), "unnoticed.yaml")
    outcome = run_world(plan, seed, keep_trace=True)
    assert outcome.violation == ""
    assert sum("is announced by n1" in line for line in outcome.trace) == 1
    overruled = (
        "did not agree to new keys",
        "generation 2 is announced by n4",
    )  # the latter if n4 tries long
    assert any("n4" in line and any(how in line for how in overruled) for line in outcome.trace)


def test_a_judge_that_lets_the_revoked_in_is_found_out(
    scenarios: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Trust, "verdict", lambda self, peer, now_ms: Verdict(Cause.NONE, self.certificate_of(peer))
    )
    outcome = run_world(shipped(scenarios), 1)
    assert "revoked" in outcome.violation


JOINERS = """
regions: {east: 2, west: 4}
servers: 1
minimum_nodes: 3
nodes: {n4: {boots: 75s}, n5: {boots: 75s}, n6: {boots: 75s}}
faults:
  - {at: 40s, rotate: n1}
  - {at: 70s, partition: [[n1, n2], [n3, n4, n5, n6]], for: 60s}
  - {at: 115s, rotate: n1}
  - {at: 115s, rotate: n4}
heal: 140s
expect: {within: 10m}
"""


@pytest.mark.parametrize("seed", range(2))
def test_who_joins_by_the_token_on_one_side_of_a_partition_adds_no_vote(seed: int) -> None:
    """Four of the six holders stand in the west, but of the roster of generation 2 only one of three."""
    outcome = run_world(parse_scenario(JOINERS.encode(), "joiners.yaml"), seed, keep_trace=True)
    assert outcome.violation == ""
    announced = [line for line in outcome.trace if "is announced by" in line]
    assert len(announced) == 2, announced
    assert "generation 3 is announced by n1" in announced[1]
    assert any("n4" in line and "only 1 of 3" in line for line in outcome.trace)


BEFORE_THE_FIRST = """
regions: {{east: {east}, west: {west}}}
servers: 1
minimum_nodes: {minimum}
nodes: {{{late}}}
faults:
  - {{at: 60s, partition: [[{sides}]], for: 100s}}
  - {{at: 130s, rotate: n1}}
  - {{at: 130s, rotate: {other}}}
heal: 200s
expect: {{within: 10m}}
"""


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("east", "west", "minimum", "late", "told"),
    [
        # of the three founders two are in the east; three more come to the west by the token
        (2, 4, 3, ("n4", "n5", "n6"), ["n1"]),
        # of the four founders two are on each side, and both sides grow: nobody rotates before they meet
        (4, 4, 4, ("n3", "n4", "n7", "n8"), []),
    ],
)
def test_before_the_first_rotation_two_sides_that_both_rotate_come_to_one_generation(
    seed: int, east: int, west: int, minimum: int, late: tuple[str, ...], told: list[str]
) -> None:
    names = [f"n{i + 1}" for i in range(east + west)]
    text = BEFORE_THE_FIRST.format(
        east=east,
        west=west,
        minimum=minimum,
        late=", ".join(f"{name}: {{boots: 70s}}" for name in late),
        sides=", ".join(names[:east]),
        other=f"n{east + 1}",
    )
    outcome = run_world(parse_scenario(text.encode(), "first.yaml"), seed, keep_trace=True)
    assert outcome.violation == ""
    announced = [line.split("announced by ")[1] for line in outcome.trace if "is announced by" in line]
    assert announced == told
    refused = [line for line in outcome.trace if "nodes that hold the root are in sight" in line]
    assert any(f"n{east + 1}" in line for line in refused)


def test_a_first_rotation_without_founders_parts_the_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the founding roster is for: with the votes of all that one knows, both sides have a majority."""
    monkeypatch.setattr(Issuing, "_electorate", Issuing._holders)
    real = voting.answer
    monkeypatch.setattr(
        voting, "answer", lambda votes, ask, **facts: real(votes, ask, **facts | {"holders": ask.holders})
    )
    text = BEFORE_THE_FIRST.format(
        east=2,
        west=4,
        minimum=3,
        late="n4: {boots: 70s}, n5: {boots: 70s}, n6: {boots: 70s}",
        sides="n1, n2",
        other="n3",
    )
    outcome = run_world(parse_scenario(text.encode(), "parted.yaml"), 0, keep_trace=True)
    assert outcome.violation != ""
    assert sum("generation 2 is announced by" in line for line in outcome.trace) == 2
