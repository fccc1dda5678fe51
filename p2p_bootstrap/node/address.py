"""Which VPN address is this node's, and may things be built on it?

Owns two machines: `addressing` (claims in the ledger come in as events, and what is claimed goes there) and
`standing` (do the others hold our claim?), and answers for this node when others ask that. Putting the
address on a device is the business of the owner, who is told when it is another, and when it stands.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, assert_never

from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.runner import Runner
from p2p_bootstrap.node.runtime import Runtime, Signal, TaskGroup
from p2p_network import addressing, standing, wire
from p2p_network.core import log
from p2p_network.core.errors import MeshError, RemoteViolation
from p2p_network.core.ids import PeerId
from p2p_network.membership import MemberState
from p2p_network.records import AddressClaim

if TYPE_CHECKING:
    from p2p_bootstrap.node.ports import Mesh

logger = log.get(__name__)

ALONE_S = 5.0
FIRST_ALONE_S = 0.2
"""Where one node is enough for a mesh (`p2p.minimum_nodes: 1`): until it stands, an older claim
that is met wins."""
ASK_TIMEOUT_S = 2.0
HEAR_WITHIN_S = 1.0
"""So long an answer waits for the ledger to bring the claim that is asked about."""


class Address:
    """The VPN address of one node. `held`: IPv4 and IPv6, None while there is none.

    Args:
        moved: called when `held` is another.
        stood: called when what is held may be built upon.
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
        host: Mesh,
        replication: Replication,
        moved: Callable[[], None],
        stood: Callable[[], None],
        failed: Callable[[MeshError], None],
        alone_s: float = ALONE_S,
    ) -> None:
        self.held: tuple[str, str] | None = None
        self._built: AddressClaim | None = None  # the claim that stands
        self._runtime = runtime
        self._host = host
        self._self_id = self_id
        self._replication = replication
        self._moved, self._stood, self._failed = moved, stood, failed
        self._tasks: TaskGroup | None = None
        self._waiting: list[Signal] = []  # answers that wait for the ledger
        self._held_changed = runtime.signal()
        self._runner = Runner(
            runtime,
            "vpn.address",
            addressing.Addressing(
                self_id, mesh_id, network=network, alone_s=alone_s, started_at=runtime.monotonic()
            ),
            self._carry_out,
            lambda: addressing.Tick(self._mesh_ms()),
        )
        self._standing = Runner(runtime, "vpn.claim", standing.Standing(self_id), self._build, standing.Tick)
        host.serve(standing.METHOD, self._answer)

    @property
    def stands(self) -> bool:
        """Whether an address is held, and its claim stands: it may be built upon."""
        claim = self._own_claim()
        return claim is not None and claim == self._built

    async def run(self) -> None:
        """Claim an address and defend it until cancelled."""
        try:
            async with self._runtime.task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._watch_claims)
                tasks.start_soon(self._runner.run)
                tasks.start_soon(self._watch_settled)
                tasks.start_soon(self._standing.run)
                tasks.start_soon(self._watch_held)
                tasks.start_soon(self._watch_members)
        finally:
            self._tasks = None

    async def _watch_claims(self) -> None:
        changed = self._runtime.signal()
        changed.raise_()
        self._replication.subscribe("address/", changed)
        while True:
            await changed.wait()
            await self._look_at_claims()
            self._held_changed.raise_()  # an older word of ours came back: the same address by another claim
            for waiting in self._waiting:
                waiting.raise_()

    async def _watch_settled(self) -> None:
        await self._replication.settled.wait()
        await self._runner.feed(addressing.LedgerSettled(self._mesh_ms()))

    async def _look_at_claims(self) -> None:
        await self._runner.feed(addressing.ClaimsChanged(self._replication.claims(), self._mesh_ms()))

    async def _watch_held(self) -> None:
        while True:
            await self._held_changed.wait()
            claim = self._own_claim()
            # (a claim made while the wall clock was ahead has no age until then)
            age_s = max(0.0, (self._mesh_ms() - claim.claimed_ms) / 1000) if claim is not None else 0.0
            await self._standing.feed(standing.Held(claim, age_s))

    async def _watch_members(self) -> None:
        changed = self._runtime.signal()
        changed.raise_()
        self._replication.subscribe_view(changed)
        while True:
            await changed.wait()
            await self._standing.feed(standing.MembersSeen(self._in_sight()))

    def _in_sight(self) -> frozenset[PeerId]:
        """All members but those that left; this node is one of them."""
        return frozenset(m.peer for m in self._replication.view.members if m.state is not MemberState.LEFT)

    def _own_claim(self) -> AddressClaim | None:
        """The claim by which this node holds its address."""
        claim = self._replication.claims().get(self._self_id)
        return claim if claim is not None and self.held is not None and self.held[0] == claim.ipv4 else None

    def _mesh_ms(self) -> int:
        return max(int(self._runtime.wall_s() * 1000), self._replication.ledger.clock_last.wall_ms)

    async def _carry_out(self, effect: addressing.Effect) -> None:
        match effect:
            case addressing.WriteClaim(claim):
                await self._replication.write(f"address/{self._self_id}", wire.encode(claim))
            case addressing.Assign(ipv4, ipv6):
                self.held = (ipv4, ipv6)
                self._held_changed.raise_()
                self._moved()
            case addressing.Withdraw(ipv4):
                self.held = None
                self._runtime.log(logger, "vpn.address_withdrawn", logging.WARNING, ipv4=ipv4)
                self._held_changed.raise_()
                self._moved()
            case addressing.ReportExhausted(message, hint):
                self._failed(MeshError(message, hint=hint))
            case _:
                assert_never(effect)

    # ------------------------------------------------------------ do the others hold our claim?

    async def _build(self, effect: standing.Effect) -> None:
        match effect:
            case standing.Ask(peer, claim):
                assert self._tasks is not None, "who asks runs"
                self._tasks.start_soon(self._ask, peer, claim)
            case standing.Build(claim):
                await self._look_at_claims()  # a better one may just have come
                if claim == self._own_claim():
                    self._built = claim
                    self._stood()
            case _:
                assert_never(effect)

    async def _ask(self, peer: PeerId, claim: AddressClaim) -> None:
        ack = None
        try:
            raw = await self._host.request(peer, standing.METHOD, wire.encode(claim), timeout_s=ASK_TIMEOUT_S)
            ack = wire.decode(raw, standing.Ack)
        except (MeshError, ValueError) as exc:
            self._runtime.log(logger, "vpn.claim_unanswered", logging.DEBUG, peer=peer, detail=str(exc))
        await self._standing.feed(standing.Answered(peer, claim, ack))

    async def _answer(self, peer: PeerId, payload: bytes) -> bytes:
        try:
            claim = wire.decode(payload, AddressClaim)
        except ValueError as exc:
            raise RemoteViolation(f"{standing.METHOD}: {exc}", peer=peer) from exc
        if self._tasks is not None:
            await self._hear_of(peer, claim)
            await self._look_at_claims()  # before we answer we pass by what they claimed
        ack = standing.acknowledge(self._replication.claims(), peer, claim, self._in_sight())
        return wire.encode(ack)

    async def _hear_of(self, peer: PeerId, claim: AddressClaim) -> None:
        """Wait a moment for the ledger to bring it."""
        waiting = self._runtime.signal()
        self._waiting.append(waiting)
        until = self._runtime.monotonic() + HEAR_WITHIN_S
        try:
            while self._replication.claims().get(peer) != claim:
                if not await waiting.wait_until(until):
                    return
        finally:
            self._waiting.remove(waiting)
