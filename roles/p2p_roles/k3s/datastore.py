"""What has k3s's etcd on this disk, and how is it copied, set aside, reset and saved?

An adapter for a thread: files below the data directory, etcd's own ports on the loopback interface, and
`k3s etcd-snapshot`'s folder. Nothing here deletes a datastore: what must go is renamed, with a label.

Facts (k3s 1.36): ``/health`` on 127.0.0.1:2381 without TLS says whether etcd has a leader; the JSON gateway
on 127.0.0.1:2382 (TLS, with the client certificate of ``tls/etcd``) answers ``/v3/maintenance/status`` also
without a quorum; a folder ``db/etcd/member/wal`` wins over every flag; a reset leaves ``db/reset-flag``.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from p2p_network.core.errors import RoleError
from p2p_roles.k3s.kube import Kube, KubeError
from p2p_roles.k3s.spec import K3sPaths
from p2p_roles.recovery import SnapshotFacts

METRICS_PORT: Final = 2381
GATEWAY_PORT: Final = 2382
_TIMEOUT_S: Final = 2.0
_MAX_ANSWER_BYTES: Final = 1 << 20
_CHUNK_BYTES: Final = 1 << 20
_OWN_NAMESPACES: Final = frozenset({"kube-system", "kube-public", "kube-node-lease"})
_COUNTED: Final = ("pods", "configmaps", "secrets", "services", "persistentvolumeclaims")
_ALWAYS_THERE: Final = frozenset({("configmaps", "kube-root-ca.crt"), ("services", "kubernetes")})


@dataclass(frozen=True, slots=True)
class EtcdFacts:
    """`has_data`: a datastore is on this disk. `is_healthy`: etcd has a leader. The rest is 0 if unknown."""

    has_data: bool = False
    is_healthy: bool = False
    term: int = 0
    index: int = 0
    revision: int = 0


def server_dir(paths: K3sPaths) -> Path:
    """Where a server keeps its state."""
    return Path(paths.data_dir) / "server"


def etcd_facts(paths: K3sPaths) -> EtcdFacts:
    """What this machine's etcd says of itself. Never raises: what can't be known is left out."""
    wal = server_dir(paths) / "db" / "etcd" / "member" / "wal"
    try:
        has_data = any(wal.iterdir())
    except OSError:
        return EtcdFacts()
    healthy = _health()
    try:
        status = _gateway_status(paths)
        header = status["header"]
        return EtcdFacts(
            has_data,
            healthy,
            int(status.get("raftTerm", 0)),
            int(status.get("raftIndex", 0)),
            int(header.get("revision", 0)),
        )
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
        return EtcdFacts(has_data, healthy)


def may_vote(paths: K3sPaths) -> bool:
    """Whether etcd's data is here, and k3s has noted no removal from the cluster (its tombstone)."""
    etcd = server_dir(paths) / "db" / "etcd"
    try:
        return not (etcd / "tombstone").exists() and any((etcd / "member" / "wal").iterdir())
    except OSError:
        return False


def _health() -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", METRICS_PORT, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        answer = json.loads(connection.getresponse().read(_MAX_ANSWER_BYTES))
        return isinstance(answer, dict) and answer.get("health") == "true"
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


def _gateway_status(paths: K3sPaths) -> dict[str, Any]:
    tls = server_dir(paths) / "tls" / "etcd"
    context = ssl.create_default_context(cafile=str(tls / "server-ca.crt"))
    context.check_hostname = False  # the certificate names the node; the address is our own loopback
    context.load_cert_chain(str(tls / "client.crt"), str(tls / "client.key"))
    connection = http.client.HTTPSConnection("127.0.0.1", GATEWAY_PORT, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request("POST", "/v3/maintenance/status", b"{}", {"Content-Type": "application/json"})
        response = connection.getresponse()
        document = json.loads(response.read(_MAX_ANSWER_BYTES))
    finally:
        connection.close()
    if response.status != 200 or not isinstance(document, dict):
        raise ValueError(f"the gateway answers {response.status}")
    return document


def count_workloads(kube: Kube) -> int | None:
    """Objects that people made in this cluster: of namespaces that are not k3s's own, and in ``default``
    what is not always there. None if it can't be told."""
    try:
        found = kube.get("/api/v1/namespaces")
        names = [str(item["metadata"]["name"]) for item in found.get("items") or []]
        count = 0
        for name in names:
            if name in _OWN_NAMESPACES:
                continue
            count += name != "default"
            for kind in _COUNTED:
                count += _count(kube, name, kind)
        return count
    except (KubeError, KeyError, TypeError):
        return None


def _count(kube: Kube, namespace: str, kind: str) -> int:
    try:
        found = kube.get(f"/api/v1/namespaces/{namespace}/{kind}")
    except KubeError as exc:
        if exc.status == 404:  # an API without this kind
            return 0
        raise
    names = [str(item["metadata"]["name"]) for item in found.get("items") or []]
    return sum((kind, name) not in _ALWAYS_THERE for name in names)


# ---------------------------------------------------------------- setting aside, resetting


def set_aside_etcd(paths: K3sPaths, label: str) -> Path | None:
    """Rename etcd's data (and nothing else), so that this server joins anew; where to. Raises OSError."""
    db = server_dir(paths) / "db"
    (db / "reset-flag").unlink(missing_ok=True)
    if not (db / "etcd").exists():
        return None
    target = _unused(db / f"etcd-set-aside-{label}")
    (db / "etcd").rename(target)
    _sync_dir(db)
    return target


def copy_aside(paths: K3sPaths, label: str) -> Path | None:
    """Copy etcd's data before it is reset; k3s must be stopped. Where to, None if there is none.

    A copy that was cut short has another name, so one with this name is whole. Raises RoleError, OSError.
    """
    db = server_dir(paths) / "db"
    target = db / f"etcd-before-{label}"
    if not (db / "etcd").exists() or target.exists():
        return target if target.exists() else None
    needed = sum(file.stat().st_size for file in (db / "etcd").rglob("*") if file.is_file())
    free = shutil.disk_usage(db).free
    if free < 2 * needed:
        raise RoleError(
            f"the disk of {db} has {free >> 20} MiB free, a copy of etcd's data needs {needed >> 20} MiB "
            "and the reset as much again",
            hint="make room, then the recovery goes on by itself",
        )
    part = db / f".etcd-before-{label}.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(db / "etcd", part)
    for file in part.rglob("*"):
        if file.is_file():
            _sync_file(file)
    part.rename(target)
    _sync_dir(db)
    return target


def prepare_reset(paths: K3sPaths) -> None:
    """k3s refuses a second reset until the flag of the first is gone. Raises OSError."""
    (server_dir(paths) / "db" / "reset-flag").unlink(missing_ok=True)


def was_reset(paths: K3sPaths) -> bool:
    """Whether a reset has been completed since."""
    return (server_dir(paths) / "db" / "reset-flag").exists()


def _unused(path: Path) -> Path:
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_sync_dir = _sync_file


# ---------------------------------------------------------------- snapshots


class SnapshotFolder:
    """k3s's snapshots on this disk; digests are computed once per file."""

    def __init__(self, paths: K3sPaths) -> None:
        self.path = server_dir(paths) / "db" / "snapshots"
        self._known: dict[tuple[str, int, int], str] = {}

    def entries(self) -> list[SnapshotFacts]:
        """Newest first. A file that k3s is still writing changes under our hands: it is left out. Blocks."""
        found, known = [], {}
        try:
            entries = sorted(self.path.iterdir())
        except OSError:
            return []
        for file in entries:
            try:
                info = file.stat()
                if not file.is_file() or file.name.startswith(".") or file.suffix in (".part", ".tmp"):
                    continue
                key = (file.name, info.st_size, info.st_mtime_ns)
                digest = self._known.get(key)
                if digest is None:
                    if time.time() - info.st_mtime < 1.0:
                        continue
                    digest = digest_of(file)
                    if file.stat().st_mtime_ns != info.st_mtime_ns:
                        continue
            except OSError:
                continue  # pruned meanwhile
            known[key] = digest
            found.append(SnapshotFacts(file.name, digest, info.st_size, info.st_mtime))
        self._known = known
        return sorted(found, key=lambda s: (-s.created_s, s.name))

    def find(self, name: str) -> Path | None:
        """The file of that name."""
        path = self.path / name
        return path if "/" not in name and not name.startswith(".") and path.is_file() else None


def digest_of(path: Path) -> str:
    """Hex SHA-256 of a file. Raises OSError."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            hashed.update(piece)
    return hashed.hexdigest()
