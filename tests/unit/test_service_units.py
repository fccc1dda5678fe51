"""Are the unit files right, by the word of the tools that read them?"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from p2p_bootstrap.service import (
    ServiceHost,
    agent_argv,
    notify,
    openrc_script,
    run_command,
    systemd_unit,
)
from p2p_network.core.errors import P2PError

AWKWARD = ("/bin/echo", "agent", "--cloud-config", '/etc/a b/100%/it\'s $HOME "x".yaml')


def test_the_agent_is_started_with_paths_and_no_secret(tmp_path: Path) -> None:
    argv = agent_argv(tmp_path / "python3", Path("/etc/c.yaml"), Path("/var/s"), Path("/run/a.sock"))
    assert argv[:3] == (str(tmp_path / "python3"), "-m", "p2p_bootstrap.cli.main")
    (tmp_path / "kairos-p2p").touch()
    argv = agent_argv(tmp_path / "python3", Path("/etc/c.yaml"), Path("/var/s"), Path("/run/a.sock"))
    assert argv[:4] == (str(tmp_path / "kairos-p2p"), "agent", "--cloud-config", "/etc/c.yaml")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("argv", [("/bin/true", "agent"), AWKWARD], ids=["plain", "awkward"])
def test_systemd_accepts_the_unit(argv: tuple[str, ...], tmp_path: Path) -> None:
    unit = tmp_path / "kairos-p2p.service"
    unit.write_text(systemd_unit(argv, Path("/etc/kairos-p2p/config.yaml")))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if "kairos-p2p.service" in line]
    assert (done.returncode, complaints) == (0, [])


def test_the_unit_lets_the_agent_end_alone_and_come_back() -> None:
    lines = systemd_unit(("/bin/true",), Path("/c")).splitlines()
    for line in (
        "Type=notify",
        "KillMode=process",
        "Restart=always",
        "ConditionPathExists=/c",
        "Delegate=yes",
    ):
        assert line in lines


def test_openrc_gets_a_script_that_a_shell_reads_back(tmp_path: Path) -> None:
    script = tmp_path / "kairos-p2p"
    script.write_text(openrc_script(AWKWARD, Path("/etc/it's.yaml")))
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
    # as OpenRC starts it: `eval start-stop-daemon ... -- $command_args`
    code = f'. {script}; eval printf "%s\\\\\\\\n" $command_args; printf "%s\\n" "$command" "$required_files"'
    done = subprocess.run(["sh", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [*AWKWARD[1:], AWKWARD[0], "/etc/it's.yaml"]


@pytest.mark.parametrize(("folder", "kind"), [("run/systemd/system", "systemd"), ("run/openrc", "openrc")])
def test_the_manager_is_found_and_the_unit_written_once(folder: str, kind: str, tmp_path: Path) -> None:
    assert ServiceHost.detect(tmp_path) is None
    (tmp_path / folder).mkdir(parents=True)
    host = ServiceHost.detect(tmp_path)
    assert host is not None
    assert host.kind == kind
    assert not host.is_installed()
    assert host.install(("/bin/true",), Path("/c")) is True
    assert host.install(("/bin/true",), Path("/c")) is False
    assert host.install(("/bin/true", "agent"), Path("/c")) is True
    mode = stat.S_IMODE(host.unit_path.stat().st_mode)
    assert mode == (0o644 if kind == "systemd" else 0o755)
    assert [path.name for path in host.unit_path.parent.iterdir()] == [host.unit_path.name]


def test_a_unit_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("in the way")
    with pytest.raises(P2PError, match="cannot be written"):
        ServiceHost("systemd", tmp_path).install(("/bin/true",), Path("/c"))


def test_commands_run_and_their_failure_quotes_them(tmp_path: Path) -> None:
    run_command(["touch", str(tmp_path / "done")])
    assert (tmp_path / "done").exists()
    with pytest.raises(P2PError, match="Unit not loaded") as caught:
        run_command(["sh", "-c", "echo Unit not loaded >&2; exit 5"])
    assert caught.value.hint.startswith("run it by hand: sh -c ")
    with pytest.raises(P2PError, match="no-such-program is not installed"):
        run_command(["no-such-program", "start"])


def test_every_command_of_a_manager_names_the_service(tmp_path: Path) -> None:
    for kind in ("systemd", "openrc"):
        host = ServiceHost(kind, tmp_path)  # type: ignore[arg-type]
        for restart in (False, True):
            assert "kairos-p2p" in " ".join(host.start_commands(restart=restart)[-1])
        assert all("kairos-p2p" in " ".join(argv) for argv in host.stop_commands())
        assert "kairos-p2p" in host.log_command()


@pytest.mark.parametrize("abstract", [False, True])
def test_notify_reaches_the_manager(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"@kairos-p2p-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("value", [None, "", "/absent/socket", "nonsense"])
def test_notify_without_a_manager_does_nothing(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if value is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    notify("READY=1")


def test_the_unit_module_starts_light() -> None:
    code = "import sys, p2p_bootstrap.service; print([m for m in ('sh', 'trio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
