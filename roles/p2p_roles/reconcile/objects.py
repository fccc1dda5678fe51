"""How do the cluster's own objects look, and what do they tell?

Two ConfigMaps in kube-system: what operators declare (``kairos-p2p-declaration``: changed by them only,
so that two who contradict each other meet in its resourceVersion) and who is what
(``kairos-p2p-assignments``: changed by the holder of the Lease only). Reading is careful: anybody with
rights on the cluster may have edited them; what can't be understood is left out.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from p2p_network.core.ids import PeerId
from p2p_roles.genesis.messages import MAX_SERVERS
from p2p_roles.reconcile.model import Assigned, Declaration, KubeNode, Member

Json = dict[str, Any]

DECLARATION: Final = "kairos-p2p-declaration"
ASSIGNMENTS: Final = "kairos-p2p-assignments"
_SERVER_LABEL: Final = "node-role.kubernetes.io/control-plane"
_MAX_REASON_CHARS: Final = 300


def declaration(stored: Json | None, servers: int) -> Declaration:
    """What is declared; `servers`: as long as nothing is stored."""
    if stored is None:
        return Declaration(servers, configured=servers)
    document = _data(stored, "declaration")
    roles = document.get("roles")
    replace = document.get("replace")
    wanted, configured = document.get("servers"), document.get("configured")
    return Declaration(
        servers=wanted if isinstance(wanted, int) and 1 <= wanted <= MAX_SERVERS else servers,
        roles={
            PeerId(p): r
            for p, r in (roles.items() if isinstance(roles, dict) else ())
            if isinstance(p, str) and r in ("server", "agent")
        },
        replace=frozenset(
            PeerId(p) for p in (replace if isinstance(replace, list) else ()) if isinstance(p, str)
        ),
        configured=configured if isinstance(configured, int) else 0,
        version=version_of(stored),
    )


def declaration_map(declared: Declaration, by: str) -> Json:
    """The ConfigMap that says so. `by`: who wants it, for people."""
    document = {
        "servers": declared.servers,
        "roles": dict(sorted(declared.roles.items())),
        "replace": sorted(declared.replace),
        "configured": declared.configured,
        "by": by,
    }
    return _config_map(DECLARATION, {"declaration": document}, declared.version)


def declared_by(stored: Json | None) -> str:
    """Who changed the declaration last."""
    return str(_data(stored or {}, "declaration").get("by") or "")[:100]


def assigned(stored: Json | None) -> dict[PeerId, Assigned]:
    """Who is what."""
    found: dict[PeerId, Assigned] = {}
    for peer, word in _data(stored or {}, "assignments").items():
        if isinstance(word, dict) and word.get("role") in ("server", "agent"):
            reason = str(word.get("reason") or "")[:_MAX_REASON_CHARS]
            found[PeerId(peer)] = Assigned(word["role"], reason, word.get("leaving") is True)
    return found


def epoch_of(stored: Json | None) -> int:
    """In which epoch the assignments were written last; 0 if that is not told."""
    epoch = _data(stored or {}, "standing").get("epoch")
    return epoch if isinstance(epoch, int) else 0


def of_epoch(stored: Json | None, epoch: int, named: Collection[PeerId]) -> dict[PeerId, Assigned]:
    """Who is what, in this epoch. `named`: the servers that its genesis certifies.

    A datastore that was recovered or restored says what held before: of the servers that the quorum has named
    since then, the newer word counts.
    """
    given = assigned(stored)
    if 0 < epoch_of(stored) < epoch:
        return {peer: word for peer, word in given.items() if peer not in named}
    return given


def assignments_map(given: Mapping[PeerId, Assigned], version: str, epoch: int) -> Json:
    """The ConfigMap that says so."""
    words: Json = {
        peer: {"role": a.role, "reason": a.reason[:_MAX_REASON_CHARS]}
        | ({"leaving": True} if a.leaving else {})
        for peer, a in sorted(given.items())
    }
    return _config_map(ASSIGNMENTS, {"assignments": words, "standing": {"epoch": epoch}}, version)


def version_of(stored: Json | None) -> str:
    """An object's resourceVersion; "" if there is no object."""
    metadata = (stored or {}).get("metadata")
    return str(metadata.get("resourceVersion") or "") if isinstance(metadata, dict) else ""


def nodes(items: object, peers: Mapping[str, PeerId]) -> tuple[KubeNode, ...]:
    """The Nodes of a list. `peers`: who holds which address."""
    found = []
    for item in _dicts(items):
        metadata, status = _dict(item.get("metadata")), _dict(item.get("status"))
        addresses = [
            a.get("address") for a in _dicts(status.get("addresses")) if a.get("type") == "InternalIP"
        ]
        peer = next((peers[a] for a in addresses if isinstance(a, str) and a in peers), PeerId(""))
        ready = any(
            c.get("type") == "Ready" and c.get("status") == "True" for c in _dicts(status.get("conditions"))
        )
        name = metadata.get("name")
        if isinstance(name, str) and name:
            found.append(KubeNode(name, peer, ready, _SERVER_LABEL in _dict(metadata.get("labels"))))
    return tuple(found)


def members(items: Iterable[Json], peers: Mapping[str, PeerId]) -> tuple[Member, ...]:
    """The members of etcd."""
    found = []
    for item in items:
        urls = item.get("peerURLs")
        hosts = [_host(url) for url in urls if isinstance(url, str)] if isinstance(urls, list) else []
        peer = next((peers[host] for host in hosts if host in peers), PeerId(""))
        name = str(item.get("name") or "") or ", ".join(hosts)
        found.append(Member(name, peer, item.get("isLearner") is True))
    return tuple(found)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _config_map(name: str, data: Mapping[str, Json], version: str) -> Json:
    metadata: Json = {
        "name": name,
        "namespace": "kube-system",
        "labels": {"app.kubernetes.io/managed-by": "kairos-p2p"},
    }
    if version:
        metadata["resourceVersion"] = version
    texts = {key: json.dumps(value, sort_keys=True) for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": texts}


def _data(stored: Json, key: str) -> Json:
    text = _dict(stored.get("data")).get(key)
    try:
        return _dict(json.loads(text)) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}


def _dict(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _dicts(value: object) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
