"""Does our client of the Kubernetes API do what it says, on the stand-in and on a real k3s?"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import pytest
from k3s_hosts import FAST, Host, Hosts, eventually

from p2p_roles.k3s import kube
from p2p_roles.k3s.kube import Kube


def inside(host: Host, call: Callable[[], Any]) -> Any:
    """Run `call` in the host's network; its result, or its error."""
    results: list[Any] = []

    def enter() -> None:
        try:
            with open(f"/run/netns/{host.namespace}", "rb") as handle:
                assert ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), 0x40000000) == 0
            results.append(call())
        except Exception as exc:
            results.append(exc)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


def config_map(name: str, **data: str) -> kube.Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def test_objects_conflicts_leases_and_members(hosts: Hosts) -> None:
    host = hosts.add("alpha")
    host.configure(token="correct-horse", cluster_init=True, **FAST)
    api = Kube(host.etc / "k3s" / "k3s.yaml")
    with pytest.raises(kube.Unreachable):
        inside(host, lambda: api.get(kube.NODES))  # no kubeconfig yet
    host.start()
    eventually("alpha is ready", host.ready, 90 if not host.simulated else 20, log_of=host)

    made = inside(host, lambda: api.create(kube.CONFIG_MAPS, config_map("ours", a="1")))
    path = kube.below(kube.CONFIG_MAPS, "ours")
    with pytest.raises(kube.AlreadyExists):
        inside(host, lambda: api.create(kube.CONFIG_MAPS, config_map("ours")))
    made["data"]["a"] = "2"
    newer = inside(host, lambda: api.replace(path, made))
    assert int(newer["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    with pytest.raises(kube.Conflict):
        inside(host, lambda: api.replace(path, made))  # the old version
    assert inside(host, lambda: api.get(path))["data"] == {"a": "2"}
    patched = inside(host, lambda: api.patch(path, {"data": {"a": None, "b": "3"}}))
    assert patched["data"] == {"b": "3"}
    with pytest.raises(kube.Conflict):
        inside(host, lambda: api.delete(path, version=newer["metadata"]["resourceVersion"]))
    inside(host, lambda: api.delete(path, version=patched["metadata"]["resourceVersion"]))
    with pytest.raises(kube.NotFound):
        inside(host, lambda: api.get(path))

    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "ours"},
        "spec": {
            "holderIdentity": "someone",
            "leaseDurationSeconds": 15,
            "leaseTransitions": 1,
            "acquireTime": "2026-01-01T00:00:00.000000Z",
            "renewTime": "2026-01-01T00:00:00.000000Z",
        },
    }
    held = inside(host, lambda: api.create(kube.LEASES, lease))
    assert held["spec"]["holderIdentity"] == "someone"

    members = inside(host, api.etcd_members)
    assert [m["peerURLs"] for m in members] == [[f"https://{host.address}:2380"]]
    assert members[0]["name"].startswith("alpha-")
    if host.simulated:  # a real k3s runs without a kubelet here
        eventually("alpha's Node is there", lambda: "alpha" in host.nodes())
        node = inside(host, lambda: api.get(kube.below(kube.NODES, "alpha")))
        assert node["metadata"]["name"] == "alpha"


def test_no_members_without_etcd(simulated_hosts: Hosts) -> None:
    host = simulated_hosts.add("alpha")
    host.configure(token="correct-horse", **FAST)
    host.start()
    eventually("alpha is ready", host.ready, log_of=host)
    assert inside(host, Kube(host.etc / "k3s" / "k3s.yaml").etcd_members) is None
