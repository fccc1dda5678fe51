"""Does the local API answer, refuse and stay alive on a real unix socket?"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2p_bootstrap.api import http, server
from p2p_bootstrap.cli.client import AgentClient
from p2p_network.core.errors import DaemonNotRunning, P2PError, TimedOut, UsageError

Until = Callable[..., None]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


@pytest.fixture
def client(agent: Any) -> AgentClient:
    return AgentClient(agent.socket)


def raw(path: Path, request: bytes) -> bytes:
    """What comes back for some bytes, until the agent closes."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        sock.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # it closed without reading all of the request
            while chunk := sock.recv(65536):
                answer += chunk
        return answer


def test_every_question_gets_its_answer(agent: Any, client: AgentClient) -> None:
    assert client.status() == agent.fake.document
    assert client.peers() == agent.fake.peer_docs
    assert client.roles() == agent.fake.rows
    assert client.kubeconfig() == agent.fake.kubeconfig_text
    assert client.version()["pid"] == os.getpid()
    assert client.wait("ready", 5) == agent.fake.document
    assert b"kairos_p2p_peers 2" in raw(
        agent.socket, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )


def test_a_role_is_found_by_name_id_or_end_of_id(agent: Any, client: AgentClient) -> None:
    row = agent.fake.rows[2]
    for name in ("edge-2", row["peer"], row["peer"][-8:]):
        assert client.role_of(name) == row
    with pytest.raises(P2PError, match="no node goes by the name edge-9") as caught:
        client.role_of("edge-9")
    assert caught.value.hint.startswith("did you mean edge-")
    with pytest.raises(P2PError, match="no node goes by the name"):
        client.role_of("../status?x=/%2e")


def test_an_ambiguous_name_is_answered_with_the_choices(agent: Any, client: AgentClient) -> None:
    agent.fake.rows[1]["hostname"] = "edge-2"
    with pytest.raises(P2PError, match="2 nodes go by the name edge-2") as caught:
        client.role_of("edge-2")
    assert agent.fake.rows[1]["peer"][-8:] in caught.value.hint


def test_errors_keep_their_words_and_kind(agent: Any, client: AgentClient) -> None:
    agent.fake.kubeconfig_text = None
    with pytest.raises(P2PError, match="is an agent and has no kubeconfig") as caught:
        client.kubeconfig()
    assert (caught.value.hint, caught.value.exit_code) == ("ask a server: edge-1", 1)
    agent.fake.goals.clear()
    with pytest.raises(TimedOut, match="ready was not reached"):
        client.wait("ready", 0.05)
    with pytest.raises(UsageError, match="cannot wait for 'coffee'"):
        client.wait("coffee", 1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is not a number from 0 to 86400"):
        client.wait("ready", 99_999_999)


def test_a_bug_in_one_answer_neither_ends_the_agent_nor_tells_secrets(
    agent: Any, client: AgentClient
) -> None:
    agent.fake.broken = True
    with pytest.raises(P2PError, match="failed to answer /v1/status: ZeroDivisionError") as caught:
        client.status()
    assert "kp2p1_" not in str(caught.value)
    assert client.roles()


def test_events_are_listed_and_followed(agent: Any, client: AgentClient, until: Until) -> None:
    agent.fake.log.append(1_700_000_000.5, "mesh.joined", {"reason": "a peer answered", "count": 1})
    agent.fake.log.append(1_700_000_001.0, "vpn.up", {"ipv4": "10.144.3.9"})
    first, second = client.events(0, follow=False)
    assert first == {
        "seq": 1,
        "time": "2023-11-14T22:13:20.500Z",
        "name": "mesh.joined",
        "reason": "a peer answered",
        "fields": {"count": 1},
    }
    assert [event["seq"] for event in client.events(1, follow=False)] == [2]

    seen: list[str] = []
    ended = threading.Event()

    def follow() -> None:
        try:
            for event in client.events(1, follow=True):
                seen.append(event["name"])
        except DaemonNotRunning:
            ended.set()

    follower = threading.Thread(target=follow)
    follower.start()
    until(lambda: seen == [second["name"]], what="the kept event arrives")
    agent.fake.log.append(1_700_000_002.0, "role.taken", {})  # from this thread, not trio's
    until(lambda: seen[-1] == "role.taken", what="the new event arrives")
    agent.end()
    follower.join(10)
    assert ended.is_set(), "the follower learns that the agent ended"


def test_leave_is_answered_before_the_agent_stops(agent: Any, client: AgentClient, until: Until) -> None:
    client.leave()
    until(lambda: agent.fake.calls == ["leave", "stop"], what="stop follows leave")


def test_a_caller_that_goes_away_ends_its_wait(agent: Any, until: Until) -> None:
    agent.fake.goals.clear()
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(agent.socket))
    sock.sendall(b"GET /v1/wait?for=ready&timeout_s=3600 HTTP/1.1\r\nHost: x\r\n\r\n")
    until(lambda: agent.fake.waiting == 1, what="the wait begins")
    sock.close()
    until(lambda: agent.fake.waiting == 0, what="the wait ends")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /v1/nonsense HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"DELETE /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
        (b"GET /v1/leave HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
        (b"POST /v1/leave HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n", 413),
        (b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
        (b"GET /v1/status HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431),
        (b"\x16\x03\x01\x00\xa5 this is TLS\r\n\r\n", 400),
    ],
    ids=["unknown", "method", "get-leave", "body", "chunked", "headers", "garbage"],
)
def test_what_is_no_request_of_ours_is_refused(agent: Any, request_bytes: bytes, status: int) -> None:
    answer = raw(agent.socket, request_bytes)
    assert answer.startswith(b"HTTP/1.1 %d" % status), answer[:200]
    if status in (404, 405, 413):
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert body["error"]
        assert body["exit_code"] == 1
    assert agent.fake.calls == []
    assert AgentClient(agent.socket).status()


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c"])
def test_no_other_protocol_gets_past_the_guard(agent: Any, upgrade: bytes) -> None:
    answer = raw(
        agent.socket,
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: " + upgrade + b"\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    )
    assert b" 101 " not in answer.partition(b"\r\n")[0]
    assert AgentClient(agent.socket).status()


def test_a_client_that_stops_reading_does_not_keep_the_agent_from_ending(
    agent: Any, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    monkeypatch.setattr(http, "SEND_TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(str(agent.socket))
        sock.sendall(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: sock.recv(1, socket.MSG_PEEK), what="the stream begins")
        for _ in range(2000):
            agent.fake.log.append(0, "a.flood", {"detail": "x" * 400})
        agent.end()


def test_connections_are_bounded_and_come_back(
    agent: Any, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    client = AgentClient(agent.socket)
    held = []
    for _ in range(3):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(agent.socket))
        sock.sendall(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(1), "the stream begins"
        held.append(sock)
    with pytest.raises(P2PError, match="too many requests to the agent are open"):
        client.status()
    for sock in held:
        sock.close()

    def answers() -> bool:
        try:
            return bool(client.status())
        except P2PError:
            return False

    until(answers, what="there is room again")


# Sockets


def test_the_socket_is_for_root_and_the_group_only(agent: Any) -> None:
    mode = agent.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660


def test_the_folder_is_made_and_the_socket_removed(open_folder: Path) -> None:
    path = open_folder / "run" / "agent.sock"
    with server.listening_socket(path):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert not path.exists()


def test_a_second_agent_is_refused(agent: Any) -> None:
    with (
        pytest.raises(P2PError, match="another agent is running on") as caught,
        server.listening_socket(agent.socket),
    ):
        pass
    assert f"kairos-p2p status --socket {agent.socket}" in caught.value.hint
    assert AgentClient(agent.socket).status(), "the first one goes on"


def test_anyone_who_answers_is_not_replaced_even_without_our_lock(open_folder: Path) -> None:
    path = open_folder / "agent.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(P2PError, match="another agent is running on"), server.listening_socket(path):
            pass


def test_a_socket_left_by_a_dead_agent_is_replaced(open_folder: Path) -> None:
    path = open_folder / "agent.sock"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from p2p_bootstrap.api.server import listening_socket\n"
        "with listening_socket(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert path.exists()
    with pytest.raises(DaemonNotRunning, match="was left by an agent that is gone"):
        AgentClient(path).status()
    with server.listening_socket(path), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))


def test_what_is_no_socket_is_left_alone(open_folder: Path) -> None:
    path = open_folder / "agent.sock"
    path.write_text("precious")
    with pytest.raises(P2PError, match="it is no socket"), server.listening_socket(path):
        pass
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_is_named(open_folder: Path) -> None:
    path = open_folder / ("x" * 120)
    with pytest.raises(P2PError, match="longer than the 107 bytes"), server.listening_socket(path):
        pass
    with pytest.raises(P2PError, match="no agent's socket"):
        AgentClient(path).status()


def test_the_socket_file_of_a_successor_is_not_removed(open_folder: Path) -> None:
    path = open_folder / "agent.sock"
    with server.listening_socket(path):
        path.unlink()
        path.write_text("the successor's")
    assert path.exists()


# Who may ask

AS_USER = """
import os, sys
from p2p_bootstrap.cli.client import AgentClient
from p2p_network.core.errors import P2PError
uid, gid, groups, path, method = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5]
import encodings.idna, stringprep
os.setgroups([int(g) for g in groups.split(",") if g]); os.setgid(gid); os.setuid(uid)
try:
    getattr(AgentClient(path), method)()
except P2PError as exc:
    print(type(exc).__name__, exc.message)
else:
    print("ok")
"""


def as_user(path: Path, method: str, *, uid: int = 54321, gid: int = 54321, groups: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", AS_USER, str(uid), str(gid), groups, str(path), method],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_root
def test_a_stranger_cannot_even_connect(agent: Any) -> None:
    assert as_user(agent.socket, "status").startswith("NotPermitted user 54321 may not talk to the agent on")


@needs_root
def test_a_stranger_who_could_connect_is_refused_by_the_kernels_word(agent: Any) -> None:
    agent.socket.chmod(0o666)
    for method in ("status", "kubeconfig", "leave", "version"):
        assert as_user(agent.socket, method) == "NotPermitted user 54321 may not talk to the agent"
    assert as_user(agent.socket, "status", gid=0).startswith("NotPermitted"), "root's group is not root"
    assert agent.fake.calls == []


@needs_root
def test_members_of_the_group_may_read_but_not_the_kubeconfig(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(server, "_reader_group", lambda: 54999)
    agent = request.getfixturevalue("agent")
    assert agent.socket.stat().st_gid == 54999
    for groups, gid in (
        ("54999", 54321),
        ("", 54999),
        (",".join(map(str, [*range(60000, 60100), 54999])), 54321),
    ):
        for method in ("status", "peers", "roles", "version"):
            assert as_user(agent.socket, method, gid=gid, groups=groups) == "ok"
    for method in ("kubeconfig", "leave", "stop"):
        assert as_user(agent.socket, method, groups="54999").startswith(
            "NotPermitted user 54321 may only read"
        )
    assert agent.fake.calls == []


@needs_root
def test_members_of_the_group_cannot_lock_root_out(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(server, "_reader_group", lambda: 54999)
    monkeypatch.setattr(server, "MAX_READER_CONNECTIONS", 0)
    agent = request.getfixturevalue("agent")
    assert "too many requests to the agent are open" in as_user(agent.socket, "status", groups="54999")
    assert AgentClient(agent.socket).status()


def test_the_client_says_when_nobody_or_nothing_of_ours_is_there(open_folder: Path) -> None:
    with pytest.raises(DaemonNotRunning, match="does not exist") as caught:
        AgentClient(open_folder / "absent.sock").status()
    assert caught.value.hint
    (open_folder / "file").write_text("")
    with pytest.raises(P2PError):
        AgentClient(open_folder / "file").status()


def answer_once(path: Path, answer: bytes) -> threading.Thread:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(4096)
        connection.sendall(answer)
        connection.close()
        listener.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", DaemonNotRunning),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{", DaemonNotRunning),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{", DaemonNotRunning),
        (b"SSH-2.0-OpenSSH_9\r\n", DaemonNotRunning),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n[]", P2PError),
    ],
    ids=["closed", "cut", "cut-json", "other-protocol", "other-service"],
)
def test_the_client_copes_with_any_answer(open_folder: Path, answer: bytes, kind: type[P2PError]) -> None:
    path = open_folder / "x.sock"
    thread = answer_once(path, answer)
    with pytest.raises(kind):
        AgentClient(path).status()
    thread.join(10)


def test_the_client_does_not_wait_for_ever(open_folder: Path) -> None:
    path = open_folder / "x.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(TimedOut, match="does not answer"):
            AgentClient(path, timeout_s=0.1).status()


def test_a_client_that_goes_before_its_answer_is_no_error(
    agent: Any, client: AgentClient, caplog: pytest.LogCaptureFixture
) -> None:
    """As a program does that ran out of patience with a busy agent."""
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(agent.socket))
            sock.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.status() == agent.fake.document
    assert "connection_failed" not in caplog.text
