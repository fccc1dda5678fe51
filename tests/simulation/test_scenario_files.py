"""Are scenario files read as written, and refused with file, line and key? Do the verbs say what failed?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from p2p_bootstrap.cli.main import main
from p2p_network.core.errors import ConfigError
from p2p_simulations.sim import swarm
from p2p_simulations.sim.files import MAX_FILE_BYTES, parse_scenario
from p2p_simulations.sim.plan import Flap, Freeze, JumpClock, KillAgent, OneWay, Partition, PowerCut
from p2p_simulations.sim.verdict import Verdict
from p2p_simulations.sim.world import run_world


def read(text: str):
    return parse_scenario(text.encode(), "x.yaml")


def test_everything_a_file_can_say_is_read() -> None:
    plan = read(
        """
regions: {a: 2, b: [x, y]}
servers: 1
minimum_nodes: 4
cluster: region
nodes: {x: {role: agent, clock: -5m, slowness: 10, k3s: broken, boots: 3s, minimum_nodes: 2}}
network: {delay: 2ms, region_delay: 50ms, tail: 5ms, loss: 0.1, duplication: 0.2}
k3s: {start: [1s, 2s], failure: 0.5}
chaos: 0.01
faults:
  - {at: 20s, power_cut: all, for: 5s}
  - {at: 10s, partition: [[n1], [x, y]], for: 1m}
  - {at: 30s, one_way: {from: [x], to: [y]}}
  - {at: 31s, flap: [n1, n2], for: 10s}
  - {at: 32s, clock: {n1: -90s}}
  - {at: 33s, freeze: n2, for: 4s}
  - {when: INIT, after: 500ms, kill_agent: it}
heal: 2m
expect: {within: 5m, clusters_before_heal: 1, alarm: understated, cluster: true}
"""
    )
    assert [(n.name, n.region) for n in plan.nodes] == [("n1", "a"), ("n2", "a"), ("x", "b"), ("y", "b")]
    x = plan.nodes[2]
    assert (x.wish, x.clock_offset_s, x.slowness, x.k3s_broken, x.boots_at_s) == ("agent", -300, 10, True, 3)
    assert plan.weather.base_delay_s == pytest.approx(0.002)
    assert plan.faults == (
        (10.0, Partition((("n1",), ("x", "y")), 60.0)),
        (20.0, PowerCut(("n1", "n2", "x", "y"), 5.0)),
        (30.0, OneWay(("x",), ("y",), None)),
        (31.0, Flap("n1", "n2", 3.0, 10.0)),
        (32.0, JumpClock("n1", -90.0)),
        (33.0, Freeze("n2", 4.0)),
    )
    assert plan.triggers[0].fault == KillAgent((), None)
    assert plan.triggers[0].after_s == pytest.approx(0.5)
    assert (plan.heal_at_s, plan.expect.within_s, plan.expect.clusters_before_healing) == (120, 300, 1)


def test_the_example_of_the_door_plate_is_a_scenario_that_ends_well(scenarios: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (scenarios.parent / "README.md").read_text(), re.DOTALL)
    (example,) = (block for block in blocks if "power_cut" in block)
    assert not run_world(read(example), 1).violation


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "regions: is missing"),
        ("regions: {a: 0}", "x.yaml:1:14: regions.a: must be a whole number from 1 to 64"),
        ("regions: {a: [n1, n1]}", "two nodes called n1"),
        ("regions: {a: 2}\nfautls: []", "x.yaml:2:1: fautls: unknown key (did you mean faults?)"),
        ("regions: {a: 2}\nregions: {b: 2}", "x.yaml:2"),
        ("regions: {a: 2}\nheal: soon", "x.yaml:2:7: heal: must be a duration"),
        ("regions: {a: 2}\nfaults: [{at: 1s}]", "faults[0]: must name exactly one fault"),
        ("regions: {a: 2}\nfaults: [{power_cut: n11}]", "there is no node 'n11' (did you mean n1?)"),
        ("regions: {a: 2}\nfaults: [{when: INIT, freeze: n1}]", "`when` goes with power_cut"),
        ("regions: {a: 2}\nfaults: [{when: NOW, power_cut: n1}]", "must be one of DISCOVER, ELECT"),
        ("regions: {a: 2}\nchaos: 2", "chaos: must be a number from 0 to 1"),
        ("regions: {a: 2}\nk3s: {start: [9s, 1s]}", "must be two durations, the shorter first"),
        ("regions: [\n", "x.yaml:2:1: this is not valid YAML"),
        ("- 1", "x.yaml:1"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert said in str(caught.value)


def test_all_problems_are_reported_at_once_and_size_is_bounded() -> None:
    with pytest.raises(ConfigError) as caught:
        read("regions: {a: 2}\nservers: 0\nheal: x\nchaos: y")
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="larger than"):
        parse_scenario(b"#" * (MAX_FILE_BYTES + 1), "x.yaml")


def test_run_and_replay_print_the_world_and_fail_with_the_seed(
    tmp_path: Path, scenarios: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["sim", "run", str(scenarios / "split-before-genesis.yaml"), "--trace"]) == 0
    assert "everything heals" in capsys.readouterr().out
    hopeless = tmp_path / "hopeless.yaml"
    hopeless.write_text("regions: {a: 2}\nminimum_nodes: 9\nheal: 1s\nexpect: {within: 1m}\n")
    assert main(["sim", "run", str(hopeless), "--seed", "4"]) == 1
    said = capsys.readouterr()
    assert "seed 4: not healed after 60 virtual seconds" in said.err
    assert f"sim run {hopeless} --seed 4" in said.err
    assert main(["sim", "replay", "3"]) == 0
    assert "certified GENESIS(1)" in capsys.readouterr().out
    assert main(["sim", "run", str(tmp_path / "none.yaml")]) == 2
    (tmp_path / "wrong.yaml").write_text("regions: {a: 1}\nbogus: 1\n")
    assert main(["sim", "run", str(tmp_path / "wrong.yaml")]) == 2
    said = capsys.readouterr()
    assert "bogus: unknown key" in said.err
    assert "none.yaml" in said.err


def test_a_swarm_ends_at_the_first_violation_and_names_its_replay(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["sim", "swarm", "--for", "0s", "--seed", "3"]) == 0
    assert "violations" in capsys.readouterr().out
    real = Verdict.missing
    monkeypatch.setattr(Verdict, "missing", lambda self: real(self) or "nothing, but the test says so")
    monkeypatch.setattr(
        swarm, "random_plan", lambda seed: read("regions: {a: 1}\nheal: 1s\nexpect: {within: 9s}")
    )
    assert main(["sim", "swarm", "--for", "1m", "--seed", "77"]) == 1
    assert "kairos-p2p sim replay 77" in capsys.readouterr().err
