"""What do all nodes know, and who of them is here?

Owns the ledger with its store, the anti-entropy scheduler, the failure detector (`Watching`) and the
membership machine; feeds them what the mesh host observes, and carries out what they decide. The other
columns read `ledger` and `view`, write with `write` and `delete`, and are told of changes through the
`Signal`s they subscribed with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, assert_never

from p2p_bootstrap.node.runner import Runner
from p2p_bootstrap.node.runtime import Runtime, Signal, TaskGroup
from p2p_bootstrap.node.watching import Watching
from p2p_network import detector, drains, membership
from p2p_network.core import log
from p2p_network.core.clock import MAX_AHEAD_MS
from p2p_network.core.errors import MeshError, RemoteViolation
from p2p_network.core.ids import PeerId
from p2p_network.host.presence import PeerDown, PeerUp
from p2p_network.identity import Identity
from p2p_network.ledger import anti_entropy, events, sync
from p2p_network.ledger.core import Ledger
from p2p_network.ledger.entry import Entry
from p2p_network.ledger.policy import TABLE, Policy, Refusal, Writer, rule_of
from p2p_network.ledger.reading import left_peers, read_by_peer
from p2p_network.records import AddressClaim, NodeRecord

if TYPE_CHECKING:
    from p2p_bootstrap.node.ports import Mesh, Store

logger = log.get(__name__)

TELL_CLOCK_EVERY_S: Final = 600.0

SYNC_TIMEOUT_S = 10.0
SPOKEN = tuple(rule for rule in TABLE.values() if rule.writer in (Writer.OWNER, Writer.AUTHORITY))


class Replication:
    """The ledger and the membership of one node.

    Args:
        runtime: time, tasks and chance.
        host: the mesh; `serve` is called on it here, so before it runs.
        policy_for: makes the policy (who may write which key), given the way to the ledger.
        ipv6_of: the ULA of a peer; it follows from the peer's id.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        identity: Identity,
        mesh_id: str,
        host: Mesh,
        store: Store,
        policy_for: Callable[[Callable[[], Ledger]], Policy],
        ipv6_of: Callable[[PeerId], str],
    ) -> None:
        self.ledger = Ledger(identity, mesh_id, policy_for(lambda: self.ledger))
        self.settled = runtime.event()  # compared with at least one peer
        self._runtime = runtime
        self._self_id = identity.peer_id
        self._host = host
        self._store = store
        self._ipv6_of = ipv6_of
        self._hint = events.Hint(b"", ())
        self._drained: dict[PeerId, drains.Drain] = {}
        self._told_clock: dict[PeerId, float] = {}
        self._out: dict[PeerId, str] = {}
        self._subscribers: list[tuple[str, Signal]] = []
        self._view_subscribers: list[Signal] = []
        self._tasks: TaskGroup | None = None
        self._ledger = Runner(
            runtime,
            "ledger.core",
            self.ledger,
            self._carry_out,
            lambda: events.Tick(runtime.wall_s()),
            quiet=True,
        )
        self._scheduler = Runner(
            runtime,
            "ledger.sync",
            anti_entropy.AntiEntropy(random=runtime.random),
            self._schedule,
            anti_entropy.Tick,
            quiet=True,
        )
        self._membership = membership.Membership(self._self_id, runtime.monotonic())
        self._members = Runner(
            runtime, "mesh.membership", self._membership, self._publish, membership.Tick, quiet=True
        )
        self._watching = Watching(
            runtime=runtime, identity=identity, mesh_id=mesh_id, host=host, report=self._members.feed
        )
        host.serve(sync.METHOD, self._answer_sync)
        host.serve(sync.HINT_METHOD, self._take_hint)

    # ------------------------------------------------------------ for the other columns

    @property
    def view(self) -> membership.View:
        """Who is here, as of now."""
        return self._membership.view

    @property
    def drained(self) -> Mapping[PeerId, drains.Drain]:
        """Who was announced to be away, and whose window has not ended."""
        return self._drained

    def now_ms(self) -> int:
        """Unix milliseconds as this machine has it, but not before what was said in the ledger."""
        return max(int(self._runtime.wall_s() * 1000), self.ledger.clock_last.wall_ms)

    def subscribe(self, prefix: str, signal: Signal) -> None:
        """Raise `signal` whenever a key under `prefix` changes."""
        self._subscribers.append((prefix, signal))

    def subscribe_view(self, signal: Signal) -> None:
        """Raise `signal` whenever a member changes."""
        self._view_subscribers.append(signal)

    async def write(self, key: str, value: bytes) -> None:
        """Say something; on disk when this returns. Writing what is there already changes nothing."""
        await self._local(events.LocalWrite(key, value, self._runtime.wall_s()))

    async def write_all(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Say several things, all or none of them."""
        await self._local(events.LocalWrites(tuple(items), self._runtime.wall_s()))

    async def delete(self, key: str) -> None:
        """Take something back."""
        await self._local(events.LocalDelete(key, self._runtime.wall_s()))

    async def spread(self) -> None:
        """Compare ledgers with every connected peer once: for the last words of a node that leaves."""
        async with self._runtime.task_group() as tasks:
            for peer in sorted(self._host.connected()):
                tasks.start_soon(self._sync, peer)

    async def expel(self, out: Mapping[PeerId, str]) -> None:
        """Forget what these peers said, and show them as gone. `out`: all of them, and why."""
        if out.keys() & self.authors():
            authors = frozenset[str](out)
            await self._ledger.feed(events.Expelled(authors, self._runtime.wall_s()))
        if out != self._out:
            self._out = dict(out)
            await self._look_at_records()

    async def forget(self, authors: frozenset[str]) -> None:
        """Drop what they said, as if it had never been heard; whoever has it may bring it again."""
        if authors:
            await self._ledger.feed(events.Expelled(authors, self._runtime.wall_s()))

    async def unlearn(self, keys: tuple[str, ...]) -> None:
        """Drop entries that prove nothing any more."""
        if keys:
            await self._ledger.feed(events.Disproved(keys, self._runtime.wall_s()))

    def authors(self) -> frozenset[str]:
        """Who speaks in the ledger of itself or others, but for what proves itself."""
        return frozenset(e.author for e in self.ledger.items() if rule_of(e.key) in SPOKEN)

    def claims(self) -> dict[PeerId, AddressClaim]:
        """All sound address claims."""
        return read_by_peer(self.ledger, "address/", AddressClaim)

    def addresses(self) -> dict[PeerId, tuple[str, str]]:
        """Who holds which VPN addresses: of several claims on one address, the oldest."""
        best: dict[str, tuple[int, PeerId]] = {}
        for peer, claim in self.claims().items():
            mine = (claim.claimed_ms, peer)
            best[claim.ipv4] = min(best.get(claim.ipv4, mine), mine)
        return {peer: (ipv4, self._ipv6_of(peer)) for ipv4, (_, peer) in best.items()}

    # ------------------------------------------------------------ running

    async def load(self) -> None:
        """Read the store; first of all calls."""
        loaded = await self._runtime.in_thread(self._store.load)
        await self._ledger.feed(events.Restored(loaded.entries, self._runtime.wall_s()))
        await self._look_at_records()

    async def run(self) -> None:
        """Replicate until cancelled."""
        async with self._runtime.task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._ledger.run)
            tasks.start_soon(self._scheduler.run)
            tasks.start_soon(self._members.run)
            tasks.start_soon(self._watching.run, tasks)
            tasks.start_soon(self._watch_host)
            tasks.start_soon(self._watch_records)

    async def _watch_host(self) -> None:
        async for event in self._host.events:
            match event:
                case PeerUp(peer):
                    await self._watching.feed(detector.ChannelOpened(peer))
                    await self._scheduler.feed(anti_entropy.ChannelOpened(peer))
                case PeerDown(peer, reason):
                    await self._scheduler.feed(anti_entropy.ChannelClosed(peer))
                    await self._watching.feed(detector.ChannelClosed(peer, reason))

    async def _watch_records(self) -> None:
        changed = self._runtime.signal()
        self.subscribe("node/", changed)
        self.subscribe("address/", changed)
        self.subscribe(drains.PREFIX, changed)
        while True:
            ends_in_s = drains.ends_in_s(self._drained, self.now_ms())
            await (changed.wait() if ends_in_s is None else changed.wait(ends_in_s))
            await self._look_at_records()

    async def _look_at_records(self) -> None:
        records = read_by_peer(self.ledger, "node/", NodeRecord)
        for peer, record in records.items():
            if peer != self._self_id:
                self._host.learn(peer, record.addresses, "ledger")
        left = left_peers(self.ledger) - {self._self_id}
        announced = read_by_peer(self.ledger, drains.PREFIX, drains.Drain)
        self._drained = drains.in_force(
            {p: d for p, d in announced.items() if p in records and p not in self._out}, self.now_ms()
        )
        words = {peer: drains.sentence(drain) for peer, drain in self._drained.items()}
        await self._members.feed(
            membership.RecordsChanged(records, self.addresses(), left | self._out.keys(), self._out, words)
        )
        there = frozenset(records.keys() - self._out.keys() - {self._self_id})
        await self._watching.feed(detector.MembersKnown(there))

    # ------------------------------------------------------------ ledger

    async def _local(self, event: events.LocalWrite | events.LocalWrites | events.LocalDelete) -> None:
        decision = await self._ledger.feed(event)
        if any(isinstance(effect, events.Hint) for effect in decision.effects):
            await self._scheduler.feed(anti_entropy.LedgerChanged(None))

    async def _received(self, peer: PeerId, entries: tuple[Entry, ...]) -> None:
        if not entries:
            return
        decision = await self._ledger.feed(events.EntriesReceived(peer, entries, self._runtime.wall_s()))
        if any(isinstance(effect, events.Hint) for effect in decision.effects):
            await self._scheduler.feed(anti_entropy.LedgerChanged(peer))
        for effect in decision.effects:
            if isinstance(effect, events.Refused) and Refusal.FORGED in dict(effect.why):
                # every honest node checks signatures before it relays
                raise RemoteViolation("it delivered forged entries", peer=peer)

    async def _carry_out(self, effect: events.Effect) -> None:
        match effect:
            case events.Store(entries):
                await self._runtime.in_thread(self._store.store, entries)
            case events.Remove(keys):
                await self._runtime.in_thread(self._store.remove, keys)
            case events.Changed(keys):
                for prefix, signal in self._subscribers:
                    if any(key.startswith(prefix) for key in keys):
                        signal.raise_()
            case events.Hint():
                self._hint = effect
            case events.Contradiction(key):
                self._runtime.log(
                    logger,
                    "ledger.contradiction",
                    logging.ERROR,
                    key=key,
                    hint="a quorum certified two things: p2p.minimum_nodes is lower than the number of nodes",
                )
            case events.Refused(peer, why):
                for reason, count in why:
                    self._runtime.log(
                        logger, "ledger.refused", logging.DEBUG, peer=peer, count=count, reason=str(reason)
                    )
                if Refusal.AHEAD in dict(why):
                    self._tell_clock(peer)
            case _:
                assert_never(effect)

    def _tell_clock(self, peer: PeerId) -> None:
        """Once in a while: whose words nobody takes looks like a node that is not there."""
        now = self._runtime.monotonic()
        if now >= self._told_clock.get(peer, now):
            self._told_clock[peer] = now + TELL_CLOCK_EVERY_S
            self._runtime.log(
                logger,
                "ledger.clock_ahead",
                logging.WARNING,
                peer=peer,
                reason=f"its clock is more than {MAX_AHEAD_MS // 3600_000} h ahead of ours, so its words are "
                "not taken: to the cluster it is not there",
                hint="set the clock of that machine (or of this one), for example by NTP",
            )

    # ------------------------------------------------------------ anti-entropy

    async def _schedule(self, effect: anti_entropy.Effect) -> None:
        match effect:
            case anti_entropy.StartSync(peer):
                assert self._tasks is not None
                self._tasks.start_soon(self._sync, peer)
            case anti_entropy.SendHint(peers):
                payload = sync.encode_hint(self._hint)
                for peer in peers:
                    self._host.notify(peer, sync.HINT_METHOD, payload)
            case _:
                assert_never(effect)

    async def _sync(self, peer: PeerId) -> None:
        """One session as the initiator."""
        session = sync.SyncSession(self.ledger)
        failed = False
        try:
            while (request := session.next_request()) is not None:
                raw = await self._host.request(peer, sync.METHOD, request, timeout_s=SYNC_TIMEOUT_S)
                await self._received(peer, session.reply(raw))
        except MeshError as exc:
            failed = True
            self._runtime.log(logger, "ledger.sync_failed", logging.DEBUG, peer=peer, error=exc.message)
        except ValueError as exc:
            failed = True
            violation = RemoteViolation(f"sync: {exc}", peer=peer)
            self._runtime.log(
                logger, "ledger.sync_failed", logging.WARNING, peer=peer, error=violation.message
            )
        else:
            self.settled.set()
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
        differs = hint.root != self.ledger.digest()
        await self._scheduler.feed(anti_entropy.HintReceived(peer, differs))
        return b""

    # ------------------------------------------------------------ membership

    async def _publish(self, effect: membership.Effect) -> None:
        match effect:
            case membership.MemberChanged(before, member):
                self._runtime.log(
                    logger,
                    "mesh.member_changed",
                    peer=member.peer,
                    hostname=member.record.hostname if member.record else "",
                    from_=str(before or ""),
                    to=str(member.state),
                    reason=member.reason,
                )
            case membership.DrainChanged(peer, words):
                self._runtime.log(
                    logger,
                    "mesh.node_drained" if words else "mesh.node_undrained",
                    peer=peer,
                    hostname=self._hostname(peer),
                    reason=words or "its drain is over or was taken back: silence is a failure again",
                )
            case membership.PublishView():
                for signal in self._view_subscribers:
                    signal.raise_()
            case _:
                assert_never(effect)

    def _hostname(self, peer: PeerId) -> str:
        member = self.view.get(peer)
        return member.record.hostname if member is not None and member.record is not None else ""
