"""What does the mesh cost, and what does it bear? Prints tables; asserts nothing.

    python tests/bench/bench_mesh.py churn [--cycles 10000]   memory, as members come and go
    python tests/bench/bench_mesh.py attack [--seconds 15]    strangers turned away per second
    python tests/bench/bench_mesh.py bytes [--agents 10]      bytes per node, idle and for a change
    python tests/bench/bench_mesh.py times [--long 300]       start to mesh, a kill, healing (root)

`churn` and `attack` run a host with a gate, as an agent has it, in a process of its own on loopback. `bytes`
starts whole agents without VPN and k3s on loopback and reads the kernel's count of every TCP connection.
`times` has ten nodes in a lab, mesh and VPN only.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.node.admission import Admission
from p2p_bootstrap.node.trio_runtime import TrioRuntime
from p2p_network.admission.kept import Kept, authority_of, from_network_token
from p2p_network.core.errors import P2PError, PeerUnreachable
from p2p_network.core.ids import PeerId
from p2p_network.host.mesh import MeshHost
from p2p_network.identity import Identity
from p2p_network.token import NetworkToken, mesh_keys
from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import Node
from p2p_simulations.lab.topology import make_topology

TOKEN = NetworkToken(bytes(range(32)))
KEYS = mesh_keys(TOKEN)
NOW_MS = 1_900_000_000_000
SERVER_SEED = b"\x01" * 32
KIB = 1024


class Forgets:
    """A disk that keeps nothing."""

    def get(self, key: str) -> bytes | None:
        return None

    def set(self, key: str, value: bytes) -> None:
        """Nothing."""


def make_host(seed: bytes, *, member: bool = True, psk: bytes = KEYS.psk) -> MeshHost:
    """A host with an agent's gate: a member's, or one without a certificate."""
    identity, runtime = Identity(seed), TrioRuntime()
    kept = from_network_token(TOKEN, "kairos", None, identity.peer_id, NOW_MS)
    if not member:
        public = authority_of(KEYS).public
        kept = Kept(KEYS.mesh_id, "kairos", KEYS.rendezvous, 1, {1: psk}, {1: public}, b"")
    gate = Admission(runtime=runtime, identity=identity, kept=kept, durable=Forgets(), moved=runtime.signal())
    host = MeshHost(
        identity=identity,
        psk=psk,
        mesh_id=KEYS.mesh_id,
        rendezvous=KEYS.rendezvous,
        listen=["127.0.0.1:0"],
        mdns=False,
        dht=True,
        gate=gate,
    )
    host.serve("echo", echo)
    return host


async def echo(peer: PeerId, payload: bytes) -> bytes:
    """What it was sent."""
    return payload


@asynccontextmanager
async def running(host: MeshHost) -> AsyncIterator[trio.Nursery]:
    """The host runs inside the block."""
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        yield nursery
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object], looks: int = 12_000) -> None:
    """Look every 5 ms, so often: a benchmark may be stopped for a while. Raises trio.TooSlowError."""
    for _ in range(looks):
        if condition():
            return
        await trio.sleep(0.005)
    raise trio.TooSlowError


def rss_kib(pid: int | str = "self", *, own: bool = False) -> int:
    """Resident memory of a process; `own`: without the pages of files, which the kernel may take."""
    _, resident, of_files, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    return (resident - of_files if own else resident) * os.sysconf("SC_PAGESIZE") // KIB


# ---------------------------------------------------------------- a host of its own process


async def serve() -> None:
    """Be the host that is visited: says where, then what it counts whenever it is asked."""
    host = make_host(SERVER_SEED)
    async with running(host) as nursery:
        nursery.start_soon(_forget_events, host)
        print(host.addresses()[0], flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            print(host.rejected, len(host.connected()), _objects(), flush=True)
        nursery.cancel_scope.cancel()


def _objects() -> int:
    """Living objects that are containers, but for trio's past deadlines: up to a thousand, by chance."""
    gc.collect()
    return sum(type(thing) not in (trio.CancelScope, tuple) for thing in gc.get_objects())


async def _forget_events(host: MeshHost) -> None:
    async for _ in host.events:
        pass


@contextmanager
def visited() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that runs `serve`, and its address."""
    server = subprocess.Popen(
        [sys.executable, __file__, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        yield server, server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait()


def counts(server: subprocess.Popen[str]) -> tuple[int, int, int]:
    """How many the server has turned away, how many members are connected, how many objects it holds."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write("\n")
    server.stdin.flush()
    rejected, connected, objects = map(int, server.stdout.readline().split())
    return rejected, connected, objects


# ---------------------------------------------------------------- churn


async def visit(address: str, seed: bytes) -> None:
    """Connect, ask something, go."""
    host = make_host(seed)
    server = Identity(SERVER_SEED).peer_id
    async with running(host):
        host.learn(server, [address], "bench")
        while True:
            await until(lambda: server in host.connected())
            with suppress(PeerUnreachable):  # this benchmark stood still for a while: it connects again
                await host.request(server, "echo", b"hello", timeout_s=3600)
                return


async def churn(cycles: int, told: Callable[[int, int, int, int, int], None], identities: int = 64) -> None:
    """Tells, ten times on the way: cycles so far; of the visited process KiB in all, KiB without the pages of
    files, and objects; KiB of the visitors' process."""
    every = max(1, cycles // 10)
    with visited() as (server, address):
        for number in range(cycles + 1):
            if number % every == 0:
                await until(lambda: counts(server)[1] == 0)
                objects = counts(server)[2]
                told(number, rss_kib(server.pid), rss_kib(server.pid, own=True), objects, rss_kib())
            if number < cycles:
                await visit(address, (1000 + number % identities).to_bytes(32, "big"))


def print_churn(cycles: int) -> None:
    """The table of `churn`."""
    began = time.monotonic()
    print(f"{'cycles':>8} {'visited MiB':>12} {'its own MiB':>12} {'objects':>8} {'visitors MiB':>13}")

    def told(number: int, all_kib: int, own_kib: int, objects: int, visitors_kib: int) -> None:
        sizes = f"{all_kib / KIB:>12.1f} {own_kib / KIB:>12.1f} {objects:>8} {visitors_kib / KIB:>13.1f}"
        print(f"{number:>8} {sizes}", flush=True)

    trio.run(churn, cycles, told)
    print(f"{time.monotonic() - began:.0f} s")


# ---------------------------------------------------------------- attack


async def attack(seconds: float) -> None:
    """Strangers of three kinds, as many as can, while two members talk."""
    logging.disable(logging.WARNING)
    with visited() as (server, address):
        peer = Identity(SERVER_SEED).peer_id
        friend = make_host(b"\x02" * 32)
        async with running(friend):
            friend.learn(peer, [address], "bench")
            await until(lambda: peer in friend.connected())
            for name, attacker in ATTACKERS.items():
                before, began = counts(server)[0], time.monotonic()
                trips: list[float] = []
                with trio.move_on_after(seconds):
                    async with trio.open_nursery() as nursery:
                        for _ in range(8):
                            nursery.start_soon(attacker, address)
                        while True:
                            asked = time.monotonic()
                            await friend.request(peer, "echo", b"still there?", timeout_s=10)
                            trips.append(time.monotonic() - asked)
                            await trio.sleep(0.02)
                took_s = time.monotonic() - began
                turned_away = counts(server)[0] - before
                worst = statistics.quantiles(trips, n=100)[98]
                print(
                    f"{name:<34} {turned_away / took_s:>7.0f} turned away per second; a member's request: "
                    f"{statistics.median(trips) * 1000:.0f} ms, 99 % within {worst * 1000:.0f} ms, "
                    f"{len(trips)} of {len(trips)} answered",
                    flush=True,
                )
                await trio.sleep(1)


async def _garbage(address: str) -> None:
    _, _, ip, _, port = address.split("/")
    while True:
        try:
            stream = await trio.open_tcp_stream(ip, int(port))
            async with stream:
                await stream.send_all(secrets.token_bytes(64))
                await stream.receive_some()
        except (OSError, trio.BrokenResourceError):
            await trio.sleep(0.001)


async def _silent(address: str) -> None:
    _, _, ip, _, port = address.split("/")
    while True:
        try:
            stream = await trio.open_tcp_stream(ip, int(port))
            async with stream:
                with trio.move_on_after(0.2):
                    await stream.receive_some()
        except (OSError, trio.BrokenResourceError):
            await trio.sleep(0.001)


async def _uncertified(address: str) -> None:
    """Knows the pre-shared key, and has no certificate: a whole handshake each time."""
    peer = Identity(SERVER_SEED).peer_id
    while True:
        host = make_host(secrets.token_bytes(32), member=False)
        async with running(host):
            host.learn(peer, [address], "bench")
            with trio.move_on_after(10):
                while not host.refused:
                    await trio.sleep(0.005)


ATTACKERS = {
    "garbage instead of the key": _garbage,
    "connections that say nothing": _silent,
    "the key, but no certificate": _uncertified,
}


# ---------------------------------------------------------------- bytes


def sent_bytes(pids: list[int]) -> dict[int, int]:
    """Bytes sent over the TCP connections that each process has now, as the kernel counts them."""
    text = subprocess.run(["ss", "-tinpOH"], capture_output=True, text=True, check=True).stdout
    found = dict.fromkeys(pids, 0)
    for line in text.splitlines():
        pid, sent = re.search(r"pid=(\d+)", line), re.search(r"bytes_sent:(\d+)", line)
        if pid and sent and int(pid[1]) in found:
            found[int(pid[1])] += int(sent[1])
    return found


def measure_bytes(agents: int, idle_s: float, settle_s: float) -> None:
    """Whole agents, idle and after one change."""
    cli = str(Path(sys.executable).with_name("kairos-p2p"))
    with tempfile.TemporaryDirectory(prefix="kp2p-bench-") as folder:
        token = subprocess.run([cli, "token", "generate"], capture_output=True, text=True, check=True).stdout
        processes = []
        try:
            for number in range(agents):
                place = Path(folder) / f"n{number}"
                place.mkdir()
                config = place / "config.yaml"
                config.write_text(
                    "#cloud-config\n"
                    f"hostname: n{number}\n"
                    f"p2p:\n  network_token: {token.strip()}\n  listen: ['127.0.0.1:{24000 + number}']\n"
                    "  bootstrap: ['127.0.0.1:24000']\n  vpn: {create: false}\n  auto: {enable: false}\n"
                    "  region: bench\n  disable_dht: true\n"
                )
                words = [cli, "agent", "--cloud-config", str(config), "--state-dir", str(place / "state")]
                words += ["--socket", str(place / "api.sock")]
                log = (place / "log").open("w")
                processes.append(subprocess.Popen(words, stdout=log, stderr=log))
            sockets = [str(Path(folder) / f"n{number}" / "api.sock") for number in range(agents)]
            began = time.monotonic()
            _wait_joined(sockets, agents, 60.0 + 20.0 * agents)
            print(f"{agents} agents have each other after {time.monotonic() - began:.0f} s", flush=True)
            time.sleep(settle_s)  # until all that was news has gone round
            pids = [process.pid for process in processes]
            before = sent_bytes(pids)
            time.sleep(idle_s)
            idle = sum(sent_bytes(pids).values()) - sum(before.values())
            before, began = sent_bytes(pids), time.monotonic()
            words = [cli, "service", "expose", "web", "--to", "127.0.0.1:9", "--socket", sockets[0]]
            subprocess.run(words, check=True, capture_output=True)
            time.sleep(8)
            took_s = time.monotonic() - began
            change = sum(sent_bytes(pids).values()) - sum(before.values()) - idle / idle_s * took_s
            print(
                f"{agents} agents: {idle / idle_s / agents:.0f} B per node and second idle, "
                f"{max(0, change) / agents:.0f} B per node for one change; "
                f"{statistics.median(rss_kib(pid) for pid in pids) / KIB:.0f} MiB each"
            )
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()


def _wait_joined(sockets: list[str], agents: int, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    for path in sockets:
        while time.monotonic() < deadline:
            with suppress(P2PError):
                if AgentClient(path, timeout_s=limit_s).status()["mesh"]["peers"] >= min(agents - 1, 30):
                    break
            time.sleep(0.5)


# ---------------------------------------------------------------- times


def _peers(node: Node) -> int:
    seen = node.observe()
    return seen["mesh"]["peers"] if seen is not None else 0


def _until(what: str, condition: Callable[[], bool], limit_s: float = 120.0) -> float:
    """Seconds that it took; printed."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > limit_s:
            print(f"{what}: not within {limit_s:.0f} s", flush=True)
            return limit_s
        time.sleep(0.1)
    print(f"{what}: {time.monotonic() - began:.1f} s", flush=True)
    return time.monotonic() - began


def measure_times(long_s: float) -> None:
    """From the start of an agent to its first peer, and to all; after kills and partitions."""
    names = [f"n{number}" for number in range(1, 11)]
    topology = make_topology(
        {"east": names[:5], "west": names[5:]}, config={"p2p": {"auto": {"enable": False}}}
    )
    with (
        tempfile.TemporaryDirectory(prefix="kp2p-bench-") as root,
        Lab.create(topology, "times", root=Path(root)) as lab,
    ):
        lab.up(agents=False)
        nodes = list(lab.nodes.values())
        for number, node in enumerate(nodes):
            lab.start_agent(node.name)
            if number in (1, 9):
                which = "second" if number == 1 else "tenth"
                _until(f"{which} node, start to its first peer", lambda node=node: _peers(node) >= 1)  # type: ignore[misc]
            if number != 9:
                _until(f"  {node.name} knows {number}", lambda n=node, k=number: _peers(n) >= k)  # type: ignore[misc]
        _until("tenth node, after that all others", lambda: _peers(nodes[-1]) == 9)
        everybody = partial(_all, nodes, 9)
        _until("all know all", everybody)
        for pause_s in (5.0, long_s):
            time.sleep(15)
            lab.partition([names[:4]])
            time.sleep(pause_s)
            lab.heal()
            _until(f"all know all after a partition of {pause_s:.0f} s", everybody)
        time.sleep(5)
        lab.kill("n10", "node")
        _until("a node without power is missed by one", lambda: _peers(nodes[0]) < 9)
        _until("  and by all nine", lambda: all(_peers(node) < 9 for node in nodes[:9]))


def _all(nodes: list[Node], peers: int) -> bool:
    return all(_peers(node) >= peers for node in nodes)


def main() -> None:
    """Read the verb and run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("serve")
    verbs.add_parser("churn").add_argument("--cycles", type=int, default=10_000)
    verbs.add_parser("attack").add_argument("--seconds", type=float, default=15.0)
    wire = verbs.add_parser("bytes")
    wire.add_argument("--agents", type=int, default=10)
    wire.add_argument("--idle", type=float, default=30.0)
    wire.add_argument("--settle", type=float, default=45.0)
    verbs.add_parser("times").add_argument("--long", type=float, default=300.0)
    args = parser.parse_args()
    match args.verb:
        case "serve":
            trio.run(serve)
        case "churn":
            print_churn(args.cycles)
        case "attack":
            trio.run(attack, args.seconds)
        case "bytes":
            measure_bytes(args.agents, args.idle, args.settle)
        case "times":
            measure_times(args.long)


if __name__ == "__main__":
    main()
