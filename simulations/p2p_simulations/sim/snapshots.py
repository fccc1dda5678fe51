"""Where are snapshots in a simulated machine, and how do copies get to others?

Twins of what the agent's column `Snapshots` stands on: k3s's own folder (`SimEtcdData`), the vault of
sealed copies (`SimVault`) and the exchange of files (`SimBlobs`). A copy is an `Image` on the simulated disk,
bound to the server token it was sealed with; to write, fetch and open it takes time: the power may go then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from p2p_network.core.errors import MeshError, PeerUnreachable, RoleError
from p2p_network.core.ids import PeerId
from p2p_roles.k3s.datastore import EtcdFacts
from p2p_roles.recovery import SnapshotFacts
from p2p_simulations.sim.etcd import Image
from p2p_simulations.sim.k3s import SNAPSHOTS

if TYPE_CHECKING:
    from p2p_simulations.sim.agent import SimAgent
    from p2p_simulations.sim.machine import SimMachine

FOLDER: Final = "snapshots"
KEEPS: Final = 5
MAX_BYTES: Final = 1 << 30
_METHOD: Final = "blob"
_FETCH_S: Final = (0.5, 8.0)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A copy in a vault. `secret`: what opens it."""

    facts: SnapshotFacts
    image: Image
    secret: bytes


def corrupt(machine: SimMachine) -> None:
    """A sector under the newest copy on this machine's disk goes bad: it reads as something else."""
    disk = machine.disk
    found = {name: disk.read(name) for name in disk.names(f"{FOLDER}/") if name.endswith(".sealed")}
    if not found:
        return
    name = max(found, key=lambda name: (found[name].facts.created_s, name))
    image: Image = found[name].image
    bad = dataclasses.replace(image, log=(*image.log[:-1], -1), workloads=image.workloads ^ 1)
    machine.world.note(machine.name, f"a sector under the copy of {image.name} goes bad")
    disk.sync(disk.write({name: dataclasses.replace(found[name], image=bad)}))


def facts_of(image: Image) -> SnapshotFacts:
    """What is told of a snapshot."""
    return SnapshotFacts(image.name, image.digest, image.size_bytes, image.created_s)


class SimEtcdData:
    """What k3s has; the twin of `K3sData`, as far as snapshots go."""

    def __init__(self, agent: SimAgent) -> None:
        self._agent, self._machine = agent, agent.machine

    @property
    def folder(self) -> SimEtcdData:
        """See `EtcdData`, here and below."""
        return self

    def find(self, name: str) -> Path | None:
        path = f"{SNAPSHOTS}{name}"
        return Path(path) if self._machine.disk.read(path) is not None else None

    async def facts(self) -> EtcdFacts:
        return self._machine.k3s.facts()

    async def snapshots(self) -> list[SnapshotFacts]:
        disk = self._machine.disk
        found = [facts_of(disk.read(name)) for name in disk.names(SNAPSHOTS)]
        return sorted(found, key=lambda s: (-s.created_s, s.name))

    async def save(self, name: str) -> str:
        return await self._machine.k3s.save(name, self._agent.tasks)


class NoSnapshots:
    """The facts of a node in a world without snapshots."""

    def __init__(self, data: SimEtcdData) -> None:
        self.facts = data.facts

    async def snapshots(self) -> list[SnapshotFacts]:
        """None."""
        return []


class SimVault:
    """Sealed copies on one machine; the twin of `Vault`."""

    folder = Path(FOLDER)

    def __init__(self, agent: SimAgent) -> None:
        self._agent, self._machine = agent, agent.machine

    def path_of(self, digest: str) -> Path:
        """See `SnapshotVault`, here and below."""
        return self.folder / f"{digest}.sealed"

    def find(self, digest: str) -> Path | None:
        path = self.path_of(digest)
        return path if self._machine.disk.read(str(path)) is not None else None

    def entries(self) -> list[SnapshotFacts]:
        return sorted((sealed.facts for sealed in self._all()), key=lambda s: (-s.created_s, s.digest))

    def _all(self) -> list[Sealed]:
        disk = self._machine.disk
        return [disk.read(name) for name in disk.names(f"{FOLDER}/") if name.endswith(".sealed")]

    def seal_in(self, source: Path, facts: SnapshotFacts, secret: bytes) -> None:
        image: Image | None = self._machine.disk.read(str(source))
        if image is None or image.digest != facts.digest:
            raise RoleError(f"{source.name} changed while it was copied")
        self.keep(str(self.path_of(facts.digest)), Sealed(facts, image, secret))

    def copy_of(self, digest: str) -> Path:
        return self.path_of(digest).with_suffix(".copy")

    def unseal(self, digest: str, secret: bytes, target: Path) -> None:
        path, copy, disk = str(self.path_of(digest)), str(self.copy_of(digest)), self._machine.disk
        for name in (copy, path):
            sealed: Sealed | None = disk.read(name)
            is_whole = sealed is not None and sealed.secret == secret and sealed.image.digest == digest
            if name == copy and sealed is not None:
                disk.write({copy: None} | ({path: sealed} if is_whole else {}))
            if sealed is not None and is_whole:
                return self.keep(str(target), sealed.image)
        self._machine.world.note(self._machine.name, f"its copy of the snapshot {digest[:12]} is damaged")
        raise RoleError(f"the copy of the snapshot {digest[:12]} on this machine cannot be used")

    def prune(self, *, keep: int, max_bytes: int, spared: frozenset[str]) -> list[str]:
        count: dict[str, int] = {}
        gone = []
        for facts in self.entries():
            count[facts.node] = count.get(facts.node, 0) + 1
            if count[facts.node] > keep and facts.digest not in spared:
                gone.append(facts)
        if gone:
            self.keep(*(str(self.path_of(facts.digest)) for facts in gone), None)
        return [facts.name for facts in gone]

    def keep(self, *names_and_value: Any) -> None:
        """Write one thing under each name; None removes it. Takes as long as a disk does."""
        *names, value = names_and_value
        ticket = self._machine.disk.write(dict.fromkeys(names, value))
        self._agent.runtime.lasts(lambda: self._machine.fsync(self._agent.tasks, ticket))


class SimBlobs:
    """Files from vault to vault; the twin of `Blobs`."""

    def __init__(self, agent: SimAgent) -> None:
        self._agent, self._machine = agent, agent.machine
        self._find: dict[str, Callable[[PeerId, str], Path | None]] = {}
        agent.host.serve(_METHOD, self._answer)

    def offer(self, space: str, find: Callable[[PeerId, str], Path | None]) -> None:
        """See `BlobExchange`, here and below."""
        self._find[space] = find

    async def _answer(self, peer: PeerId, payload: bytes) -> bytes:
        space, _, name = payload.decode().partition("/")
        path = self._find[space](peer, name)
        return str(path).encode() if path is not None else b""

    async def fetch(self, peer: PeerId, space: str, name: str, target: Path, *, max_bytes: int) -> None:
        world = self._machine.world
        path = await self._agent.host.request(peer, _METHOD, f"{space}/{name}".encode())
        await self._agent.tasks.sleep(world.engine.random.uniform(*_FETCH_S))
        other = world.machine_of(peer)
        if other is None or other.agent is None or peer not in self._agent.host.connected():
            raise PeerUnreachable(f"peer {peer}: the connection ended")
        held = other.disk.read(path.decode()) if path else None
        if held is None:
            raise MeshError(f"{name} is not there")
        ticket = self._machine.disk.write({str(target): held})
        await self._machine.fsync(self._agent.tasks, ticket)
