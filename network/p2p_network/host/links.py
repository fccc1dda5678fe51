"""On which connection do we talk to one peer, and since when is it gone?

A `Link` lives as long as there is a connection with its peer and keeps exactly one caller's channel, on the
connection that both sides prefer (`preferred`): one of their own before one through a relay. When two nodes
dial each other at once there are two connections for a moment: both sides move their channel to the same one,
let running requests finish, and the other connection falls silent and is closed. The peer counts as up from
its first channel until its last connection has gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from p2p_network.core import log
from p2p_network.core.errors import PeerUnreachable
from p2p_network.core.ids import PeerId
from p2p_network.host.addresses import Endpoint
from p2p_network.host.channel import Channel, Handler, Served
from p2p_network.host.connections import (
    NotSpoken,
    Stream,
    abort,
    is_alive,
    is_inbound,
    remote_of,
    via_of,
    why_of,
)
from p2p_network.host.frames import Hello, Welcome
from p2p_network.host.presence import PeerDown, PeerUp

logger = log.get(__name__)

SILENCE_S: Final = 5.0
FRESH_S: Final = 0.9
MEASURE_EVERY_S: Final = 10.0
DRAIN_S: Final = 10.0
SIMULTANEOUS_S: Final = 3.0
MAX_SERVED_PER_PEER: Final = 4
PLAIN_S: Final = 20.0


@dataclass(slots=True, eq=False)
class Connection:
    """A libp2p connection. Times are trio's clock, seconds. `via`: the relay it runs through."""

    conn: Any
    inbound: bool
    opened_at: float
    heard_at: float
    via: PeerId | None = None

    @classmethod
    def of(cls, conn: Any) -> Connection:
        """A connection that was made just now."""
        now = trio.current_time()
        return cls(conn, is_inbound(conn), now, now, via_of(conn))

    def heard(self) -> None:
        """Bytes came from the peer."""
        self.heard_at = trio.current_time()


def preferred(connections: Sequence[Connection], *, peer_is_smaller: bool) -> Connection | None:
    """The connection that both sides choose for their channels.

    One of their own before any through a relay. Of those made at about the same moment, one that was dialled
    by the smaller peer id; otherwise the newest, since a peer that dials again has lost the older one.
    """
    connections = [c for c in connections if c.via is None] or connections
    if not connections:
        return None
    newest = max(c.opened_at for c in connections)
    young = [c for c in connections if newest - c.opened_at < SIMULTANEOUS_S]
    return max(young, key=lambda c: (c.inbound == peer_is_smaller, c.opened_at))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a link needs from its host.

    Attributes:
        nursery: where its channels run.
        open_on: opens a stream of the mesh's protocol on a connection, or raises PeerUnreachable.
        addresses: where this node can be dialled.
        greeted: is told what a peer says about its own addresses.
        tell: takes PeerUp and PeerDown.
        handlers: who answers which method.
    """

    nursery: trio.Nursery
    open_on: Callable[[Any], Awaitable[Stream]]
    addresses: Callable[[], tuple[str, ...]]
    greeted: Callable[[PeerId, Sequence[str]], None]
    tell: Callable[[PeerUp | PeerDown], None]
    handlers: Mapping[str, Handler]


class Link:
    """Everything about one connected peer."""

    def __init__(self, peer: PeerId, self_id: PeerId, around: Surroundings) -> None:
        self.peer = peer
        self.is_up = False
        self.violations = 0
        self.changed = trio.Event()
        self.connections: list[Connection] = []
        self.told_relayed: bool | None = None
        """What the dialler was told of `only_relayed`."""
        self._peer_is_smaller = peer < self_id
        self._around = around
        self._channel: Channel | None = None
        self._current: Connection | None = None
        self._served: set[Served] = set()
        self._reason = "the connection ended"
        self._pinged_at = -MEASURE_EVERY_S

    @property
    def channel(self) -> Channel | None:
        """Where to send requests; None for the moment between two channels."""
        return self._channel if self._channel is not None and not self._channel.ended.is_set() else None

    @property
    def connection(self) -> Connection | None:
        """The connection in use; None for the moment between two channels."""
        return self._current if self.channel is not None else None

    @property
    def address(self) -> str:
        """The other end of the connection in use; "" without one."""
        return _address(self._current) if self._current is not None else ""

    @property
    def via(self) -> PeerId | None:
        """The relay that the connection in use runs through, if any."""
        return self._current.via if self._current is not None else None

    @property
    def dialled(self) -> bool | None:
        """Whether this side dialled the connection in use; None without one of our own."""
        return None if self._current is None or self.via is not None else not self._current.inbound

    @property
    def why_relayed(self) -> str:
        """Why it runs through a relay; "" if it doesn't."""
        return why_of(self._current.conn) if self._current is not None else ""

    @property
    def current(self) -> Any:
        """The connection in use; None for a moment now and then."""
        return self._current.conn if self._current is not None and is_alive(self._current.conn) else None

    @property
    def direct(self) -> Any:
        """A living connection without a relay, or None."""
        best = self._best()
        return best.conn if best is not None and best.via is None else None

    @property
    def remote(self) -> Endpoint | None:
        """The other end of a living connection without a relay, or None."""
        conn = self.direct
        return remote_of(conn) if conn is not None else None

    @property
    def only_relayed(self) -> bool:
        """Whether every connection runs through a relay."""
        return all(connection.via is not None for connection in self.connections)

    def add(self, conn: Any) -> None:
        """The swarm has a connection with the peer."""
        self.connections.append(Connection.of(conn))
        self._change()

    def remove(self, conn: Any) -> None:
        """The swarm has lost it."""
        self.connections = [c for c in self.connections if c.conn is not conn]
        self._change()

    def expel(self, reason: str) -> None:
        """The peer is a member no more: end all connections with it."""
        self._reason = reason
        for connection in list(self.connections):
            self._drop(connection)

    async def run(self) -> None:
        """Keep a channel open for as long as there is a connection."""
        try:
            while (connection := self._best()) is not None:
                if self._channel is None or self._current is not connection:
                    await self._move(connection)
                    continue
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, nursery, self._channel.ended.wait)
                    nursery.start_soon(_cancel_after, nursery, self.changed.wait)
                if self._channel.ended.is_set():
                    self._channel_ended()
        finally:
            if self._channel is not None:
                self._channel.end("the connection ended")
            if self.is_up:
                self.is_up = False
                self._around.tell(PeerDown(self.peer, self._reason))
            self._change()

    async def serve(self, raw: Any) -> None:
        """The peer opened a stream to us: answer on it until it ends."""
        stream = Stream(raw)
        connection = next((c for c in self.connections if c.conn is stream.connection), None)
        if connection is None or len(self._served) >= MAX_SERVED_PER_PEER:
            await stream.reset()
            return
        served = Served(stream, connection.heard, self._around.handlers, self._welcome)
        self._served.add(served)
        try:
            await served.run()
        finally:
            self._served.discard(served)
            if served.violated:
                self._violated(served.reason)
                self._drop(connection)

    def tick(self, now: float) -> None:
        """Once a second: a heartbeat out, and the end for whatever has been silent or unfinished too long.

        A peer that was heard just now needs no heartbeat: so of two idle nodes only one sends them.
        """
        if self._channel is not None and self._current is not None:
            self._channel.check(now)
            if now - self._current.heard_at >= FRESH_S or now - self._pinged_at >= MEASURE_EVERY_S:
                self._pinged_at = now
                self._channel.ping(now)
        for served in self._served:
            served.check(now)
        for connection in list(self.connections):
            if now - connection.heard_at > SILENCE_S:
                if connection is self._current or self._current is None:
                    self._reason = f"silent for {now - connection.heard_at:.0f} s"
                self._drop(connection)

    def forgive(self, stalled_s: float) -> None:
        """This process stood still for so long: the peer's silence in that time counts for nothing."""
        for connection in self.connections:
            connection.heard_at += stalled_s

    def _best(self) -> Connection | None:
        living = [c for c in self.connections if is_alive(c.conn)]
        return preferred(living, peer_is_smaller=self._peer_is_smaller)

    async def _move(self, connection: Connection) -> None:
        """Open a channel on `connection` and make it the link's; closes a connection that can't carry one."""
        channel: Channel | None = None
        try:
            channel = Channel(await self._around.open_on(connection.conn), connection.heard)
            self._around.nursery.start_soon(channel.run, Hello(self._around.addresses()))
            if not await channel.wait_greeted():
                raise PeerUnreachable(channel.reason or "no answer to Hello")
        except NotSpoken:
            self._reason = "it does not speak our protocol"
            log.event(logger, "host.peer_is_plain", level=10, peer=self.peer, reason=self._reason)
            self.remove(connection.conn)
            self._around.nursery.start_soon(_end_later, connection)
            return
        except PeerUnreachable as exc:
            self._reason = f"no channel: {exc.message}"
            log.event(logger, "host.channel_failed", level=10, peer=self.peer, reason=self._reason)
            if channel is not None:
                channel.end("not greeted")
            self._drop(connection)
            return
        assert channel.welcome is not None
        connection.heard()
        if self._channel is not None:
            self._around.nursery.start_soon(_drain, self._channel)
        if self.is_up and self.via != connection.via:
            log.event(
                logger,
                "host.path_changed",
                peer=self.peer,
                from_=self.via or "direct",
                to=connection.via or "direct",
                reason=why_of(connection.conn) or "a direct connection stands",
            )
        self._channel, self._current = channel, connection
        self._reason = "the connection ended"
        if not self.is_up:
            self.is_up = True
            self._around.tell(PeerUp(self.peer, _address(connection), connection.inbound))
        self._around.greeted(self.peer, channel.welcome.addresses)
        self._change()

    def _channel_ended(self) -> None:
        """The channel is gone. Its connection is too, or is closed now: a new one starts clean."""
        assert self._channel is not None
        assert self._current is not None
        if not self._reason.startswith("silent"):
            self._reason = self._channel.reason
        if self._channel.violated:
            self._violated(self._reason)
        self._drop(self._current)
        self._channel = self._current = None

    def _drop(self, connection: Connection) -> None:
        abort(connection.conn)
        self.remove(connection.conn)

    def _violated(self, reason: str) -> None:
        self.violations += 1
        log.event(logger, "host.peer_violated", level=30, peer=self.peer, reason=reason)

    def _welcome(self, hello: Hello) -> Welcome:
        self._around.greeted(self.peer, hello.addresses)
        return Welcome(self._around.addresses())

    def _change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


def _address(connection: Connection) -> str:
    remote = str(remote_of(connection.conn))
    return remote if connection.via is None else f"{remote}/p2p/{connection.via}/p2p-circuit"


async def _end_later(connection: Connection) -> None:
    """A plain libp2p node, with all that a member has: it may identify and ping us, and then goes."""
    await trio.sleep(PLAIN_S)
    abort(connection.conn)


async def _drain(channel: Channel) -> None:
    """Let the requests on a channel that was replaced finish, then end it."""
    with trio.move_on_after(DRAIN_S):
        await channel.wait_idle()
    channel.end("moved to a better connection")


async def _cancel_after(nursery: trio.Nursery, wait: Callable[[], Awaitable[None]]) -> None:
    await wait()
    nursery.cancel_scope.cancel()
