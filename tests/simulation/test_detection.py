"""Is a dead node noticed in seconds, and a living one left alone, under loss and load?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2p_bootstrap.cli.main import main
from p2p_simulations.sim.detection import watch


@pytest.mark.parametrize(("nodes", "loss"), [(12, 0.0), (12, 0.2), (36, 0.2)])
def test_deaths_are_noticed_in_seconds_and_nobody_else_is_taken_for_dead(nodes: int, loss: float) -> None:
    seen = watch(nodes, loss=loss, virtual_s=140 if nodes > 32 else 300)
    assert seen.deaths >= 2
    assert seen.suspected_s < 9
    assert seen.dead_s < 20
    assert seen.last_dead_s < 30  # by one that stood still meanwhile
    assert seen.taken_for_dead == 0
    assert seen.suspected < 0.02 * seen.channels_lost


def test_the_same_seed_is_the_same_mesh() -> None:
    assert watch(6, virtual_s=100) == watch(6, virtual_s=100)


def test_nobody_dies_in_a_short_time() -> None:
    with pytest.raises(ValueError, match="no death was seen"):
        watch(5, virtual_s=20)


def test_the_verb_tells_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "detect.json"
    assert main(["sim", "detect", "--nodes", "6", "--for", "100s", "--json", str(figures)]) == 0
    assert "6 nodes, 20% loss, 2 deaths" in capsys.readouterr().out
    assert [seen["nodes"] for seen in json.loads(figures.read_text())] == [6]
    assert main(["sim", "detect", "--nodes", "501"]) == 2
