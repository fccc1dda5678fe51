"""Is the report one file that shows what happened, escapes what it is told, and draws itself in a browser?"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from p2p_bootstrap.cli.main import main
from p2p_simulations.sim.files import parse_scenario
from p2p_simulations.sim.report import report
from p2p_simulations.sim.world import run_world

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TEXT = """
regions: {east: [n1, n2], west: [n3]}
servers: 1
k3s: {start: [1s, 2s]}
faults: [{at: 3s, partition: [[n1]], for: 10s}, {at: 20s, power_cut: n3, for: 5s}]
heal: 40s
"""


@pytest.fixture(scope="module")
def page() -> str:
    plan = parse_scenario(TEXT.encode(), "small.yaml")
    outcome = run_world(plan, 1, keep_trace=True, draw=True)
    assert not outcome.violation
    return report(
        outcome, again="kairos-p2p sim run small.yaml", description="a </script><b>hostile</b> name"
    )


def test_it_needs_nothing_else_and_may_load_nothing_else(page: str) -> None:
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert "url(http" not in page
    assert "@import" not in page


def test_what_a_world_says_is_escaped(page: str) -> None:
    assert "<b>hostile</b>" not in page
    assert "&lt;b&gt;hostile&lt;/b&gt;" in page
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert "<" not in data[1]


def test_it_tells_states_faults_cuts_and_certificates(page: str) -> None:
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert set(data["roles"]) == {"n1", "n2", "n3"}
    assert {"server ready", "agent ready"} <= {span[2] for spans in data["roles"].values() for span in spans}
    assert [fault[:2] for fault in data["faults"]] == [[3.0, 13.0], [20.0, 25.0]]
    assert data["cuts"][0][0] == 3.0
    assert ["n1", "n3"] in data["cuts"][0][2]
    shown = html.unescape(page)
    assert "certified GENESIS(1)" in shown
    assert "partition: [[n1]], for: 10s" in shown
    assert "sequenceDiagram" in shown
    assert "regions: {east: [n1, n2], west: [n3]}" in shown  # the scenario is in it


def test_a_browser_draws_it(tmp_path: Path, scenarios: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)")
    path = tmp_path / "out.html"
    assert main(["sim", "run", str(scenarios / "split-before-genesis.yaml"), "--report", str(path)]) == 0
    shown = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000",
         "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert 'data-drawn="yes"' in shown  # the script ran to its end
    dots = re.findall(r'<circle id="dot-n\d" [^>]*fill="(#[0-9a-f]+)"', shown)
    assert len(dots) == 6
    assert "#999" not in dots  # every node has the colour of its state
    assert 'stroke="#c9302c" stroke-dasharray="4 4"' in shown or "everything has healed" in shown
