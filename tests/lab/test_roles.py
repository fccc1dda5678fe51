"""Does a live cluster become what is declared, heal, and take back who returns? With real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from clusters import ca_hashes, cluster_ids, statuses, wait_ready

from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import kairos_p2p
from p2p_simulations.lab.topology import Topology, make_topology

LabFactory = Callable[..., Lab]
pytestmark = pytest.mark.timeout(600)

# a Kubernetes that notices a dead node within seconds
GRACE = "--kube-controller-manager-arg=node-monitor-grace-period=4s"
STATUS = "--kubelet-arg=node-status-update-frequency=1s"
PRECIOUS = """
from pathlib import Path
from p2p_roles.k3s import kube
item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "precious"}, "data": {"a": "b"}}
kube.Kube(Path("/etc/rancher/k3s/k3s.yaml")).create(kube.CONFIG_MAPS, item)
"""
PODS = """
import sys
from pathlib import Path
from p2p_roles.k3s import kube
api = kube.Kube(Path("/etc/rancher/k3s/k3s.yaml"))
for name, owner in (("one", "ReplicaSet"), ("everywhere", "DaemonSet")):
    owners = [{"apiVersion": "apps/v1", "kind": owner, "name": name, "uid": "1"}]
    item = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "ownerReferences": owners},
            "spec": {"nodeName": sys.argv[1], "containers": [{"name": "c", "image": "none"}]}}
    api.create("/api/v1/namespaces/default/pods", item)
"""
CHANGED_S = 180.0
"""For one change of membership; seconds on a quiet machine."""


def site(nodes: int, servers: int, **p2p: Any) -> Topology:
    """Nodes in one place."""
    config = {"p2p": p2p, "k3s": {"args": [GRACE, STATUS]}, "k3s-agent": {"args": [STATUS]}}
    return make_topology({"here": tuple(f"n{i + 1}" for i in range(nodes))}, servers=servers, config=config)


def members(lab: Lab, at: str) -> set[str]:
    """Host names of etcd's voters, as the server `at` knows them; empty while it does not answer."""
    done = lab.node(at).exec(["curl", "-sk", "-m", "5", "https://127.0.0.1:6443/db/info"], 10)
    try:
        found = json.loads(done.stdout)["members"]
    except (ValueError, KeyError):
        return set()
    return {m["name"].rpartition("-")[0] for m in found if m.get("name") and not m.get("isLearner")}


def kubectl(lab: Lab, at: str, *words: str) -> subprocess.CompletedProcess[str]:
    """On the server `at`, as the cluster's admin."""
    return lab.node(at).exec(["sh", "-c", '$K3S_BIN kubectl "$@"', "sh", *words], 20)


def nodes_of(lab: Lab, at: str) -> set[str]:
    """Names of all Kubernetes Nodes."""
    return set(kubectl(lab, at, "get", "nodes", "-o", "name").stdout.replace("node/", "").split())


def roles(lab: Lab) -> dict[str, str]:
    """What every node that is ready does."""
    return {n: s["role"]["role"] for n, s in statuses(lab).items() if s["role"]["ready"]}


def servers(lab: Lab) -> list[str]:
    """The servers that are ready."""
    return sorted(name for name, role in roles(lab).items() if role == "server")


def verb(lab: Lab, at: str, *words: str, timeout_s: float = CHANGED_S) -> subprocess.CompletedProcess[str]:
    """One of ours, on a node."""
    return lab.node(at).exec([*kairos_p2p(), *words], timeout_s)


def until(lab: Lab, at: str, voters: set[str], what: str) -> None:
    """Wait until etcd has exactly these voters."""
    lab.wait(lambda: members(lab, at) == voters, CHANGED_S, what)


def test_one_to_three_to_five_to_three_and_two_operators(lab: LabFactory) -> None:
    """The declaration of a live cluster changes; agents become servers, servers agents; nothing is lost."""
    mine = lab(site(5, 1), agents=True)
    wait_ready(mine)
    (first,) = servers(mine)
    agent = next(name for name in mine.topology.names if name != first)
    done = mine.node(first).exec([sys.executable, "-c", PRECIOUS], 30)
    assert done.returncode == 0, done.stderr
    done = verb(mine, first, "plan")
    assert done.returncode == 0, done.stderr
    assert "all is as declared" in done.stdout
    refused = verb(mine, agent, "plan")
    assert refused.returncode == 1
    assert first in refused.stderr, "an agent names the servers"
    ahead = verb(mine, first, "plan", "--servers", "3", "-o", "json")
    assert ahead.returncode == 6, ahead.stderr
    assert [s["action"] for s in json.loads(ahead.stdout)["steps"]] == ["promote", "promote"]

    version = json.loads(ahead.stdout)["version"]
    order = [*kairos_p2p(), "apply", "--yes", "--no-wait", "--version", version, "--servers"]
    orders = [mine.node(first).enter_argv([*order, count]) for count in ("3", "5")]
    both = [subprocess.Popen(o, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for o in orders]
    said = [p.communicate(timeout=60)[1] for p in both]
    assert sorted(p.returncode for p in both) == [0, 1], said
    assert "changed meanwhile" in said[next(i for i, p in enumerate(both) if p.returncode)]

    for count in (3, 5, 3):
        done = verb(mine, first, "apply", "--servers", str(count), "--yes", "--timeout", "170s")
        assert done.returncode == 0, f"{count} servers: {done.stderr}"
        assert len(members(mine, first)) == count
        mine.wait(
            lambda n=count: len(servers(mine)) == n and len(roles(mine)) == 5, CHANGED_S, "all to be up"
        )
    assert first in servers(mine), "who decides goes last"
    assert len(cluster_ids(wait_ready(mine))) == 1
    for name in servers(mine):
        found = kubectl(mine, name, "get", "configmaps", "-n", "kube-system", "-o", "name").stdout
        assert "precious" in found
    explained = verb(mine, first, "roles", "explain", servers(mine)[-1]).stdout
    assert "server: " in explained
    assert verb(mine, first, "plan").returncode == 0


def drain_and_switch_off(mine: Lab, at: str, victim: str, third: str) -> None:
    """A server goes on purpose: its Node is cordoned, its pods go, its absence is no failure, and nobody
    takes its place, although one that is silent for 6 s is replaced here."""
    done = mine.node(at).exec([sys.executable, "-c", PODS, victim], 30)
    assert done.returncode == 0, done.stderr
    ahead = verb(mine, at, "peer", "drain", victim, "--dry-run")
    assert ahead.returncode == 0, ahead.stderr
    assert "one of the 3 servers, and nobody takes its place" in ahead.stdout
    assert "refused" not in ahead.stdout
    done = verb(mine, at, "peer", "drain", victim, "--for", "20m", "--reason", "a new disk")
    assert done.returncode == 0, done.stderr
    refused = verb(mine, third, "peer", "drain")
    assert refused.returncode == 1
    assert "of which 2 must work" in refused.stderr

    def node() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            kubectl(mine, at, "get", "node", victim, "-o", "json").stdout or "{}"
        )
        return found

    def pods() -> str:
        return kubectl(mine, at, "get", "pods", "-n", "default", "-o", "name").stdout

    mine.wait(lambda: node().get("spec", {}).get("unschedulable"), CHANGED_S, "the Node to be cordoned")
    mine.wait(lambda: pods().split() == ["pod/everywhere"], CHANGED_S, "the pod to be evicted")
    began = time.monotonic()
    mine.kill(victim, "node")

    def seen() -> dict[str, Any]:
        rows = json.loads(verb(mine, at, "peers", "-o", "json").stdout or "[]")
        return next(row for row in rows if row["hostname"] == victim)

    mine.wait(lambda: seen()["state"] == "away", CHANGED_S, "the drained one to be away")
    mine.wait(lambda: time.monotonic() - began > 12.0, CHANGED_S, "twice the silence of a dead one")
    assert victim in members(mine, at), "nobody takes its place"
    assert "a new disk" in seen()["reason"]
    told = verb(mine, at, "events").stdout
    assert "mesh.node_drained" in told
    assert "drained until" in told
    assert "/drain" in mine.node(at).exec(["sh", "-c", "cat /var/lib/kairos-p2p/audit.log"]).stdout


def test_a_dead_server_is_replaced_and_returns_and_a_machine_is_reinstalled(lab: LabFactory) -> None:
    """The server that decides dies after READY; another takes its place, and its duty; it comes back."""
    mine = lab(site(4, 3, dynamic_roles=True, replace_after="6s"), agents=True)
    wait_ready(mine)
    spare = next(name for name, role in roles(mine).items() if role == "agent")
    at = servers(mine)[0]
    found = mine.wait(lambda: json.loads(verb(mine, at, "plan", "-o", "json").stdout or "{}"), 60, "a plan")
    victim = found["holder"] or at
    at, third = (name for name in servers(mine) if name != victim)
    drain_and_switch_off(mine, at, victim, third)
    began = time.monotonic()
    done = verb(mine, at, "peer", "undrain", victim)  # it is not coming back
    assert done.returncode == 0, done.stderr
    until(mine, at, {*mine.topology.names} - {victim}, "the dead server to be replaced")
    print(f"replaced {time.monotonic() - began:.1f} s after its drain was taken back")
    mine.wait(lambda: roles(mine).get(spare) == "server", CHANGED_S, "the spare to be a server")
    mine.boot(victim)
    mine.wait(lambda: roles(mine).get(victim) == "agent", CHANGED_S, "the dead one to return as an agent")
    assert len(members(mine, at)) == 3

    # the same machine with an empty disk: a new identity under the old name
    mine.kill(victim, "node")
    for disk in ("var-lib-kairos-p2p", "var-lib-rancher", "etc-rancher"):
        for path in (mine.node(victim).folder / "disk" / disk).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    mine.boot(victim)
    mine.wait(lambda: roles(mine).get(victim) == "agent", CHANGED_S, "the reinstalled one to join")
    mine.wait(lambda: len(nodes_of(mine, at)) == 4, CHANGED_S, "the old Node to be deleted")
    done = verb(mine, victim, "leave", "--yes", timeout_s=60)
    assert done.returncode == 0, done.stderr
    mine.wait(lambda: len(nodes_of(mine, at)) == 3, CHANGED_S, "the Node of who left to be deleted")
    assert len(ca_hashes(mine)) == 1
    assert len(members(mine, at)) == 3
