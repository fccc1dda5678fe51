"""Is what a cloud-config declares what the cluster becomes, also later? And who brings it back unasked?

Labels and taints, a changed configuration, a role forced on a live cluster, an external datastore, and
``p2p.recovery: automatic``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from clusters import ca_hashes, cluster_ids, statuses, wait_ready

from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import kairos_p2p
from p2p_simulations.lab.topology import make_topology

LabFactory = Callable[..., Lab]
pytestmark = pytest.mark.timeout(600)
FAST = ["--etcd-arg=heartbeat-interval=200", "--etcd-arg=election-timeout=1500"]
PRECIOUS = """
from pathlib import Path
from p2p_roles.k3s import kube
item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "precious"}, "data": {"a": "b"}}
kube.Kube(Path("/etc/rancher/k3s/k3s.yaml")).create(kube.CONFIG_MAPS, item)
"""


def node_of(lab: Lab, at: str, name: str) -> dict[str, Any]:
    """A Kubernetes Node."""
    done = lab.node(at).exec(["sh", "-c", f"$K3S_BIN kubectl get node {name} -o json"], 30)
    found: dict[str, Any] = json.loads(done.stdout or "{}")
    return found


def label_of(lab: Lab, at: str, name: str) -> str:
    return str(node_of(lab, at, name).get("metadata", {}).get("labels", {}).get("example.com/disk", ""))


def verb(lab: Lab, at: str, *words: str, timeout_s: float = 170.0) -> tuple[int, str, str]:
    done = lab.node(at).exec([*kairos_p2p(), *words], timeout_s)
    return done.returncode, done.stdout, done.stderr


def servers_of(lab: Lab) -> set[str]:
    return {n for n, s in statuses(lab).items() if s["role"]["role"] == "server" and s["role"]["ready"]}


def test_labels_a_changed_configuration_and_a_role_forced_on_a_live_cluster(lab: LabFactory) -> None:
    labelled = {"labels": {"example.com/disk": "ssd"}, "taints": ["example.com/gpu=yes:NoSchedule"]}
    topology = make_topology(
        {"here": ("n1", "n2")},
        servers=1,
        config={"k3s": {"args": FAST}},
        nodes={"n2": {"p2p": labelled}},
    )
    mine = lab(topology, agents=True)
    wait_ready(mine)
    (first,) = servers_of(mine)
    other = "n2" if first == "n1" else "n1"
    mine.wait(lambda: label_of(mine, first, "n2") == "ssd", 60, "the label of the declaration")
    taints = node_of(mine, first, "n2")["spec"]["taints"]
    assert {"key": "example.com/gpu", "value": "yes", "effect": "NoSchedule"} in taints

    # another configuration counts from the agent's next start: k3s is started again with it
    path = mine.node("n2").folder / "disk" / "oem" / "90_custom.yaml"
    document = yaml.safe_load(path.read_text())
    document["p2p"]["labels"] = {"example.com/disk": "hdd"}
    path.write_text("#cloud-config\n" + yaml.safe_dump(document))
    before = statuses(mine)["n2"]["k3s"]["pid"]
    mine.node("n2").stop_agent()
    mine.node("n2").start_agent()
    mine.wait(lambda: label_of(mine, first, "n2") == "hdd", 90, "the label of the new configuration")
    again = wait_ready(mine)
    assert again["n2"]["k3s"]["pid"] != before
    mine.node("n2").stop_agent()  # the same configuration: k3s is left alone
    mine.node("n2").start_agent()
    assert wait_ready(mine)["n2"]["k3s"]["pid"] == again["n2"]["k3s"]["pid"]

    # the agent is to be the server: it becomes one, and the one there was an agent, with what was stored
    done = mine.node(first).exec([sys.executable, "-c", PRECIOUS], 30)
    assert done.returncode == 0, done.stderr
    code, out, err = verb(mine, first, "apply", "--role", f"{other}=server", "--yes", "--no-wait")
    assert code == 0, err
    code, out, err = verb(mine, first, "apply", "--role", f"{first}=agent", "--yes", "--no-wait")
    mine.wait(lambda: servers_of(mine) == {other}, 170, f"{other} to be the only server")
    wait_ready(mine)
    done = mine.node(other).exec(["sh", "-c", "$K3S_BIN kubectl get configmaps -n kube-system -o name"], 30)
    assert "configmap/precious" in done.stdout
    assert len(cluster_ids(statuses(mine))) == 1
    code, out, err = verb(mine, other, "roles", "explain", first)
    assert "forced by an operator" in out, out + err


def test_a_cluster_on_an_external_datastore(lab: LabFactory) -> None:
    """The stand-in takes a SQLite file as one: who is a server is told, and that it is no etcd."""
    database = {"auto": {"ha": {"external_db": "sqlite:///var/lib/rancher/external.db"}}}
    topology = make_topology(
        {"here": ("n1", "n2")},
        servers=1,
        config={"p2p": database},
        nodes={"n2": {"p2p": {"role": "agent"}}},
    )
    mine = lab(topology, agents=True)
    formed = wait_ready(mine)
    assert {n: s["role"]["role"] for n, s in formed.items()} == {"n1": "server", "n2": "agent"}
    text = mine.node("n1").exec(["cat", "/etc/rancher/k3s/config.yaml.d/90-kairos-p2p.yaml"]).stdout
    assert "datastore-endpoint" in text
    assert "cluster-init" not in text
    assert mine.node("n1").exec(["ls", "/var/lib/rancher/k3s/server/db/etcd"]).returncode != 0
    code, _, err = verb(mine, "n1", "plan")
    assert code == 0, err
    mine.node("n1").kill("node")
    mine.boot("n1")
    assert wait_ready(mine)["n1"]["role"]["cluster_id"] == formed["n1"]["role"]["cluster_id"]


def test_a_lost_majority_comes_back_unasked_where_that_is_safe(lab: LabFactory) -> None:
    """All servers are in reach, two of them have lost etcd's data: nobody can hold a majority elsewhere."""
    topology = make_topology(
        {"here": ("n1", "n2", "n3")},
        servers=3,
        config={"p2p": {"recovery": "automatic"}, "k3s": {"args": FAST}},
    )
    mine = lab(topology, agents=True)
    wait_ready(mine)
    authorities = ca_hashes(mine)
    done = mine.node("n1").exec([sys.executable, "-c", PRECIOUS], 30)
    assert done.returncode == 0, done.stderr
    for name in ("n2", "n3"):
        mine.kill(name, "node")
    for name in ("n2", "n3"):
        done_rm = mine.node(name).folder / "disk" / "var-lib-rancher" / "k3s" / "server" / "db" / "etcd"
        done_rm.rename(done_rm.with_name("lost"))
        mine.boot(name)
    mine.wait(
        lambda: (
            all(s["role"]["epoch"] == 2 and s["role"]["ready"] for s in statuses(mine).values())
            and len(statuses(mine)) == 3
        ),
        200,
        "the cluster to come back by itself",
    )
    seen = wait_ready(mine)
    assert {s["role"]["role"] for s in seen.values()} == {"server"}
    assert len(cluster_ids(seen)) == 1
    assert ca_hashes(mine) == authorities
    done = mine.node("n3").exec(["sh", "-c", "$K3S_BIN kubectl get configmaps -n kube-system -o name"], 30)
    assert "configmap/precious" in done.stdout
