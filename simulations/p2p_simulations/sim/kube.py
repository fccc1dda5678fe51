"""What does the simulated Kubernetes API answer, and what does it do with a deleted Node?

The twin of `p2p_roles.k3s.kube.Kube`: leases, ConfigMaps and Nodes in the modelled etcd, each with its
resourceVersion, answered only while a majority of etcd's members is reachable from here. A Node exists
while k3s runs on its machine, and is Ready by what the others see of it; to delete one removes its etcd
member, as k3s does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from p2p_bootstrap.node.upgrading import PATH as UPGRADE
from p2p_roles.k3s import kube as api

if TYPE_CHECKING:
    from p2p_simulations.sim.etcd import Etcd
    from p2p_simulations.sim.machine import SimMachine

Json = dict[str, Any]
NODE_GRACE_S: Final = 40.0


@dataclass(slots=True)
class Objects:
    """What one cluster's datastore holds. `nodes`: name -> (peer, address). It has no pods."""

    revision: int = 0
    stored: dict[str, Json] = field(default_factory=dict)
    nodes: dict[str, tuple[str, str]] = field(default_factory=dict)
    marks: dict[str, Json] = field(default_factory=dict)  # what was patched into a Node

    def copy(self) -> Objects:
        """The same objects in another datastore: they are replaced, never changed."""
        return Objects(self.revision, dict(self.stored), dict(self.nodes), dict(self.marks))


class SimKube:
    """The API as one machine's server answers."""

    def __init__(self, machine: SimMachine) -> None:
        self._machine, self._world = machine, machine.world

    def get(self, path: str) -> Json:
        """See `Kube`, here and below."""
        etcd = self._etcd()
        if path == api.NODES:
            return {"items": [self._node(name, etcd) for name in sorted(etcd.kube.nodes)]}
        if path == api.PODS:
            return {"items": []}
        return _copy(self._found(etcd, path))

    def patch(self, path: str, change: Json) -> Json:
        etcd = self._etcd()
        collection, _, name = path.rpartition("/")
        if collection != api.NODES or name not in etcd.kube.nodes:
            raise api.NotFound(f"{path} not found")
        etcd.writes(lambda peer: self._machine.k3s.in_touch(etcd, peer))
        etcd.kube.revision += 1
        etcd.kube.marks[name] = _merged(etcd.kube.marks.get(name, {}), change)
        self._world.note(self._machine.name, f"patches the Node {name}: {json.dumps(change['spec'])}")
        return self._node(name, etcd)

    def create(self, path: str, item: Json) -> Json:
        etcd = self._etcd()
        key = api.below(path, item["metadata"]["name"])
        if key in etcd.kube.stored:
            raise api.AlreadyExists(f"{key} already exists")
        return self._store(etcd, key, item)

    def replace(self, path: str, item: Json) -> Json:
        etcd = self._etcd()
        stored = self._found(etcd, path)
        if item["metadata"].get("resourceVersion") != stored["metadata"]["resourceVersion"]:
            raise api.Conflict(f"{path}: the object has been modified")
        return self._store(etcd, path, item)

    def delete(self, path: str, *, version: str = "") -> None:
        etcd = self._etcd()
        collection, _, name = path.rpartition("/")
        etcd.writes(lambda peer: self._machine.k3s.in_touch(etcd, peer))
        if collection != api.NODES:
            self._found(etcd, path)
            del etcd.kube.stored[path]
            return
        found = etcd.kube.nodes.pop(name, None)
        if found is None:
            raise api.NotFound(f"{path} not found")
        etcd.kube.marks.pop(name, None)
        peer, address = found
        self._world.checkers.clusters.node_deleted(self._machine, etcd, peer)
        etcd.kube.revision += 1
        self._world.note(self._machine.name, f"deletes the Node {name}")
        if etcd.members.get(peer) == address:
            self._world.checkers.clusters.member_removed(self._machine, etcd, peer)
            del etcd.members[peer]
        if etcd.learner == peer:
            etcd.learner = ""

    def etcd_members(self) -> list[Json] | None:
        etcd = self._etcd()
        found: list[Json] = [
            {"name": self._world.name(peer), "peerURLs": [f"https://{ipv4}:2380"]}
            for peer, ipv4 in sorted(etcd.members.items())
        ]
        machine = self._world.machine_of(etcd.learner)
        if machine is not None:
            url = f"https://{machine.tun_ipv4}:2380"
            found.append({"name": self._world.name(etcd.learner), "peerURLs": [url], "isLearner": True})
        return found

    # ------------------------------------------------------------

    def _etcd(self) -> Etcd:
        etcd = self._machine.k3s.serving()
        if etcd is None:
            raise api.Unreachable("the API does not answer: no quorum")
        return etcd

    def _found(self, etcd: Etcd, path: str) -> Json:
        stored = etcd.kube.stored.get(path)
        if stored is None:
            raise api.NotFound(f"{path} not found")
        return stored

    def _store(self, etcd: Etcd, key: str, item: Json) -> Json:
        etcd.writes(lambda peer: self._machine.k3s.in_touch(etcd, peer))
        etcd.kube.revision += 1
        if key == UPGRADE:
            self._world.checkers.clusters.turns_given(self._machine, etcd, etcd.kube.stored.get(key), item)
        stored = _copy(item)
        stored["metadata"]["resourceVersion"] = str(etcd.kube.revision)
        etcd.kube.stored[key] = stored
        return _copy(stored)

    def _node(self, name: str, etcd: Etcd) -> Json:
        peer, address = etcd.kube.nodes[name]
        machine = self._world.machine_of(peer)
        ready = machine is not None and machine.k3s.joined and not machine.is_frozen
        ready = ready and machine is not None and self._world.joined(self._machine, machine)
        item: Json = {
            "metadata": {"name": name, "labels": {}},
            "status": {
                "addresses": [{"type": "InternalIP", "address": address}],
                "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}],
            },
        }
        return _merged(item, etcd.kube.marks.get(name, {}))


def _merged(item: Json, change: Json) -> Json:
    """RFC 7396."""
    result = dict(item)
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key) or {}, value) if isinstance(value, dict) else value
    return result


def _copy(item: Json) -> Json:
    copied: Json = json.loads(json.dumps(item))
    return copied
