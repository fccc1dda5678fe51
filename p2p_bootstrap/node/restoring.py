"""How does a backup become the cluster of this mesh, with this node as its first server?

What is in the backup is kept on this disk (its snapshot sealed in the vault, its CA and tokens); then a
GENESIS that begins etcd from that snapshot is handed to the bootstrap machine, to have it decided. What is
done then follows from the certificate, on every node by itself; a cluster that is up here is set aside only
on an explicit word.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from p2p_bootstrap.node.backup import Backup
from p2p_bootstrap.node.recovery import Recovery, find_peer
from p2p_bootstrap.node.runtime import Runtime
from p2p_network.core.errors import QuorumMissing, RoleError
from p2p_network.core.ids import PeerId, stable_hash
from p2p_roles import assign
from p2p_roles.genesis.messages import Continuation, Genesis
from p2p_roles.recovery import given_up

if TYPE_CHECKING:
    from p2p_bootstrap.node.cluster import Cluster
    from p2p_bootstrap.node.ports import Restored
    from p2p_bootstrap.node.snapshots import Snapshots


class Restoring:
    """Begins clusters from backups.

    Args:
        servers: how many this node declares.
        may_serve: it is not forced to be an agent.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        self_id: PeerId,
        servers: int,
        may_serve: bool,
        cluster: Cluster,
        k3s: Restored,
        recovery: Recovery,
        snapshots: Snapshots,
    ) -> None:
        self._runtime = runtime
        self._self_id = self_id
        self._servers = servers
        self._may_serve = may_serve
        self._cluster = cluster
        self._k3s = k3s
        self._recovery = recovery
        self._snapshots = snapshots

    def check(self) -> None:
        """Whether this node can be a first server now. Raises RoleError."""
        if not self._may_serve:
            raise RoleError("this node is forced to be an agent (p2p.role)", hint="restore on another node")
        if not self._cluster.machine.vpn_ip:
            raise RoleError("this node has no VPN address yet", hint="wait: kairos-p2p wait mesh")
        machine = self._cluster.machine
        rule = machine.rules.placement
        if rule.kind == "pack" and self._self_id not in assign.rank(machine.view, (), rule):
            raise RoleError(
                "this node is outside the home region, where all servers stand (p2p.placement: pack)",
                hint="restore on a node in the home region",
            )

    async def begin(
        self, whole: Backup, snapshot: Path, *, abandon: bool, lost: tuple[str, ...] = ()
    ) -> Genesis:
        """Have it decided; what was. Raises RoleError, QuorumMissing.

        Args:
            snapshot: that of the backup, in clear; may be removed afterwards.
            abandon: what users have in a cluster that is up here may be set aside.
            lost: host names or ends of peer ids; nodes that an operator declares lost for ever.
        """
        self.check()
        gone = tuple(sorted(find_peer(self._cluster.machine.view, name) for name in lost))
        secret = whole.secrets.server_token.encode()
        self._snapshots.spared.add(whole.snapshot.digest)  # it may be older than all that is kept
        await self._runtime.in_thread(self._snapshots.vault.seal_in, snapshot, whole.snapshot, secret)
        await self._runtime.in_thread(self._k3s.keep_restored, whole.secrets)
        genesis = await self._genesis(whole, abandon, gone)
        refusal = await self._cluster.recover(genesis)
        if refusal:
            raise QuorumMissing(
                f"no quorum decided the restore: {refusal}",
                hint="look at: kairos-p2p roles list; name with --lost who is gone for good",
            )
        return genesis

    async def _genesis(self, whole: Backup, abandon: bool, lost: tuple[PeerId, ...]) -> Genesis:
        machine = self._cluster.machine
        up = machine.up_epoch()
        abandons: tuple[str, ...] = ()
        if up:
            facts = await self._recovery.ask_all()
            present = {f.genesis.cluster_id: f for f in facts.values() if f.genesis is not None}
            if machine.member is not None and machine.member.joined and machine.member.role == "server":
                count = await self._k3s.count_workloads()
            else:
                count = max((f.workloads or 0 for f in present.values()), default=0)
            if count and not abandon:
                raise RoleError(
                    f"the cluster that is up here has {count} objects of users",
                    hint="it would be set aside; if that is meant: --abandon",
                )
            # nobody may be in reach who was in it: those decided since, too, say what they were to carry on
            since = [machine.certified_genesis(e) for e in {up, machine.epoch - 1, machine.epoch}]
            told = [*(f.genesis for f in present.values()), *since]
            abandons = given_up(genesis for genesis in told if genesis is not None)
        rule = machine.rules.placement  # of these machines: the backup's had other regions
        chosen = assign.first_servers(machine.view, self._self_id, self._servers, machine.failed(), rule)
        old = whole.genesis
        return Genesis(
            cluster_id=f"{stable_hash('restore', machine.scope, up, self._self_id, old.cluster_id):016x}",
            initiator=self._self_id,
            vpn_ip=machine.vpn_ip,
            ca_hash=whole.secrets.ca_hash,
            args_hash=machine.rules.args_hash,
            k3s_version=machine.rules.k3s_version,
            servers=chosen.servers,
            datastore="etcd",
            placement=rule.kind,
            home_region=rule.home_region,
            continues=Continuation(
                up,
                reset=True,
                snapshot=whole.snapshot.digest,
                lost=lost,
                abandons=abandons,
                approved_by=self._self_id,
            ),
        )
