"""What does a person, or a script, see of each verb? The real program, in a process of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

PROGRAM = [sys.executable, "-m", "p2p_bootstrap.cli.main"]
Until = Callable[..., None]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


def run(
    *argv: str, socket: Path | None = None, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1", **(env or {})}
    if socket is not None:
        environment["KAIROS_P2P_SOCKET"] = str(socket)
    return subprocess.run(
        [*PROGRAM, *argv],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=60,
    )


def on_terminal(*argv: str, socket: Path, width: int = 120) -> str:
    """What a person at a terminal sees."""
    parent, child = pty.openpty()
    environment = {
        **os.environ,
        "KAIROS_P2P_SOCKET": str(socket),
        "COLUMNS": str(width),
        "TERM": "xterm-256color",
    }
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [*PROGRAM, *argv], stdin=child, stdout=child, stderr=child, env=environment
    ) as process:
        os.close(child)
        text = b""
        while True:
            try:
                chunk = os.read(parent, 65536)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            text += chunk
        process.wait(30)
    os.close(parent)
    return text.decode()


# The program


def test_help_names_every_verb_and_the_exit_codes() -> None:
    done = run("--help")
    assert done.returncode == 0
    for verb in ("join", "leave", "status", "peers", "roles", "events", "kubeconfig", "wait", "token", "lab"):
        assert re.search(rf"^  {verb} +[A-Z]", done.stdout, re.MULTILINE), verb
    assert "3 agent not running" in done.stdout


def test_version_is_printed_with_and_without_an_agent(agent: Any, open_folder: Path) -> None:
    assert run("--version").stdout == "kairos-p2p 0.1.0\n"
    assert "not running" in run("version", socket=open_folder / "absent").stdout
    shown = json.loads(run("version", "-o", "json", socket=agent.socket).stdout)
    assert shown["command"]["version"] == shown["agent"]["version"] == "0.1.0"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("stauts",), ["there is no verb 'stauts'", "did you mean 'status'?"]),
        (("zzz",), ["there is no verb 'zzz'", "see all verbs with: kairos-p2p --help"]),
        (("roles", "lst"), ["No such command 'lst'", "Did you mean 'list'?", "kairos-p2p roles --help"]),
        (("status", "--wach"), ["No such option", "--watch", "kairos-p2p status --help"]),
        (("status", "-o", "xml"), ["'xml' is not one of 'table', 'json', 'yaml', 'name'"]),
        (("wait", "coffee"), ["'coffee' is not one of 'mesh', 'role', 'ready'"]),
        (("wait", "role", "--timeout", "soon"), ["'soon' is no duration; write it like 90s, 5m or 1h30m"]),
        (("kubeconfig", "--server", "10.0.0.1"), ["no address of a Kubernetes API", "https://HOST:6443"]),
        (("join",), ["join needs one source of the token", "--token-file FILE"]),
        (("join", "x"), ["join does not take 'x'"]),
        (("join", "-", "--token-file", "x"), ["join needs one source of the token"]),
    ],
)
def test_a_wrong_call_says_what_is_meant_and_exits_2(argv: tuple[str, ...], words: list[str]) -> None:
    done = run(*argv)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ("status",),
        ("status", "--watch"),
        ("peers", "-o", "json"),
        ("roles", "list"),
        ("roles", "explain", "edge-1"),
        ("events", "-f"),
        ("kubeconfig",),
        ("wait", "ready", "--timeout", "1s"),
        ("leave", "--yes"),
    ],
)
def test_without_an_agent_every_verb_says_so_and_exits_3(argv: tuple[str, ...], open_folder: Path) -> None:
    done = run(*argv, socket=open_folder / "absent.sock")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: no agent is running: ")
    assert " hint: " in done.stderr


def test_the_option_beats_the_environment(agent: Any, open_folder: Path) -> None:
    done = run("status", "-o", "name", "--socket", str(agent.socket), socket=open_folder / "absent")
    assert done.stdout.strip() == agent.fake.document["node"]["peer"]


@needs_root
def test_a_user_who_may_not_exits_5(agent: Any) -> None:
    code = (
        "import os, sys; from p2p_bootstrap.cli import main, status_verb, output\n"
        "import encodings.idna; os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
        "sys.exit(main.main(['status', '--socket', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(agent.socket)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (5, ""), done.stderr
    assert "user 54321 may not talk to the agent" in done.stderr
    assert "hint: run it as root" in done.stderr


# Looking


def test_status_tells_the_node_and_why(agent: Any) -> None:
    done = run("status", socket=agent.socket)
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["node"].startswith("edge-0   region west   zone a   peer ")
    assert lines["mesh"] == "joined   2 of 3 known peers connected   mesh 0123456789abcdef   network kairos"
    assert lines["vpn"] == "up   10.144.3.9   fd12::9   kp2p0, MTU 1420"
    assert lines["role"] == "server   MEMBER   epoch 1"
    assert lines["k3s"] == "running   v1.33.1+k3s1   pid 4800   ready"
    assert lines["reached"] == "mesh 0.4 s, role 6.0 s, ready 1 min 15 s after the start"
    assert lines["why"].startswith("edge-0 initialised the cluster")


def test_status_of_a_node_that_has_just_begun(agent: Any) -> None:
    document = agent.fake.document
    document["mesh"] |= {"state": "starting", "peers": 0, "known": 0}
    document["vpn"] |= {"state": "failed", "ipv4": "", "ipv6": "", "device": "", "error": "no /dev/net/tun"}
    document["role"] |= {
        "state": "DISCOVER",
        "role": "",
        "reason": "",
        "epoch": 0,
        "cluster_id": "",
        "ready": False,
    }
    document["k3s"] |= {"state": "absent", "version": "", "pid": 0}
    document["phases"] = []
    done = run("status", socket=agent.socket)
    assert "starting   no other node seen yet" in done.stdout
    assert done.stdout.splitlines()[-1] == "error   vpn: no /dev/net/tun"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("status",), lambda fake: fake.document),
        (("peers",), lambda fake: fake.peer_docs),
        (("roles", "list"), lambda fake: fake.rows),
        (("roles", "explain", "edge-2"), lambda fake: fake.rows[2]),
    ],
    ids=["status", "peers", "roles", "explain"],
)
def test_data_comes_as_json_and_yaml(
    agent: Any, argv: tuple[str, ...], expected: Callable[[Any], Any]
) -> None:
    assert json.loads(run(*argv, "-o", "json", socket=agent.socket).stdout) == expected(agent.fake)
    assert yaml.safe_load(run(*argv, "-o", "yaml", socket=agent.socket).stdout) == expected(agent.fake)


def test_names_are_one_a_line(agent: Any) -> None:
    assert run("roles", "list", "-o", "name", socket=agent.socket).stdout.split() == [
        "edge-0",
        "edge-1",
        "edge-2",
        "edge-3",
    ]
    ids = run("peers", "-o", "name", socket=agent.socket).stdout.split()
    assert ids == [peer["peer"] for peer in agent.fake.peer_docs]


def test_peers_are_an_aligned_table(agent: Any) -> None:
    lines = run("peers", socket=agent.socket).stdout.splitlines()
    assert lines[0].split() == [
        *[
            "NODE",
            "PEER",
            "REGION",
            "STATE",
            "ROLE",
            "CLUSTER",
            "IPV4",
            "RTT",
            "CARRIER",
            "RX",
            "TX",
            "ADDRESS",
        ]
    ]
    assert lines[1].split()[0] == "edge-1"
    assert "1.2 ms" in lines[1]
    assert "1.5 MB" in lines[1]
    assert lines[2].rstrip().endswith("-")
    column = lines[0].index("STATE")
    assert [line[column:].split()[0] for line in lines[1:]] == ["alive", "dead"]


def test_paths_of_peers_are_told_with_the_reason(agent: Any) -> None:
    lines = run("peers", "--paths", socket=agent.socket).stdout.splitlines()
    titles = "NODE IPV4 CARRIER NAT SEEN AT RTT LOSS RX RATE TX RATE WHY"
    assert lines[0].split() == titles.split()
    assert "cone" in lines[1]
    assert "192.0.2." in lines[1]
    assert "1.25%" in lines[1]
    assert "2.5 Mbit/s" in lines[1]
    assert lines[1].rstrip().endswith("records over TCP carry most")


def test_a_relayed_channel_is_told_with_the_relay_and_the_reason(agent: Any) -> None:
    agent.fake.peer_docs = [{**agent.fake.peer_docs[0], "relay": "edge-7", "relay_reason": "no answer"}]
    assert run("peers", socket=agent.socket).stdout.rstrip().endswith("relayed by edge-7")
    paths = run("peers", "--paths", socket=agent.socket).stdout.rstrip()
    assert paths.endswith("records over TCP carry most; channel relayed by edge-7: no answer")


def test_an_empty_table_is_said_beside_the_data(agent: Any) -> None:
    agent.fake.peer_docs = []
    done = run("peers", socket=agent.socket)
    assert (done.returncode, done.stdout) == (0, "")
    assert "no other node was seen yet" in done.stderr
    assert json.loads(run("peers", "-o", "json", socket=agent.socket).stdout) == []


def test_roles_mark_this_node_and_explain_it_by_default(agent: Any) -> None:
    lines = run("roles", "list", socket=agent.socket).stdout.splitlines()
    assert lines[1].split()[:5] == ["edge-0*", "west", "kairos/west", "10.144.3.9", "server"]
    assert lines[4].split()[4] == "agent"
    assert "node 0 has its reason" in run("roles", "explain", socket=agent.socket).stdout
    missing = run("roles", "explain", "edge-9", socket=agent.socket)
    assert missing.returncode == 1
    assert "no node goes by the name edge-9" in missing.stderr


def test_what_strangers_wrote_cannot_steer_the_terminal(agent: Any) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J[bold red]x[/]\u202e\n"
    agent.fake.peer_docs[0]["hostname"] = evil
    agent.fake.rows[1]["hostname"] = agent.fake.rows[1]["reason"] = evil
    agent.fake.document["role"]["reason"] = evil
    agent.fake.log.append(0, "peer.said", {"reason": evil, "hostname": evil})
    for argv in (("peers",), ("roles", "list"), ("status",), ("events",), ("peers", "-o", "json")):
        for shown in (run(*argv, socket=agent.socket).stdout, on_terminal(*argv, socket=agent.socket)):
            assert "]0;owned" in shown.replace("\n", "").replace("\r", "")
            assert "\x07" not in shown
            assert "\x1b]" not in shown
            assert "\x1b[2J" not in shown
            assert "\u202e" not in shown


def test_a_terminal_gets_colours_and_everything_else_plain_text(agent: Any) -> None:
    assert "\x1b[32malive" in on_terminal("peers", socket=agent.socket)
    assert "\x1b" not in run("peers", socket=agent.socket, env={"NO_COLOR": ""}).stdout
    shown = on_terminal("status", socket=agent.socket)
    assert "\x1b[32mjoined" in shown
    assert "edge-0 initialised the cluster" in shown


def test_watching_shows_each_change(agent: Any, until: Until) -> None:
    environment = {**os.environ, "KAIROS_P2P_SOCKET": str(agent.socket)}
    with subprocess.Popen(
        [*PROGRAM, "status", "--watch", "-o", "json"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["role"]["state"] == "MEMBER"
        agent.fake.document["role"]["state"] = "FENCED"
        assert json.loads(process.stdout.readline())["role"]["state"] == "FENCED"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_events_are_shown_and_followed(agent: Any) -> None:
    agent.fake.log.append(1_700_000_000.25, "mesh.joined", {"reason": "a peer answered", "peer": "P"})
    shown = run("events", socket=agent.socket).stdout
    assert shown.split() == ["2023-11-14", "22:13:20.250Z", "mesh.joined", "a", "peer", "answered", "peer=P"]
    environment = {**os.environ, "KAIROS_P2P_SOCKET": str(agent.socket)}
    with subprocess.Popen(
        [*PROGRAM, "events", "-f", "-o", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["name"] == "mesh.joined"
        agent.fake.log.append(1_700_000_001, "vpn.up", {})
        assert json.loads(process.stdout.readline())["name"] == "vpn.up"
        agent.end()
        assert process.wait(30) == 3
        assert "the agent ended" in process.stderr.read()


def test_a_gap_in_the_events_is_named(agent: Any) -> None:
    for number in range(2500):
        agent.fake.log.append(0, f"e.{number}", {})
    done = run("events", "--since", "100", "-o", "name", socket=agent.socket)
    assert done.stdout.splitlines()[0] == "e.500"
    assert len(done.stdout.splitlines()) == 2000
    assert done.stderr == "(400 events before this one are no longer kept)\n"


def test_a_closed_pipe_ends_quietly(agent: Any) -> None:
    for number in range(2000):
        agent.fake.log.append(0, "a.flood", {"detail": "x" * 200, "count": number})
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -1; echo "${PIPESTATUS[0]}"', "bash", *PROGRAM, "events"],
        env={**os.environ, "KAIROS_P2P_SOCKET": str(agent.socket)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[1] == "141"
    assert done.stderr == ""


def test_a_full_disk_is_an_error(agent: Any) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, "status", "--socket", str(agent.socket)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\n"


def test_kubeconfig_goes_to_stdout_with_another_address_if_asked(agent: Any) -> None:
    assert run("kubeconfig", socket=agent.socket).stdout == agent.fake.kubeconfig_text
    other = run("kubeconfig", "--server", "https://10.144.3.9:6443", socket=agent.socket).stdout
    assert yaml.safe_load(other)["clusters"][0]["cluster"] == {"server": "https://10.144.3.9:6443"}
    agent.fake.kubeconfig_text = None
    done = run("kubeconfig", socket=agent.socket)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: edge-0 is an agent and has no kubeconfig\n hint: ask a server: edge-1\n"


def test_other_clusters_of_the_mesh_are_shown_and_merged(agent: Any) -> None:
    shown = run("status", socket=agent.socket).stdout
    assert "cluster kairos/east on this mesh: 4 of 5 nodes ready, servers 3" in shown
    assert "kairos/west on this mesh" not in shown
    done = run("kubeconfig", "--merge", socket=agent.socket)
    assert (done.returncode, done.stdout) == (0, "current-context: kairos-west\n")
    assert done.stderr == "not in here: cluster kairos/east: it says no\n"
    both = run("kubeconfig", "--merge", "--server", "https://10.144.3.9:6443", socket=agent.socket)
    assert both.returncode == 2


def test_regions_are_shown_and_confirmed(agent: Any) -> None:
    lines = run("regions", socket=agent.socket).stdout.splitlines()
    assert lines[1].split()[:4] == ["edge-0*", "west", "declared", "-"]
    assert "region-ab12cd" in lines[2]
    assert "40.2 ms" in lines[2]
    pair = run("regions", "--matrix", socket=agent.socket).stdout.splitlines()[1]
    assert pair.split() == ["edge-0", "edge-1", "40.2", "ms", "41.0", "ms"]
    assert json.loads(run("regions", "-o", "json", socket=agent.socket).stdout)["pairs"][0]["measured_ms"]
    done = run("regions", "confirm", socket=agent.socket)
    assert done.returncode == 1
    assert "without a region: edge-2" in done.stderr
    assert agent.fake.calls == ["confirm"]


# Waiting and leaving


def test_wait_reports_on_stderr_and_ends_when_the_goal_is_reached(agent: Any) -> None:
    agent.fake.goals = {"mesh"}
    environment = {**os.environ, "KAIROS_P2P_SOCKET": str(agent.socket)}
    with subprocess.Popen(
        [*PROGRAM, "wait", "role", "--timeout", "1m"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline().split()[2:] == ["mesh", "joined,", "2", "peers"]
        agent.fake.goals.add("role")
        rest = process.stderr.read()
        assert process.wait(30) == 0
        assert process.stdout.read() == ""
    assert rest.splitlines()[-1] == "edge-0 is server of the cluster, 6.0 s after the agent's start"


def test_wait_gives_up_with_what_the_node_was_doing_and_exits_4(agent: Any) -> None:
    agent.fake.goals = set()
    agent.fake.document["role"] |= {
        "state": "WAIT",
        "role": "",
        "reason": "2 of 3 nodes are here",
        "ready": False,
    }
    done = run("wait", "ready", "--timeout", "0.2s", socket=agent.socket)
    assert (done.returncode, done.stdout) == (4, "")
    assert "error: ready was not reached within 0.2 s: " in done.stderr
    assert "role WAIT: 2 of 3 nodes are here" in done.stderr


def test_leave_asks_first(agent: Any, until: Until) -> None:
    done = run("leave", socket=agent.socket)
    assert done.returncode == 2
    assert "add --yes" in done.stderr
    assert agent.fake.calls == []
    done = run("leave", "--yes", socket=agent.socket)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "edge-0 left the mesh 0123456789abcdef\n")
    assert agent.fake.calls == ["leave", "stop"]


def test_leave_removes_the_configuration_that_is_named(agent: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("#cloud-config\n")
    assert run("leave", "-y", "--config", str(config), socket=agent.socket).returncode == 0
    assert not config.exists()


# The start


HEAVY = (
    "libp2p",
    "trio",
    "pydantic",
    "pyroute2",
    "cryptography",
    "rich",
    "starlette",
    "structlog",
    "yaml",
    "h11",
)


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["--version"], ["version"], ["status"], ["peers"], ["roles", "list"], ["wait", "role"]],
)
def test_a_verb_imports_nothing_heavy_before_it_needs_it(argv: list[str], open_folder: Path) -> None:
    code = (
        "import sys; from p2p_bootstrap.cli.main import main; main(sys.argv[1:])\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        env={**os.environ, "KAIROS_P2P_SOCKET": str(open_folder / "absent")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_the_plain_table_of_a_live_agent_imports_nothing_heavy_either(agent: Any) -> None:
    code = (
        "import sys; from p2p_bootstrap.cli.main import main; main(['peers', '--socket', sys.argv[1]])\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(agent.socket)], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


# Completion


@pytest.fixture
def program_on_path(tmp_path: Path) -> dict[str, str]:
    """An environment in which the program is a command, as the completion scripts need it."""
    command = tmp_path / "kairos-p2p"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m p2p_bootstrap.cli.main "$@"\n')
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def complete(words: str, socket: Path, environment: dict[str, str]) -> list[str]:
    """What bash offers for a line, through the script that the program prints."""
    script = r"""
        eval "$(kairos-p2p completion bash)"
        complete -p kairos-p2p >&2
        COMP_WORDS=($WORDS); [[ $WORDS == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _kairos_p2p_completion kairos-p2p
        printf '%s\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", script],
        env={**environment, "WORDS": words, "KAIROS_P2P_SOCKET": str(socket)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.startswith("complete "), done.stderr
    return done.stdout.split()


def test_bash_completes_verbs_options_and_nodes(
    agent: Any, open_folder: Path, program_on_path: dict[str, str]
) -> None:
    def offered(words: str, socket: Path = agent.socket) -> list[str]:
        return complete(words, socket, program_on_path)

    assert offered("kairos-p2p st") == ["status", "stage"]
    assert {"join", "leave", "lab", "token"} <= set(offered("kairos-p2p "))
    assert offered("kairos-p2p roles e") == ["explain"]
    assert offered("kairos-p2p status --wa") == ["--watch"]
    assert offered("kairos-p2p wait r") == ["role", "ready"]
    assert offered("kairos-p2p roles explain edge-") == [f"edge-{n}" for n in range(4)]
    assert offered("kairos-p2p roles explain edge-", open_folder / "absent") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert "_KAIROS_P2P_COMPLETE" in done.stdout
    assert "kairos-p2p" in done.stdout


def test_ctrl_c_ends_a_wait_with_130(agent: Any, until: Until) -> None:
    agent.fake.goals = set()
    environment = {**os.environ, "KAIROS_P2P_SOCKET": str(agent.socket)}
    with subprocess.Popen(
        [*PROGRAM, "wait", "ready"], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        until(lambda: agent.fake.waiting, what="it waits")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    deadline = time.monotonic() + 10
    while agent.fake.waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    assert agent.fake.waiting == 0


def test_what_only_root_may_ask_is_audited(agent: Any) -> None:
    asked = [
        run("peer", "revoke", "edge-2", "--reason", "stolen", "--yes", socket=agent.socket),
        run("token", "invite", "--role", "agent", "--uses", "3", "--region", "west", socket=agent.socket),
        run("token", "revoke", "0011", socket=agent.socket),
        run("token", "rotate", "--yes", socket=agent.socket),
    ]
    assert [done.returncode for done in asked] == [0, 0, 0, 0], [done.stderr for done in asked]
    assert agent.fake.calls == ["revoke edge-2: stolen", "invite agent west 3 3600 0", "withdraw 0011"]
    assert asked[1].stdout == "KP2PJ1-MZXW6YTBOI\n", "the token alone is data"
    assert "role agent, region west, 3 uses, expires in 1 h" in asked[1].stderr
    assert asked[3].stdout == "kp2p1_AAAABBBBCCCCDDDD\n"
    agent.fake.root = None
    refused = run("token", "rotate", "--yes", socket=agent.socket)
    assert (refused.returncode, refused.stdout) == (5, "")
    assert "does not hold the root" in refused.stderr
    run("status", socket=agent.socket)

    text = agent.audit.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["request"], line["result"]) for line in lines] == [
        ("POST /v1/peers/edge-2/revoke", "done"),
        ("POST /v1/invites", "done"),
        ("POST /v1/invites/0011/withdraw", "done"),
        ("POST /v1/rotate", "done"),
        ("POST /v1/rotate", "refused"),
    ]
    assert lines[0]["parameters"] == {"reason": "stolen"}
    assert lines[0]["uid"] == os.getuid()
    assert "does not hold the root" in lines[-1]["error"]
    assert "kp2p1_" not in text
    assert "KP2PJ1-" not in text
    assert agent.audit.stat().st_mode & 0o777 == 0o600
    for _ in range(12):
        run("token", "revoke", "0011", socket=agent.socket)
    older = agent.audit.with_name("audit.log.1")
    assert older.stat().st_size <= 2048
    assert agent.audit.stat().st_size <= 2048


def test_invitations_are_listed_and_questions_are_asked(agent: Any) -> None:
    (line,) = run("token", "invites", socket=agent.socket).stdout.splitlines()[1:]
    assert line.split()[:5] == ["00112233aabbccdd", "open", "agent", "west", "1/3"]
    assert run("token", "invites", "-o", "name", socket=agent.socket).stdout == "00112233aabbccdd\n"
    for verb in (("token", "rotate"), ("peer", "revoke", "edge-2")):
        done = run(*verb, socket=agent.socket)
        assert done.returncode == 2
        assert "--yes" in done.stderr
    assert agent.fake.calls == []
    qr = run("token", "invite", "--qr", socket=agent.socket)
    assert "\u2588" in qr.stdout or "\u2584" in qr.stdout
    assert "KP2PJ1-" not in qr.stdout
    unknown = run("peer", "revoke", "edge-77", "--yes", socket=agent.socket)
    assert unknown.returncode == 1
    assert "no node goes by the name" in unknown.stderr


def test_status_tells_who_is_no_member_and_why(agent: Any) -> None:
    agent.fake.document["admission"] |= {
        "state": "out",
        "reason": "a peer refused this node: this node was revoked",
        "issuer": False,
        "role": "agent",
        "region": "west",
        "refused": {"by_peer_revoked": 7},
    }
    text = run("status", socket=agent.socket).stdout
    assert "out: a peer refused this node: this node was revoked" in text
    assert "only agent in region west" in text
    assert "7 refused" in text
