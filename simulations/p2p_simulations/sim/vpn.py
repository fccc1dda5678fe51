"""Which VPN address does a simulated node hold? The twin of the agent's `Vpn`, without packets.

The addressing machine runs unchanged. The device comes up after a moment; an address on it outlives the
agent (the data plane is a process of its own) but not a power cut.
"""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import TYPE_CHECKING, assert_never

from p2p_bootstrap.node.vpn import CLAIM_STANDS_MS
from p2p_network import addressing, wire
from p2p_simulations.sim.runner import SimRunner
from p2p_simulations.world.tasks import Signal

if TYPE_CHECKING:
    from p2p_simulations.sim.agent import SimAgent


class SimVpn:
    """The VPN of one simulated agent. `is_up`: the device has the address."""

    def __init__(self, agent: SimAgent, network: IPv4Network, changed: Signal) -> None:
        self._agent, self._machine, self._tasks = agent, agent.machine, agent.tasks
        self._world = agent.machine.world
        self._changed = changed
        self.is_up = False
        self.ipv4 = ""
        self._held_since = float("inf")
        self._machine_core = addressing.Addressing(
            agent.peer, self._world.mesh_id, network=network, started_at=self._machine.monotonic()
        )
        self._runner = SimRunner(
            self._tasks,
            self._machine.monotonic,
            self._machine_core,
            self._carry_out,
            lambda: addressing.Tick(self._mesh_ms()),
            agent.note,
        )

    @property
    def is_settled(self) -> bool:
        """Whether the address is up and its claim has stood long enough to be built upon."""
        claim = self._agent.replication.claims().get(self._agent.peer)
        held_ms = (self._machine.monotonic() - self._held_since) * 1000
        return (
            self.is_up
            and claim is not None
            and max(held_ms, self._mesh_ms() - claim.claimed_ms) >= CLAIM_STANDS_MS
        )

    def run(self) -> None:
        """Claim an address and defend it from now on."""
        self._runner.run()
        self._tasks.start(self._watch_claims())
        self._agent.replication.when_settled(lambda: self._tasks.start(self._settle()))
        if self._agent.replication.settled:
            self._tasks.start(self._settle())

    async def _settle(self) -> None:
        await self._runner.feed(addressing.LedgerSettled(self._mesh_ms()))

    async def _watch_claims(self) -> None:
        changed = Signal(self._tasks)
        changed.raise_()
        self._agent.replication.subscribe("address/", changed)
        while True:
            await changed.wait()
            claims = self._agent.replication.claims()
            await self._runner.feed(addressing.ClaimsChanged(claims, self._mesh_ms()))

    def _mesh_ms(self) -> int:
        return max(int(self._machine.wall_s() * 1000), self._agent.replication.ledger.clock_last.wall_ms)

    async def _carry_out(self, effect: addressing.Effect) -> None:
        match effect:
            case addressing.WriteClaim(claim):
                await self._agent.replication.write(f"address/{self._agent.peer}", wire.encode(claim))
            case addressing.Assign(ipv4, _):
                self._world.checkers.address_assigned(self._machine, ipv4)
                self.ipv4, self._held_since = ipv4, self._machine.monotonic()
                self._tasks.start(self._bring_up(ipv4))
            case addressing.Withdraw(ipv4):
                self.is_up, self.ipv4 = False, ""
                self._machine.tun_ipv4 = ""
                self._world.checkers.address_withdrawn(self._machine, ipv4)
            case addressing.ReportExhausted(message):
                self._agent.alarm(message)
            case _:
                assert_never(effect)

    async def _bring_up(self, ipv4: str) -> None:
        await self._tasks.sleep(self._world.engine.random.uniform(0.05, 1.0))
        if self.ipv4 == ipv4:
            self.is_up = True
            self._machine.tun_ipv4 = ipv4
            self._changed.raise_()
