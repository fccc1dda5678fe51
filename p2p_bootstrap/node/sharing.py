"""How does an operator of one cluster get into the other clusters of the mesh?

A server asks one server of each other cluster for its kubeconfig (``kubeconfig --merge``). It is a
cluster-admin key, so it is given only to a node that a quorum's certificate, or the authority of a certified
cluster, names as a server, over the authenticated mesh; ``p2p.share_kubeconfig: false`` gives it to nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.runtime import Runtime
from p2p_network import wire
from p2p_network.core import log
from p2p_network.core.errors import MeshError, P2PError, RemoteViolation
from p2p_network.core.ids import PeerId
from p2p_network.ledger.core import Ledger
from p2p_network.ledger.reading import read_by_peer
from p2p_network.membership import MemberState
from p2p_network.records import RoleRecord
from p2p_roles.assign import Assignment
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis.messages import Certificate, Genesis
from p2p_roles.k3s.kubeconfig import Access, access_of, context_name, merged

if TYPE_CHECKING:
    from p2p_bootstrap.node.ports import Mesh

logger = log.get(__name__)

METHOD: Final = "cluster.kubeconfig"
TIMEOUT_S: Final = 5.0


class Given(msgspec.Struct, frozen=True):
    """The answer: a kubeconfig, or "" and why not."""

    kubeconfig: str
    reason: str = ""

    def __repr__(self) -> str:
        return f"Given({'a kubeconfig' if self.kubeconfig else self.reason})"


@dataclass(frozen=True, slots=True)
class Cluster:
    """One cluster of the mesh as the ledger tells it. `peers`: its ready servers."""

    scope: str
    cluster_id: str
    servers: int
    agents: int
    ready: int
    peers: tuple[PeerId, ...]


class Sharing:
    """Hands the kubeconfig out, and collects those of others.

    Args:
        own: this node's kubeconfig; raises RoleError where there is none.
        is_open: the configuration's ``p2p.share_kubeconfig``.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        self_id: PeerId,
        scope: str,
        is_open: bool,
        host: Mesh,
        replication: Replication,
        own: Callable[[], Awaitable[str]],
    ) -> None:
        self._runtime = runtime
        self._self_id = self_id
        self._scope = scope
        self._is_open = is_open
        self._host = host
        self._replication = replication
        self._own = own
        host.serve(METHOD, self._answer)

    # ------------------------------------------------------------ the whole mesh

    def clusters(self) -> list[Cluster]:
        """Every cluster that nodes of this mesh say they belong to, this node's first."""
        said = read_by_peer(self._replication.ledger, "role/", RoleRecord)
        found: dict[tuple[str, str], list[tuple[PeerId, RoleRecord, bool]]] = {}
        for member in self._replication.view.members:
            record = said.get(member.peer)
            if record is None or member.state is MemberState.LEFT or not record.cluster_id:
                continue
            alive = member.state is MemberState.ALIVE
            found.setdefault((record.scope, record.cluster_id), []).append((member.peer, record, alive))
        clusters = [
            Cluster(
                scope=scope,
                cluster_id=cluster_id,
                servers=sum(r.role == "server" for _, r, _ in nodes),
                agents=sum(r.role == "agent" for _, r, _ in nodes),
                ready=sum(r.ready and alive for _, r, alive in nodes),
                peers=tuple(p for p, r, alive in nodes if alive and r.ready and r.role == "server"),
            )
            for (scope, cluster_id), nodes in found.items()
        ]
        return sorted(clusters, key=lambda c: (c.scope != self._scope, c.scope, c.cluster_id))

    async def merged(self) -> tuple[str, dict[str, str]]:
        """One kubeconfig for all clusters, and why some are not in it. Raises RoleError on an agent."""
        parts = [access_of(context_name(self._scope), await self._own())]
        others: dict[str, Access] = {}
        missing: dict[str, str] = {}

        async def collect(cluster: Cluster) -> None:
            why = "none of its servers is ready and connected"
            for peer in cluster.peers:
                try:
                    raw = await self._host.request(peer, METHOD, b"", timeout_s=TIMEOUT_S)
                    given = wire.decode(raw, Given)
                    if given.kubeconfig:
                        others[cluster.scope] = access_of(context_name(cluster.scope), given.kubeconfig)
                        return
                    why = given.reason[:300]
                except (MeshError, ValueError) as exc:
                    why = str(exc)[:300]
            missing[cluster.scope] = why

        async with self._runtime.task_group() as tasks:
            for cluster in self.clusters():
                if cluster.scope != self._scope:
                    tasks.start_soon(collect, cluster)
        parts += [others[scope] for scope in sorted(others)]
        return merged(parts), missing

    # ------------------------------------------------------------ for others

    async def _answer(self, peer: PeerId, payload: bytes) -> bytes:
        if payload:
            raise RemoteViolation("cluster.kubeconfig takes no argument", peer=peer)
        if not self._is_open:
            given = Given(
                "", "its operator shares the kubeconfig with no other cluster (p2p.share_kubeconfig)"
            )
        elif peer not in certified_servers(self._replication.ledger):
            given = Given("", "only servers of a cluster of this mesh get it, and this node is none")
        else:
            try:
                given = Given(await self._own())
            except P2PError as exc:
                given = Given("", exc.message[:300])
        level = logging.INFO if given.kubeconfig else logging.WARNING
        reason = given.reason or "it is a server of a cluster of this mesh"
        self._runtime.log(logger, "roles.kubeconfig_asked", level, peer=peer, reason=reason)
        return wire.encode(given)


def certified_servers(ledger: Ledger) -> frozenset[PeerId]:
    """Who is a server of a READY cluster of this mesh: named by its certificate or by its authority."""
    decided: dict[tuple[str, int], Genesis] = {}
    ready: set[tuple[str, int]] = set()
    for entry in ledger.items("genesis/"):
        if entry.value is None:
            continue
        known: Certificate = certificates.decode(entry.value)  # the ledger's policy has verified it
        where = (known.instance.scope, known.instance.epoch)
        value = certificates.value_of(known)
        if isinstance(value, Genesis):
            decided[where] = value
        elif certificates.is_ready(known):
            ready.add(where)
    found: set[PeerId] = set()
    for where in ready & decided.keys():
        genesis = decided[where]
        found |= {PeerId(peer) for peer in genesis.servers}
        for peer, given in read_by_peer(ledger, f"assign/{where[0]}/", Assignment).items():
            if given.role == "server" and given.cluster_id == genesis.cluster_id:
                found.add(peer)
    return frozenset(found)
