"""With which manifest does kube-vip carry a virtual IP for the servers? Pure.

A DaemonSet with its rights, in ``server/manifests``, which k3s applies by itself, or a static pod in
``agent/pod-manifests``. The virtual IP is for those who come from outside (kubectl, a load balancer) and for
machines without our VPN; agents find every server by k3s's own balancer and never go through it. Settings of
kube-vip itself become its environment, by the names of its own documentation. A manifest of the user's takes
the place of all that.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from p2p_network.core.errors import RoleError
from p2p_roles.k3s.spec import API_PORT, FileSpec, K3sPaths

IMAGE: Final = "ghcr.io/kube-vip/kube-vip"
VERSION: Final = "v1.0.1"
FILE: Final = "kairos-p2p-kube-vip.yaml"
_NAME: Final = "kube-vip"
_NAMESPACE: Final = "kube-system"

# kube-vip's configuration, as Kairos takes it, and the variable that sets it
VARIABLES: Final[Mapping[str, str]] = {
    "address": "address",
    "arpBroadcastRate": "vip_arpRate",
    "ddns": "vip_ddns",
    "enableARP": "vip_arp",
    "enableBGP": "bgp_enable",
    "enableControlPlane": "cp_enable",
    "enableLeaderElection": "vip_leaderelection",
    "enableLoadBalancer": "lb_enable",
    "EnableServiceSecurity": "enable_service_security",
    "enableRoutingTable": "vip_routingtable",
    "enableServices": "svc_enable",
    "enableServicesElection": "svc_election",
    "enableWireguard": "vip_wireguard",
    "lbClassName": "lb_class_name",
    "lbClassOnly": "lb_class_only",
    "lbForwardingMethod": "lb_fwdmethod",
    "lbPort": "lb_port",
    "leaseName": "vip_leasename",
    "logging": "vip_loglevel",
    "namespace": "cp_namespace",
    "port": "port",
    "prometheusHTTPServer": "prometheus_server",
    "routingTableID": "vip_routingtableid",
    "routingTableType": "vip_routingtabletype",
    "serviceNamespace": "svc_namespace",
    "servicesInterface": "vip_servicesinterface",
    "singleNode": "vip_singlenode",
    "startAsLeader": "vip_startleader",
    "vip": "address",
    "vipSubnet": "vip_subnet",
}
_BGP: Final[Mapping[str, str]] = {
    "routerid": "bgp_routerid",
    "as": "bgp_as",
    "sourceif": "bgp_sourceif",
    "sourceip": "bgp_sourceip",
}
_BGP_PEER: Final[Mapping[str, str]] = {
    "address": "bgp_peeraddress",
    "as": "bgp_peeras",
    "password": "bgp_peerpass",
    "multihop": "bgp_multihop",
}
MAPS: Final[Mapping[str, Mapping[str, str]]] = {"bgpConfig": _BGP, "bgpPeerConfig": _BGP_PEER}


@dataclass(frozen=True, slots=True)
class KubeVipOptions:
    """What a cloud-config says about kube-vip.

    Attributes:
        eip: the virtual IP, or a name that resolves to it; "" only with a manifest of the user's.
        interface: device that carries it; "": the one with the default route.
        settings: kube-vip's own, by its own names.
        manifest: the user's, in place of ours.
    """

    eip: str = ""
    interface: str = ""
    image: str = ""
    version: str = ""
    static_pod: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    manifest: bytes | None = field(default=None, repr=False)


def without_effect(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings that no variable of kube-vip stands for here."""
    return tuple(sorted(name for name in settings if name not in VARIABLES and name not in MAPS))


def file_of(options: KubeVipOptions, paths: K3sPaths) -> FileSpec:
    """The file that brings kube-vip up. Raises RoleError if there is no address."""
    folder = "agent/pod-manifests" if options.static_pod else "server/manifests"
    path = f"{paths.data_dir}/{folder}/{FILE}"
    if options.manifest is not None:
        return FileSpec(path, options.manifest)
    if not options.eip:
        raise RoleError("kube-vip has no address", hint="set kubevip.eip to the virtual IP")
    documents = [_static_pod(options, paths)] if options.static_pod else [*_rights(), _daemon_set(options)]
    head = "# written by kairos-p2p for kubevip in the cloud-config\n"
    return FileSpec(path, (head + yaml.safe_dump_all(documents, sort_keys=False)).encode())


def environment(options: KubeVipOptions) -> dict[str, str]:
    """kube-vip's environment: a virtual IP for the servers by ARP, unless the settings say otherwise."""
    try:
        subnet = str(ipaddress.ip_address(options.eip).max_prefixlen)
    except ValueError:
        subnet = "32"  # a name
    bgp = bool(options.settings.get("enableBGP"))
    made: dict[str, str] = {
        "vip_arp": "false" if bgp else "true",
        "port": str(API_PORT),
        "vip_subnet": subnet,
        "cp_enable": "true",
        "cp_namespace": _NAMESPACE,
        "vip_leaderelection": "false" if bgp else "true",
        "address": options.eip,
    }
    if options.interface:
        made["vip_interface"] = options.interface
    if bgp:
        made["bgp_enable"] = "true"
    for name, value in options.settings.items():
        if (variable := VARIABLES.get(name)) is not None and value is not None:
            made[variable] = _text(value)
        elif name in MAPS and isinstance(value, Mapping):
            for key, inner in value.items():
                if str(key).lower() == "peers" and isinstance(inner, list):
                    made["bgp_peers"] = ",".join(map(str, inner))
                elif (variable := MAPS[name].get(str(key).lower())) is not None and inner is not None:
                    made[variable] = _text(inner)
    if made["vip_leaderelection"] == "true":
        made |= {"vip_leaseduration": "5", "vip_renewdeadline": "3", "vip_retryperiod": "1"}
    return made


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _pod_spec(options: KubeVipOptions) -> dict[str, Any]:
    image = options.image or f"{IMAGE}:{options.version or VERSION}"
    env: list[dict[str, Any]] = [{"name": n, "value": v} for n, v in environment(options).items()]
    env.append({"name": "vip_nodename", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}})
    return {
        "hostNetwork": True,
        "containers": [
            {
                "name": _NAME,
                "image": image
                if ":" in image.rpartition("/")[2]
                else f"{image}:{options.version or VERSION}",
                "imagePullPolicy": "IfNotPresent",
                "args": ["manager"],
                "env": env,
                "securityContext": {"capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]}},
            }
        ],
    }


def _static_pod(options: KubeVipOptions, paths: K3sPaths) -> dict[str, Any]:
    spec = _pod_spec(options)
    mounted = "/etc/kubernetes/admin.conf"
    spec["containers"][0]["volumeMounts"] = [{"name": "kubeconfig", "mountPath": mounted}]
    spec["hostAliases"] = [{"ip": "127.0.0.1", "hostnames": ["kubernetes"]}]
    spec["volumes"] = [{"name": "kubeconfig", "hostPath": {"path": paths.kubeconfig, "type": "File"}}]
    meta = {"name": _NAME, "namespace": _NAMESPACE}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def _daemon_set(options: KubeVipOptions) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": _NAME}
    spec = _pod_spec(options)
    spec["serviceAccountName"] = _NAME
    spec["tolerations"] = [{"effect": effect, "operator": "Exists"} for effect in ("NoSchedule", "NoExecute")]
    servers = {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}
    spec["affinity"] = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [servers]}]
            }
        }
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": _NAME, "namespace": _NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def _rights() -> list[dict[str, Any]]:
    rbac = "rbac.authorization.k8s.io"
    role = f"system:{_NAME}-role"
    watch = ["list", "get", "watch", "update"]
    rules = [
        {"apiGroups": [""], "resources": ["services/status"], "verbs": ["update"]},
        {"apiGroups": [""], "resources": ["services", "endpoints"], "verbs": watch},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": [*watch, "patch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": [*watch, "create"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": watch},
    ]
    account = {"name": _NAME, "namespace": _NAMESPACE}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": role}, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"system:{_NAME}-binding"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", **account}],
        },
    ]
