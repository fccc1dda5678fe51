"""How long from power-on until all servers are READY, beside the same cluster started by hand?

    python tests/bench/bench_startup.py [--servers 1 3 5] [--repetitions 1]

Both run in labs of the same shape with the same k3s (`K3S_BIN`: a real one, as a control plane without
kubelets; else the stand-in) in one run, in turn, so that a busy machine is unfair to both alike. By hand
means: as fast as a script that knows everything beforehand can be. The first server starts with
`cluster-init` and, in the moment it is READY, all others with `server:`, at once; no VPN, no election. READY
is the same for both: the server's own `/readyz` with the admin's certificate, seen on that node by a process
that was there before the clock began. The same cluster means the same datastore too: etcd, also for one
server, since it may grow (how long it waits until it elects itself is chance: up to 5 s); and for one server
SQLite as well (`auto.ha.enable: false`). Prints a table; asserts nothing. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from p2p_simulations.lab import outfit
from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import Node
from p2p_simulations.lab.topology import Topology, make_topology

PATIENCE_S = 420.0
CONTROL_PLANE = (
    "--disable-agent",
    "--flannel-backend=none",
    "--egress-selector-mode=disabled",
    "--disable=traefik,servicelb,metrics-server,local-storage,coredns",
    "--disable-helm-controller",
    "--disable-network-policy",
    "--disable-cloud-controller",
)
READY = """
import pathlib, sys, time
from p2p_roles.k3s import probe
print("here", flush=True)
while True:
    try:
        probe.server_ready(pathlib.Path("/etc/rancher/k3s/k3s.yaml"))
        break
    except probe.NotReady:
        time.sleep(0.1)
print("ready", flush=True)
"""


class Watchers:
    """A process on every node that asks its API whether it is READY."""

    def __init__(self, nodes: list[Node]) -> None:
        argv = [sys.executable, "-c", READY]
        self._running = {
            node.name: subprocess.Popen(node.enter_argv(argv), stdout=subprocess.PIPE, text=True)
            for node in nodes
        }
        for name in self._running:
            self._hear(name, "here")

    def wait(self, names: Iterable[str]) -> None:
        """Until the APIs of these nodes have said that they are READY."""
        for name in names:
            self._hear(name, "ready")

    def end(self) -> None:
        """No process is left."""
        for process in self._running.values():
            process.kill()
            process.communicate()

    def _hear(self, name: str, word: str) -> None:
        out = self._running[name].stdout
        assert out is not None
        if not select.select([out], [], [], PATIENCE_S)[0] or out.readline().strip() != word:
            sys.exit(f"{name} did not say that it is {word} in {PATIENCE_S:.0f} s")


class ByHand:
    """The k3s processes of a cluster that is started by hand. `took_s`: until all were READY."""

    def __init__(self, lab: Lab, args: tuple[str, ...], *, sqlite: bool = False) -> None:
        self._lab, self._args = lab, args
        self._binary = outfit.k3s_binary(lab.folder)
        self._words: dict[str, tuple[str, ...]] = {}
        self._running: list[subprocess.Popen[bytes]] = []
        first, *others = lab.nodes.values()
        watchers = Watchers(list(lab.nodes.values()))
        try:
            began = time.monotonic()
            self._start(first, "--token", "by-hand", *([] if sqlite else ["--cluster-init"]))
            watchers.wait([first.name])
            token = first.exec(["cat", "/var/lib/rancher/k3s/server/token"]).stdout.strip()
            for node in others:
                self._start(node, "--token", token, "--server", f"https://{first.place.ipv4}:6443")
            watchers.wait(node.name for node in others)
            self.took_s = time.monotonic() - began
        finally:
            watchers.end()

    def kill(self) -> None:
        """SIGKILL for all of them."""
        for node in self._lab.nodes.values():
            node.kill("k3s")
        self._reap()

    def start_again(self) -> None:
        """All at once, each as it was started."""
        for name, words in self._words.items():
            self._start(self._lab.node(name), *words)

    def end(self) -> None:
        """No process is left."""
        self._lab.down()
        self._reap()

    def _reap(self) -> None:
        for process in self._running:
            process.wait()
        self._running.clear()

    def _start(self, node: Node, *words: str) -> None:
        self._words[node.name] = words
        named = ("--node-ip", node.place.ipv4, "--node-name", node.name)
        argv = node.enter_argv([self._binary, "server", *named, *self._args, *words])
        with (node.folder / "k3s.log").open("ab") as log:
            self._running.append(subprocess.Popen(argv, stdout=log, stderr=log))


def by_hand(lab: Lab, args: tuple[str, ...], sqlite: bool) -> float:
    """Seconds."""
    with hand_started(lab, args, sqlite=sqlite) as cluster:
        return cluster.took_s


@contextlib.contextmanager
def hand_started(lab: Lab, args: tuple[str, ...], *, sqlite: bool = False) -> Iterator[ByHand]:
    """A cluster started by hand; the lab is down afterwards."""
    cluster = ByHand(lab, args, sqlite=sqlite)
    try:
        yield cluster
    finally:
        cluster.end()


def by_agents(lab: Lab, args: tuple[str, ...], sqlite: bool) -> float:
    """Seconds. (The arguments and the datastore are in the lab's cloud-config.)"""
    watchers = Watchers(list(lab.nodes.values()))
    try:
        began = time.monotonic()
        for name in lab.topology.names:
            lab.start_agent(name)
        watchers.wait(lab.topology.names)
        return time.monotonic() - began
    finally:
        watchers.end()


def measure(
    how: Callable[[Lab, tuple[str, ...], bool], float],
    topology: Topology,
    args: tuple[str, ...],
    sqlite: bool,
) -> float:
    """One run in a lab of its own."""
    with Lab.create(topology, f"bench-{os.getpid()}", bound=True) as lab:
        lab.up(agents=False)
        return how(lab, args, sqlite)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--repetitions", type=int, default=1)
    options = parser.parse_args()
    own = os.environ.get("K3S_BIN", "")
    said = (
        subprocess.run([own, "--version"], capture_output=True, text=True, check=False).stdout if own else ""
    )
    real = bool(said) and "simulated" not in said
    args = CONTROL_PLANE if real else ()
    print(f"k3s: {said.splitlines()[0] if real else 'the stand-in'}; {os.cpu_count()} cores; ", end="")
    print(f"load before {os.getloadavg()[0]:.1f}; {options.repetitions} repetition(s)\n")
    print(f"{'servers':>9}  {'by hand':>16}  {'kairos-p2p':>16}  {'over by hand':>18}")
    rows = [(servers, False) for servers in options.servers]
    if 1 in options.servers:
        rows.insert(0, (1, True))
    for servers, sqlite in rows:
        config = {"k3s": {"args": list(args)}} if args else {}
        if sqlite:
            config |= {"p2p": {"auto": {"ha": {"enable": False}}}}
        names = [f"n{number}" for number in range(1, servers + 1)]
        topology = make_topology({"here": names}, servers=servers, config=config)
        figures: dict[str, list[float]] = {"hand": [], "agents": []}
        for _ in range(options.repetitions):
            figures["hand"].append(measure(by_hand, topology, args, sqlite))
            figures["agents"].append(measure(by_agents, topology, args, sqlite))
        cells = [f"{statistics.median(f):.1f} ({min(f):.1f}-{max(f):.1f}) s" for f in figures.values()]
        hand, agents = (statistics.median(f) for f in figures.values())
        over = f"{agents - hand:+.1f} s, {(agents / hand - 1) * 100:+.0f} %"
        label = f"{servers}, SQLite" if sqlite else servers
        print(f"{label:>9}  {cells[0]:>16}  {cells[1]:>16}  {over:>18}", flush=True)


if __name__ == "__main__":
    main()
