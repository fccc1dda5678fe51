"""Where does a simulated agent keep what it must not forget? On the simulated disk.

The durable files are the production's own code (`SealedFiles`), on a disk that may lose power between any two
of its calls and keeps of what was not synced what chance likes. The ledger's transactions are whole or not at
all, as SQLite's are; its rows are judged by the production's checksums. Both say how long they take: in that
time the power may go.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2p_network import wire
from p2p_network.core.errors import MeshError
from p2p_network.ledger.durable import SealedFiles
from p2p_network.ledger.entry import Entry
from p2p_network.ledger.store import Loaded, checksum_of, sound
from p2p_simulations.world.sectors import Script, Sync, SyncDirectory, Unlink

if TYPE_CHECKING:
    from p2p_simulations.sim.agent import SimAgent
    from p2p_simulations.sim.machine import SimMachine

STORED, DURABLE = "ledger/", "durable"


def refuse_if_full(machine: SimMachine) -> None:
    """Raise what a write on a full disk raises: as in production, the agent ends with it."""
    if machine.disk_full:
        raise MeshError("no space left on device", hint="make room")


class SimStore:
    """The ledger of one agent on its disk; the twin of `LedgerStore`."""

    def __init__(self, agent: SimAgent) -> None:
        self._agent, self._machine = agent, agent.machine

    def load(self) -> Loaded:
        """Every sound row that is on the disk; the others go."""
        disk = self._machine.disk
        names = disk.names(STORED)
        found: list[Any] = [disk.read(name) for name in names]
        entries = tuple(row for row in found if isinstance(row, Entry))
        touched = [(number, *row) for number, row in enumerate(found) if not isinstance(row, Entry)]
        read, damaged = sound(touched)
        if damaged:
            disk.sync(disk.write({names[number]: None for number in damaged}))
            self._agent.note(f"{len(damaged)} rows of the ledger are damaged and left out")
        return Loaded((*entries, *read), len(damaged), None)

    def store(self, entries: tuple[Entry, ...]) -> None:
        """Keep entries, all or none."""
        self._write({f"{STORED}{entry.key}": entry for entry in entries})

    def remove(self, keys: tuple[str, ...]) -> None:
        """Forget entries."""
        self._write({f"{STORED}{key}": None for key in keys})

    def _write(self, values: dict[str, Entry | None]) -> None:
        refuse_if_full(self._machine)
        ticket = self._machine.disk.write(values)
        self._agent.runtime.lasts(lambda: self._machine.fsync(self._agent.tasks, ticket))


class SimDurable:
    """What the bootstrap machine must never forget: the production's files on the disk of this world."""

    def __init__(self, agent: SimAgent) -> None:
        self._agent, self._machine = agent, agent.machine
        self._calls = agent.machine.files.calls()
        self._files = SealedFiles(Path(DURABLE), self._calls)
        for name in agent.machine.files.names(f"{DURABLE}/.tmp-"):  # as `DurableFiles` does
            agent.machine.files.carry_out(Unlink(name))
        agent.machine.files.carry_out(SyncDirectory())

    def get(self, key: str) -> bytes | None:
        """What was last set; None if never."""
        return self._files.get(key)

    def set(self, key: str, value: bytes) -> None:
        """Keep `value`."""
        try:
            self._files.set(key, value)
        finally:
            script = self._calls.take()
        self._agent.runtime.lasts(lambda: self._persist(script))

    async def _persist(self, script: Script) -> None:
        world, machine = self._machine.world, self._machine
        syncs = [number for number, call in enumerate(script) if isinstance(call, Sync | SyncDirectory)]
        for call in script[: syncs[0]]:
            machine.files.carry_out(call)
        await world.chaos(machine, "written, not synced")
        await world.persist(machine, self._agent.tasks, script[syncs[0] :])
        await world.chaos(machine, "synced, nothing said yet")


def damaged_row(entry: Entry, at: int, flip: int) -> tuple[bytes, bytes]:
    """The row of an entry with one byte read as another: its bytes, and the checksum written beside them."""
    raw = bytearray(wire.encode(entry))
    before = checksum_of(bytes(raw))
    raw[at % len(raw)] ^= flip
    return bytes(raw), before
