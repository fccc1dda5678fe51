"""Which VPN address is this node's, and since when?

Owns the addressing machine: claims in the ledger come in as events, and what is claimed goes there. Putting
the address on a device is the business of the owner, who is told when it is another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import IPv4Network
from typing import assert_never

from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.runner import Runner
from p2p_bootstrap.node.runtime import Runtime
from p2p_network import addressing, wire
from p2p_network.core import log
from p2p_network.core.errors import MeshError
from p2p_network.core.ids import PeerId

logger = log.get(__name__)

ALONE_S = 5.0
FIRST_ALONE_S = 0.2
"""Where one node is enough for a mesh (`p2p.minimum_nodes: 1`): until it stands, an older claim
that is met wins."""
CLAIM_STANDS_MS = 2000  # a claim this old, and unchallenged, may be built upon


class Address:
    """The VPN address of one node. `held`: IPv4 and IPv6, None while there is none.

    Args:
        moved: called when `held` is another.
        failed: takes why there is none to be had.
        alone_s: so long others are waited for before an address is claimed without asking anybody.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        self_id: PeerId,
        mesh_id: str,
        network: IPv4Network,
        replication: Replication,
        moved: Callable[[], None],
        failed: Callable[[MeshError], None],
        alone_s: float = ALONE_S,
    ) -> None:
        self.held: tuple[str, str] | None = None
        self._held_since = float("inf")
        self._runtime = runtime
        self._self_id = self_id
        self._replication = replication
        self._moved, self._failed = moved, failed
        self._runner = Runner(
            runtime,
            "vpn.address",
            addressing.Addressing(
                self_id, mesh_id, network=network, alone_s=alone_s, started_at=runtime.monotonic()
            ),
            self._carry_out,
            lambda: addressing.Tick(self._mesh_ms()),
        )

    @property
    def stands(self) -> bool:
        """Whether an address is held, and its claim has stood long enough to be built upon."""
        claim = self._replication.claims().get(self._self_id)
        # by our own clock too: a claim made while the wall clock was ahead would have to wait until then
        held_ms = (self._runtime.monotonic() - self._held_since) * 1000
        return (
            self.held is not None
            and claim is not None
            and max(held_ms, self._mesh_ms() - claim.claimed_ms) >= CLAIM_STANDS_MS
        )

    async def run(self) -> None:
        """Claim an address and defend it until cancelled."""
        async with self._runtime.task_group() as tasks:
            tasks.start_soon(self._watch_claims)
            tasks.start_soon(self._runner.run)
            tasks.start_soon(self._watch_settled)

    async def _watch_claims(self) -> None:
        changed = self._runtime.signal()
        changed.raise_()
        self._replication.subscribe("address/", changed)
        while True:
            await changed.wait()
            await self._runner.feed(addressing.ClaimsChanged(self._replication.claims(), self._mesh_ms()))

    async def _watch_settled(self) -> None:
        await self._replication.settled.wait()
        await self._runner.feed(addressing.LedgerSettled(self._mesh_ms()))

    def _mesh_ms(self) -> int:
        return max(int(self._runtime.wall_s() * 1000), self._replication.ledger.clock_last.wall_ms)

    async def _carry_out(self, effect: addressing.Effect) -> None:
        match effect:
            case addressing.WriteClaim(claim):
                await self._replication.write(f"address/{self._self_id}", wire.encode(claim))
            case addressing.Assign(ipv4, ipv6):
                self.held, self._held_since = (ipv4, ipv6), self._runtime.monotonic()
                self._moved()
            case addressing.Withdraw(ipv4):
                self.held = None
                self._runtime.log(logger, "vpn.address_withdrawn", logging.WARNING, ipv4=ipv4)
                self._moved()
            case addressing.ReportExhausted(message, hint):
                self._failed(MeshError(message, hint=hint))
            case _:
                assert_never(effect)
