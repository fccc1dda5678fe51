"""What does Kubernetes call things? The JSON of the few kinds that the stand-in knows; pure.

Times are RFC 3339 strings, passed in. A kind is served if it has a row in `KINDS`.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from p2p_simulations.k3s import VERSION
from p2p_simulations.k3s.state import ETCD_LABEL, ETCD_NAME_ANNOTATION, Object

ETCD_ADDRESS_ANNOTATION = "etcd.k3s.cattle.io/node-address"
CONTROL_PLANE_LABEL = "node-role.kubernetes.io/control-plane"
UNREACHABLE = "node.kubernetes.io/unreachable"


@dataclass(frozen=True, slots=True)
class Kind:
    """`group` is "" for the core; `short` are kubectl's abbreviations."""

    group: str
    plural: str
    kind: str
    namespaced: bool
    short: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/v1" if self.group else "v1"

    def prefix(self, namespace: str = "") -> str:
        return f"/registry/{self.plural}/" + (f"{namespace}/" if self.namespaced and namespace else "")


KINDS = (
    Kind("", "nodes", "Node", False, ("no",)),
    Kind("", "namespaces", "Namespace", False, ("ns",)),
    Kind("", "configmaps", "ConfigMap", True, ("cm",)),
    Kind("", "secrets", "Secret", True),
    Kind("", "pods", "Pod", True, ("po",)),
    Kind("coordination.k8s.io", "leases", "Lease", True),
)

_STATUS_REASONS = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed",
    409: "Conflict", 410: "Expired", 422: "Invalid", 500: "InternalError", 503: "ServiceUnavailable",
    504: "Timeout",
}  # fmt: skip


def status(code: int, message: str, reason: str = "") -> Object:
    """A `Status` of failure."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason or _STATUS_REASONS.get(code, "Unknown"),
        "code": code,
    }


def version_info() -> Object:
    """`GET /version`."""
    major, minor = VERSION.removeprefix("v").split(".")[:2]
    return {
        "major": major,
        "minor": minor,
        "gitVersion": VERSION,
        "gitCommit": "kairos-p2p-stand-in",
        "gitTreeState": "simulated",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "cpython",
        "platform": "linux/simulated",
    }


def _in_group(group: str) -> list[Kind]:
    return [kind for kind in KINDS if kind.group == group]


def api_versions(address: str) -> Object:
    """`GET /api`."""
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def api_group(group: str) -> Object:
    version = {"groupVersion": f"{group}/v1", "version": "v1"}
    return {
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": group,
        "versions": [version],
        "preferredVersion": version,
    }


def api_groups() -> Object:
    """`GET /apis`."""
    groups = sorted({kind.group for kind in KINDS} - {""})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [api_group(group) for group in groups]}


def api_resources(group: str) -> Object:
    """`GET /api/v1` and `GET /apis/GROUP/v1`."""
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/v1" if group else "v1",
        "resources": [
            {
                "name": kind.plural,
                "singularName": kind.kind.lower(),
                "namespaced": kind.namespaced,
                "kind": kind.kind,
                "verbs": verbs,
                "shortNames": list(kind.short),
            }
            for kind in _in_group(group)
        ],
    }


def namespace(name: str) -> Object:
    return {
        "kind": "Namespace",
        "apiVersion": "v1",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a kubelet knows of its machine."""

    name: str
    addresses: tuple[str, ...]
    external_addresses: tuple[str, ...]
    labels: dict[str, str]
    taints: tuple[dict[str, str], ...]
    machine_id: str
    kernel: str
    os_image: str
    architecture: str
    cpus: int
    memory_kib: int


def node(facts: NodeFacts, now: str) -> Object:
    """The Node as a kubelet registers it."""
    capacity = {"cpu": str(facts.cpus), "memory": f"{facts.memory_kib}Ki", "pods": "110"}
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": facts.name,
            "labels": {
                "beta.kubernetes.io/arch": facts.architecture,
                "beta.kubernetes.io/instance-type": "k3s",
                "beta.kubernetes.io/os": "linux",
                "kubernetes.io/arch": facts.architecture,
                "kubernetes.io/hostname": facts.name,
                "kubernetes.io/os": "linux",
                "node.kubernetes.io/instance-type": "k3s",
                **facts.labels,
            },
            "annotations": {
                "k3s.io/hostname": facts.name,
                "k3s.io/internal-ip": ",".join(facts.addresses),
                "kairos-p2p/simulated": "true",
            },
        },
        "spec": {"providerID": f"k3s://{facts.name}", "taints": list(facts.taints)},
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "addresses": [
                *({"type": "InternalIP", "address": a} for a in facts.addresses),
                *({"type": "ExternalIP", "address": a} for a in facts.external_addresses),
                {"type": "Hostname", "address": facts.name},
            ],
            "conditions": conditions(now),
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "machineID": facts.machine_id,
                "systemUUID": facts.machine_id,
                "bootID": facts.machine_id,
                "kernelVersion": facts.kernel,
                "osImage": f"{facts.os_image} (simulated)",
                "containerRuntimeVersion": "simulated://0",
                "kubeletVersion": VERSION,
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": facts.architecture,
            },
        },
    }


_HEALTHY = (
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "kubelet is posting ready status (simulated)"),
)


def conditions(now: str) -> list[Object]:
    """Of a healthy node."""
    return [
        {
            "type": kind,
            "status": value,
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
            "reason": reason,
            "message": message,
        }
        for kind, value, reason, message in _HEALTHY
    ]


def unknown_conditions(existing: list[Object], now: str) -> list[Object]:
    """Of a node whose kubelet fell silent; conditions that are not the kubelet's stay."""
    own = {kind for kind, *_ in _HEALTHY}
    told = {"reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status."}
    return [
        {**c, **told, "status": "Unknown", "lastTransitionTime": now} if c["type"] in own else c
        for c in existing
    ]


def ready(item: Object) -> str:
    """Status of the Ready condition: "True", "False" or "Unknown"."""
    found = (c["status"] for c in item.get("status", {}).get("conditions", []) if c["type"] == "Ready")
    return str(next(found, "Unknown"))


def lease(name: str, now_micro: str, seconds: int) -> Object:
    """The lease by which a kubelet shows that it lives."""
    return {
        "kind": "Lease",
        "apiVersion": "coordination.k8s.io/v1",
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": seconds, "renewTime": now_micro},
    }


def roles(item: Object) -> list[str]:
    prefix = "node-role.kubernetes.io/"
    return sorted(
        key.removeprefix(prefix) for key in item["metadata"].get("labels", {}) if key.startswith(prefix)
    )


def address(item: Object, kind: str) -> str:
    found = (a["address"] for a in item.get("status", {}).get("addresses", []) if a["type"] == kind)
    return str(next(found, "<none>"))


def age(item: Object, now_s: float) -> str:
    """As kubectl prints it."""
    text = item["metadata"].get("creationTimestamp") or ""
    try:
        seconds = int(now_s - datetime.datetime.fromisoformat(text).timestamp())
    except ValueError:
        return "<unknown>"
    if seconds < 120:
        return f"{max(0, seconds)}s"
    if seconds < 600:
        return f"{seconds // 60}m{seconds % 60}s"
    if seconds < 7200:
        return f"{seconds // 60}m"
    return f"{seconds // 3600}h" if seconds < 172800 else f"{seconds // 86400}d"


_NODE_COLUMNS = (
    ("Name", 0), ("Status", 0), ("Roles", 0), ("Age", 0), ("Version", 0), ("Internal-IP", 1),
    ("External-IP", 1), ("OS-Image", 1), ("Kernel-Version", 1), ("Container-Runtime", 1),
)  # fmt: skip


def row(kind: Kind, item: Object, now_s: float) -> list[Any]:
    """One line of `kubectl get`."""
    name = item["metadata"]["name"]
    if kind.plural == "nodes":
        info = item["status"]["nodeInfo"]
        state = {"True": "Ready"}.get(ready(item), "NotReady")
        if item.get("spec", {}).get("unschedulable"):
            state += ",SchedulingDisabled"
        return [
            name, state, ",".join(roles(item)) or "<none>", age(item, now_s), info["kubeletVersion"],
            address(item, "InternalIP"), address(item, "ExternalIP"), info["osImage"], info["kernelVersion"],
            info["containerRuntimeVersion"],
        ]  # fmt: skip
    if kind.plural == "namespaces":
        return [name, item["status"]["phase"], age(item, now_s)]
    if kind.plural == "leases":
        return [name, item.get("spec", {}).get("holderIdentity", ""), age(item, now_s)]
    return [name, len(item.get("data") or {}), age(item, now_s)]


def columns(kind: Kind) -> list[tuple[str, int]]:
    """Heading and priority (1 = only when wide) of each column of `row`."""
    if kind.plural == "nodes":
        return list(_NODE_COLUMNS)
    middle = {"namespaces": "Status", "leases": "Holder"}.get(kind.plural, "Data")
    return [("Name", 0), (middle, 0), ("Age", 0)]


def table(kind: Kind, items: list[Object], revision: int, now_s: float) -> Object:
    """What kubectl asks for to print (meta.k8s.io/v1 Table)."""
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": str(revision)},
        "columnDefinitions": [
            {"name": name, "type": "string", "format": "name" if name == "Name" else "", "priority": priority}
            for name, priority in columns(kind)
        ],
        "rows": [
            {
                "cells": row(kind, item, now_s),
                "object": {
                    "kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": item["metadata"],
                },
            }
            for item in items
        ],
    }


def server_labels(*, etcd: bool) -> dict[str, str]:
    labels = {CONTROL_PLANE_LABEL: "true"}
    return labels | ({ETCD_LABEL: "true"} if etcd else {})


def etcd_annotations(name: str, address: str) -> dict[str, str]:
    return {ETCD_NAME_ANNOTATION: name, ETCD_ADDRESS_ANNOTATION: address}
