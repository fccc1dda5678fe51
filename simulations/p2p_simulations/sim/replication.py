"""What do simulated nodes know, and who of them is here? The twin of the agent's `Replication`.

The same cores (ledger, anti-entropy, membership), fed with the same events in the same order; only the host,
the disk and the waiting are simulated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, assert_never

from p2p_bootstrap.node.policy import ledger_policy
from p2p_network import membership
from p2p_network.addressing import ipv6_of
from p2p_network.core.errors import MeshError, RemoteViolation
from p2p_network.core.ids import PeerId
from p2p_network.ledger import anti_entropy, events, sync
from p2p_network.ledger.core import Ledger
from p2p_network.ledger.entry import Entry
from p2p_network.ledger.policy import Refusal
from p2p_network.ledger.reading import left_peers, read_by_peer
from p2p_network.records import AddressClaim, NodeRecord
from p2p_simulations.sim.runner import SimRunner
from p2p_simulations.world.tasks import Signal

if TYPE_CHECKING:
    from p2p_simulations.sim.agent import SimAgent

SYNC_TIMEOUT_S = 10.0
STORED = "ledger/"


class SimReplication:
    """The ledger and the membership of one simulated agent."""

    def __init__(self, agent: SimAgent) -> None:
        self._agent, self._machine, self._tasks = agent, agent.machine, agent.tasks
        self._world = agent.machine.world
        mesh_id = self._world.mesh_id
        self._mesh_id = mesh_id
        self._self_id = agent.peer
        self.ledger = Ledger(agent.machine.identity, mesh_id, ledger_policy(mesh_id, self._get))
        self.settled = False
        self._settled_signal: Callable[[], None] = lambda: None
        self._hint = events.Hint(b"", ())
        self._subscribers: list[tuple[str, Signal]] = []
        self._view_subscribers: list[Signal] = []
        clock, wall = agent.machine.monotonic, agent.machine.wall_s
        self._core = SimRunner(self._tasks, clock, self.ledger, self._carry_out, lambda: events.Tick(wall()))
        self._scheduler = SimRunner(
            self._tasks,
            clock,
            anti_entropy.AntiEntropy(random=self._world.engine.random.random),
            self._schedule,
            anti_entropy.Tick,
        )
        self._membership = membership.Membership(self._self_id, clock())
        self._members = SimRunner(self._tasks, clock, self._membership, self._publish, membership.Tick)
        agent.host.serve(sync.METHOD, self._answer_sync)
        agent.host.serve(sync.HINT_METHOD, self._take_hint)

    def _get(self, key: str) -> Entry | None:
        return self.ledger.get(key)

    # ------------------------------------------------------------ for the other columns

    @property
    def view(self) -> membership.View:
        """Who is here, as of now."""
        return self._membership.view

    def subscribe(self, prefix: str, signal: Signal) -> None:
        """Raise `signal` whenever a key under `prefix` changes."""
        self._subscribers.append((prefix, signal))

    def subscribe_view(self, signal: Signal) -> None:
        """Raise `signal` whenever a member changes."""
        self._view_subscribers.append(signal)

    def when_settled(self, action: Callable[[], None]) -> None:
        """Call `action` once the ledger was compared with a peer's."""
        self._settled_signal = action

    async def write(self, key: str, value: bytes) -> None:
        """Say something; on disk when this returns."""
        decision = await self._core.feed(events.LocalWrite(key, value, self._machine.wall_s()))
        if any(isinstance(effect, events.Hint) for effect in decision.effects):
            await self._scheduler.feed(anti_entropy.LedgerChanged(None))

    def claims(self) -> dict[PeerId, AddressClaim]:
        """All sound address claims."""
        return read_by_peer(self.ledger, "address/", AddressClaim)

    def addresses(self) -> dict[PeerId, tuple[str, str]]:
        """Who holds which VPN addresses: of several claims on one address, the oldest."""
        best: dict[str, tuple[int, PeerId]] = {}
        for peer, claim in self.claims().items():
            mine = (claim.claimed_ms, peer)
            best[claim.ipv4] = min(best.get(claim.ipv4, mine), mine)
        return {peer: (ipv4, str(ipv6_of(self._mesh_id, peer))) for ipv4, (_, peer) in best.items()}

    # ------------------------------------------------------------ running

    async def load(self) -> None:
        """Read the store; first of all calls."""
        disk = self._machine.disk
        entries = tuple(disk.read(name) for name in disk.names(STORED))
        await self._core.feed(events.Restored(entries, self._machine.wall_s()))
        await self._look_at_records()

    def run(self) -> None:
        """Replicate from now on."""
        for runner in (self._core, self._scheduler, self._members):
            runner.run()
        self._tasks.start(self._watch_records())

    async def peer_up(self, peer: PeerId) -> None:
        """A channel opened."""
        await self._members.feed(membership.PeerConnected(peer))
        await self._scheduler.feed(anti_entropy.ChannelOpened(peer))

    async def peer_down(self, peer: PeerId, reason: str) -> None:
        """The channel closed."""
        await self._scheduler.feed(anti_entropy.ChannelClosed(peer))
        await self._members.feed(membership.PeerLost(peer, reason))

    async def _watch_records(self) -> None:
        changed = Signal(self._tasks)
        self.subscribe("node/", changed)
        self.subscribe("address/", changed)
        while True:
            await changed.wait()
            await self._look_at_records()

    async def _look_at_records(self) -> None:
        records = read_by_peer(self.ledger, "node/", NodeRecord)
        left = left_peers(self.ledger) - {self._self_id}
        addresses = self.addresses()
        self._machine.routes = {ipv4: peer for peer, (ipv4, _) in addresses.items()}
        await self._members.feed(membership.RecordsChanged(records, addresses, left))

    # ------------------------------------------------------------ ledger

    async def _received(self, peer: PeerId, entries: tuple[Entry, ...]) -> None:
        if not entries:
            return
        decision = await self._core.feed(events.EntriesReceived(peer, entries, self._machine.wall_s()))
        if any(isinstance(effect, events.Hint) for effect in decision.effects):
            await self._scheduler.feed(anti_entropy.LedgerChanged(peer))
        for effect in decision.effects:
            if isinstance(effect, events.Refused) and Refusal.FORGED in dict(effect.why):
                raise RemoteViolation("it delivered forged entries", peer=peer)

    async def _carry_out(self, effect: events.Effect) -> None:
        disk = self._machine.disk
        match effect:
            case events.Store(entries):
                ticket = disk.write({f"{STORED}{entry.key}": entry for entry in entries})
                await self._machine.fsync(self._tasks, ticket)
            case events.Remove(keys):
                await self._machine.fsync(self._tasks, disk.write({f"{STORED}{key}": None for key in keys}))
            case events.Changed(keys):
                self._world.checkers.entries(self._machine, [e for k in keys if (e := self.ledger.get(k))])
                for prefix, signal in self._subscribers:
                    if any(key.startswith(prefix) for key in keys):
                        signal.raise_()
            case events.Hint():
                self._hint = effect
            case events.Contradiction(key):
                self._agent.alarm(f"ledger contradiction: {key}")
            case events.Refused(peer, why):
                said = ", ".join(f"{count}, since {reason}" for reason, count in why)
                self._world.note(self._machine.name, f"refused entries from {self._world.name(peer)}: {said}")
            case _:
                assert_never(effect)

    # ------------------------------------------------------------ anti-entropy

    async def _schedule(self, effect: anti_entropy.Effect) -> None:
        match effect:
            case anti_entropy.StartSync(peer):
                self._tasks.start(self._sync(peer))
            case anti_entropy.SendHint(peers):
                payload = sync.encode_hint(self._hint)
                for peer in peers:
                    self._agent.host.notify(peer, sync.HINT_METHOD, payload)
            case _:
                assert_never(effect)

    async def _sync(self, peer: PeerId) -> None:
        session = sync.SyncSession(self.ledger)
        failed = False
        try:
            while (request := session.next_request()) is not None:
                raw = await self._agent.host.request(peer, sync.METHOD, request, timeout_s=SYNC_TIMEOUT_S)
                await self._received(peer, session.reply(raw))
        except (MeshError, ValueError):
            failed = True
        else:
            self.settled = True
            self._settled_signal()
        fruitless = failed or (session.differed and not session.received and not session.sent)
        await self._scheduler.feed(anti_entropy.SyncFinished(peer, fruitless))

    async def _answer_sync(self, peer: PeerId, request: bytes) -> bytes:
        try:
            handled = sync.handle(self.ledger, request)
        except ValueError as exc:
            raise RemoteViolation(f"sync: {exc}", peer=peer) from exc
        await self._received(peer, handled.entries)
        return handled.reply

    async def _take_hint(self, peer: PeerId, payload: bytes) -> bytes:
        try:
            hint = sync.decode_hint(payload)
        except ValueError as exc:
            raise RemoteViolation(f"hint: {exc}", peer=peer) from exc
        await self._received(peer, hint.entries)
        await self._scheduler.feed(anti_entropy.HintReceived(peer, hint.root != self.ledger.digest()))
        return b""

    # ------------------------------------------------------------ membership

    async def _publish(self, effect: membership.Effect) -> None:
        match effect:
            case membership.MemberChanged(before, member):
                self._world.note(
                    self._machine.name,
                    f"{self._world.name(member.peer)}: {before or 'unknown'} -> {member.state}: "
                    f"{member.reason}",
                )
            case membership.PublishView():
                for signal in self._view_subscribers:
                    signal.raise_()
            case _:
                assert_never(effect)
