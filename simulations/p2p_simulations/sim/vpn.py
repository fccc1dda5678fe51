"""Which VPN address does a simulated node hold? The twin of the agent's `Vpn`, without packets.

The device comes up after a moment; an address on it outlives the agent (the data plane is a process of its
own) but not a power cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from p2p_bootstrap.node.address import Address
from p2p_network.core.errors import MeshError
from p2p_simulations.world.tasks import Signal

if TYPE_CHECKING:
    from p2p_simulations.sim.agent import SimAgent


@dataclass(slots=True)
class Status:
    """`state` is "up" while the device has the address `ipv4`."""

    state: str = "starting"
    ipv4: str = ""


class SimVpn:
    """The VPN of one simulated agent."""

    def __init__(self, agent: SimAgent, network: IPv4Network, changed: Signal) -> None:
        self._agent, self._machine, self._tasks = agent, agent.machine, agent.work
        self._world = agent.machine.world
        self._changed = changed
        self.status = Status()
        self._address = Address(
            runtime=agent.runtime.on(agent.work),
            self_id=agent.peer,
            mesh_id=self._world.mesh_id,
            network=network,
            host=agent.host,
            replication=agent.replication,
            moved=self._moved,
            stood=changed.raise_,
            failed=self._failed,
        )

    @property
    def is_settled(self) -> bool:
        """Whether the address is up and its claim stands: it may be built upon."""
        return self.status.state == "up" and self._address.stands

    async def run(self) -> None:
        """Claim an address and defend it, and know the routes to the others."""
        self._tasks.start(self._address.run())
        changed = self._agent.runtime.signal()
        changed.raise_()
        self._agent.replication.subscribe("address/", changed)
        while True:
            await changed.wait()
            addresses = self._agent.replication.addresses()
            self._machine.routes = {ipv4: peer for peer, (ipv4, _) in addresses.items()}

    def _moved(self) -> None:
        if self._address.held is None:
            self.status = Status()
            self._machine.tun_ipv4 = ""
        else:
            self.status.ipv4, _ = self._address.held
            self._tasks.start(self._bring_up(self.status.ipv4))

    def _failed(self, exc: MeshError) -> None:
        self._agent.alarm(exc.message)

    async def _bring_up(self, ipv4: str) -> None:
        await self._tasks.sleep(self._world.engine.random.uniform(0.05, 1.0))
        if self.status.ipv4 == ipv4:
            self.status.state = "up"
            self._machine.tun_ipv4 = ipv4
            self._changed.raise_()
