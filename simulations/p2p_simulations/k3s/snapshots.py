"""How is a cluster's memory saved and brought back? `etcd-snapshot`, and `server --cluster-reset`.

A snapshot is the state machine's dump in a file of its own. A reset makes this member the only one of a
cluster with the same objects: what to do when the majority is lost for ever.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from p2p_simulations.k3s import bootstrap, log, raft
from p2p_simulations.k3s.errors import HttpError, K3sError
from p2p_simulations.k3s.flags import Settings
from p2p_simulations.k3s.layout import Layout, Machine
from p2p_simulations.k3s.process import write_file
from p2p_simulations.k3s.state import State
from p2p_simulations.k3s.wal import Wal

RESET_DONE = (
    "Managed etcd cluster membership has been reset, restart without --cluster-reset flag now. "
    "Backup and delete ${datadir}/server/db on each peer etcd server and rejoin the nodes"
)


def folder(settings: Settings, where: Layout) -> Path:
    """Where a server keeps its snapshots."""
    chosen = settings.text("etcd-snapshot-dir")
    return Path(chosen) if chosen else where.server / "db" / "snapshots"


def carry_out(order: dict[str, Any], where: Path, state: State, node_name: str) -> dict[str, Any]:
    """An order of `/db/snapshot`: {"operation": save|list|delete|prune, "name": [...], "retention"}."""
    names = [Path(str(name)).name for name in order.get("name") or []]
    existing = sorted(where.glob("*")) if where.is_dir() else []
    match order.get("operation"):
        case "save":
            name = f"{names[0] if names else 'on-demand'}-{node_name}-{int(time.time())}"
            write_file(where / name, sealed(state.dump()))
            log.info(f"Saving etcd snapshot to {where / name}")
            return {"created": [name]}
        case "list":
            return {
                "kind": "ETCDSnapshotFileList",
                "apiVersion": "k3s.cattle.io/v1",
                "items": [_describe(path, node_name) for path in existing],
            }
        case "delete":
            return {"deleted": [_unlink(path) for path in existing if path.name in names]}
        case "prune":
            prefix = f"{names[0] if names else 'on-demand'}-{node_name}-"
            ours = [path for path in existing if path.name.startswith(prefix)]
            keep = int(order.get("retention") or 5)
            return {"deleted": [_unlink(path) for path in ours[: max(0, len(ours) - keep)]]}
        case other:
            raise HttpError(400, f"unknown snapshot operation {other}")


def sealed(dump: str) -> str:
    """A snapshot's content: the dump, and its hash at the end, as etcd has it."""
    return f"{dump}\n{hashlib.sha256(dump.encode()).hexdigest()}\n"


def opened(content: bytes) -> str:
    """The dump in a snapshot. Raises K3sError with etcd's words if it is torn."""
    dump, _, rest = content.partition(b"\n")
    if rest != hashlib.sha256(dump).hexdigest().encode() + b"\n":
        raise K3sError(
            "starting kubernetes: failed to start cluster: start managed database: "
            "snapshot missing hash but --skip-hash-check=false"
        )
    return dump.decode()


def _unlink(path: Path) -> str:
    path.unlink()
    return path.name


def _describe(path: Path, node_name: str) -> dict[str, Any]:
    info = path.stat()
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(info.st_mtime))
    return {
        "metadata": {"name": path.name},
        "spec": {"snapshotName": path.name, "nodeName": node_name, "location": f"file://{path}"},
        "status": {"size": str(info.st_size), "creationTime": created, "readyToUse": True},
    }


def cluster_reset(settings: Settings, where: Layout, own: Machine) -> None:
    """Carry out `--cluster-reset`; the process ends afterwards. Raises K3sError with k3s's text."""
    if settings.text("server"):
        raise K3sError(
            "cannot perform cluster-reset while server URL is set - "
            "remove server from configuration before resetting"
        )
    restore_path = settings.text("cluster-reset-restore-path")
    if where.reset_flag.exists() and not restore_path:
        raise K3sError(
            "starting kubernetes: failed to start cluster: start managed database: Managed etcd cluster "
            "membership was previously reset, please remove the cluster-reset flag and start k3s normally. "
            "If you need to perform another cluster reset, you must first manually delete the file at "
            f"{where.reset_flag}"
        )
    saved = Wal.open(where.wal).saved if where.is_etcd() else raft.Saved()
    state = State.load(saved.snapshot.data)
    decided = saved.entries
    if restore_path:
        path = Path(restore_path)
        if not path.is_file():
            raise K3sError(f"etcd: snapshot path does not exist: {restore_path}")
        if where.etcd.exists():
            old = where.etcd.with_name(f"etcd-old-{int(time.time())}")
            shutil.move(where.etcd, old)
            log.info(f"Pre-restore etcd database moved to {old}")
        state = State.load(opened(path.read_bytes()))
    else:
        for entry in decided:
            if entry.data:
                state.apply(entry.index, json.loads(entry.data))
    state.removals = []
    # k3s: "in case the node password from the snapshot differs from the one on disk"
    state.objects.pop(f"/registry/secrets/kube-system/{own.name}.node-password.k3s", None)
    name = bootstrap.member_name(where, own, fresh=True)
    host = f"[{own.addresses[0]}]" if ":" in own.addresses[0] else own.addresses[0]
    index = max(state.revision, saved.entries[-1].index if saved.entries else saved.snapshot.index)
    others = [e.config for e in reversed(saved.entries) if e.config is not None]
    before = others[0] if others else saved.snapshot.config
    member = raft.Member(
        (index + int(time.time())) % (1 << 47) + 1,
        name,
        f"https://{host}:2380",
        f"https://{host}:2379",
        False,
    )
    config = raft.Config((member,), tuple({*before.removed, *before.ids} - {member.id}))
    snapshot = raft.Snapshot(index, saved.term, config, state.dump())
    Wal.create(where.wal, member.id, raft.Saved(saved.term, None, snapshot)).close()
    (where.agent / "etc" / "k3s-agent-load-balancer.json").unlink(missing_ok=True)
    write_file(where.reset_flag, b"")
    log.error(f'Shutdown request received: "{RESET_DONE}"')
