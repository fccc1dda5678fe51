"""What does joining find, plan, write and start?"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2p_bootstrap.cli import join_verb, joining
from p2p_bootstrap.service import ServiceHost
from p2p_network.core.errors import P2PError
from p2p_network.token import NetworkToken, format_token, mesh_keys

PROGRAM = [sys.executable, "-m", "p2p_bootstrap.cli.main"]
TOKEN = NetworkToken(bytes(range(32)))
TEXT = format_token(TOKEN)
MESH_ID = mesh_keys(TOKEN).mesh_id
OTHER_TEXT = format_token(NetworkToken(bytes(32)))
Until = Callable[..., None]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="join is for root")


@pytest.fixture
def places(open_folder: Path) -> list[str]:
    """Options that keep everything inside a folder of the test's."""
    return [
        *("--config", str(open_folder / "etc/config.yaml")),
        *("--state-dir", str(open_folder / "state")),
        *("--socket", str(open_folder / "agent.sock")),
    ]


def join(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, "join", *argv], input=stdin, capture_output=True, text=True, check=False, timeout=60
    )


# Planning from the outside: --dry-run


def test_dry_run_prints_the_steps_and_changes_nothing(open_folder: Path, places: list[str]) -> None:
    token = open_folder / "token"
    token.write_text(TEXT + "\n")
    done = join("--token-file", str(token), "--region", "west", "--dry-run", *places)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    config = open_folder / "etc/config.yaml"
    assert first == (
        f"1. write {config} (mode 0600): network kairos, region west, "
        f"token {TOKEN.fingerprint}, mesh {MESH_ID}"
    )
    assert second == "2. run the agent in the foreground, with up to 5 min until the node has its role"
    assert sorted(open_folder.iterdir()) == [token]
    assert TEXT not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "stdin",
    [TEXT, f"  {TEXT[:20]}\n{TEXT[20:]}\n", f"#cloud-config\np2p:\n  network_token: {TEXT}\n"],
    ids=["token", "wrapped token", "cloud-config"],
)
def test_stdin_may_be_a_token_or_a_cloud_config(stdin: str, places: list[str]) -> None:
    done = join("-", "--dry-run", *places, stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert f"mesh {MESH_ID}" in done.stdout


def test_a_cloud_config_keeps_what_it_says_but_for_the_region(open_folder: Path, places: list[str]) -> None:
    cloud = open_folder / "cloud.yaml"
    cloud.write_text(
        f"#cloud-config\nhostname: edge-7 # mine\np2p: {{network_token: {TEXT}, network_id: n2, region: a}}\n"
    )
    done = join("--cloud-config", str(cloud), "--region", "b", "--dry-run", *places)
    assert "network n2, region b," in done.stdout, done.stderr
    text = join_verb._configuration(None, None, cloud, None, None)
    assert text == cloud.read_text(), "as it was written, comments and all"
    assert "hostname: edge-7" in join_verb._configuration(None, None, cloud, None, "b")


@pytest.mark.parametrize(
    ("argv", "stdin", "code", "words"),
    [
        (["-"], TEXT[:-5], 1, ["stdin: the network token is cut or mistyped", "token generate"]),
        (["-"], "", 1, ["the network token is empty"]),
        (["-"], "kp2p9_AAAA", 1, ["format version 9", "upgrade kairos-p2p"]),
        (["-"], "#cloud-config\np2p: {}\n", 1, ["p2p.network_token", "token generate"]),
        (["-"], f"#cloud-config\np2p:\n  regoin: x\n  network_token: {TEXT}\n", 1, ["stdin:3:3", "'region'"]),
        (["-", "--region", "no good"], TEXT, 2, ["--region: 'no good' is not a label"]),
        (["-"], "x: " + "y" * 1_100_000, 1, ["over 1 MiB"]),
        (["--token-file", "absent"], "", 1, ["absent cannot be read: No such file"]),
    ],
    ids=["cut", "empty", "version", "no-token", "typo", "region", "large", "absent"],
)
def test_bad_input_is_refused_before_anything_happens(
    argv: list[str], stdin: str, code: int, words: list[str], open_folder: Path, places: list[str]
) -> None:
    done = join(*argv, *places, stdin=stdin)
    assert (done.returncode, done.stdout) == (code, "")
    for word in words:
        assert word in done.stderr
    assert TEXT not in done.stderr
    assert list(open_folder.iterdir()) == []


def test_a_cloud_config_given_as_a_token_is_named(open_folder: Path, places: list[str]) -> None:
    path = open_folder / "x.yaml"
    path.write_text("#cloud-config\n")
    done = join("--token-file", str(path), *places)
    assert done.returncode == 2
    assert f"write --cloud-config {path}" in done.stderr


def test_a_token_on_the_command_line_gets_a_warning(places: list[str]) -> None:
    done = join("--token", TEXT, "--dry-run", *places)
    assert done.returncode == 0
    assert "can be read by every process" in done.stderr
    assert TEXT not in done.stdout + done.stderr


@needs_root
def test_only_root_joins() -> None:
    code = (
        "import os, sys; from p2p_bootstrap.cli import main, join_verb\n"
        "import p2p_bootstrap.config.loading, p2p_bootstrap.config.write\n"
        "os.setgroups([]); os.setgid(54321); os.setuid(54321); sys.exit(main.main(sys.argv[1:]))"
    )
    for extra, status in (([], 5), (["--dry-run"], 0)):
        done = subprocess.run(
            [sys.executable, "-c", code, "join", "-", *extra],
            input=TEXT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
    assert "can only be seen by root" in done.stderr


# Planning from the inside


def target(folder: Path, text: str = "new", mesh_id: str = MESH_ID) -> joining.Target:
    return joining.Target(
        text=text,
        mesh_id=mesh_id,
        network_id="kairos",
        region="",
        fingerprint="f",
        config=folder / "config.yaml",
        state_dir=folder / "state",
        socket=folder / "agent.sock",
        argv=("kairos-p2p", "agent"),
        timeout_s=60,
    )


def nothing(_: joining.Target) -> None:
    raise AssertionError("planning does nothing")


def described(aim: joining.Target, found: joining.Found) -> list[str]:
    steps = joining.plan(aim, found, wait=nothing, run=nothing)
    return [step.describe().split(" (")[0].split(" up to")[0] for step in steps]


@pytest.mark.parametrize("kind", ["systemd", "openrc"])
def test_under_a_service_manager_the_agent_becomes_a_service(kind: Any, tmp_path: Path) -> None:
    aim, host = target(tmp_path), ServiceHost(kind, tmp_path)
    fresh = joining.Found(None, None, None, host, None)
    commands = [f"run {' '.join(argv)}" for argv in host.start_commands(restart=False)]
    assert described(aim, fresh) == [
        f"write {aim.config}",
        f"write {host.unit_path}",
        *commands,
        "wait",
    ]


def test_joining_again_only_waits(tmp_path: Path) -> None:
    aim, host = target(tmp_path), ServiceHost("systemd", tmp_path)
    unit = host.render(aim.argv, aim.config)
    assert described(aim, joining.Found("new", MESH_ID, MESH_ID, host, unit)) == ["wait"]
    assert described(aim, joining.Found("new", MESH_ID, MESH_ID, None, None)) == ["wait"]
    stopped = described(aim, joining.Found("new", MESH_ID, None, host, unit))
    assert stopped[-2:] == ["run systemctl start --no-block kairos-p2p.service", "wait"]
    assert not any(step.startswith("write") for step in stopped)


def test_a_changed_configuration_restarts_the_service(tmp_path: Path) -> None:
    aim, host = target(tmp_path), ServiceHost("systemd", tmp_path)
    unit = host.render(aim.argv, aim.config)
    steps = described(aim, joining.Found("old", MESH_ID, MESH_ID, host, unit))
    assert steps[0].startswith("write ")
    assert "run systemctl restart --no-block kairos-p2p.service" in steps
    with pytest.raises(P2PError, match="must be restarted"):
        described(aim, joining.Found("old", MESH_ID, MESH_ID, None, None))


def test_a_machine_in_another_mesh_is_left_alone(tmp_path: Path) -> None:
    for found in (
        joining.Found("old", "other", None, None, None),
        joining.Found(None, None, "other", None, None),
    ):
        with pytest.raises(P2PError, match="is in the mesh other already") as caught:
            described(target(tmp_path), found)
        assert "kairos-p2p leave" in caught.value.hint


def test_the_configuration_on_the_disk_is_compared(open_folder: Path, places: list[str]) -> None:
    config = open_folder / "etc/config.yaml"
    config.parent.mkdir()
    config.write_text(f"#cloud-config\np2p: {{network_token: {OTHER_TEXT}}}\n")
    done = join("-", "--dry-run", *places, stdin=TEXT)
    assert done.returncode == 1
    assert "already, by" in done.stderr
    config.write_text("#cloud-config\np2p: {netwrk_token: x}\n")
    done = join("-", "--dry-run", *places, stdin=TEXT)
    assert done.returncode == 1
    assert f"repair {config}" in done.stderr
    assert "config.yaml:2:" in done.stderr


def test_an_agent_of_another_mesh_is_seen(agent: Any, places: list[str]) -> None:
    done = join("-", "--dry-run", *places, stdin=TEXT)
    assert done.returncode == 1
    assert f"in the mesh {agent.fake.document['mesh']['mesh_id']} already, by its agent" in done.stderr


@needs_root
def test_joining_a_running_agent_of_this_mesh_waits_for_the_role(agent: Any, places: list[str]) -> None:
    agent.fake.document["mesh"]["mesh_id"] = MESH_ID
    config = agent.socket.parent / "etc/config.yaml"
    config.parent.mkdir()
    config.write_text(join_verb._from_token(TEXT, None, "x"))
    done = join("-", *places, stdin=TEXT)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.splitlines()[-1].startswith("edge-0 is server of the cluster")


# Foreground: the composition root is replaced by the fake agent

FOREGROUND = """
import importlib.util, signal, sys, types, trio
spec = importlib.util.spec_from_file_location("fakes", sys.argv.pop(1))
fakes = importlib.util.module_from_spec(spec); spec.loader.exec_module(fakes)
from p2p_network.core import log

def run_agent(config, *, state_dir, socket, events, of_system):
    fake = fakes.FakeAgent()
    fake.log = events
    fake.document["mesh"]["mesh_id"] = "m"
    if config.p2p.region == "never":
        fake.goals = set()
    async def main():
        async with trio.open_nursery() as nursery:
            fake.stopping = trio.Event()
            await nursery.start(fakes.serve_api, fake, socket)
            log.event(log.get("p2p_bootstrap.test"), "agent.started", reason="a test", detail=repr(config))
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    nursery.cancel_scope.cancel()
                    return
    trio.run(main)

module = types.ModuleType("p2p_bootstrap.node.agent")
module.run_agent = run_agent
sys.modules[module.__name__] = module
from p2p_bootstrap.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
FAKES = Path(__file__).with_name("conftest.py")


def foreground(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FOREGROUND, str(FAKES), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@needs_root
def test_without_a_service_manager_join_is_the_agent(open_folder: Path, places: list[str]) -> None:
    with foreground("join", "-", "--region", "west", *places) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(TEXT)
        process.stdin.close()
        seen = []
        for line in process.stderr:
            seen.append(line.strip())
            if "Ctrl-C stops it" in line:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        rest = process.stderr.read()
    text = "\n".join(seen)
    assert "edge-0 is server of the cluster, 6.0 s after the agent's start" in text
    assert "role  server, MEMBER: edge-0 initialised the cluster" in text
    assert TEXT not in text + rest
    config = open_folder / "etc/config.yaml"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert TEXT in config.read_text()


@needs_root
def test_a_join_in_the_foreground_that_takes_too_long_ends_with_4(places: list[str]) -> None:
    with foreground("join", "-", "--region", "never", "--timeout", "1s", *places) as process:
        _, errors = process.communicate(TEXT, timeout=60)
    assert process.returncode == 4
    assert "error: role was not reached within 1.0 s" in errors
    assert "give it longer with --timeout" in errors


def test_the_agent_verb_runs_until_sigterm_and_logs_json(open_folder: Path, until: Until) -> None:
    cloud = open_folder / "cloud.yaml"
    cloud.write_text(f"#cloud-config\np2p:\n  network_token: {TEXT}\n  vpn: {{env: {{MTU: 1300}}}}\n")
    sock = open_folder / "agent.sock"
    options = ["--state-dir", str(open_folder / "state"), "--socket", str(sock), "--log-format", "json"]
    with foreground("agent", "--cloud-config", str(cloud), *options) as process:
        until(sock.exists, what="the agent listens", timeout_s=30)
        done = subprocess.run(
            [*PROGRAM, "events", "-o", "name", "--socket", str(sock)],
            capture_output=True,
            text=True,
            check=False,
        )
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=30)
    assert done.stdout.split() == ["config.remarked", "agent.started"]
    assert (process.returncode, out) == (0, "")
    assert [line[0] for line in errors.splitlines()] == ["{", "{"]
    assert TEXT not in errors


def test_the_agent_verb_refuses_a_bad_configuration(open_folder: Path) -> None:
    cloud = open_folder / "cloud.yaml"
    cloud.write_text("#cloud-config\np2p:\n  rgion: x\n  minimum_nodes: many\n")
    done = subprocess.run(
        [*PROGRAM, "agent", "--cloud-config", str(cloud)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{cloud}:3:3: p2p.rgion" in done.stderr
    assert f"{cloud}:4:" in done.stderr
