"""Does a live cluster become what is declared, heal, and take back who returns? With real processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from clusters import cluster_ids, statuses, wait_ready

from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.topology import Topology, make_topology

LabFactory = Callable[..., Lab]

FAST = {
    "etcd-arg": ["heartbeat-interval=100", "election-timeout=1000"],
}
GRACE = ["--kube-controller-manager-arg=node-monitor-grace-period=4s"]
KUBELET = ["--kubelet-arg=node-status-update-frequency=1s"]


def site(nodes: int, servers: int, **p2p: Any) -> Topology:
    """Nodes in one place, with a Kubernetes that notices a dead node within seconds."""
    config = {
        "p2p": p2p,
        "k3s": {"args": [*GRACE, *KUBELET]},
        "k3s-agent": {"args": KUBELET},
    }
    return make_topology({"here": tuple(f"n{i + 1}" for i in range(nodes))}, servers=servers, config=config)


def members(lab: Lab, at: str) -> set[str]:
    """Host names of etcd's voters, as the server `at` knows them; empty while it does not answer."""
    done = lab.node(at).exec(["curl", "-sk", "-m", "3", "https://127.0.0.1:6443/db/info"], 10)
    try:
        found = json.loads(done.stdout)["members"]
    except (ValueError, KeyError):
        return set()
    return {m["name"].rpartition("-")[0] for m in found if m.get("name") and not m.get("isLearner")}


def kube_nodes(lab: Lab, at: str) -> dict[str, str]:
    """Name and Ready of every Kubernetes Node."""
    done = lab.node(at).exec(["sh", "-c", '"$K3S_BIN" kubectl get nodes -o json'], 20)
    try:
        items = json.loads(done.stdout)["items"]
    except (ValueError, KeyError):
        return {}
    return {
        i["metadata"]["name"]: next(c["status"] for c in i["status"]["conditions"] if c["type"] == "Ready")
        for i in items
    }


def roles(lab: Lab) -> dict[str, str]:
    """What every node that is ready does."""
    return {n: s["role"]["role"] for n, s in statuses(lab).items() if s["role"]["ready"]}


def servers(lab: Lab) -> set[str]:
    return {name for name, role in roles(lab).items() if role == "server"}


def test_live(lab: LabFactory) -> None:
    mine = lab(site(4, 3, dynamic_roles=True, replace_after="6s"), agents=True)
    wait_ready(mine)
    first = servers(mine)
    assert len(first) == 3
    victim = sorted(first)[0]
    at = sorted(first)[1]
    began = time.monotonic()
    mine.kill(victim, "node")

    def replaced() -> bool:
        found = members(mine, at)
        return len(found) == 3 and victim not in found

    mine.wait(replaced, 120, "the dead server to be replaced")
    print("replaced after", time.monotonic() - began)
    mine.boot(victim)
    mine.wait(lambda: roles(mine).get(victim) == "agent", 90, "back as an agent")
    print(kube_nodes(mine, at))
    assert len(cluster_ids(wait_ready(mine))) == 1
