"""What does the agent answer when somebody asks about the cluster as a whole, and what follows a restore?

Implements `api.upkeep.Upkeep` over the columns `Recovery` and `Snapshots`; makes plans into documents. After
a cluster was brought back here, and before it is certified (so before anyone joins), the Kubernetes nodes
that do not exist any more are removed: their passwords would keep machines of the same name out.
"""

from __future__ import annotations

import datetime
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from p2p_bootstrap.api.upkeep import CandidateDoc, DoneDoc, PlanDoc, SnapshotDoc
from p2p_bootstrap.config.loading import Config
from p2p_bootstrap.node import backup as backups
from p2p_bootstrap.node.backup import Backup
from p2p_bootstrap.node.k3s import K3sUnit
from p2p_bootstrap.node.recovery import Look, Recovery
from p2p_bootstrap.node.restoring import Restoring
from p2p_bootstrap.node.snapshots import Snapshots
from p2p_network.core import log
from p2p_network.core.errors import P2PError, RoleError
from p2p_network.core.ids import PeerId, short
from p2p_roles.genesis.messages import Genesis
from p2p_roles.k3s import kube
from p2p_roles.k3s.spec import K3sPaths
from p2p_roles.recovery import SnapshotFacts

if TYPE_CHECKING:
    from p2p_bootstrap.node.cluster import Cluster

logger = log.get(__name__)

BACKUP_SNAPSHOT: Final = "backup"


class Upkeep:
    """The cluster as a whole, as the local API sees it."""

    def __init__(
        self,
        *,
        config: Config,
        self_id: PeerId,
        cluster: Cluster,
        k3s: K3sUnit,
        recovery: Recovery,
        snapshots: Snapshots,
        restoring: Restoring,
    ) -> None:
        self._config = config
        self._self_id = self_id
        self._cluster = cluster
        self._k3s = k3s
        self._recovery = recovery
        self._snapshots = snapshots
        self._restoring = restoring
        self._one = trio.Lock()
        cluster.before_certified = self.remove_gone_nodes

    # ------------------------------------------------------------ recoveries

    async def plan_recovery(self, lost: tuple[str, ...], survivor: str, snapshot: str) -> PlanDoc:
        """What a recovery would do."""
        return _plan_doc(await self._recovery.look(lost=lost, survivor=survivor, snapshot=snapshot))

    async def recover(self, lost: tuple[str, ...], survivor: str, snapshot: str) -> DoneDoc:
        """Have it decided."""
        look = await self._recovery.look(lost=lost, survivor=survivor, snapshot=snapshot)
        async with self._one:
            return DoneDoc(done=await self._recovery.approve(look.plan))

    async def plan_resolution(self, keep: str) -> PlanDoc:
        """What keeping one of two clusters would do."""
        return _plan_doc(await self._recovery.look_at_twins(keep))

    async def resolve(self, keep: str) -> DoneDoc:
        """Have it decided."""
        look = await self._recovery.look_at_twins(keep)
        async with self._one:
            return DoneDoc(done=await self._recovery.approve(look.plan))

    # ------------------------------------------------------------ snapshots

    async def snapshots(self) -> list[SnapshotDoc]:
        """All in reach, newest first."""
        view = self._cluster.machine.view
        found: dict[str, SnapshotFacts] = {}
        held: dict[str, list[str]] = {}
        everywhere = {
            **await self._snapshots.ask_all(),
            self._self_id: tuple(await self._snapshots.snapshots()),
        }
        for peer, facts in everywhere.items():
            for one in facts:
                found[one.digest] = one
                held.setdefault(one.digest, []).append(view.name(peer))
        return [
            SnapshotDoc(
                name=one.name,
                digest=one.digest,
                size_bytes=one.size_bytes,
                created=datetime.datetime.fromtimestamp(one.created_s, datetime.UTC).isoformat(
                    timespec="seconds"
                ),
                age_s=max(0.0, time.time() - one.created_s),
                node=one.node,
                held_by=sorted(held[one.digest]),
            )
            for one in sorted(found.values(), key=lambda s: (-s.created_s, s.digest))
        ]

    async def save_snapshot(self, name: str) -> DoneDoc:
        """Have etcd write one now."""
        self._genesis_served()
        facts = await self._snapshots.save(name)
        return DoneDoc(done=f"{facts.name} saved: {facts.size_bytes} bytes, sha256 {facts.digest}")

    def _genesis_served(self) -> Genesis:
        """Of the cluster whose server this node is. Raises RoleError."""
        member = self._cluster.machine.member
        if member is None or member.role != "server" or not member.joined:
            servers = [n.hostname for n in self._cluster.machine.view.nodes if n.role == "server"]
            raise RoleError(
                "this node is no server of a cluster that is up",
                hint=f"run the same command on a server: {', '.join(servers) or 'none is known yet'}",
            )
        return member.genesis

    # ------------------------------------------------------------ backups

    async def backup(self, path: str, passphrase_file: str) -> DoneDoc:
        """Write the whole cluster into one sealed file."""
        genesis = self._genesis_served()
        passphrase = await trio.to_thread.run_sync(backups.read_passphrase, Path(passphrase_file))
        secrets = await trio.to_thread.run_sync(self._k3s.cluster_secrets, genesis.ca_hash)
        async with self._one:
            facts = await self._snapshots.save(BACKUP_SNAPSHOT)
            source = self._k3s.data.folder.find(facts.name)
            if source is None:
                raise RoleError(f"the snapshot {facts.name} is gone again")
            whole = Backup(
                1,
                time.time(),
                genesis,
                self._config.declared_servers,
                await self._node_names(),
                facts,
                secrets,
            )
            size = await trio.to_thread.run_sync(backups.write, Path(path), whole, source, passphrase)
        log.event(logger, "backup.written", path=path, bytes=size, cluster=genesis.cluster_id)
        return DoneDoc(done=f"{path}: {size} bytes, with the snapshot {facts.name}")

    async def _node_names(self) -> tuple[str, ...]:
        def names() -> tuple[str, ...]:
            found = self._kube().get(kube.NODES)
            return tuple(sorted(str(item["metadata"]["name"]) for item in found.get("items") or []))

        return await trio.to_thread.run_sync(names)

    def _kube(self) -> kube.Kube:
        return kube.Kube(Path(K3sPaths().kubeconfig))

    async def restore(self, path: str, passphrase_file: str, abandon: bool, lost: tuple[str, ...]) -> DoneDoc:
        """Begin the cluster of a backup on this mesh, with this node as its first server."""
        self._restoring.check()
        passphrase = await trio.to_thread.run_sync(backups.read_passphrase, Path(passphrase_file))
        async with self._one:
            target = self._snapshots.vault.folder / ".from-backup"
            whole = await trio.to_thread.run_sync(backups.read, Path(path), passphrase, target)
            try:
                genesis = await self._restoring.begin(whole, target, abandon=abandon, lost=lost)
            finally:
                target.unlink(missing_ok=True)
        log.event(logger, "backup.restoring", cluster=genesis.cluster_id, snapshot=whole.snapshot.digest)
        return DoneDoc(done=f"decided: this node begins the cluster from {whole.snapshot.name}")

    # ------------------------------------------------------------ after a restore or a recovery

    async def remove_gone_nodes(self, genesis: Genesis) -> None:
        """Delete the Kubernetes nodes that do not exist any more. Never raises: k3s can be tidied by hand."""
        after = genesis.continues
        if after is None or not after.reset:
            return
        view = self._cluster.machine.view
        own = await trio.to_thread.run_sync(self._k3s.own_node_name)
        if after.cluster_id:
            gone = {view.name(peer).lower() for peer in after.lost}
            gone |= {f"{view.name(peer).lower()}-{short(PeerId(peer))}".lower() for peer in after.lost}

        def clean() -> int:
            api, count = self._kube(), 0
            for item in api.get(kube.NODES).get("items") or []:
                name = str(item["metadata"]["name"])
                if name == own or (after.cluster_id and name not in gone):
                    continue
                for place in (
                    kube.below(kube.NODES, name),
                    kube.below(kube.SECRETS, f"{name}.node-password.k3s"),
                ):
                    try:
                        api.delete(place)
                        count += 1
                    except kube.NotFound:
                        pass
            return count

        try:
            count = await trio.to_thread.run_sync(clean)
        except (P2PError, KeyError, TypeError) as exc:
            log.event(logger, "roles.nodes_not_removed", logging.WARNING, detail=str(exc))
            return
        if count:
            log.event(
                logger, "roles.nodes_removed", count=count, reason="they are not of this cluster any more"
            )


def _plan_doc(look: Look) -> PlanDoc:
    plan = look.plan
    now = time.time()
    candidates = []
    for one in plan.candidates:
        newest = one.facts.snapshots[0] if one.facts.snapshots else None
        candidates.append(
            CandidateDoc(
                hostname=one.hostname,
                peer=one.peer,
                term=one.facts.term,
                index=one.facts.index,
                revision=one.facts.revision,
                k3s=one.facts.k3s,
                newest_snapshot=newest.name if newest else "",
                snapshot_age_s=max(0.0, now - newest.created_s) if newest else None,
            )
        )
    return PlanDoc(
        survivor=plan.survivor.hostname if plan.survivor else "",
        candidates=candidates,
        forbidden=list(plan.forbidden),
        losses=list(plan.losses),
        steps=list(plan.steps),
        needed=plan.is_needed,
    )
