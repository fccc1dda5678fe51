"""Which Nodes of Kubernetes are cordoned or opened again, which pods have to go, and what would it cost?

Pure. A drained node's Node is marked with `ANNOTATION` and made unschedulable, and its pods are evicted, by
the API for evictions, so PodDisruptionBudgets hold. When the drain is over, only what bears the mark is
opened again: what a person cordoned stays cordoned. Reading is careful: anybody with rights on the cluster
may have edited these objects.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from p2p_network.core.ids import PeerId
from p2p_roles.view import ViewNode

Json = dict[str, Any]

ANNOTATION: Final = "kairos-p2p/drained"
_MIRROR: Final = "kubernetes.io/config.mirror"
_OVER: Final = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Change:
    """A merge patch for one Node, and why in words."""

    node: str
    patch: Json
    reason: str


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that has to go."""

    namespace: str
    name: str


def changes(items: object, peers: Mapping[str, PeerId], drained: Mapping[PeerId, str]) -> tuple[Change, ...]:
    """What is to be changed at the Nodes of a list.

    Args:
        peers: by Node, whose it is.
        drained: in words, why.
    """
    found = []
    for item in _dicts(items):
        metadata = _dict(item.get("metadata"))
        name = metadata.get("name")
        if not isinstance(name, str) or name not in peers:
            continue
        is_shut = _dict(item.get("spec")).get("unschedulable") is True
        is_marked = ANNOTATION in _dict(metadata.get("annotations"))
        words = drained.get(peers[name])
        if words is not None and not (is_shut and is_marked):
            if is_shut:  # a person did that, and a person undoes it
                continue
            mark = {"metadata": {"annotations": {ANNOTATION: words[:200]}}, "spec": {"unschedulable": True}}
            found.append(Change(name, mark, f"{name} is cordoned: {words}"))
        elif words is None and is_marked:
            mark = {"metadata": {"annotations": {ANNOTATION: None}}, "spec": {"unschedulable": None}}
            found.append(Change(name, mark, f"{name} takes pods again: it is drained no more"))
    return tuple(found)


def to_evict(items: object, node: str) -> tuple[Pod, ...]:
    """The pods of a list that must leave a node: all but those of DaemonSets and of files, and the ended."""
    found = []
    for item in _dicts(items):
        metadata, spec = _dict(item.get("metadata")), _dict(item.get("spec"))
        name, namespace = metadata.get("name"), metadata.get("namespace")
        owners = _dicts(metadata.get("ownerReferences"))
        stays = (
            spec.get("nodeName") != node
            or any(owner.get("kind") == "DaemonSet" for owner in owners)
            or _MIRROR in _dict(metadata.get("annotations"))
            or metadata.get("deletionTimestamp") is not None
            or _dict(item.get("status")).get("phase") in _OVER
        )
        if not stays and isinstance(name, str) and isinstance(namespace, str) and name and namespace:
            found.append(Pod(namespace, name))
    return tuple(found)


def eviction(pod: Pod) -> Json:
    """What is asked of the API for it."""
    return {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod.name, "namespace": pod.namespace},
    }


def danger(
    target: PeerId,
    servers: Collection[ViewNode],
    drained: Collection[PeerId],
    *,
    any_server_does: bool = False,
) -> str:
    """Why the control plane would stop if this node went away now; "" if it goes on.

    Args:
        servers: of the target's cluster.
        drained: who is announced to be away besides.
        any_server_does: there is another datastore than etcd, so one server is enough.
    """
    if target not in {node.peer for node in servers}:
        return ""
    needed = 1 if any_server_does else len(servers) // 2 + 1
    rest = [n for n in servers if n.peer != target and n.alive and n.ready and n.peer not in drained]
    if len(rest) >= needed:
        return ""
    names = ", ".join(sorted(node.hostname for node in rest)) or "none"
    missing = sorted(n.hostname for n in servers if n.peer != target and n not in rest)
    why = f" ({', '.join(missing)}: drained, away or not ready)" if missing else ""
    return (
        f"it is one of {len(servers)} server{'' if len(servers) == 1 else 's'}, of which {needed} must work; "
        f"without it there would be: {names}{why}. The control plane would take no writes while it is away"
    )


def _dict(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _dicts(value: object) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
