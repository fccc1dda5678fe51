"""Do nodes behind NAT become one cluster over a relay, and meet directly when they can?"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from clusters import ask, wait_ready

from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import Node, kairos_p2p
from p2p_simulations.lab.topology import make_topology

pytestmark = pytest.mark.timeout(600)
LabFactory = Callable[..., Lab]
PATIENCE_S = 90.0
ECHO = (
    "import socket, sys\ns = socket.create_server((sys.argv[1], 7777))\nprint('up', flush=True)\n"
    "c, _ = s.accept()\nwhile data := c.recv(4096):\n    c.sendall(data)\n"
)
SAY = (
    "import socket, sys\ns = socket.create_connection((sys.argv[1], 7777), timeout=60)\n"
    "for line in sys.stdin:\n    s.sendall(line.encode())\n"
    "    print(s.recv(4096).decode(), end='', flush=True)\n"
)


@contextlib.contextmanager
def going_on(node: Node, script: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    argv = node.enter_argv(["python3", "-c", script, *args])
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_two_behind_nat_meet_through_a_third_and_directly_once_they_can(lab: LabFactory) -> None:
    topology = make_topology(
        {"open": ("n1",), "west": ("n2",), "north": ("n3",)},
        servers=1,
        nat={"west": "full-cone", "north": "symmetric"},
    )
    mine = lab(topology, agents=True)
    seen = wait_ready(mine)

    def row(name: str, other: str) -> dict[str, object]:
        rows = ask(mine, name, "peers")
        return next((r for r in rows if r["hostname"] == other), {"carrier": "", "relay": ""})

    def through_n1() -> bool:
        pairs = (row("n2", "n3"), row("n3", "n2"))
        return all(r["relay"] == "n1" and r["carrier"] == "mesh" for r in pairs)

    mine.wait(through_n1, PATIENCE_S, "n2 and n3 to be joined by n1")
    n2, n3 = mine.node("n2"), mine.node("n3")
    there = seen["n3"]["vpn"]["ipv4"]
    ping = n2.exec(["ping", "-n", "-c", "3", "-i", "0.2", "-s", "1372", "-M", "do", there], 30)
    assert " 0% packet loss" in ping.stdout
    paths = n2.exec([*kairos_p2p(), "peers", "--paths"], 30).stdout
    assert "through the mesh; channel relayed by n1: it can't be dialled" in paths or (
        "through the mesh; channel relayed by n1: the other end" in paths
    )
    # the one that both can dial is reached without a relay, also by its packets
    assert row("n2", "n1")["relay"] == ""
    assert row("n2", "n1")["carrier"] in ("tcp", "udp")

    argv = ["curl", "-sS", "--unix-socket", "/run/kairos-p2p/agent.sock", "http://agent/metrics"]
    numbers = dict(line.rsplit(" ", 1) for line in mine.node("n1").exec(argv).stdout.splitlines())
    assert float(numbers["kairos_p2p_mesh_circuits_carried"]) >= 1
    assert float(numbers["kairos_p2p_mesh_relayed_peers"]) == 0

    with going_on(n3, ECHO, there) as echo:
        assert echo.stdout is not None
        assert echo.stdout.readline() == "up\n"
        with going_on(n2, SAY, there) as say:
            assert say.stdin is not None
            assert say.stdout is not None

            def said(text: str) -> str:
                assert say.stdin is not None
                assert say.stdout is not None
                say.stdin.write(text)
                say.stdin.flush()
                return say.stdout.readline()

            assert said("over the relay\n") == "over the relay\n"
            mine.translate("west", None)

            def directly() -> bool:
                pairs = (row("n2", "n3"), row("n3", "n2"))
                return all(r["relay"] == "" and r["carrier"] in ("tcp", "udp") for r in pairs)

            mine.wait(directly, PATIENCE_S, "n2 and n3 to be joined directly")
            assert said("the same connection\n") == "the same connection\n"
