"""Several regions: a cluster in each on one mesh, one cluster over all, and networks that share a token only.

Real agents, libp2p, TUN devices and (stand-in or real) k3s, in namespaces.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from clusters import (
    ask,
    cluster_ids,
    facts_for_ever,
    statuses,
    store,
    wait_ready,
    wait_stored,
)

from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import kairos_p2p
from p2p_simulations.lab.topology import make_topology

LabFactory = Callable[..., Lab]
pytestmark = pytest.mark.timeout(600)
SHOP = {"p2p": {"services": [{"name": "shop", "to": "127.0.0.1:8000", "port": 80}]}}


def test_a_cluster_in_each_region_of_one_mesh_and_another_network_beside(lab: LabFactory) -> None:
    """east and west form by themselves and are one mesh; n5 has the same token and another network_id."""
    topology = make_topology(
        {"east": ("n1", "n2"), "west": ("n3", "n4"), "north": ("n5",)},
        servers=1,
        minimum_nodes=2,
        config={"p2p": {"cluster": "region", "dns": True}},
        nodes={"n5": {"p2p": {"network_id": "other", "minimum_nodes": 1}}, "n3": SHOP},
    )
    began = time.monotonic()
    mine = lab(topology, agents=True)
    formed = wait_ready(mine)
    print(f"two clusters of two on one mesh, from power-on to ready: {time.monotonic() - began:.1f} s")
    for name, said in formed.items():
        reached = {phase["name"]: phase["at_s"] for phase in said["phases"]}
        print(f"{name} {said['node']['region']}: {said['role']['role']}, ready {reached['ready']:.1f} s")
    by_region = {r: cluster_ids({n: s for n, s in formed.items() if s["node"]["region"] == r}) for r in
                 ("east", "west", "north")}  # fmt: skip
    assert all(len(ids) == 1 for ids in by_region.values())
    assert len(set.union(*by_region.values())) == 3

    # network_id: one token, another mesh; neither knows of the other
    assert formed["n5"]["mesh"]["mesh_id"] != formed["n1"]["mesh"]["mesh_id"]
    assert formed["n5"]["mesh"]["known"] == 0
    assert ask(mine, "n5", "peers") == []
    for name in ("n1", "n2", "n3", "n4"):
        assert {peer["hostname"] for peer in ask(mine, name, "peers")} == {"n1", "n2", "n3", "n4"} - {name}
    assert [c["name"] for c in formed["n5"]["clusters"]] == ["other/north"]

    # one mesh: everybody sees both clusters
    mine.wait(
        lambda: all(
            {(c["name"], c["servers"], c["agents"], c["ready"]) for c in s["clusters"]}
            == {("kairos/east", 1, 1, 2), ("kairos/west", 1, 1, 2)}
            for s in statuses(mine, ["n1", "n2", "n3", "n4"]).values()
        ),
        60,
        "every node to see both clusters whole",
    )
    rows = {row["hostname"]: row["cluster"] for row in ask(mine, "n1", "roles", "list")}
    assert rows == {"n1": "kairos/east", "n2": "kairos/east", "n3": "kairos/west", "n4": "kairos/west"}
    places = ask(mine, "n1", "regions")
    assert {row["hostname"]: (row["region"], row["how"]) for row in places["nodes"]} == {
        n: (formed[n]["node"]["region"], "declared") for n in ("n1", "n2", "n3", "n4")
    }

    # a context per cluster, each of which opens that cluster's API from here, over the VPN
    roles = {n: s["role"]["role"] for n, s in formed.items()}
    server = {r: next(n for n in ns if roles[n] == "server") for r, ns in
              (("east", ("n1", "n2")), ("west", ("n3", "n4")))}  # fmt: skip
    agent = next(n for n in ("n1", "n2") if roles[n] == "agent")
    done = mine.node(server["east"]).exec([*kairos_p2p(), "kubeconfig", "--merge"])
    assert (done.returncode, done.stderr) == (0, "")
    merged = yaml.safe_load(done.stdout)
    assert [c["name"] for c in merged["contexts"]] == ["kairos-east", "kairos-west"]
    assert nodes_of(mine, server["east"], merged, "kairos-east") == {"n1", "n2"}
    assert nodes_of(mine, server["east"], merged, "kairos-west") == {"n3", "n4"}
    refused = mine.node(agent).exec([*kairos_p2p(), "kubeconfig", "--merge"])
    assert refused.returncode == 1
    assert "this node is an agent" in refused.stderr

    # a service of west is reached from east by its name, and so is west's API by its server's
    pages = "mkdir /root/www; echo of west > /root/www/index.html; cd /root/www"
    serving = ["sh", "-c", f"{pages}; exec python3 -m http.server 8000 -b 127.0.0.1"]
    with subprocess.Popen(mine.node("n3").enter_argv(serving), stderr=subprocess.DEVNULL) as program:
        for name in ("shop.kairos.p2p", "shop.west.kairos.p2p"):
            mine.wait(lambda name=name: "of west" in fetched(mine, "n1", f"http://{name}/"), 60, name)
        program.terminate()
    assert "pong" in fetched(mine, "n1", f"https://{server['west']}.kairos.p2p:6443/ping")

    # cut off from each other, each goes on by itself; and the merged file says what is missing
    before = facts_for_ever(formed)
    mine.partition([["n1", "n2"], ["n3", "n4"], ["n5"]])
    mine.wait(
        lambda: statuses(mine, ["n1"])["n1"]["mesh"]["peers"] == 1, 60, "n1 to notice that west is gone"
    )
    assert all(s["role"]["ready"] for s in statuses(mine).values())
    alone = mine.node(server["east"]).exec([*kairos_p2p(), "kubeconfig", "--merge"], 60)
    assert [c["name"] for c in yaml.safe_load(alone.stdout)["contexts"]] == ["kairos-east"]
    assert "not in here: cluster kairos/west" in alone.stderr
    mine.heal()
    assert facts_for_ever(wait_ready(mine)) == before


def test_one_cluster_over_three_regions_outlives_the_loss_of_any(lab: LabFactory) -> None:
    """spread: a region cut off and back, then another one lost for ever; a majority is always left."""
    topology = make_topology(
        {"east": ("n1", "n2"), "west": ("n3",), "north": ("n4",)},
        servers=3,
        config={"p2p": {"timing": "wan"}},
    )
    mine = lab(topology, agents=True)
    formed = wait_ready(mine)
    servers = {n: s["node"]["region"] for n, s in formed.items() if s["role"]["role"] == "server"}
    assert sorted(servers.values()) == ["east", "north", "west"]
    for name in servers:
        text = mine.node(name).exec(["cat", "/etc/rancher/k3s/config.yaml.d/90-kairos-p2p.yaml"]).stdout
        assert "leader-elect-lease-duration=60s" in text, "all servers go by the same times"
    node_labels = labels(mine, next(iter(servers)))
    assert {n: s["topology.kubernetes.io/region"] for n, s in node_labels.items()} == {
        n: s["node"]["region"] for n, s in formed.items()
    }

    flannel_fits(mine, "n1", "n3", formed)
    before = facts_for_ever(formed)
    store(mine, "n3", "before")
    mine.partition([["n1", "n2", "n3"], ["n4"]])
    mine.wait(
        lambda: not statuses(mine, ["n4"])["n4"]["role"]["ready"], 90, "the server alone to lose its quorum"
    )
    kept = wait_ready(mine, ["n1", "n2", "n3"])
    assert cluster_ids(kept) == cluster_ids(formed)
    assert not statuses(mine, ["n4"])["n4"]["role"]["ready"], "a minority serves nobody"
    store(mine, "n3", "meanwhile")
    mine.heal()
    assert facts_for_ever(wait_ready(mine)) == before
    wait_stored(mine, "n4", "meanwhile")

    mine.kill("n3", "node")
    left = wait_ready(mine, ["n1", "n2", "n4"])
    wait_stored(mine, "n4", "before")
    assert facts_for_ever(left) == {n: before[n] for n in left}
    assert len(ca_hashes_of(mine, left)) == 1


def fetched(lab: Lab, on: str, url: str) -> str:
    """What a program on that node gets; "" for nothing."""
    return lab.node(on).exec(["curl", "-sk", "--max-time", "10", url]).stdout


def flannel_fits(lab: Lab, a: str, b: str, formed: dict[str, Any]) -> None:
    """A vxlan device as flannel makes it, over the VPN's: the largest packet that it takes gets through
    whole, from one region to the other, without being cut on the way."""
    mtu = formed[a]["vpn"]["mtu"]
    for number, (name, other) in enumerate(((a, b), (b, a)), start=1):
        own, far = formed[name]["vpn"]["ipv4"], formed[other]["vpn"]["ipv4"]
        vxlan = f"vxlan id 7 dev kp2p0 local {own} remote {far} dstport 8472"
        script = f"ip link add flannel.7 type {vxlan} && ip address add 10.42.200.{number}/24 dev flannel.7"
        done = lab.node(name).exec(
            ["sh", "-c", f"{script} && ip link set flannel.7 up && cat /sys/class/net/flannel.7/mtu"]
        )
        assert done.stdout.strip() == str(mtu - 50), (
            f"flannel takes the device's MTU: {done.stdout} {done.stderr}"
        )
        drop_in = lab.node(name).exec(["cat", "/etc/rancher/k3s/config.yaml.d/90-kairos-p2p.yaml"]).stdout
        assert 'flannel-iface: "kp2p0"' in drop_in
    largest = str(mtu - 50 - 28)  # less the headers of IP and ICMP
    ping = ["ping", "-M", "do", "-c3", "-W5", "-s"]
    whole = lab.node(a).exec([*ping, largest, "10.42.200.2"], 60)
    assert " 0% packet loss" in whole.stdout, whole.stdout + whole.stderr
    too_large = lab.node(a).exec([*ping, str(int(largest) + 1), "10.42.200.2"], 60)
    assert too_large.returncode != 0
    for name in (a, b):
        lab.node(name).exec(["ip", "link", "delete", "flannel.7"])


def nodes_of(lab: Lab, on: str, merged: dict[str, Any], context: str) -> set[str]:
    """The Kubernetes nodes that one context of a kubeconfig shows."""
    one = {
        **merged,
        **{
            part: [e for e in merged[part] if e["name"] == context]
            for part in ("clusters", "users", "contexts")
        },
        "current-context": context,
    }
    node = lab.node(on)
    script = "umask 077; cat > /run/one.yaml <<'END'\n" + yaml.safe_dump(one) + "END\n"
    script += '"$K3S_BIN" kubectl --kubeconfig /run/one.yaml get nodes -o name'
    done = node.exec(["sh", "-c", script], 60)
    assert done.returncode == 0, done.stderr
    return {line.partition("/")[2] for line in done.stdout.split()}


def labels(lab: Lab, on: str) -> dict[str, dict[str, str]]:
    """The labels of every Kubernetes node."""
    done = lab.node(on).exec(["sh", "-c", '"$K3S_BIN" kubectl get nodes -o json'], 60)
    assert done.returncode == 0, done.stderr
    return {n["metadata"]["name"]: n["metadata"]["labels"] for n in yaml.safe_load(done.stdout)["items"]}


def ca_hashes_of(lab: Lab, names: Any) -> set[str]:
    """Distinct CAs on these nodes."""
    found = set()
    for name in names:
        done = lab.node(name).exec(["sha256sum", "/var/lib/rancher/k3s/server/tls/server-ca.crt"])
        if done.returncode == 0:
            found.add(done.stdout.split()[0])
    return found
