"""Which snapshots are there, who holds a copy, and where does one come from when it is needed?

k3s writes snapshots on its schedule (`p2p.snapshots`), each server its own. This column seals each of them
into the vault, and has the vaults of the mesh fill each other: every server pulls what others have, and where
there are fewer than two other servers, so do agents, which can't open what they keep. So a snapshot outlives
its machine. Transfers are resumed and checked; the space is bounded.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from p2p_bootstrap.node.runtime import Runtime
from p2p_bootstrap.node.vault import SPACE
from p2p_network import wire
from p2p_network.core import log
from p2p_network.core.errors import P2PError, RoleError
from p2p_network.core.ids import PeerId, stable_hash
from p2p_roles.k3s.datastore import EtcdFacts
from p2p_roles.recovery import SnapshotFacts
from p2p_roles.view import View

if TYPE_CHECKING:
    from p2p_bootstrap.node.cluster import Cluster
    from p2p_bootstrap.node.ports import BlobExchange, Mesh, Server, SnapshotVault

logger = log.get(__name__)

LIST_METHOD: Final = "snapshots"
LIST_TIMEOUT_S: Final = 10.0
LOOK_EVERY_S: Final = 15.0
OTHER_COPIES: Final = 2


def keepers(view: View, cluster_id: str) -> tuple[PeerId, ...]:
    """Who keeps copies: the servers, and as many agents as are wanting to make two besides one server."""
    servers = [n.peer for n in view.nodes if n.role == "server" and n.cluster_id == cluster_id and n.alive]
    agents = sorted(
        (n.peer for n in view.nodes if n.role == "agent" and n.cluster_id == cluster_id and n.alive),
        key=lambda peer: stable_hash("keeper", cluster_id, peer),
    )
    return (*sorted(servers), *agents[: max(0, OTHER_COPIES + 1 - len(servers))])


class Snapshots:
    """The snapshots of this node's cluster, as far as they are here.

    Args:
        keep: how many of each server.
        max_bytes: how much all may take.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        self_id: PeerId,
        hostname: str,
        host: Mesh,
        cluster: Cluster,
        k3s: Server,
        blobs: BlobExchange,
        vault: SnapshotVault,
        keep: int,
        max_bytes: int,
    ) -> None:
        self.vault = vault
        self.held: dict[PeerId, tuple[SnapshotFacts, ...]] = {}
        self.spared: set[str] = set()
        """Digests of what came out of a backup in this life of the agent."""
        self._runtime = runtime
        self._self_id = self_id
        self._hostname = hostname
        self._host = host
        self._cluster = cluster
        self._k3s = k3s
        self._blobs = blobs
        self._keep, self._max_bytes = keep, max_bytes
        self._wake = runtime.signal()
        blobs.offer(SPACE, lambda peer, name: self.vault.find(name))
        host.serve(LIST_METHOD, self._answer)
        cluster.chores.find_snapshot = self.ready_for_restore

    # ------------------------------------------------------------ Facts, for the recovery

    async def facts(self) -> EtcdFacts:
        """What this node's etcd says."""
        return await self._k3s.data.facts()

    async def snapshots(self) -> list[SnapshotFacts]:
        """What this node holds, newest first."""
        return await self._runtime.in_thread(self.vault.entries)

    # ------------------------------------------------------------ running

    async def run(self) -> None:
        """Keep copies, until cancelled."""
        while True:
            await self._wake.wait(timeout_s=LOOK_EVERY_S)
            try:
                await self._seal_own()
                await self._pull()
                await self._prune()
            except (P2PError, OSError) as exc:
                self._runtime.log(logger, "snapshots.not_kept", logging.WARNING, error=str(exc))

    async def _prune(self) -> None:
        spared = self._spared()
        gone = await self._runtime.in_thread(
            lambda: self.vault.prune(keep=self._keep, max_bytes=self._max_bytes, spared=spared)
        )
        if gone:
            self._runtime.log(logger, "snapshots.pruned", count=len(gone))

    def _spared(self) -> frozenset[str]:
        """What somebody is going back to, however old it is."""
        opened = self._cluster.machine.open_genesis()
        wanted = opened.continues.snapshot if opened is not None and opened.continues is not None else ""
        return frozenset({*self.spared, wanted})

    async def _seal_own(self) -> None:
        member = self._cluster.machine.member
        if member is None or member.role != "server" or not member.joined:
            return
        secret = await self._runtime.in_thread(self._k3s.server_secret, member.genesis.ca_hash)
        if not secret:
            return
        have = {facts.digest for facts in await self.snapshots()}
        for facts in (await self._k3s.data.snapshots())[: self._keep]:
            path = self._k3s.data.folder.find(facts.name)
            if facts.digest in have or path is None or facts.name.startswith("restored-"):
                continue
            named = msgspec.structs.replace(facts, node=self._hostname)
            await self._runtime.in_thread(self.vault.seal_in, path, named, secret)
            self._runtime.log(logger, "snapshots.sealed", name=facts.name, bytes=facts.size_bytes)

    async def _pull(self) -> None:
        member = self._cluster.machine.member
        view = self._cluster.machine.view
        if member is None or not member.joined:
            return
        await self.ask_all()
        if self._self_id not in keepers(view, member.genesis.cluster_id):
            return
        have = {facts.digest for facts in await self.snapshots()}
        offers = sorted(
            ((facts, peer) for peer, found in self.held.items() for facts in found),
            key=lambda offer: (-offer[0].created_s, offer[0].digest, offer[1]),
        )
        count: dict[str, int] = {}
        seen: set[str] = set()
        for facts, peer in offers:
            if facts.digest not in seen:
                seen.add(facts.digest)
                count[facts.node] = count.get(facts.node, 0) + 1
            if count[facts.node] > self._keep or facts.digest in have or facts.size_bytes > self._max_bytes:
                continue
            if await self._fetch(peer, facts, self.vault.path_of(facts.digest)):
                have.add(facts.digest)

    async def _fetch(self, peer: PeerId, facts: SnapshotFacts, target: Path) -> bool:
        try:
            limit = 2 * facts.size_bytes + (1 << 20)
            await self._blobs.fetch(peer, SPACE, facts.digest, target, max_bytes=limit)
        except (P2PError, ValueError, OSError) as exc:
            self._runtime.log(logger, "snapshots.not_fetched", logging.DEBUG, peer=peer, detail=str(exc))
            return False
        self._runtime.log(logger, "snapshots.copied", name=facts.name, peer=peer, bytes=facts.size_bytes)
        return True

    async def ask_all(self) -> dict[PeerId, tuple[SnapshotFacts, ...]]:
        """Who holds what, as of now; this node is not among them."""

        async def ask(peer: PeerId) -> None:
            try:
                raw = await self._host.request(peer, LIST_METHOD, b"", timeout_s=LIST_TIMEOUT_S)
                found[peer] = wire.decode(raw, tuple[SnapshotFacts, ...])
            except (P2PError, ValueError) as exc:
                self._runtime.log(logger, "snapshots.not_told", logging.DEBUG, peer=peer, detail=str(exc))

        found: dict[PeerId, tuple[SnapshotFacts, ...]] = {}
        async with self._runtime.task_group() as tasks:
            for peer in sorted(self._cluster.machine.view.alive - {self._self_id}):
                tasks.start_soon(ask, peer)
        self.held = found
        return found

    async def _answer(self, peer: PeerId, payload: bytes) -> bytes:
        return wire.encode(tuple((await self.snapshots())[:256]))

    # ------------------------------------------------------------ on demand

    async def save(self, name: str) -> SnapshotFacts:
        """Have etcd write one now, and keep it. Raises RoleError."""
        file = await self._k3s.data.save(name)
        for _ in range(40):
            found = next((f for f in await self._k3s.data.snapshots() if f.name == file), None)
            if found is not None:
                await self._seal_own()
                self._wake.raise_()
                return msgspec.structs.replace(found, node=self._hostname)
            await self._runtime.signal().wait(timeout_s=0.25)
        raise RoleError(f"k3s says that it saved {file}, but there is no such file")

    async def ready_for_restore(self, digest: str) -> str:
        """The path of that snapshot in clear, from the first copy that is whole: this node's, or one of
        whoever has one. Raises RoleError."""
        opened = self._cluster.machine.open_genesis()
        ca_hash = opened.ca_hash if opened is not None else ""
        secret = await self._runtime.in_thread(self._k3s.server_secret, ca_hash)
        target = self.vault.folder / f"restored-{digest[:16]}"
        bad = []
        if self.vault.find(digest) is not None:
            if await self._unsealed(digest, secret, target, self._self_id):
                return str(target)
            bad.append(self._self_id)
        for peer, found in sorted((await self.ask_all()).items()):
            facts = next((f for f in found if f.digest == digest), None)
            if facts is None or not await self._fetch(peer, facts, self.vault.copy_of(digest)):
                continue
            if await self._unsealed(digest, secret, target, peer):
                return str(target)
            bad.append(peer)
        if not bad:
            raise RoleError(
                f"no node in reach has the snapshot {digest[:12]}",
                hint="order the recovery from another one: kairos-p2p cluster snapshot list",
            )
        names = ", ".join(self._cluster.machine.view.name(peer) for peer in bad)
        raise RoleError(
            f"no copy in reach of the snapshot {digest[:12]} can be used: those of {names} are damaged, or"
            " were sealed with another token",
            hint="order the recovery from another snapshot: kairos-p2p cluster snapshot list",
        )

    async def _unsealed(self, digest: str, secret: bytes, target: Path, peer: PeerId) -> bool:
        """Whether the copy of that peer is whole."""
        try:
            await self._runtime.in_thread(self.vault.unseal, digest, secret, target)
        except RoleError as exc:
            self._runtime.log(
                logger, "snapshots.copy_unusable", logging.WARNING, peer=peer, error=exc.message
            )
            return False
        return True
