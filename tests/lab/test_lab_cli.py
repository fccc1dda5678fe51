"""Do the lab's verbs do, say and exit as a person and a script expect?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2p_bootstrap.cli.main import main
from p2p_simulations.lab import commands
from p2p_simulations.lab.lab import Lab

KAIROS_P2P = Path(sys.executable).parent / "kairos-p2p"


@pytest.fixture
def shape(tmp_path: Path) -> str:
    path = tmp_path / "two.yaml"
    path.write_text("regions: {here: [a], there: [b]}\n")
    return str(path)


@pytest.fixture
def running(lab_root: Path, shape: str) -> Lab:
    """A lab that the command line started."""
    assert main(["lab", "up", shape, "--name", "mine"]) == 0
    return Lab.attach("mine")


def test_the_verbs_work_together(running: Lab, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "status"]) == 0
    header, *rows = capfd.readouterr().out.splitlines()
    assert header.split()[:4] == ["NODE", "REGION", "ADDRESS", "AGENT"]
    assert [row.split()[:3] for row in rows] == [["a", "here", "198.18.1.11"], ["b", "there", "198.18.2.11"]]

    assert main(["lab", "partition", "a|b"]) == 0
    assert "partitioned: a | b" in capfd.readouterr().err
    assert main(["lab", "exec", "a", "--", "ping", "-q", "-c1", "-W0.5", "b"]) == 1
    assert main(["lab", "status", "-o", "name"]) == 0
    captured = capfd.readouterr()
    assert captured.out.splitlines()[-2:] == ["a", "b"]
    assert "partitioned: a | b" in captured.err
    assert main(["lab", "heal"]) == 0
    running.wait(lambda: main(["lab", "exec", "a", "--", "ping", "-q", "-c1", "-W1", "b"]) == 0, 10, "b")

    assert main(["lab", "kill", "b"]) == 0
    assert "comes back with: kairos-p2p lab boot b" in capfd.readouterr().err
    assert main(["lab", "status", "-o", "json"]) == 0
    assert [row["agent"] for row in json.loads(capfd.readouterr().out)][1] == "no power"
    assert main(["lab", "exec", "b", "--", "true"]) == 1
    assert main(["lab", "boot", "b"]) == 0
    assert main(["lab", "exec", "b", "--", "sh", "-c", "exit 42"]) == 42

    assert main(["lab", "down"]) == 0
    assert not running.folder.exists()
    assert main(["lab", "down"]) == 0
    assert main(["lab", "down", "--name", "mine"]) == 0
    assert main(["lab", "down", "--all"]) == 0


def test_exec_passes_input_and_output_through(running: Lab) -> None:
    argv = [KAIROS_P2P, "lab", "exec", "a", "--", "cat"]
    done = subprocess.run(argv, input="through", capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "through", "")


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["partition", "a|c"], 2, "'c', which is no node"),
        (["partition", "a,b"], 2, "cuts nothing"),
        (["kill", "c"], 2, "no node 'c'"),
        (["kill", "a", "--what", "k3s"], 1, "no k3s runs on a"),
        (["boot", "a"], 1, "node a is running"),
        (["exec", "a"], 2, "COMMAND"),
        (["status", "--name", "yours"], 1, "there is no lab"),
        (["up", "--name", "mine"], 1, "there is a lab 'mine' already"),
        (["down", "--all", "--name", "mine"], 2, "exclude each other"),
    ],
)
def test_mistakes_are_explained(
    running: Lab, argv: list[str], code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert main(["lab", *argv]) == code
    captured = capfd.readouterr()
    assert message in captured.err
    assert "hint:" in captured.err
    assert captured.out == ""


def test_a_bad_topology_is_told_with_its_place(
    lab_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("regions: {a: 1}\nserver: 1\n")
    assert main(["lab", "up", str(path)]) == 1
    assert f"{path}:2:1: server: unknown key (did you mean servers?)" in capfd.readouterr().err
    assert main(["lab", "up", str(tmp_path / "none.yaml")]) == 2
    assert list(lab_root.iterdir()) == []


def test_a_missing_program_names_its_package(
    lab_root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands.shutil, "which", lambda program: None if program == "nft" else "/bin/x")
    assert main(["lab", "up"]) == 1
    assert "not found on PATH: nft\n hint: install with: apt-get install nftables" in capfd.readouterr().err


def test_without_root_the_lab_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for argv in (["lab", "up"], ["lab", "status"], ["lab", "down", "--all"], ["lab", "run"]):
        assert main(argv) == 5
        assert "sudo" in capfd.readouterr().err
