"""What does a cluster do by itself? The controllers that run where the datastore leads.

Namespaces exist, and a node whose kubelet stopped renewing its lease becomes NotReady. A node's silence is
measured from when this controller saw its lease change, never by comparing clocks of two machines.
"""

from __future__ import annotations

import asyncio

from p2p_simulations.k3s import kubeapi, log, objects, timing
from p2p_simulations.k3s.datastore import Datastore
from p2p_simulations.k3s.errors import HttpError, Unavailable
from p2p_simulations.k3s.flags import Settings
from p2p_simulations.k3s.state import NODES, Object

NODE, NAMESPACE = objects.KINDS[0], objects.KINDS[1]
NAMESPACES = ("kube-system", "default", "kube-public", "kube-node-lease")


async def ensure_namespaces(store: Datastore) -> None:
    """Raises Unavailable."""
    await store.barrier()
    for name in NAMESPACES:
        if store.state.get(f"/registry/namespaces/{name}") is None:
            try:
                await kubeapi.create(store, NAMESPACE, objects.namespace(name))
            except HttpError as exc:
                if exc.status != 409:  # another server was faster
                    raise


async def run(store: Datastore, settings: Settings) -> None:
    """Never returns."""
    grace = settings.component("kube-controller-manager-arg", "node-monitor-grace-period")
    grace_s = timing.seconds(grace) if grace else timing.NODE_GRACE_S
    loop = asyncio.get_running_loop()
    seen: dict[str, tuple[str, float]] = {}
    while True:
        await asyncio.sleep(min(timing.CONTROLLER_S, grace_s / 4))
        if not store.leads() or store.fault():
            seen.clear()
            continue
        now = loop.time()
        for node in list(store.state.list(NODES)):
            name = node["metadata"]["name"]
            lease = store.state.get(f"/registry/leases/kube-node-lease/{name}") or {}
            renewed = str(lease.get("spec", {}).get("renewTime", ""))
            if name not in seen or seen[name][0] != renewed:
                seen[name] = (renewed, now)
            elif now - seen[name][1] > grace_s and objects.ready(node) == "True":
                await _mark_silent(store, name)


async def _mark_silent(store: Datastore, name: str) -> None:
    def change(node: Object) -> Object | None:
        if objects.ready(node) != "True":
            return None
        now = kubeapi.now_text()
        node["status"]["conditions"] = objects.unknown_conditions(node["status"]["conditions"], now)
        taint = {"key": objects.UNREACHABLE, "effect": "NoSchedule", "timeAdded": now}
        node["spec"]["taints"] = [*(node["spec"].get("taints") or []), taint]
        return node

    try:
        await kubeapi.amend(store, NODE, name, change)
        log.info(f"node {name} hasn't been updated for its grace period; its Ready condition is now Unknown")
    except (HttpError, Unavailable) as exc:
        log.warning(f"Failed to update status of node {name}: {exc}")
