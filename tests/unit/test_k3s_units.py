"""Is the unit, the script and the environment file for k3s what the tools that read them take?"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from p2p_network.core.errors import RoleError
from p2p_roles.k3s import units
from p2p_roles.k3s.causes import known_cause
from p2p_roles.k3s.supervisor import CHOICE, detect

DIGEST = "ab" * 32
ARGV = ("/bin/echo", "server", "--node-label=a b=100%", "it's $HOME", 'say "x"', "back\\slash")
ENV = {
    "HTTPS_PROXY": "http://u:p%40ss@proxy:3128",
    "SPACED": "a b  c",
    "QUOTED": 'it\'s "so" $HOME `id` \\n',
    "EMPTY": "",
    "LINES": "one\ntwo",
    "not-a-variable": "x",
}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / f"{units.NAME}.service"
    unit.write_text(units.systemd_unit(ARGV, tmp_path / "100% k3s.env", DIGEST))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if units.NAME in line]
    assert (done.returncode, complaints) == (0, [])


def test_the_unit_says_what_k3s_needs() -> None:
    lines = units.systemd_unit(ARGV, Path("/s/k3s.env"), DIGEST).splitlines()
    for line in (
        "Type=notify",
        "KillMode=process",
        "Delegate=yes",
        "TimeoutStartSec=0",
        "Restart=always",
        "TasksMax=infinity",
        "LimitNOFILE=1048576",
        "EnvironmentFile=/s/k3s.env",
    ):
        assert line in lines
    assert not any(line.startswith("WantedBy") for line in lines), "only the agent starts it"


@pytest.mark.parametrize("shell", ["sh", "bash", "busybox sh"])
def test_a_shell_reads_the_openrc_script_and_the_environment(shell: str, tmp_path: Path) -> None:
    words = shell.split()
    if not shutil.which(words[0]):
        pytest.skip(f"{words[0]} is not installed")
    env_path = tmp_path / "it's k3s.env"
    env_path.write_text(units.env_file({**ENV, "PATH": "/k3s/own:/usr/bin:/bin"}))
    k3s = tmp_path / "k3s's program"
    k3s.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\" && env -0\n")
    k3s.chmod(0o755)
    script = tmp_path / units.NAME
    script.write_text(units.openrc_script((str(k3s), *ARGV), env_path, tmp_path / "k3s.log", DIGEST))
    assert subprocess.run([*words, "-n", str(script)], check=False).returncode == 0
    # OpenRC's own programs are on a PATH that only its scripts have
    kept = '[ "$PATH" = /rc:/usr/bin:/bin ]'
    shown = f'start_pre && {kept} && eval set -- "$command_args" && exec "$command" "$@"'
    done = subprocess.run(
        [*words, "-c", f"modprobe() {{ :; }}; . '{script}'; {shown}"],
        capture_output=True, text=True, check=True, env={"PATH": "/rc:/usr/bin:/bin"},
    )  # fmt: skip
    fields = done.stdout.split("\0")
    assert tuple(fields[: len(ARGV)]) == ARGV
    seen = dict(field.split("=", 1) for field in fields[len(ARGV) :] if "=" in field)
    assert {name: seen.get(name) for name in ENV} == {**ENV, "not-a-variable": None}
    assert seen["PATH"] == "/k3s/own:/usr/bin:/bin"


def test_the_digest_is_found_again() -> None:
    for text in (
        units.systemd_unit(ARGV, Path("/e"), DIGEST),
        units.openrc_script(ARGV, Path("/e"), Path("/l"), DIGEST),
    ):
        assert units.digest_of(text) == DIGEST
    assert units.digest_of("[Unit]\nDescription=somebody else's\n") == ""


def test_a_service_manager_is_used_only_by_an_agent_that_it_started(tmp_path: Path) -> None:
    as_unit = {"INVOCATION_ID": "x"}
    assert detect(as_unit, 1, tmp_path) == "child"
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert detect(as_unit, 1, tmp_path) == "systemd"
    assert detect(as_unit, 4711, tmp_path) == "child", "a terminal's shell is no service"
    assert detect({}, 1, tmp_path) == "child"
    assert detect(as_unit | {CHOICE: "child"}, 1, tmp_path) == "child"
    (tmp_path / "run/openrc").mkdir()
    assert detect({"RC_SVCNAME": "kairos-p2p"}, 4711, tmp_path) == "openrc"
    assert detect({CHOICE: "openrc"}, 1, tmp_path) == "openrc"
    with pytest.raises(RoleError, match="names no supervisor"):
        detect({CHOICE: "runit"}, 1, tmp_path)


def test_etcds_own_lines_are_quoted_as_sentences() -> None:
    error = "membership: too many learner members in cluster"
    line = json.dumps({"level": "error", "ts": "2026", "msg": "Validation failed", "error": error})
    found = known_cause(line, running=True)
    assert found is not None
    assert 'k3s says "Validation failed: membership: too many learner members in cluster"' in found.error
    for other in ("[1]", '{"a": 1', "{}", '{"msg": null, "x": "too many learner members"}'):
        assert known_cause(f"{other} too many learner members") is not None
