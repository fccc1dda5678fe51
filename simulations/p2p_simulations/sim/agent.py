"""What is one life of a simulated agent? Its columns, wired as the real one's `node.agent` does.

Everything here is volatile: a crash drops it whole. What stays is the machine's: disk, k3s, device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p_network import wire
from p2p_network.records import NodeRecord
from p2p_simulations.sim.cluster import SimCluster
from p2p_simulations.sim.mesh import SimHost
from p2p_simulations.sim.replication import SimReplication
from p2p_simulations.sim.vpn import SimVpn
from p2p_simulations.world.tasks import Signal, Tasks

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine

RECORD_EVERY_S = 15.0


class SimAgent:
    """One run of the agent's program. `life`: a number that no other run has."""

    def __init__(self, machine: SimMachine, life: int) -> None:
        self.machine, self.life = machine, life
        self.peer = machine.peer
        self.tasks = Tasks(machine.world.engine, machine.resume_at, machine.touched)
        world = machine.world
        self.host = SimHost(
            machine, self.tasks, life, lambda: [m for m in world.machines.values() if m is not machine]
        )
        self.alarms: list[str] = []
        vpn_changed = Signal(self.tasks)
        self.replication = SimReplication(self)
        self.vpn = SimVpn(self, world.plan.network, vpn_changed)
        self.cluster = SimCluster(self, vpn_changed)
        self.tasks.start(self._live())

    def note(self, text: str) -> None:
        """A line of the trace."""
        self.machine.world.note(self.machine.name, text)

    def alarm(self, text: str) -> None:
        """Something that a person must look at."""
        self.alarms.append(text)
        self.machine.world.alarms.append((self.machine.name, text))
        self.note(f"ALARM: {text}")

    async def _live(self) -> None:
        await self.replication.load()
        self.replication.run()
        self.tasks.start(self.host.run(self.replication))
        self.tasks.start(self._keep_record())
        self.vpn.run()
        await self.cluster.run()

    async def _keep_record(self) -> None:
        plan, world = self.machine.plan, self.machine.world
        record = NodeRecord(
            hostname=plan.name,
            region=plan.region,
            zone=plan.zone,
            addresses=(),
            carriers=(),
            wish=plan.wish,
            minimum_nodes=plan.minimum_nodes or world.plan.minimum_nodes,
            servers=world.plan.servers,
            program="simulated",
        )
        while True:
            await self.replication.write(f"node/{self.peer}", wire.encode(record))
            await self.tasks.sleep(RECORD_EVERY_S)
