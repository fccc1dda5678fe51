"""Do the curves of cost rest on the production's scheduler, and do they say what must be true of any mesh?"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from p2p_bootstrap.cli.main import main
from p2p_simulations.sim.scale import measure


def test_cost_per_node_grows_slowly_when_idle_and_a_broadcast_does_not() -> None:
    small, large = measure(10, virtual_s=60), measure(60, virtual_s=60)
    assert measure(10, virtual_s=60) == small  # the same seed, the same mesh
    assert large.idle_bytes < 4 * small.idle_bytes
    assert large.broadcast_bytes > 30 * small.broadcast_bytes
    assert large.idle_bytes < large.broadcast_bytes / 100
    assert large.converged_s < 20


def test_less_detail_is_the_same_mesh_in_about_the_same_time() -> None:
    fine, coarse = measure(60, virtual_s=60), measure(60, virtual_s=60, tick_s=0.25)
    assert coarse.converged_s < fine.converged_s + 3
    assert coarse.events < fine.events


def test_a_mesh_that_does_not_converge_is_told() -> None:
    with pytest.raises(ValueError, match="did not converge"):
        measure(30, virtual_s=1.0)


def test_the_verb_writes_figures_and_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    svg, figures = tmp_path / "scale.svg", tmp_path / "scale.json"
    arguments = ["sim", "scale", "--nodes", "5,20", "--for", "30s", "--svg", str(svg), "--json", str(figures)]
    assert main(arguments) == 0
    assert "20 nodes: equal after" in capsys.readouterr().out
    assert [cost["nodes"] for cost in json.loads(figures.read_text())] == [5, 20]
    assert ET.parse(svg).getroot().tag.endswith("svg")
    assert main(["sim", "scale", "--nodes", "20,5"]) == 2
    assert "ascending" in capsys.readouterr().err
