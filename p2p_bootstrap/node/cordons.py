"""Who cordons the Nodes of drained nodes, and moves their pods away?

The server that holds the cluster's lease, at each pass: what is to be done follows from the Nodes as they
are and from who is drained (`p2p_roles.reconcile.cordon`), so whoever takes the lease over goes on where the
other ended. An eviction that a PodDisruptionBudget forbids is asked for again at the next pass.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from p2p_bootstrap.node.runtime import Runtime
from p2p_network.core import log
from p2p_network.core.ids import PeerId
from p2p_roles.k3s import kube as api
from p2p_roles.reconcile import cordon
from p2p_roles.reconcile.model import KubeNode
from p2p_roles.reconcile.objects import Json

if TYPE_CHECKING:
    from p2p_bootstrap.node.ports import KubeApi

logger = log.get(__name__)

MAX_EVICTIONS: Final = 50
"""At a pass; the rest follows at the next one."""


class Cordons:
    """The marks on the Nodes of one cluster."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._told: frozenset[str] = frozenset()

    async def keep(
        self,
        kube: KubeApi,
        items: Sequence[Json],
        nodes: Sequence[KubeNode],
        drained: Mapping[PeerId, str],
    ) -> None:
        """Bring the Nodes to what is announced. `items`: as the API has them; `drained`: in words.

        Raises KubeError: the next pass begins anew.
        """
        peers = {node.name: node.peer for node in nodes if node.peer}
        for change in cordon.changes(list(items), peers, drained):
            await self._runtime.in_thread(kube.patch, api.below(api.NODES, change.node), change.patch)
            self._runtime.log(logger, "roles.node_cordoned", name=change.node, reason=change.reason)
        leaving = [name for name, peer in peers.items() if peer in drained]
        pods = await self._runtime.in_thread(kube.get, api.PODS) if leaving else {}
        for name in leaving:
            await self._evict(kube, name, pods.get("items"))
        self._told = frozenset(key for key in self._told if peers.get(key.partition(" ")[0]) in drained)

    async def _evict(self, kube: KubeApi, node: str, pods: object) -> None:
        for pod in cordon.to_evict(pods, node)[:MAX_EVICTIONS]:
            asked = f"{node} {pod.namespace}/{pod.name}"
            try:
                path = api.eviction_of(pod.namespace, pod.name)
                await self._runtime.in_thread(kube.create, path, cordon.eviction(pod))
            except api.NotFound:
                continue
            except api.KubeError as exc:
                if asked not in self._told:
                    self._told |= {asked}
                    self._runtime.log(
                        logger, "roles.pod_not_evicted", logging.WARNING, name=asked, error=exc.message
                    )
                continue
            self._runtime.log(logger, "roles.pod_evicted", name=asked, reason="its node is drained")
