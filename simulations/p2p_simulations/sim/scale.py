"""What does a mesh cost as it grows, from ten nodes to ten thousand?

Lower detail than a whole world: of each node only what replication costs. The scheduler is the production
core (`ledger.anti_entropy`), with the production's degree, fanout and frames; a ledger is a set of bits,
one per entry, and a session takes the round trips and bytes that `ledger.sync` would need for what differs.
All nodes come up within two seconds, each writes its record, address and role; then the mesh idles, and
near the end one node writes once more. Beside it stands a model of what other meshes do: every node
broadcasts its whole ledger every ten seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, assert_never

from p2p_network.core.ids import PeerId
from p2p_network.ledger import anti_entropy
from p2p_network.ledger.anti_entropy import AntiEntropy, SendHint, StartSync
from p2p_network.ledger.core import BUCKET_DIGEST_BYTES, BUCKETS, HINT_ENTRIES, HINT_VALUE_BYTES, ROOT_BYTES
from p2p_network.ledger.entry import ITEM_BYTES, KEY_HASH_BYTES
from p2p_network.ledger.sync import ENTRIES_PER_FRAME, ITEMS_PER_FRAME
from p2p_simulations.world.engine import Engine, Timer

ENTRIES_PER_NODE: Final = 3  # node/, address/, role/
ENTRY_BYTES: Final = 330  # on the wire: key, author, stamp, signature, a value of about 120 bytes
VALUE_BYTES: Final = 120
FRAME_BYTES: Final = 64  # headers of a request or an answer
BROADCAST_EVERY_S: Final = 10.0
DEGREE: Final = 32
"""`Dialer.target_degree`: more channels than that are not dialled."""
COARSE_TICK_S: Final = 0.25
MAX_NODES: Final = 20_000
_STARTS_WITHIN_S: Final = 2.0
_SAME_REGION_S, _OTHER_REGION_S = 0.0015, 0.035


@dataclass(frozen=True, slots=True)
class Cost:
    """What a mesh of `nodes` took.

    Attributes:
        converged_s: virtual seconds from the first start until all ledgers were equal and whole.
        messages, sent_bytes: per node up to then.
        idle_messages, idle_bytes: per node and minute, after that.
        change_s, change_bytes: one more entry: until all have it, and what that took per node beyond idling.
        broadcast_bytes: per node and minute, if every node broadcast its whole ledger every 10 s.
        events: of the simulation, in all.
        virtual_s: how long the mesh was watched.
    """

    nodes: int
    converged_s: float
    messages: float
    sent_bytes: float
    idle_messages: float
    idle_bytes: float
    change_s: float
    change_bytes: float
    broadcast_bytes: float
    events: int
    virtual_s: float


def measure(
    nodes: int,
    *,
    regions: int = 20,
    virtual_s: float = 120.0,
    seed: int = 1,
    tick_s: float = 0.0,
    progress: Callable[[float], None] | None = None,
) -> Cost:
    """Watch a mesh for `virtual_s` virtual seconds. Raises ValueError if it has not converged by then.

    Args:
        tick_s: a node looks at what it was told only so often, all at once: less detail, for
            thousands of nodes.
            0: at each message, as production does.
    """
    mesh = _Mesh(nodes, regions, seed, tick_s, change_at=0.8 * virtual_s)
    mesh.run(virtual_s, progress)
    if mesh.converged_at is None or mesh.converged_at >= mesh.change_at:
        raise ValueError(f"{nodes} nodes did not converge within {virtual_s:.0f} virtual seconds")
    sent, sent_bytes = mesh.until_converged
    rest_min = (mesh.change_at - mesh.converged_at) / 60
    idle_sent, idle_bytes = mesh.before_change[0] - sent, mesh.before_change[1] - sent_bytes
    change_s = (mesh.changed_at or virtual_s) - mesh.change_at
    change_bytes = mesh.change_bytes - idle_bytes / rest_min * change_s / 60
    return Cost(
        nodes=nodes,
        converged_s=mesh.converged_at,
        messages=sent / nodes,
        sent_bytes=sent_bytes / nodes,
        idle_messages=idle_sent / nodes / rest_min,
        idle_bytes=idle_bytes / nodes / rest_min,
        change_s=change_s,
        change_bytes=max(0.0, change_bytes) / nodes,
        broadcast_bytes=(nodes - 1) * nodes * ENTRIES_PER_NODE * ENTRY_BYTES * 60 / BROADCAST_EVERY_S,
        events=mesh.engine.events,
        virtual_s=virtual_s,
    )


class _Node:
    __slots__ = ("core", "differs", "held", "name", "news", "region", "timer", "wakes_at")

    def __init__(self, name: PeerId, region: int, chance: random.Random) -> None:
        self.name, self.region = name, region
        self.core = AntiEntropy(random=chance.random)
        self.held = 0
        self.news = 0  # with ticks: not hinted on yet
        self.differs: PeerId | None = None
        self.timer: Timer | None = None
        self.wakes_at = math.inf


class _Mesh:
    """All nodes, and what they send."""

    def __init__(self, count: int, regions: int, seed: int, tick_s: float, *, change_at: float) -> None:
        self.change_at = change_at
        self.changed_at: float | None = None
        self.before_change, self.change_bytes = (0, 0), 0
        self._tick_s = tick_s
        self._looking: set[PeerId] = set()
        self.engine = Engine(seed, keep_trace=False)
        self.sent = self.sent_bytes = 0
        self.until_converged = (0, 0)
        self.converged_at: float | None = None
        chance = self.engine.random
        names = [PeerId(f"n{number}") for number in range(count)]
        self._nodes = {name: _Node(name, number % regions, chance) for number, name in enumerate(names)}
        self._all = (1 << (ENTRIES_PER_NODE * count)) - 1
        self._behind = count
        starts = {name: chance.uniform(0, _STARTS_WITHIN_S) for name in names}
        for number, name in enumerate(names):
            own = ((1 << ENTRIES_PER_NODE) - 1) << (ENTRIES_PER_NODE * number)
            self.engine.at(starts[name], partial(self._start, name, own))
        self.engine.at(change_at, lambda: self._change(names[-1]))
        for one, other in channels(names, chance):
            opens = max(starts[one], starts[other]) + chance.uniform(0.05, 1.0)
            self.engine.at(opens, partial(self._open, one, other))

    def run(self, virtual_s: float, progress: Callable[[float], None] | None) -> None:
        """Play."""

        def after_each() -> None:
            if progress is not None and self.engine.events % 8192 == 0:
                progress(self.engine.now)

        self.engine.run(virtual_s, after_each=after_each)

    # ------------------------------------------------------------ the core and its effects

    def _feed(self, node: _Node, event: anti_entropy.Event, hinted: int = 0) -> None:
        now = self.engine.now
        for effect in node.core.step(now, event).effects:
            match effect:
                case StartSync(peer):
                    self._sync(node, self._nodes[peer])
                case SendHint(peers):
                    for peer in peers:
                        self._hint(node, self._nodes[peer], hinted)
                case _:
                    assert_never(effect)
        wake_at = node.core.wake_at()
        if wake_at is None:
            wake_at = math.inf
        if wake_at != node.wakes_at:
            if node.timer is not None:
                node.timer.cancel()
            node.wakes_at = wake_at
            node.timer = None if wake_at == math.inf else self.engine.at(wake_at, lambda: self._tick(node))

    def _tick(self, node: _Node) -> None:
        node.timer, node.wakes_at = None, math.inf
        self._feed(node, anti_entropy.Tick())

    def _start(self, name: PeerId, own: int) -> None:
        self._take(self._nodes[name], own, None)

    def _open(self, one: PeerId, other: PeerId) -> None:
        self._feed(self._nodes[one], anti_entropy.ChannelOpened(other))
        self._feed(self._nodes[other], anti_entropy.ChannelOpened(one))

    def _take(self, node: _Node, entries: int, source: PeerId | None) -> None:
        """Entries arrive; what is news is hinted on, with the entries if they are few."""
        news = entries & ~node.held
        if not news:
            return
        node.held |= news
        if node.held == self._all:
            self._behind -= 1
            if not self._behind:
                self._note_equal()
        if self._tick_s:
            node.news |= news
            self._look_later(node)
            return
        self._say(node, news, source)

    def _note_equal(self) -> None:
        if self.converged_at is None:
            self.converged_at, self.until_converged = self.engine.now, (self.sent, self.sent_bytes)
        elif self.engine.now >= self.change_at:
            self.changed_at, self.change_bytes = self.engine.now, self.sent_bytes - self.before_change[1]

    def _change(self, name: PeerId) -> None:
        """One node writes one more entry."""
        self.before_change = (self.sent, self.sent_bytes)
        entry = self._all + 1
        self._all |= entry
        self._behind = len(self._nodes)
        self._take(self._nodes[name], entry, None)

    def _look_later(self, node: _Node) -> None:
        if node.name not in self._looking:
            self._looking.add(node.name)
            self.engine.after(self._tick_s, lambda: self._look(node))

    def _look(self, node: _Node) -> None:
        self._looking.discard(node.name)
        news, node.news = node.news, 0
        if news:
            self._say(node, news, None)
        differs, node.differs = node.differs, None
        if differs is not None:
            self._feed(node, anti_entropy.HintReceived(differs, True))

    def _say(self, node: _Node, news: int, source: PeerId | None) -> None:
        few = min(HINT_ENTRIES, HINT_VALUE_BYTES // VALUE_BYTES)
        self._feed(node, anti_entropy.LedgerChanged(source), news if news.bit_count() <= few else 0)

    # ------------------------------------------------------------ messages

    def _delay_s(self, one: _Node, other: _Node) -> float:
        base = _SAME_REGION_S if one.region == other.region else _OTHER_REGION_S
        return base * (1 + self.engine.random.random())

    def _count(self, messages: int, size_bytes: int) -> None:
        self.sent += messages
        self.sent_bytes += size_bytes + messages * FRAME_BYTES

    def _hint(self, node: _Node, peer: _Node, entries: int) -> None:
        root = node.held
        self._count(1, ROOT_BYTES + entries.bit_count() * ENTRY_BYTES)

        def arrive() -> None:
            if entries:
                self._take(peer, entries, node.name)
            if not self._tick_s:
                self._feed(peer, anti_entropy.HintReceived(node.name, root != peer.held))
            elif root != peer.held:
                peer.differs = node.name
                self._look_later(peer)

        self.engine.after(self._delay_s(node, peer), arrive)

    def _sync(self, node: _Node, peer: _Node) -> None:
        """One session: roots; buckets, items and entries if they differ."""
        there_s, back_s = self._delay_s(node, peer), self._delay_s(node, peer)
        asked = node.held
        self._count(2, ROOT_BYTES)

        def compared() -> None:
            theirs = peer.held
            if asked == theirs:
                self.engine.after(
                    back_s, lambda: self._feed(node, anti_entropy.SyncFinished(peer.name, False))
                )
                return
            self._count(0, BUCKETS * BUCKET_DIGEST_BYTES)
            frames = self._exchange(node.held, theirs)
            took_s = back_s + frames * (there_s + back_s)
            self.engine.after(took_s, lambda: self._exchanged(node, peer, theirs))

        self.engine.after(there_s, compared)

    def _exchange(self, mine: int, theirs: int) -> int:
        """Count what follows the buckets. Returns how many round trips it takes."""
        differ, got = (mine ^ theirs).bit_count(), (theirs & ~mine).bit_count()
        pushed = differ - got
        buckets = BUCKETS * (1 - (1 - 1 / BUCKETS) ** differ)
        items = math.ceil(mine.bit_count() * buckets / BUCKETS)
        compares = max(1, math.ceil(items / ITEMS_PER_FRAME), math.ceil(got / ENTRIES_PER_FRAME))
        pushes = math.ceil(pushed / ENTRIES_PER_FRAME)
        size = compares * (BUCKETS // 8 + 2 * KEY_HASH_BYTES) + items * ITEM_BYTES
        size += pushed * KEY_HASH_BYTES + differ * ENTRY_BYTES
        self._count(2 * (compares + pushes), size)
        return compares + pushes

    def _exchanged(self, node: _Node, peer: _Node, theirs: int) -> None:
        mine = node.held
        self._take(node, theirs, peer.name)
        self._take(peer, mine, node.name)
        self._feed(node, anti_entropy.SyncFinished(peer.name, mine == theirs))


def channels(names: list[PeerId], chance: random.Random) -> list[tuple[PeerId, PeerId]]:
    """Who has a channel with whom: all with all, or as many as each dials at random."""
    if len(names) <= DEGREE + 1:
        return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    pairs: set[tuple[PeerId, PeerId]] = set()
    for name in names:
        # half of them dialled, half of them taken: about DEGREE in all
        for other in chance.sample(names, DEGREE // 2 + 1):
            if other != name:
                pairs.add(min((name, other), (other, name)))
    return sorted(pairs)
