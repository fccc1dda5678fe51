"""How long until a dead server is noticed, done without and replaced; and a site back after a power cut?

    python tests/bench/bench_repair.py [--servers 3] [--silence 10s] [--repetitions 1]

A dead server: of five nodes the server that holds the authority loses its power (the worst one to lose). Told
are the seconds from then on until another server's agent shows it as gone, until its API takes a write again,
and until etcd has as many voters as before without it, the promoted agent's k3s READY. `p2p.replace_after` is
part of the last figure. Only with the stand-in: a real k3s without kubelets has no Nodes to replace.

A power cut: all servers lose their power at once and get it back at once, disks kept; until all are READY.
Beside it the same cluster started by hand, whose k3s processes are killed and started again, with the same
k3s (`K3S_BIN`: a real one, else the stand-in). Prints two tables; asserts nothing. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from bench_startup import CONTROL_PLANE, Watchers, hand_started

from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import kairos_p2p
from p2p_simulations.lab.topology import Topology, make_topology

PATIENCE_S = 300.0
NAMES = ("n1", "n2", "n3", "n4", "n5")
GRACE = "--kube-controller-manager-arg=node-monitor-grace-period=4s"
WRITE = """
import sys
from pathlib import Path
from p2p_roles.k3s import kube
item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": sys.argv[1]}, "data": {"a": "b"}}
kube.Kube(Path("/etc/rancher/k3s/k3s.yaml")).create(kube.CONFIG_MAPS, item)
"""


def ready(lab: Lab, names: tuple[str, ...]) -> dict[str, str]:
    """The roles of those of these nodes that are ready members."""
    seen = {name: lab.node(name).observe() for name in names}
    return {name: s["role"]["role"] for name, s in seen.items() if s is not None and s["role"]["ready"]}


def voters(lab: Lab, at: str) -> set[str]:
    """Host names of etcd's voters, as the stand-in at `at` knows them."""
    done = lab.node(at).exec(["curl", "-sk", "-m", "5", "https://127.0.0.1:6443/db/info"], 10)
    try:
        found = json.loads(done.stdout)["members"]
    except (ValueError, KeyError):
        return set()
    return {m["name"].rpartition("-")[0] for m in found if m.get("name") and not m.get("isLearner")}


def dead_server(silence: str) -> tuple[float, float, float]:
    """Seconds until it is noticed, served without, replaced."""
    config = {"p2p": {"dynamic_roles": True, "replace_after": silence}, "k3s": {"args": [GRACE]}}
    topology = make_topology({"here": NAMES}, servers=3, config=config)
    with Lab.create(topology, f"bench-{os.getpid()}", bound=True) as lab:
        lab.up()
        lab.wait(lambda: len(ready(lab, NAMES)) == len(NAMES), PATIENCE_S, "five nodes to be ready")
        servers = sorted(name for name, role in ready(lab, NAMES).items() if role == "server")

        def holder() -> str:
            done = lab.node(servers[0]).exec([*kairos_p2p(), "plan", "-o", "json"], 30)
            return str(json.loads(done.stdout or "{}").get("holder") or "")

        victim = lab.wait(holder, PATIENCE_S, "an authority")
        at = next(name for name in servers if name != victim)
        rest = tuple(name for name in NAMES if name != victim)
        lab.partition([[victim], rest])  # silently, as a power cut is: nobody says goodbye
        began = time.monotonic()
        lab.kill(victim, "node")

        def is_missed() -> bool:
            status = lab.node(at).observe()
            return status is not None and status["mesh"]["peers"] < len(rest)

        def is_served() -> bool:
            return lab.node(at).exec([sys.executable, "-c", WRITE, "written"], 30).returncode == 0

        def is_replaced() -> bool:
            is_full = len(voters(lab, at)) == len(servers) and victim not in voters(lab, at)
            return is_full and sum(role == "server" for role in ready(lab, rest).values()) == len(servers)

        lab.wait(is_missed, PATIENCE_S, f"{at} to miss {victim}")
        missed = time.monotonic() - began
        lab.wait(is_served, PATIENCE_S, f"{at} to take a write")
        served = time.monotonic() - began
        lab.wait(is_replaced, PATIENCE_S, f"{victim} to be replaced")
        return missed, served, time.monotonic() - began


def cut_by_hand(topology: Topology, args: tuple[str, ...]) -> float:
    """Seconds from the start of all k3s processes, after a kill -9 of all, until all are READY."""
    with Lab.create(topology, f"bench-{os.getpid()}", bound=True) as lab:
        lab.up(agents=False)
        with hand_started(lab, args) as by_hand:
            by_hand.kill()
            watchers = Watchers(list(lab.nodes.values()))
            try:
                began = time.monotonic()
                by_hand.start_again()
                watchers.wait(topology.names)
                return time.monotonic() - began
            finally:
                watchers.end()


def cut_with_agents(topology: Topology) -> float:
    """Seconds from when all nodes have power again until all are READY."""
    with Lab.create(topology, f"bench-{os.getpid()}", bound=True) as lab:
        lab.up()
        names = tuple(topology.names)
        lab.wait(lambda: len(ready(lab, names)) == len(names), PATIENCE_S, "all to be ready")
        for name in names:
            lab.kill(name, "node")
        began = time.monotonic()
        for name in names:
            lab.boot(name)
        watchers = Watchers(list(lab.nodes.values()))
        try:
            watchers.wait(names)
            return time.monotonic() - began
        finally:
            watchers.end()


def told(figures: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(figures):.1f} ({min(figures):.1f}-{max(figures):.1f}) s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", type=int, nargs="+", default=[3])
    parser.add_argument("--silence", default="10s")
    parser.add_argument("--repetitions", type=int, default=1)
    options = parser.parse_args()
    own = os.environ.get("K3S_BIN", "")
    said = (
        subprocess.run([own, "--version"], capture_output=True, text=True, check=False).stdout if own else ""
    )
    real = bool(said) and "simulated" not in said
    print(f"k3s: {said.splitlines()[0] if real else 'the stand-in'}; {os.cpu_count()} cores; ", end="")
    print(f"load before {os.getloadavg()[0]:.1f}; {options.repetitions} repetition(s)\n")
    if not real:
        found = [dead_server(options.silence) for _ in range(options.repetitions)]
        print(f"the server that decides dies, one of three (p2p.replace_after: {options.silence})")
        for label, column in zip(
            ("shown as gone", "API takes a write", "replaced"), zip(*found, strict=True), strict=True
        ):
            print(f"{label:>18}  {told(list(column)):>20}", flush=True)
        print()
    args = CONTROL_PLANE if real else ()
    print(f"{'power cut, servers':>18}  {'by hand':>20}  {'kairos-p2p':>20}")
    for servers in options.servers:
        names = [f"n{number}" for number in range(1, servers + 1)]
        config = {"k3s": {"args": list(args)}} if args else {}
        topology = make_topology({"here": names}, servers=servers, config=config)
        rows: dict[str, Callable[[], float]] = {
            "hand": lambda t=topology: cut_by_hand(t, args),
            "agents": lambda t=topology: cut_with_agents(t),
        }
        cells = [told([how() for _ in range(options.repetitions)]) for how in rows.values()]
        print(f"{servers:>18}  {cells[0]:>20}  {cells[1]:>20}", flush=True)


if __name__ == "__main__":
    main()
