"""How does a stage run: what is kept of an error, what is fatal, what does the command line say?"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from p2p_bootstrap.cli.main import main
from p2p_bootstrap.cloudconfig.collect import collect
from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.configured import read_steps
from p2p_bootstrap.stages.facts import Facts
from p2p_bootstrap.stages.observe import observe
from p2p_bootstrap.stages.root import Root
from p2p_bootstrap.stages.run import Report, Runner
from p2p_bootstrap.stages.system import Ended
from p2p_network.core.errors import BootError


class Shell:
    """Answers shell commands by their text: ``exit N``; ``missing`` can't be started."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str = "") -> Ended:
        command = argv[-1]
        self.ran.append(command)
        if command == "missing":
            raise BootError("/bin/sh: there is no such program", hint="add it")
        return Ended(int(command.removeprefix("exit ")) if command.startswith("exit ") else 0)

    def has(self, program: str) -> bool:
        return False

    def set_hostname(self, name: str) -> None:
        pass

    def fetch(self, address: str, limit_bytes: int, timeout_s: float) -> bytes:
        raise BootError("no network")


def run(folder: Path, text: str, stage: str = "boot", *, shell: Shell | None = None) -> tuple[Report, Shell]:
    collected = collect([], stdin=f"#cloud-config\n{text}\n")
    configured = read_steps(collected.root, collected.files, collected.names)
    shell = shell or Shell()
    root = Root(folder)
    times = iter(range(1000))
    runner = Runner(configured, Context(root, shell), lambda: observe(root), lambda: 5.0, lambda: next(times))
    return runner.run(stage), shell


def states(report: Report) -> list[tuple[str, str]]:
    return [(outcome.label, outcome.state) for outcome in report.outcomes]


THREE = """
stages:
  boot.before:
  - {name: first, commands: [exit 0]}
  boot:
  - {name: bad, commands: [exit 3, exit 0, exit 4]%s}
  - {name: next, commands: [exit 0]}
  boot.after:
  - {name: last, commands: [exit 0]}
"""


def test_an_error_is_kept_and_the_next_step_runs(tmp_path: Path) -> None:
    report, shell = run(tmp_path, THREE % "")
    assert states(report) == [("first", "done"), ("bad", "failed"), ("next", "done"), ("last", "done")]
    assert len(shell.ran) == 6
    (bad,) = report.failed
    assert [failure.message for failure in bad.failures] == [
        "the command at stdin:7 ended with 3",
        "the command at stdin:7 ended with 4",
    ]
    record = json.loads((tmp_path / "run/kairos-p2p/stages/boot.json").read_text())
    assert record["ok"] is False
    assert record["outcomes"][1]["failures"][0]["message"].endswith("ended with 3")
    assert stat.S_IMODE((tmp_path / "run/kairos-p2p/stages/boot.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "run/kairos-p2p/stages").stat().st_mode) == 0o700


@pytest.mark.parametrize("how", ["fatal", "strict"])
def test_where_marked_an_error_ends_the_stage(tmp_path: Path, how: str) -> None:
    text = THREE % (", fatal: true" if how == "fatal" else "") + ("strict: true\n" if how == "strict" else "")
    report, shell = run(tmp_path, text)
    assert states(report) == [("first", "done"), ("bad", "failed"), ("next", "not run"), ("last", "not run")]
    assert report.stopped
    assert len(shell.ran) == 4, "the other commands of the failing step still ran"


def test_a_step_with_a_mistake_does_not_run_and_is_reported(tmp_path: Path) -> None:
    text = (
        "stages:\n  boot:\n  - {comands: [exit 0]}\n  - {name: good, commands: [exit 0]}\n"
        "  network: [{x: 1}]\n"
    )
    report, _ = run(tmp_path, text)
    assert states(report) == [("good", "done")]
    (problem,) = report.problems
    assert "stages.boot[0].comands" in problem
    assert not report.ok
    strict, shell = run(tmp_path, text + "strict: true\n")
    assert states(strict) == [("good", "not run")]
    assert shell.ran == []


def test_if_is_asked_in_a_shell_with_templates(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hostname").write_text("n1\n")
    text = (
        "stages:\n  boot:\n  - {name: yes, if: 'exit 0', commands: [a]}\n"
        "  - {name: no, if: 'exit 1', commands: [b]}\n"
        "  - {name: named, if: 'test {{ .Values.node.hostname }}', commands: [c]}\n"
        "  - {name: broken, if: missing, commands: [d]}\n"
    )
    report, shell = run(tmp_path, text)
    assert states(report) == [("yes", "done"), ("no", "skipped"), ("named", "done"), ("broken", "failed")]
    assert shell.ran == ["exit 0", "a", "exit 1", "test n1", "c", "missing"]
    assert report.outcomes[1].reason == "its if ended with 1"


def test_conditions_see_what_earlier_steps_did(tmp_path: Path) -> None:
    report, _ = run(
        tmp_path,
        "stages:\n  boot:\n"
        "  - {name: make, files: [{path: /flag}], hostname: new-name}\n"
        "  - {name: sees, if_files: {all: [/flag]}, node: new-name}\n"
        "  - {name: not, if_files: {none: [/flag]}}\n",
    )
    assert states(report) == [("make", "done"), ("sees", "done"), ("not", "skipped")]


def test_rings_are_reported(tmp_path: Path) -> None:
    report, _ = run(
        tmp_path, "stages: {boot: [{name: a, after: [{name: b}]}, {name: b, after: [{name: a}]}, {name: c}]}"
    )
    assert states(report) == [("c", "done")]
    assert len(report.problems) == 2


def test_a_full_disk_is_the_step_s_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    report, _ = run(tmp_path, "stages: {boot: [{name: a, files: [{path: /x, content: y}]}]}")
    assert "No space left" in report.failed[0].failures[0].message
    assert not (tmp_path / "x").exists()
    assert list((tmp_path).glob(".x*")) == [], "no half of a file stays"


# --- the command line ---


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "oem").mkdir()
    (tmp_path / "etc").mkdir()
    (tmp_path / "proc").mkdir()
    (tmp_path / "etc/machine-id").write_text("abcdef0123456789abcdef0123456789\n")
    (tmp_path / "oem/90_custom.yaml").write_text(
        "#cloud-config\nhostname: node-{{ trunc 4 .MachineID }}\n"
        "p2p: {network_token: hush-hush}\n"
        "stages:\n  boot:\n  - name: Write it\n"
        "    files: [{path: /made, content: secret, permissions: 0640}]\n"
        "  - {name: Not here, only_os: Plan9}\n"
    )
    (tmp_path / "proc/cmdline").write_text("quiet kairos.config=stages.boot.0.name=from-kernel\n")
    return tmp_path


def test_stage_run_on_a_root(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stage", "run", "initramfs", "--root", str(machine)]) == 0
    assert (machine / "etc/hostname").read_text() == "node-abcd\n"
    assert main(["stage", "run", "boot", "--root", str(machine)]) == 0
    out = capsys.readouterr().out
    assert (machine / "made").read_text() == "secret"
    assert "skipped  Not here: only_os Plan9" in out
    assert "done     from-kernel" in out
    assert "stage boot: 2 done, 1 skipped" in out


def test_dry_run_and_analyze_change_nothing(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(str(path) for path in machine.rglob("*"))
    assert main(["stage", "run", "boot", "--root", str(machine), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "1. [boot] Write it runs" in out
    assert "write /made (0640, 6 characters)" in out
    assert "secret" not in out
    assert main(["stage", "run", "boot", "--root", str(machine), "--analyze", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["steps"]
    assert rows[1]["waits_for"] == [rows[0]["id"]]
    assert sorted(str(path) for path in machine.rglob("*")) == before


def test_stage_run_fails_with_words(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = machine / "bad.yaml"
    bad.write_text("#cloud-config\nstages: {boot: [{name: x, files: [{path: /made/x}]}, {fils: []}]}\n")
    (machine / "made").write_text("")
    code = main(["stage", "run", "boot", "--root", str(machine), "--cloud-config", str(bad)])
    captured = capsys.readouterr()
    assert code == 1
    assert "error: x: write /made/x" in captured.err
    assert "did you mean 'files'?" in captured.err
    assert main(["stage", "run", "bot"]) == 2
    assert "did you mean 'boot'?" in capsys.readouterr().err


def test_config_get_and_show_origin(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = machine / "oem/90_custom.yaml"
    low = machine / "low.yaml"
    low.write_text("#cloud-config\nhostname: low\ninstall:\n  reboot: true\n")
    assert main(["config", "get", "hostname", str(low), str(file)]) == 0
    assert capsys.readouterr().out == "node-{{ trunc 4 .MachineID }}\n"
    assert main(["config", "get", "hostname", "--origin", str(low), str(file)]) == 0
    assert capsys.readouterr().out == f"{file}:2\n"
    assert main(["config", "get", "stages.boot[0].files[0].path", str(file)]) == 0
    assert main(["config", "get", "stages.boot.1", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("/made\n")
    assert json.loads(out.removeprefix("/made\n")) == {"name": "Not here", "only_os": "Plan9"}
    assert main(["config", "get", "p2p.network_token", str(file)]) == 0
    assert capsys.readouterr().out == "(hidden)\n"
    assert main(["config", "get", "p2p.network_token", "--secrets", str(file)]) == 0
    assert capsys.readouterr().out == "hush-hush\n"
    assert main(["config", "get", "p2p.nothing", str(file)]) == 1
    assert "nothing sets 'p2p.nothing'" in capsys.readouterr().err
    assert main(["config", "show", "--origin", str(low), str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{low}:4: install.reboot = true" in lines
    assert f"{file}:7: stages.boot[0].files[0].path = /made" in lines
    assert not any("hush" in line or "secret" in line for line in lines)
    assert main(["config", "show", str(low), str(file)]) == 0
    shown = capsys.readouterr().out
    assert "hush" not in shown
    (machine / "again.yaml").write_text(shown)
    assert main(["config", "get", "install.reboot", str(machine / "again.yaml")]) == 0


def test_observed_facts_of_a_tree(tmp_path: Path) -> None:
    for name, text in {
        "usr/lib/os-release": 'PRETTY_NAME="Alpine Linux v3.20"\nID=alpine\nVERSION_ID=3.20.1\n',
        "sbin/openrc": "",
        "sys/class/net/eth0/address": "52:54:00:12:34:56\n",
        "etc/hostname": "tree\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    facts = observe(Root(tmp_path))
    assert isinstance(facts, Facts)
    assert (facts.os_name, facts.os_id, facts.os_version) == ("Alpine Linux v3.20", "alpine", "3.20.1")
    assert (facts.hostname, facts.service_manager, facts.machine_id) == ("tree", "openrc", None)
    assert facts.values["network"] == [{"name": "eth0", "macaddress": "52:54:00:12:34:56"}]
