"""How does a simulated agent drive the model of k3s? The twin of the agent's `K3sUnit`.

Drop-ins, secrets and join secrets as files on the simulated disk; jobs on k3s one after the other, in the
order in which they were asked for. On the agent's start a living k3s is adopted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p_roles import events
from p2p_simulations.sim.k3s import DATA, DROP_IN, JOIN_SECRET, SECRETS, Data, DropIn
from p2p_simulations.world.tasks import Lock, Signal

if TYPE_CHECKING:
    from p2p_simulations.sim.agent import SimAgent


class SimK3sUnit:
    """k3s as one agent sees it. `changed` is raised when `observed` is another."""

    def __init__(self, agent: SimAgent) -> None:
        self._agent, self._machine, self._tasks = agent, agent.machine, agent.tasks
        self._process = agent.machine.k3s
        self._lock = Lock()
        self._jobs = 0
        self.changed = Signal(agent.tasks)

    @property
    def observed(self) -> events.K3sChanged:
        """What k3s does."""
        return self._process.observed

    @property
    def is_busy(self) -> bool:
        """Whether a job on k3s is under way or waiting."""
        return self._lock.is_held or self._jobs > 0

    def will(self) -> None:
        """A job was asked for and will begin soon."""
        self._jobs += 1

    def adopt(self) -> None:
        """Take over a k3s that is running."""
        if self._process.is_running:
            self.changed.raise_()

    async def make_secrets(self, epoch: int) -> str:
        """The CA hash of this node's secrets for an epoch; made once."""
        name = f"{SECRETS}{epoch}"
        ca_hash: str | None = self._machine.disk.read(name)
        await self._tasks.sleep(self._world_chance(0.05, 0.5))
        if ca_hash is None:
            ca_hash = f"ca-{self._machine.world.engine.random.getrandbits(48):012x}"
            await self._machine.fsync(self._tasks, self._machine.disk.write({name: ca_hash}))
        return ca_hash

    async def start(self, effect: events.StartK3s) -> None:
        """Write the drop-in and start k3s, or adopt a living one."""
        self._jobs -= 1
        async with self._lock:
            role = "agent" if effect.kind == "agent" else "server"
            drop_in = DropIn(role, effect.epoch, effect.ca_hash, effect.kind == "server-init", effect.join_ip)
            await self._write(drop_in)
            self._process.start()
        self.changed.raise_()

    async def replace_init_drop_in(self, effect: events.ReplaceInitDropIn) -> None:
        """The drop-in without ``cluster-init``."""
        async with self._lock:
            await self._write(DropIn("server", effect.epoch, effect.ca_hash, False, effect.join_ip))

    async def stop(self) -> None:
        """Stop k3s."""
        self._jobs -= 1
        async with self._lock:
            await self._tasks.sleep(self._world_chance(0.1, 2.0))
            self._process.stop()

    async def wipe(self) -> None:
        """Stop k3s and set its data aside."""
        self._jobs -= 1
        async with self._lock:
            self._process.stop()
            await self._tasks.sleep(self._world_chance(0.1, 2.0))
            ticket = self._machine.disk.write({DATA: None, DROP_IN: None, JOIN_SECRET: None})
            await self._machine.fsync(self._tasks, ticket)

    async def keep_join_secret(self, ca_hash: str) -> None:
        """Keep a secret that a server handed out."""
        await self._machine.fsync(self._tasks, self._machine.disk.write({JOIN_SECRET: ca_hash}))

    def join_secret(self) -> str | None:
        """What this server hands out: the CA that its own k3s serves; None while it has no data."""
        data: Data | None = self._machine.disk.read(DATA)
        return data.ca_hash if data is not None and data.role == "server" else None

    async def _write(self, drop_in: DropIn) -> None:
        if self._machine.disk.read(DROP_IN) != drop_in:
            await self._machine.fsync(self._tasks, self._machine.disk.write({DROP_IN: drop_in}))

    def _world_chance(self, low: float, high: float) -> float:
        return self._machine.world.engine.random.uniform(low, high)
