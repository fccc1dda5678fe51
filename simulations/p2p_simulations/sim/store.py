"""Where does a simulated agent keep what it must not forget? On the simulated disk.

Both write at once and say how long the sync takes: in that time the power may go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p_network.core.errors import MeshError
from p2p_network.ledger.entry import Entry
from p2p_network.ledger.store import Loaded
from p2p_simulations.world.disk import Unreadable

if TYPE_CHECKING:
    from p2p_simulations.sim.agent import SimAgent
    from p2p_simulations.sim.machine import SimMachine

STORED, DURABLE = "ledger/", "durable/"


def refuse_if_full(machine: SimMachine) -> None:
    """Raise what a write on a full disk raises: as in production, the agent ends with it."""
    if machine.disk_full:
        raise MeshError("no space left on device", hint="make room")


class SimStore:
    """The ledger of one agent on its disk; the twin of `LedgerStore`."""

    def __init__(self, agent: SimAgent) -> None:
        self._agent, self._machine = agent, agent.machine

    def load(self) -> Loaded:
        """Everything that is on the disk."""
        disk = self._machine.disk
        return Loaded(tuple(disk.read(name) for name in disk.names(STORED)), 0, None)

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
    """What the bootstrap machine must never forget; the twin of `DurableFiles`."""

    def __init__(self, agent: SimAgent) -> None:
        self._agent, self._machine = agent, agent.machine

    def get(self, key: str) -> bytes | None:
        """What was last set; None if never."""
        try:
            raw: bytes | None = self._machine.disk.read(f"{DURABLE}{key}")
        except Unreadable as exc:  # as `DurableFiles`: damage is an error, never an empty answer
            raise MeshError(f"{exc} is damaged", hint="image this machine anew") from exc
        return raw

    def set(self, key: str, value: bytes) -> None:
        """Keep `value`."""
        refuse_if_full(self._machine)
        ticket = self._machine.disk.write({f"{DURABLE}{key}": value})
        self._agent.runtime.lasts(lambda: self._persist(ticket))

    async def _persist(self, ticket: int) -> None:
        world = self._machine.world
        await world.chaos(self._machine, "written, not synced")
        await world.persist(self._machine, self._agent.tasks, ticket)
        await world.chaos(self._machine, "synced, nothing said yet")
