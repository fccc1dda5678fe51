"""Does a failing world become a small file that fails in the same way, told so that a person sees why?"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from p2p_bootstrap.cli.main import main
from p2p_simulations.sim import story
from p2p_simulations.sim.chance import random_plan
from p2p_simulations.sim.files import parse_scenario
from p2p_simulations.sim.machine import SimMachine
from p2p_simulations.sim.plan import Plan
from p2p_simulations.sim.shrink import kind_of, shrink
from p2p_simulations.sim.world import Outcome, World, run_world
from p2p_simulations.sim.writing import render
from p2p_simulations.world.sectors import Script, Sync, SyncDirectory
from p2p_simulations.world.tasks import Tasks


class _NoSync(World):
    async def persist(self, machine: SimMachine, tasks: Tasks, script: Script) -> None:
        """Written, never synced."""
        for call in script:
            if not isinstance(call, Sync | SyncDirectory):
                machine.files.carry_out(call)


def play(plan: Plan, seed: int, limit_s: float) -> Outcome:
    return run_world(plan, seed, world_type=_NoSync, limit_s=limit_s)


def test_a_world_of_chance_that_fails_becomes_small_and_its_file_fails_too() -> None:
    failed = run_world(random_plan(96), 96, world_type=_NoSync)
    assert "forgotten" in failed.violation
    small = shrink(failed, play, is_over=lambda: False, max_plays=30)
    assert len(small.plan.faults) + len(small.plan.triggers) <= 4 < len(failed.plan.faults)
    assert len(small.plan.nodes) <= len(failed.plan.nodes)
    reread = parse_scenario(render(small.plan, comment=small.violation).encode(), "small.yaml")
    outcome = run_world(reread, small.seed, world_type=_NoSync, keep_trace=True, draw=True)
    assert outcome.violation == small.violation
    assert kind_of(outcome.violation, reread) == kind_of(failed.violation, failed.plan)
    assert outcome.record is not None
    told = story.steps(outcome.record)
    diagram = story.mermaid(outcome.record, told)
    assert diagram.startswith("sequenceDiagram\n    participant p0 as ")
    assert "forgotten" in diagram.splitlines()[-1]  # it ends with the failure
    assert any("Promise" in line or "Accepted" in line for line in diagram.splitlines())
    assert all(line.count(";") == 0 for line in diagram.splitlines())  # Mermaid ends a statement there


def test_the_search_is_bounded() -> None:
    failed = run_world(random_plan(96), 96, world_type=_NoSync)
    assert shrink(failed, play, is_over=lambda: False, max_plays=3).plays == 3
    nothing = shrink(failed, play, is_over=lambda: True)
    assert (nothing.plays, nothing.plan, nothing.seed) == (0, failed.plan, failed.seed)


def test_drawing_a_world_changes_nothing_in_it() -> None:
    plain, drawn = (run_world(random_plan(5), 5, draw=draw) for draw in (False, True))
    assert plain.trace_hash == drawn.trace_hash
    assert plain.record is None
    assert drawn.record is not None


def test_a_failing_run_prints_a_smaller_scenario_and_writes_junit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hopeless = tmp_path / "hopeless.yaml"
    hopeless.write_text(
        "regions: {a: 2, b: 2}\nminimum_nodes: 9\nheal: 10s\nexpect: {within: 30s}\n"
        "faults: [{at: 3s, power_cut: n1, for: 2s}, {at: 4s, flap: [n1, n2]}]\n"
    )
    xml = tmp_path / "out.xml"
    assert main(["sim", "run", str(hopeless), "--junit", str(xml), "--shrink-for", "20s"]) == 1
    said = capsys.readouterr()
    assert "the smallest world found" in said.err
    assert "sequenceDiagram" in said.out
    assert "faults:" not in said.out.rpartition("# seed")[2]  # they have nothing to do with it
    (suite,) = ET.parse(xml).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert "not healed after 30 virtual seconds" in (failure.get("message") or "")


def test_several_seeds_are_cases_of_one_suite(
    tmp_path: Path, scenarios: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    xml = tmp_path / "out.xml"
    arguments = [
        "sim",
        "run",
        str(scenarios / "split-before-genesis.yaml"),
        "--seeds",
        "2",
        "--junit",
        str(xml),
    ]
    assert main(arguments) == 0
    assert [case.get("name") for case in ET.parse(xml).getroot().iter("testcase")] == [
        "split-before-genesis seed 1",
        "split-before-genesis seed 2",
    ]


@pytest.fixture
def lossy() -> Callable[[], Outcome]:
    return lambda: run_world(random_plan(2), 2, draw=True)


def test_mermaid_text_has_nothing_that_mermaid_would_misread(lossy: Callable[[], Outcome]) -> None:
    record = lossy().record
    assert record is not None
    for line in story.mermaid(record, story.steps(record, 200)).splitlines()[1:]:
        _, _, text = line.partition(": ")
        assert not set(text) & set(";#\n")
