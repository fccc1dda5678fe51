"""Do nodes behind NAT (also two symmetric ones) become one cluster over a relay, and meet if they can?"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from clusters import ask, wait_ready

from p2p_bootstrap.api.service import NatDoc
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
        {"open": ("n1", "n4"), "west": ("n2",), "north": ("n3",)},
        servers=1,
        nat={"west": "symmetric", "north": "symmetric"},
    )
    mine = lab(topology, agents=True)
    seen = wait_ready(mine)

    def row(name: str, other: str) -> dict[str, Any]:
        rows = ask(mine, name, "peers")
        return next(
            (r for r in rows if r["hostname"] == other), {"carrier": "", "relay": "", "keepalive_s": -1}
        )

    def joined(relay: str, *carriers: str) -> bool:
        pairs = (row("n2", "n3"), row("n3", "n2"))
        return all(r["relay"] == relay and r["carrier"] in carriers for r in pairs)

    def through_a_third() -> bool:
        pairs = (row("n2", "n3"), row("n3", "n2"))
        return all(r["relay"] in ("n1", "n4") and r["carrier"] == "mesh" for r in pairs)

    mine.wait(through_a_third, PATIENCE_S, "n2 and n3 to be joined by a third")
    n2, n3 = mine.node("n2"), mine.node("n3")
    there = seen["n3"]["vpn"]["ipv4"]
    ping = n2.exec(["ping", "-n", "-c", "3", "-i", "0.2", "-s", "1372", "-M", "do", there], 30)
    assert " 0% packet loss" in ping.stdout
    relay = row("n2", "n3")["relay"]
    paths = n2.exec([*kairos_p2p(), "peers", "--paths"], 30).stdout
    assert f"through the mesh; channel relayed by {relay}: it can't be dialled" in paths or (
        f"through the mesh; channel relayed by {relay}: the other end" in paths
    )
    # the one that both can dial is reached without a relay, also by its packets
    assert row("n2", "n1")["relay"] == ""
    assert row("n2", "n1")["carrier"] in ("tcp", "udp")

    # what each stands behind, as two others see it; and who keeps idle paths open
    def nat_of(name: str) -> NatDoc:
        return ask(mine, name, "status")["nat"]  # type: ignore[no-any-return]

    def all_known() -> bool:
        return [nat_of(f"n{i}")["kind"] for i in range(1, 5)] == ["none", "symmetric", "symmetric", "none"]

    mine.wait(all_known, PATIENCE_S, "each to know what it stands behind")
    assert nat_of("n2")["seen_as"] == "198.19.2.1"
    assert nat_of("n3")["seen_as"] == "198.19.3.1"
    assert "nat" in n2.exec([*kairos_p2p(), "status"], 30).stdout

    def dialled_back() -> bool:
        return [nat_of(f"n{i}")["reachable"] for i in range(1, 5)] == [True, False, False, True]

    mine.wait(dialled_back, PATIENCE_S, "the open ones to be dialled back, and only they")
    mine.wait(
        lambda: (
            [row(*pair)["keepalive_s"] for pair in (("n1", "n4"), ("n4", "n2"), ("n2", "n4"))] == [0, 0, 15]
        ),
        PATIENCE_S,
        "only the one behind NAT to keep idle paths open",
    )

    argv = ["curl", "-sS", "--unix-socket", "/run/kairos-p2p/agent.sock", "http://agent/metrics"]
    numbers = dict(line.rsplit(" ", 1) for line in mine.node(relay).exec(argv).stdout.splitlines())
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

            # behind two symmetric ones no hole can be found: packets stay with the relay, and arrive
            assert said("over the relay\n") == "over the relay\n"
            assert through_a_third()
            assert {row("n2", "n3")["nat"], row("n3", "n2")["nat"]} == {"symmetric"}
            mine.translate("west", "port-restricted")
            mine.wait(lambda: nat_of("n2")["kind"] == "cone", PATIENCE_S, "n2 to notice its new router")
            assert nat_of("n2")["seen_as"] == "198.19.2.1:4702"
            mine.wait(through_a_third, PATIENCE_S, "n2 and n3 to be joined by a third again")
            assert said("a cone and a symmetric one\n") == "a cone and a symmetric one\n"
            # two that let in only what they asked for: their datagrams meet in the middle, nothing else does
            mine.translate("north", "port-restricted")
            mine.wait(lambda: row("n2", "n3")["carrier"] == "udp", PATIENCE_S, "datagrams through two NATs")
            mine.wait(lambda: row("n3", "n2")["carrier"] == "udp", PATIENCE_S, "datagrams through two NATs")
            assert said("through two holes\n") == "through two holes\n"
            assert "through a hole in its NAT at 198.19.3.1:4702" in row("n2", "n3")["carrier_reason"]
            assert row("n2", "n3")["relay"] in ("n1", "n4"), "its channel is no datagrams"

            # one that lets everybody in is found out, and dialled like any other
            mine.translate("west", "full-cone")
            mine.wait(lambda: nat_of("n2")["reachable"] is True, PATIENCE_S, "n2 to be dialled back")
            assert "/ip4/198.19.2.1/tcp/4701" in nat_of("n2")["reached_at"]
            mine.wait(lambda: joined("", "tcp", "udp"), PATIENCE_S, "n2 and n3 to be joined directly")
            assert said("the same connection\n") == "the same connection\n"
