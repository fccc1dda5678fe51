"""What does the agent answer when somebody asks about the cluster's version of k3s, or orders another?

Implements `api.upgrades.Upgrades` over the column `Upgrading`: makes its facts into documents, and takes a
snapshot of etcd before the first node changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import trio

from p2p_bootstrap.api.upgrades import NodeVersionDoc, UpgradeDoc, UpgradeWish
from p2p_bootstrap.node.k3s_programs import K3sPrograms, OriginOptions
from p2p_bootstrap.node.snapshots import Snapshots
from p2p_bootstrap.node.upgrading import Upgrading
from p2p_network.core.errors import RoleError
from p2p_roles.k3s.release import release
from p2p_roles.upgrade import turns
from p2p_roles.upgrade.model import Program, UpgradeFacts

SNAPSHOT: Final = "before-upgrade"


class Upgrades:
    """Versions of k3s, as the local API sees them."""

    def __init__(
        self, *, hostname: str, upgrading: Upgrading, programs: K3sPrograms, snapshots: Snapshots
    ) -> None:
        self._hostname = hostname
        self._upgrading = upgrading
        self._programs = programs
        self._snapshots = snapshots
        self._one = trio.Lock()

    async def upgrade(self, version: str) -> UpgradeDoc:
        """Where it stands, or what would be done."""
        facts = self._upgrading.look(version)
        if not version:
            return self._doc(facts, "")
        reason = self._upgrading.refusal(version)
        return self._doc(facts, reason, is_planned=True)

    async def order_upgrade(self, wish: UpgradeWish) -> UpgradeDoc:
        """Bring the programs here, save a snapshot, and order it."""
        release(wish["version"], "x86_64")  # a version as upstream writes it
        origin = OriginOptions(
            wish["source"] or None,
            wish["mirror"],
            Path(wish["ca_file"]) if wish["ca_file"] else None,
            wish["public_key"],
            wish["sha256"],
            self._programs.arch,
        )

        async def bring(version: str, archs: object) -> tuple[Program, ...]:
            assert isinstance(archs, list), "kinds of machines"
            found = await self._programs.bring(version, archs, origin)
            if self._upgrading.datastore == "etcd":
                await self._snapshots.save(SNAPSHOT)
            return found

        if self._one.locked():
            raise RoleError("another upgrade is being ordered here at this moment")
        async with self._one:
            await self._upgrading.give_order(
                wish["version"], bring, wave=wish["wave"], patience_s=wish["patience_s"], by=self._hostname
            )
        return self._doc(self._upgrading.look(""), "")

    async def stop_upgrade(self) -> UpgradeDoc:
        """No further node, and back where possible."""
        await self._upgrading.stop(self._hostname)
        return self._doc(self._upgrading.look(""), "")

    def _doc(self, facts: UpgradeFacts, forbidden: str, *, is_planned: bool = False) -> UpgradeDoc:
        order = facts.order
        is_there = is_planned or order.by != ""
        nodes = [
            NodeVersionDoc(
                hostname=node.name,
                role=node.role,
                k3s=node.progress.version if node.progress is not None else "",
                ready=node.alive and node.ready,
                phase=node.progress.of(order) if node.progress is not None and not is_planned else "",
                error=node.progress.error if node.progress is not None and not is_planned else "",
            )
            for node in sorted(facts.nodes, key=lambda n: (n.role != "server", n.name))
        ]
        return UpgradeDoc(
            version=order.version if is_there else "",
            state="planned" if is_planned else order.state if is_there else "",
            reason=order.reason,
            by=order.by,
            steps=list(turns.plan(facts)) if is_there and order.state == "running" and not forbidden else [],
            forbidden=forbidden,
            nodes=nodes,
        )
