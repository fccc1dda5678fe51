"""Does ``lab run`` form a cluster from five cloud-configs, see all of it, and leave nothing?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from p2p_simulations.lab import processes

KAIROS_P2P = Path(sys.executable).parent / "kairos-p2p"


def test_five_nodes_become_a_cluster(lab_root: Path) -> None:
    argv = [KAIROS_P2P, "lab", "run", "--timeout", "100s"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    nodes = [line for line in lines if len(line) > 5 and line[0] in {f"n{i}" for i in range(1, 6)}]
    own = [line for line in nodes if line[4] == "ready"]
    assert sorted(line[3] for line in own) == ["agent"] * 2 + ["server"] * 3
    assert {line[1] for line in own if line[3] == "server"} == {"east", "west", "north"}
    listed = [line for line in nodes if line[1] == "Ready"]
    assert [line[0] for line in listed] == ["n1", "n2", "n3", "n4", "n5"]
    assert {line[0]: line[4] for line in listed} == {line[0]: line[2] for line in own}
    assert "LOST" not in done.stdout
    assert "IPv6: 20 of 20 pairs answered" in done.stdout
    assert "k3s was" in done.stdout
    assert processes.holders(lab_root) == []
    assert list(lab_root.iterdir()) == []
