"""Does a real UPnP daemon do what this node asks, and do connections from outside then arrive?

miniupnpd, as routers of many makers run it, in a namespace of its own between a WAN and a LAN; the node's
code runs in the LAN. Its nft tables are those of its package's `nft_init.sh`. No packet leaves them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
import trio
from two_planes import CLONE_NEWNET, run

from p2p_bootstrap.node.port_mapping import PortMapping
from p2p_network import igd, nat
from p2p_network.host.addresses import Endpoint

DAEMON: Final = shutil.which("miniupnpd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
WAN, OUTSIDER, LAN, NODE = "45.67.89.1", "45.67.89.2", "192.168.77.1", "192.168.77.2"
"""The WAN looks public: miniupnpd serves no router whose address outside is private or of a documentation."""
MESH_PORT, DATA_PORT, HTTP_PORT = 4701, 4702, 5000
DEADLINE_S: Final = 60.0
RULES: Final = """
table inet filter {
  chain miniupnpd { }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
  chain forward {
    type filter hook forward priority 0; policy drop;
    jump miniupnpd
    ct state established,related accept
    iifname "lan" oifname "wan" accept
  }
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    jump prerouting_miniupnpd
  }
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
    jump postrouting_miniupnpd
    oifname "wan" masquerade
  }
}
"""


@pytest.fixture(params=["yes", "no"], ids=["igd1", "igd2"])
def home(can_hold_labs: None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Home]:
    """A router that runs miniupnpd, a node in its LAN, and a machine outside."""
    if DAEMON is None:
        pytest.skip("miniupnpd is missing: apt-get install miniupnpd-nftables")
    with contextlib.ExitStack() as stack:
        home = Home(tmp_path, DAEMON, request.param, stack)
        yield home
        print(home.log.read_text())


class Home:
    """The three namespaces and the daemon; `stack` ends them. `is_old`: "yes" for version 1 of UPnP IGD."""

    def __init__(self, folder: Path, daemon: str, is_old: str, stack: contextlib.ExitStack) -> None:
        self.router, self.lan, self.wan = (f"kpu{os.getpid()}-{name}" for name in ("router", "lan", "wan"))
        self._leases = folder / "leases"
        for name in (self.router, self.lan, self.wan):
            stack.callback(run, "ip", "netns", "del", name, check=False)
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        for near, end, address, peer in (("lan", self.lan, LAN, NODE), ("wan", self.wan, WAN, OUTSIDER)):
            cable = ("type", "veth", "peer", "name", "eth0", "netns", end)
            run("ip", "-n", self.router, "link", "add", near, *cable)
            for netns, device, own in ((self.router, near, address), (end, "eth0", peer)):
                run("ip", "-n", netns, "addr", "add", f"{own}/24", "dev", device)
                run("ip", "-n", netns, "link", "set", device, "up")
        run("ip", "-n", self.lan, "route", "add", "default", "via", LAN)
        self._in_router("sysctl", "-qw", "net.ipv4.ip_forward=1")
        rules, config = folder / "rules", folder / "miniupnpd.conf"
        rules.write_text(RULES)
        self._in_router("nft", "-f", str(rules))
        config.write_text(
            f"ext_ifname=wan\nlistening_ip=lan\nhttp_port={HTTP_PORT}\nipv6_disable=yes\nsecure_mode=yes\n"
            f"uuid=6b4a2b52-7f0e-4a5c-9d3a-0c9f1d3e5a77\nlease_file={self._leases}\n"
            f"force_igd_desc_v1={is_old}\n"
            "upnp_table_name=filter\nupnp_nat_table_name=filter\nupnp_forward_chain=miniupnpd\n"
            "upnp_nat_chain=prerouting_miniupnpd\nupnp_nat_postrouting_chain=postrouting_miniupnpd\n"
            f"allow 1024-65535 {LAN}/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n"
        )
        self.log = folder / "miniupnpd.log"
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.router, "setpriv", "--pdeathsig", "KILL"),
                    *(daemon, "-d", "-f", str(config), "-P", str(folder / "pid")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        stack.callback(process.wait, 30)
        stack.callback(process.kill)
        self._until_it_answers(process)

    def _in_router(self, *argv: str) -> str:
        return run("ip", "netns", "exec", self.router, *argv)

    def _until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        """Then its main loop runs, so it hears searches as well."""
        end = time.monotonic() + DEADLINE_S
        while True:
            with contextlib.suppress(OSError), inside(self.lan), socket.socket() as sock:
                sock.settimeout(DEADLINE_S)
                sock.connect((LAN, HTTP_PORT))
                sock.sendall(b"GET /rootDesc.xml HTTP/1.0\r\n\r\n")
                if sock.recv(1):
                    return
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def leased(self) -> dict[tuple[str, int], tuple[str, int, float]]:
        """(protocol, port outside) -> (machine, its port, seconds that are left), as the daemon notes it."""
        found = {}
        for line in self._leases.read_text().splitlines() if self._leases.exists() else ():
            protocol, outer, machine, inner, until, _ = line.split(":", 5)
            found[protocol, int(outer)] = (machine, int(inner), int(until) - time.time())
        return found

    def translations(self) -> int:
        """How many ports the kernel leads inwards."""
        return self._in_router("nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd").count("dnat")


@contextlib.contextmanager
def inside(netns: str) -> Iterator[None]:
    """Sockets that this thread makes meanwhile live there. All addresses are numbers: trio asks no other."""
    with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{netns}") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@dataclass
class Behind:
    """What `PortMapping` needs of `Outside`: members see a router's address, and can't dial it."""

    nat: nat.Nat = field(default_factory=lambda: nat.Nat("cone", f"{WAN}:{DATA_PORT}", WAN, 2, ""))
    reachable: bool | None = False
    dialled_back: trio.Event = field(default_factory=trio.Event)

    def own_endpoints(self) -> tuple[Endpoint, ...]:
        return (Endpoint(NODE, MESH_PORT),)

    def dial_back_soon(self) -> None:
        self.dialled_back.set()


WANTED: Final = (
    (socket.SOCK_STREAM, MESH_PORT),
    (socket.SOCK_STREAM, DATA_PORT),
    (socket.SOCK_DGRAM, DATA_PORT),
)
ALL_MAPPED: Final = "the router leads TCP 4701, TCP 4702, UDP 4702 here"


async def serve(kind: socket.SocketKind, port: int, *, task_status: trio.TaskStatus[None]) -> None:
    """At the node: tell everybody who they are."""
    with trio.socket.socket(type=kind) as sock:
        await sock.bind((NODE, port))
        if kind is socket.SOCK_STREAM:
            sock.listen()
        task_status.started()
        while True:
            if kind is socket.SOCK_STREAM:
                stream, sender = await sock.accept()
                with stream:
                    await stream.send(await stream.recv(100) + f" {sender[0]}".encode())
            else:
                said, sender = await sock.recvfrom(100)
                await sock.sendto(said + f" {sender[0]}".encode(), sender)


async def ask_from_outside(home: Home, kind: socket.SocketKind, port: int) -> bytes:
    """What answers at that port of the router's WAN address. Raises ConnectionRefusedError."""
    with inside(home.wan):
        sock = trio.socket.socket(type=kind)
    with sock:
        await sock.connect((WAN, port))
        await sock.send(b"who am I?")
        return await sock.recv(100)


async def is_closed(home: Home) -> bool:
    for kind, port in WANTED:
        with pytest.raises(ConnectionRefusedError):
            await ask_from_outside(home, kind, port)
    return home.translations() == 0


async def test_miniupnpd_leads_ports_here_and_no_longer_than_asked(
    home: Home, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = Behind()
    mapping = PortMapping(outside, DATA_PORT)  # type: ignore[arg-type]
    with trio.fail_after(DEADLINE_S), inside(home.lan):
        for kind, port in WANTED:
            await nursery.start(serve, kind, port)
        assert await is_closed(home)

        async with trio.open_nursery() as agent:
            agent.start_soon(mapping.run)
            await outside.dialled_back.wait()
            assert mapping.status == ALL_MAPPED
            for kind, port in WANTED:
                assert await ask_from_outside(home, kind, port) == f"who am I? {OUTSIDER}".encode()
            leased = home.leased()
            assert home.translations() == len(WANTED)
            assert set(leased) == {("TCP", 4701), ("TCP", 4702), ("UDP", 4702)}
            for (_, port), (machine, inner, left_s) in leased.items():
                assert (machine, inner) == (NODE, port)
                assert igd.LEASE_S - DEADLINE_S < left_s <= igd.LEASE_S + 1
            agent.cancel_scope.cancel()
        assert home.leased() == {}, "not given back at the end"
        assert await is_closed(home)

        monkeypatch.setattr(igd, "LEASE_S", 2)
        assert await mapping.map_all()
        assert mapping.status == ALL_MAPPED
        while home.translations():  # and of an agent that was killed
            await trio.sleep(0.1)
        assert await is_closed(home)
    nursery.cancel_scope.cancel()
