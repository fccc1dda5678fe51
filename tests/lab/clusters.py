"""What do the cluster tests look at, and how long may things take?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from p2p_bootstrap.api.service import StatusDoc
from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import kairos_p2p

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
FORMED_S = 120.0
"""For a cluster to form; seconds on a quiet machine, but CI may be busy with other things."""


def statuses(lab: Lab, names: Iterable[str] | None = None) -> dict[str, StatusDoc]:
    """What the agents say now; one that does not answer is left out."""
    found = {name: lab.node(name).observe() for name in (names or lab.topology.names)}
    return {name: status for name, status in found.items() if status is not None}


def wait_ready(
    lab: Lab, names: Sequence[str] | None = None, timeout_s: float = FORMED_S
) -> dict[str, StatusDoc]:
    """Wait until these nodes (default: all) are ready members; what they say then."""
    wanted = tuple(names or lab.topology.names)

    def all_ready() -> bool:
        seen = statuses(lab, wanted)
        return len(seen) == len(wanted) and all(s["role"]["ready"] for s in seen.values())

    lab.wait(all_ready, timeout_s, f"{', '.join(wanted)} to be ready")
    return statuses(lab, wanted)


def cluster_ids(seen: dict[str, StatusDoc]) -> set[str]:
    """The clusters that these nodes are members of."""
    return {s["role"]["cluster_id"] for s in seen.values()} - {""}


def facts_for_ever(seen: dict[str, StatusDoc]) -> dict[str, tuple[str, str, str, str, int, str]]:
    """What must never change for a node: identity, addresses, role, epoch, cluster."""
    return {
        name: (
            s["node"]["peer"],
            s["vpn"]["ipv4"],
            s["vpn"]["ipv6"],
            s["role"]["role"],
            s["role"]["epoch"],
            s["role"]["cluster_id"],
        )
        for name, s in seen.items()
    }


def ask(lab: Lab, name: str, *verb: str, timeout_s: float = 30.0) -> Any:
    """The JSON that a verb prints inside a node."""
    done = lab.node(name).exec([*kairos_p2p(), *verb, "-o", "json"], timeout_s)
    assert done.returncode == 0, f"{' '.join(verb)} on {name}: {done.stderr}"
    return json.loads(done.stdout)


def ca_hashes(lab: Lab) -> set[str]:
    """Distinct CAs that k3s serves on the nodes: two would be two clusters."""
    found = set()
    for name in lab.topology.names:
        done = lab.node(name).exec(["sha256sum", "/var/lib/rancher/k3s/server/tls/server-ca.crt"])
        if done.returncode == 0:
            found.add(done.stdout.split()[0])
    return found


def cluster_inits(lab: Lab) -> list[str]:
    """Nodes on whose disk ``cluster-init`` stands."""
    found = []
    for name in lab.topology.names:
        done = lab.node(name).exec(["grep", "-rl", "cluster-init", "/etc/rancher/k3s/config.yaml.d"])
        if done.returncode == 0:
            found.append(name)
    return found


def kube(lab: Lab, name: str, method: str, *arguments: Any) -> Any:
    """One call of the Kubernetes API on a server, as its admin; None if there is no such object."""
    code = (
        "import json, sys; from pathlib import Path; from p2p_roles.k3s.kube import Kube, NotFound\n"
        "api, (method, *rest) = Kube(Path('/etc/rancher/k3s/k3s.yaml')), json.loads(sys.argv[1])\n"
        "try: print(json.dumps(getattr(api, method)(*rest)))\n"
        "except NotFound: print('null')"
    )
    done = lab.node(name).exec([sys.executable, "-c", code, json.dumps([method, *arguments])])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def store(lab: Lab, name: str, key: str) -> None:
    """Have a user store an object on a server that is ready."""
    item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": key}, "data": {"who": "a user"}}
    kube(lab, name, "create", CONFIG_MAPS, item)


def is_stored(lab: Lab, name: str, key: str) -> bool:
    """Whether that object is there, as this server sees it."""
    found = kube(lab, name, "get", f"{CONFIG_MAPS}/{key}")
    return found is not None and found["data"] == {"who": "a user"}


def wait_stored(lab: Lab, name: str, key: str) -> None:
    """It is there, as soon as this server, which just came back, answers at all."""

    def is_there() -> bool:
        try:
            return is_stored(lab, name, key)
        except AssertionError:
            return False

    lab.wait(is_there, FORMED_S, f"{name} to have {key}")
