"""What do `Replication` and `Cluster` need of the mesh, the disk, the VPN and k3s?

Only this: the production adapters have these methods, and so have the simulator's.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from p2p_bootstrap.node.runtime import Signal
    from p2p_network.core.ids import PeerId
    from p2p_network.host.presence import PeerDown, PeerUp
    from p2p_network.ledger.entry import Entry
    from p2p_network.ledger.store import Loaded
    from p2p_roles.events import K3sChanged, ReplaceInitDropIn, ResetK3s, StartK3s
    from p2p_roles.k3s.datastore import EtcdFacts
    from p2p_roles.k3s.pki import ClusterSecrets, JoinAnswer, JoinSecret
    from p2p_roles.recovery import SnapshotFacts
    from p2p_roles.rules import Authorization
    from p2p_roles.upgrade.model import Order


class Mesh(Protocol):
    """Requests between peers; see `MeshHost`."""

    @property
    def events(self) -> AsyncIterable[PeerUp | PeerDown]: ...

    def addresses(self) -> tuple[str, ...]: ...

    def connected(self) -> frozenset[PeerId]: ...

    def learn(self, peer: PeerId, addresses: Sequence[str], source: str) -> None: ...

    def expel(self, peer: PeerId, reason: str) -> None: ...

    def serve(self, method: str, handler: Callable[[PeerId, bytes], Awaitable[bytes]]) -> None: ...

    async def request(
        self, peer: PeerId, method: str, payload: bytes, *, timeout_s: float = ...
    ) -> bytes: ...

    def notify(self, peer: PeerId, method: str, payload: bytes) -> bool: ...


class Store(Protocol):
    """The ledger on disk; blocks. See `LedgerStore`."""

    def load(self) -> Loaded: ...

    def store(self, entries: tuple[Entry, ...]) -> None: ...

    def remove(self, keys: tuple[str, ...]) -> None: ...


class Durable(Protocol):
    """What must never be forgotten; blocks. See `DurableFiles`."""

    def get(self, key: str) -> bytes | None: ...

    def set(self, key: str, value: bytes) -> None: ...


class VpnStatus(Protocol):
    """`state` is "up" while the device has the address `ipv4`."""

    @property
    def state(self) -> str: ...

    @property
    def ipv4(self) -> str: ...


class Vpn(Protocol):
    """Where this node's address stands; see `node.vpn.Vpn`."""

    @property
    def status(self) -> VpnStatus: ...

    @property
    def is_settled(self) -> bool: ...


class Facts(Protocol):
    """What this node's etcd says, and the snapshots it holds; see `node.snapshots.Snapshots`."""

    async def facts(self) -> EtcdFacts: ...

    async def snapshots(self) -> list[SnapshotFacts]: ...


class SnapshotFiles(Protocol):
    """The snapshots that k3s writes, by file name; see `SnapshotFolder`."""

    def find(self, name: str) -> Path | None: ...


class EtcdData(Protocol):
    """What etcd says of itself, and its snapshots; see `K3sData`. Raise P2PError."""

    @property
    def folder(self) -> SnapshotFiles: ...

    async def facts(self) -> EtcdFacts: ...

    async def snapshots(self) -> list[SnapshotFacts]: ...

    async def save(self, name: str) -> str: ...


class Server(Protocol):
    """A server's k3s, as far as its snapshots go; see `K3sUnit`."""

    @property
    def data(self) -> EtcdData: ...

    def server_secret(self, ca_hash: str) -> bytes: ...


class Restored(Protocol):
    """A k3s that takes the CA and tokens of a backup; see `K3sUnit`."""

    def keep_restored(self, secrets: ClusterSecrets) -> None: ...

    async def count_workloads(self) -> int | None: ...


class SnapshotVault(Protocol):
    """Sealed copies of snapshots on this disk; blocks. See `node.vault.Vault`."""

    @property
    def folder(self) -> Path: ...

    def path_of(self, digest: str) -> Path: ...

    def copy_of(self, digest: str) -> Path: ...

    def find(self, digest: str) -> Path | None: ...

    def entries(self) -> list[SnapshotFacts]: ...

    def seal_in(self, source: Path, facts: SnapshotFacts, secret: bytes) -> None: ...

    def unseal(self, digest: str, secret: bytes, target: Path) -> None: ...

    def prune(self, *, keep: int, max_bytes: int, spared: frozenset[str]) -> list[str]: ...


class BlobExchange(Protocol):
    """Files from node to node; see `node.blobs.Blobs`."""

    def offer(self, space: str, find: Callable[[PeerId, str], Path | None]) -> None: ...

    async def fetch(self, peer: PeerId, space: str, name: str, target: Path, *, max_bytes: int) -> None: ...


class K3sObserved(Protocol):
    """k3s as seen last."""

    @property
    def event(self) -> K3sChanged: ...


class KubeApi(Protocol):
    """The Kubernetes API of this server; blocks. See `Kube`."""

    def get(self, path: str) -> dict[str, Any]: ...

    def create(self, path: str, item: dict[str, Any]) -> dict[str, Any]: ...

    def replace(self, path: str, item: dict[str, Any]) -> dict[str, Any]: ...

    def patch(self, path: str, change: dict[str, Any]) -> dict[str, Any]: ...

    def delete(self, path: str, *, version: str = ...) -> None: ...

    def etcd_members(self) -> list[dict[str, Any]] | None: ...


class K3sPrograms(Protocol):
    """The programs of k3s on this node; raise P2PError. See `node.k3s_programs`."""

    @property
    def arch(self) -> str: ...

    async def installed(self) -> str: ...

    async def stage(self, order: Order, holders: Sequence[PeerId]) -> None: ...

    async def swap(self, version: str) -> None: ...

    async def swap_back(self, before: str) -> None: ...


class K3s(Protocol):
    """k3s on this node; see `K3sUnit`."""

    @property
    def version(self) -> str: ...

    @property
    def args_hash(self) -> str: ...

    @property
    def uses_vpn(self) -> bool: ...

    @property
    def changed(self) -> Signal: ...

    @property
    def observed(self) -> K3sObserved: ...

    async def find(self) -> None: ...

    async def run(self) -> None: ...

    def want(self, start: StartK3s | None) -> None: ...

    def use_address(self, node_ip: str) -> None: ...

    async def replace_init_drop_in(self, effect: ReplaceInitDropIn) -> None: ...

    def hold(self) -> None: ...

    @property
    def kube(self) -> KubeApi: ...

    async def stop(self) -> None: ...

    async def restart(self) -> None: ...

    async def set_aside(self, label: str, *, only_datastore: bool = False, keep: bool = False) -> None: ...

    async def reset(self, effect: ResetK3s, snapshot: str) -> str: ...

    async def may_vote(self) -> bool: ...

    async def count_workloads(self) -> int | None: ...

    def make_secrets(self, epoch: int) -> str: ...

    def keep_join_secret(self, secret: JoinSecret) -> str: ...

    def hand_out(self, verdict: Authorization, ca_hash: str) -> JoinAnswer: ...
