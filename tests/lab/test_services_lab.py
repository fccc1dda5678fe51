"""Are services reached by name, with and without a VPN, and do files arrive whole, interrupted or not?"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from clusters import ask, statuses

from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import Node, kairos_p2p
from p2p_simulations.lab.topology import make_topology

pytestmark = pytest.mark.timeout(600)

LabFactory = Callable[..., Lab]
PATIENCE_S = 60.0
CONFIG = {"p2p": {"dns": True, "auto": {"enable": False}}}
WITHOUT_VPN = {
    "p2p": {"dns": False, "vpn": {"create": False}, "services": [{"name": "web", "to": "127.0.0.1:8000"}]}
}
ECHO = (
    "import socket\ns = socket.socket(type=socket.SOCK_DGRAM)\ns.bind(('127.0.0.1', 9999))\n"
    "while True:\n    data, who = s.recvfrom(65535)\n    s.sendto(data.upper(), who)\n"
)
SAY = (
    "import socket, sys\ns = socket.socket(type=socket.SOCK_DGRAM)\ns.settimeout(5)\n"
    "s.sendto(b'hello', ('127.0.0.1', int(sys.argv[1])))\nprint(s.recv(100).decode())\n"
)
MIB = 96


def verb(node: Node, *argv: str) -> subprocess.CompletedProcess[str]:
    return node.exec([*kairos_p2p(), *argv], 60)


def told(node: Node, *argv: str) -> str:
    done = verb(node, *argv)
    assert done.returncode == 0, f"{' '.join(argv)} on {node.name}: {done.stderr}"
    return done.stdout.strip()


@contextlib.contextmanager
def going_on(node: Node, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """A program in a node, ended with the block."""
    with subprocess.Popen(
        node.enter_argv(argv),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def connected(node: Node, *argv: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    return going_on(node, *kairos_p2p(), "service", "connect", *argv, "--listen", "127.0.0.1:0")


def door(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, process.communicate(timeout=10)[1]
    return address


def fetched(node: Node, url: str) -> str:
    return node.exec(["curl", "-sS", "--max-time", "10", url]).stdout


def test_services_and_files(lab: LabFactory) -> None:
    mine = lab(
        make_topology({"east": ("n1",), "west": ("n2", "n3")}, config=CONFIG, nodes={"n3": WITHOUT_VPN}),
        agents=True,
    )
    one, two, three = (mine.node(name) for name in ("n1", "n2", "n3"))
    with contextlib.ExitStack() as programs:
        for node, port in ((two, 8001), (three, 8000)):
            node.exec(["sh", "-c", f"mkdir /root/www; echo from {node.name} > /root/www/index.html"])
            programs.enter_context(
                going_on(
                    node,
                    *("python3", "-m", "http.server", str(port), "-b", "127.0.0.1", "-d", "/root/www"),
                )
            )
        programs.enter_context(going_on(two, "python3", "-c", ECHO))
        check(mine, one, two, three)


def check(mine: Lab, one: Node, two: Node, three: Node) -> None:
    def is_up() -> bool:
        seen = statuses(mine, ("n1", "n2"))
        return len(seen) == 2 and all(s["names"]["state"] == "up" for s in seen.values())

    mine.wait(is_up, PATIENCE_S, "the VPN and its names")
    mine.wait(lambda: "web n3" in told(one, "service", "list", "-o", "name"), PATIENCE_S, "the offer")

    # from a node with a VPN to one without; and, by UDP, the other way round
    with connected(one, "web") as process:
        address = door(process)
        mine.wait(lambda: "from n3" in fetched(one, f"http://{address}/"), PATIENCE_S, "n3's page")
    told(two, "service", "expose", "echo", "--udp", "--to", "9999")
    mine.wait(lambda: "echo n2" in told(three, "service", "list", "-o", "name"), PATIENCE_S, "the offer")
    with connected(three, "echo.west", "--udp") as process:
        port = door(process).rpartition(":")[2]
        mine.wait(
            lambda: three.exec(["python3", "-c", SAY, port]).stdout.strip() == "HELLO", PATIENCE_S, "an echo"
        )

    # through the VPN by its name; the program itself listens on 127.0.0.1 only
    told(two, "service", "expose", "site", "--to", "127.0.0.1:8001", "--port", "80")
    origin = mine.wait(lambda: statuses(mine, ("n1",)), PATIENCE_S, "n1 to answer")["n1"]["names"]["origin"]
    for name in (f"site.{origin}", f"site.west.{origin}"):
        mine.wait(lambda name=name: "from n2" in fetched(one, f"http://{name}/"), PATIENCE_S, name)

    # nobody there, no such service, not allowed: said, and nothing else
    assert "did you mean site" in verb(one, "service", "connect", "sitee").stderr
    told(two, "service", "expose", "dead", "--to", "1")
    mine.wait(lambda: "dead n2" in told(one, "service", "list", "-o", "name"), PATIENCE_S, "the offer")
    with connected(one, "dead") as process:
        fetched(one, f"http://{door(process)}/")
        assert process.stderr is not None
        assert "Ctrl-C" in process.stderr.readline()
        assert "refused" in process.stderr.readline()
    told(one, "access", "deny", "node:n1", "node:n3")
    mine.wait(
        lambda: any(not row["allowed"] for row in ask(mine, "n3", "access")["inbound"]),
        PATIENCE_S,
        "the rule",
    )
    with connected(one, "web") as process:
        assert fetched(one, f"http://{door(process)}/") == ""
        assert process.stderr is not None
        assert "Ctrl-C" in process.stderr.readline()
        assert "access rules" in process.stderr.readline()
    told(one, "access", "clear")

    files(mine, one, two, three)


def files(mine: Lab, one: Node, two: Node, three: Node) -> None:
    three.exec(["sh", "-c", f"head -c {MIB}M /dev/urandom > /root/big"])
    digest = three.exec(["sha256sum", "/root/big"]).stdout.split()[0]
    with going_on(three, *kairos_p2p(), "file", "send", "/root/big", "n1", "--name", "image") as sender:
        assert sender.stderr is not None
        assert "offered to n1 as image" in sender.stderr.readline()
        refused = verb(two, "file", "get", "image")
        assert refused.returncode == 1, "it is for n1 only"
        assert "no connected node offers" in refused.stderr
        # broken off: what came stays; the next time it goes on there
        with going_on(one, *kairos_p2p(), "file", "get", "image", "--to", "/root/copy"):
            mine.wait(
                lambda: (
                    one.exec(["sh", "-c", "test $(stat -c %s /root/copy.part) -gt 1000000"]).returncode == 0
                ),
                PATIENCE_S,
                "a part of it",
            )
        assert one.exec(["test", "-e", "/root/copy"]).returncode != 0
        assert told(one, "file", "get", "image", "--to", "/root/copy") == "/root/copy"
        assert one.exec(["sha256sum", "/root/copy"]).stdout.split()[0] == digest
        assert one.exec(["test", "-e", "/root/copy.part"]).returncode != 0
        assert "exists" in verb(one, "file", "get", "image", "--to", "/root/copy").stderr
        assert sender.wait(PATIENCE_S) == 0, "n1 has it: the offer ends by itself"
    with connected(one, "site") as process:
        door(process)
        mine.kill("n1", "agent")
        assert process.wait(PATIENCE_S) == 3, "a door that nobody holds is no success"
