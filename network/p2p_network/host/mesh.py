"""Which peers can this node talk to right now, and how does it ask them something?

`MeshHost` owns the listener, the dialler's core, discovery, and one `_Link` per connected peer. A link
keeps exactly one caller's channel on the best connection with its peer; when two nodes dial each other at
once there are two connections for a moment, both sides move to the same one (`_rank`), and the other falls
silent and is closed. Once a second a ticker sends heartbeats and closes every connection that has been
silent for `SILENCE_S`; the dialler then takes over.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from p2p_network.core import log
from p2p_network.core.errors import LocalViolation, MeshError, PeerUnreachable
from p2p_network.core.ids import PeerId, short
from p2p_network.host import dialer
from p2p_network.host.addresses import Endpoint, endpoints_of, parse_endpoint
from p2p_network.host.channel import Channel, Handler, Served
from p2p_network.host.frames import MAX_METHOD_CHARS, MAX_PAYLOAD_BYTES, Hello, Welcome
from p2p_network.host.guards import (
    MeshBasicHost,
    MeshSwarm,
    SelfReached,
    Stranger,
    Stream,
    abort,
    is_alive,
    is_inbound,
    peer_of,
    remote_of,
)
from p2p_network.host.listener import Listener, machine_addresses
from p2p_network.identity import Identity

logger = log.get(__name__)

HEARTBEAT_S: Final = 1.0
SILENCE_S: Final = 5.0
DRAIN_S: Final = 10.0
SIMULTANEOUS_S: Final = 3.0
ADDRESSES_EVERY_S: Final = 15.0
REOPEN_PAUSE_S: Final = 0.5
MAX_SERVED_PER_PEER: Final = 4
EVENTS: Final = 4096


@dataclass(frozen=True, slots=True)
class PeerUp:
    """Requests to `peer` can be made. `address`: the other end; `inbound`: it dialled us."""

    peer: PeerId
    address: str
    inbound: bool


@dataclass(frozen=True, slots=True)
class PeerDown:
    """Requests to `peer` can't be made any more. `reason`: one sentence."""

    peer: PeerId
    reason: str


@dataclass(slots=True, eq=False)
class _Connection:
    """A libp2p connection and when anything was last heard on it (trio's clock)."""

    conn: Any
    peer: PeerId
    inbound: bool
    opened_at: float
    heard_at: float

    def heard(self) -> None:
        self.heard_at = trio.current_time()


@dataclass(slots=True, eq=False)
class _Link:
    """Everything about one connected peer."""

    peer: PeerId
    connections: list[_Connection] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)
    channel: Channel | None = None
    current: _Connection | None = None
    draining: set[Channel] = field(default_factory=set)
    served: set[Served] = field(default_factory=set)
    up: bool = False
    reason: str = "the connection ended"

    def change(self) -> None:
        """Wake whoever waits for a change."""
        self.changed.set()
        self.changed = trio.Event()


class MeshHost:
    """One node's place in a private libp2p mesh.

    Args:
        identity: who this node is.
        psk: 32-byte pre-shared key; who doesn't have it gets in nowhere.
        mesh_id: name of the mesh, part of the protocol's name.
        rendezvous: 32 bytes from which the names used in mDNS and the DHT are derived.
        listen: ``HOST:PORT`` or ``[HOST]:PORT``.
        bootstrap: addresses to dial first (see `addresses`); raises MeshError on a malformed one.
        mdns, dht: whether to look for members that way.
        remembered: what `known` said before the last restart.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        psk: bytes,
        mesh_id: str,
        rendezvous: bytes,
        listen: Sequence[str],
        bootstrap: Sequence[str] = (),
        mdns: bool = True,
        dht: bool = True,
        remembered: Mapping[PeerId, Sequence[str]] | None = None,
    ) -> None:
        assert len(psk) == 32, "a pre-shared key has 32 bytes"
        self.peer_id: PeerId = identity.peer_id
        self.rejected = 0
        self.violations = 0
        self._protocol = f"/kairos-p2p/{mesh_id}/1"
        self._rendezvous = rendezvous
        self._listen = tuple(listen)
        self._mdns = mdns
        self._use_dht = dht
        self._listener: Listener | None = None
        self._swarm = MeshSwarm(identity.seed, psk)
        self._host = MeshBasicHost(self._swarm, self.addresses)
        self._links: dict[PeerId, _Link] = {}
        self._handlers: dict[str, Handler] = {}
        self._events, self.events = trio.open_memory_channel[PeerUp | PeerDown](EVENTS)
        anonymous, first = _bootstrap_targets(bootstrap)
        self._dialer = dialer.Dialer(self.peer_id, anonymous, jitter=random.random)
        self._dialer_moved = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._dht: Any = None
        # learned before `run`: the core gets them when it starts
        self._early: list[dialer.Learned] = first
        for peer, addresses in (remembered or {}).items():
            self._early.append(dialer.Learned(peer, endpoints_of(addresses), "disk"))

    # ------------------------------------------------------------------ what it knows

    def addresses(self) -> tuple[str, ...]:
        """Where others can dial this node: multiaddresses without ``/p2p``. Empty before it listens."""
        return tuple(map(str, self._listener.endpoints())) if self._listener is not None else ()

    def connected(self) -> frozenset[PeerId]:
        """Peers to which a request can be made now."""
        return frozenset(peer for peer, link in self._links.items() if link.up)

    def round_trip_s(self, peer: PeerId) -> float | None:
        """Of the last heartbeat answered, seconds; None if there was none."""
        link = self._links.get(peer)
        return link.channel.round_trip_s if link is not None and link.channel is not None else None

    def known(self) -> Mapping[PeerId, tuple[str, ...]]:
        """Every peer that was ever learned, and where it may be dialled; to be remembered on disk."""
        return {peer: tuple(map(str, found)) for peer, found in self._dialer.known().items()}

    def learn(self, peer: PeerId, addresses: Sequence[str], source: str) -> None:
        """Where a peer may be dialled. Untrusted: what is no concrete address is passed over."""
        event = dialer.Learned(peer, endpoints_of(addresses), source)
        if self._nursery is None:
            self._early.append(event)
        else:
            self._decide(event)

    # ------------------------------------------------------------------ talking

    def serve(self, method: str, handler: Handler) -> None:
        """Answer requests and notifications of `method`; a handler is cancelled when its peer is gone."""
        assert len(method) <= MAX_METHOD_CHARS, "the method's name is too long"
        self._handlers[method] = handler

    async def request(self, peer: PeerId, method: str, payload: bytes, *, timeout_s: float = 5.0) -> bytes:
        """Ask a peer and wait for its answer.

        Raises PeerUnreachable (not connected, connection lost, no answer in time), RemoteViolation (its
        handler failed or refused), LocalViolation (the payload is too large; nothing was sent).
        """
        _check_size(method, payload)
        started = trio.current_time()
        channel = self._channel(peer)
        if channel is None and peer in self._links:
            with trio.move_on_after(timeout_s):
                while (channel := self._channel(peer)) is None and peer in self._links:
                    await self._links[peer].changed.wait()
        if channel is None:
            raise PeerUnreachable(
                f"no connection with peer {short(peer)} for {method}",
                hint="see `kairos-p2p peers`; the node keeps dialling",
            )
        left_s = max(0.0, timeout_s - (trio.current_time() - started))
        try:
            return await channel.request(method, payload, timeout_s=left_s)
        except PeerUnreachable as exc:
            raise PeerUnreachable(f"peer {short(peer)}: {exc.message}") from exc

    def notify(self, peer: PeerId, method: str, payload: bytes) -> bool:
        """Send a hint that may get lost. False if it could not be queued. Never blocks.

        Raises LocalViolation if the payload is too large.
        """
        _check_size(method, payload)
        channel = self._channel(peer)
        return channel is not None and channel.notify(method, payload)

    # ------------------------------------------------------------------ running

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, dial and serve until cancelled; "started" once listening. Raises MeshError."""
        assert self._nursery is None, "run() is called once"
        self._listener = await Listener.bind(self._listen)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._swarm.attach(nursery)
                self._swarm.on_connected = self._connected
                self._swarm.on_disconnected = self._disconnected
                self._host.set_stream_handler(self._protocol, self._serve_stream)
                nursery.start_soon(self._listener.serve, self._admit)
                nursery.start_soon(self._tick)
                nursery.start_soon(self._drive_dialer)
                if self._use_dht or self._mdns:
                    # imported late: the DHT and zeroconf cost 10 MB
                    await self._start_discovery(nursery)
                for event in self._early:
                    self._decide(event)
                self._early.clear()
                log.event(logger, "host.listening", address=" ".join(self.addresses()), peer=self.peer_id)
                task_status.started()
        finally:
            self._listener.close()
            for link in self._links.values():
                for connection in link.connections:
                    abort(connection.conn)
            self._events.close()

    async def _start_discovery(self, nursery: trio.Nursery) -> None:
        from p2p_network.host import discovery

        assert self._listener is not None
        if self._use_dht:
            self._dht = discovery.DhtRendezvous(self._host, self._rendezvous, self.learn)
            nursery.start_soon(self._dht.run, nursery)
        if self._mdns:
            local = discovery.LocalDiscovery(
                self.peer_id,
                self._rendezvous,
                self.learn,
                loopback_only=self._listener.is_loopback_only,
            )
            nursery.start_soon(self._announce, local)

    async def _announce(self, local: Any) -> None:
        """Keep the mDNS announcement true while addresses come and go."""
        failing = False
        try:
            while True:
                try:
                    await local.announce(self.addresses(), machine_addresses(ipv6=True))
                    failing = False
                except OSError as exc:
                    if not failing:
                        log.event(logger, "discovery.mdns_failed", detail=str(exc))
                    failing = True
                await trio.sleep(ADDRESSES_EVERY_S)
        finally:
            await local.stop()

    async def _admit(self, stream: trio.SocketStream, trusted: Any) -> None:
        try:
            await self._swarm.admit(stream, trusted)
        except Stranger as exc:
            self.rejected += 1
            log.event(logger, "host.stranger_rejected", level=10, count=self.rejected, error=exc.message)
        except (MeshError, OSError) as exc:
            log.event(logger, "host.handshake_failed", level=10, detail=str(exc))

    # ------------------------------------------------------------------ dialling

    def _decide(self, event: dialer.Event) -> None:
        """Feed the core and carry out what it wants."""
        assert self._nursery is not None
        decision = self._dialer.step(trio.current_time(), event)
        for effect in decision.effects:
            self._nursery.start_soon(self._dial, effect)
        if decision.reason:
            log.event(logger, "host.dialer_decided", level=10, reason=decision.reason)
        self._dialer_moved.set()

    async def _drive_dialer(self) -> None:
        while True:
            self._decide(dialer.Tick())
            self._dialer_moved = trio.Event()
            wake_at = self._dialer.wake_at()
            with trio.move_on_at(trio.current_time() + 3600 if wake_at is None else wake_at):
                await self._dialer_moved.wait()

    async def _dial(self, effect: dialer.Dial) -> None:
        target = effect.target
        expected = None if isinstance(target, Endpoint) else target
        reached: PeerId | None = None
        try:
            conn = await self._swarm.reach(effect.endpoints, expected)
            reached = peer_of(conn)
        except SelfReached:
            reached = self.peer_id
        except MeshError as exc:
            log.event(logger, "host.dial_failed", level=10, address=str(target), detail=str(exc))
        self._decide(dialer.DialEnded(target, reached))

    # ------------------------------------------------------------------ connections

    def _connected(self, conn: Any) -> None:
        """Called by the swarm for every new connection, whoever dialled."""
        peer = peer_of(conn)
        if peer == self.peer_id or self._nursery is None:
            abort(conn)
            return
        now = trio.current_time()
        connection = _Connection(conn, peer, is_inbound(conn), now, now)
        link = self._links.get(peer)
        if link is None:
            link = self._links[peer] = _Link(peer, [connection])
            self._nursery.start_soon(self._run_link, link)
            self._decide(dialer.Connected(peer))
        else:
            link.connections.append(connection)
            link.change()

    def _disconnected(self, conn: Any) -> None:
        link = self._links.get(peer_of(conn))
        if link is not None:
            link.connections = [c for c in link.connections if c.conn is not conn]
            link.change()

    def _best(self, link: _Link) -> _Connection | None:
        """The connection that both sides will choose.

        Of two dialled at about the same moment, the one dialled by the smaller peer id; otherwise the newest:
        a peer that dials again has lost the older one.
        """
        living = [c for c in link.connections if is_alive(c.conn)]
        if not living:
            return None
        newest = max(c.opened_at for c in living)
        young = [c for c in living if newest - c.opened_at < SIMULTANEOUS_S]
        by_smaller = self.peer_id > link.peer  # then an inbound one was dialled by the smaller id
        return max(young, key=lambda c: (c.inbound == by_smaller, c.opened_at))

    async def _run_link(self, link: _Link) -> None:
        """Keep a channel open to one peer for as long as there is a connection with it."""
        try:
            while (connection := self._best(link)) is not None:
                if link.channel is None or link.current is not connection:
                    await self._move(link, connection)
                    continue
                changed = link.changed
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, nursery, link.channel.ended.wait)
                    nursery.start_soon(_cancel_after, nursery, changed.wait)
                if link.channel.ended.is_set():
                    self._channel_ended(link)
        finally:
            del self._links[link.peer]
            link.change()
            if link.channel is not None:
                link.channel.end("the connection ended")
            if link.up:
                link.up = False
                self._tell(PeerDown(link.peer, link.reason))
        self._decide(dialer.Lost(link.peer))

    async def _move(self, link: _Link, connection: _Connection) -> None:
        """Open a channel on `connection` and make it the link's; closes a connection that can't carry one."""
        assert self._nursery is not None
        channel: Channel | None = None
        try:
            stream = await self._host.open_on(connection.conn, self._protocol)
            channel = Channel(stream, connection.heard)
            self._nursery.start_soon(channel.run, Hello(self.addresses()))
            if not await channel.wait_greeted():
                raise PeerUnreachable(channel.reason or "no answer to Hello")
        except PeerUnreachable as exc:
            link.reason = f"no channel: {exc.message}"
            log.event(logger, "host.channel_failed", level=10, peer=link.peer, reason=link.reason)
            if channel is not None:
                channel.end("not greeted")
            self._drop(link, connection)
            return
        assert channel.welcome is not None
        connection.heard()
        if link.channel is not None and not link.channel.ended.is_set():
            self._nursery.start_soon(self._drain, link, link.channel)
        link.channel, link.current = channel, connection
        link.change()
        await self._greeted(link.peer, channel.welcome.addresses)
        if not link.up:
            link.up = True
            self._tell(PeerUp(link.peer, str(remote_of(connection.conn)), connection.inbound))

    def _channel_ended(self, link: _Link) -> None:
        """The link's channel is gone. Its connection is too, or is closed now: a new one starts clean."""
        assert link.channel is not None
        assert link.current is not None
        link.reason = link.channel.reason
        if link.channel.violated:
            self.violations += 1
            log.event(logger, "host.peer_violated", level=30, peer=link.peer, reason=link.reason)
        self._drop(link, link.current)
        link.channel = link.current = None

    def _drop(self, link: _Link, connection: _Connection) -> None:
        abort(connection.conn)
        if connection in link.connections:
            link.connections.remove(connection)
        link.change()

    async def _drain(self, link: _Link, channel: Channel) -> None:
        """Let the requests on a channel that was replaced finish, then end it."""
        link.draining.add(channel)
        with trio.move_on_after(DRAIN_S):
            await channel.wait_idle()
        channel.end("moved to a better connection")
        link.draining.discard(channel)

    async def _greeted(self, peer: PeerId, addresses: Sequence[str]) -> None:
        found = endpoints_of(addresses)
        self._decide(dialer.Learned(peer, found, "hello"))
        if self._dht is not None:
            await self._dht.know(peer, tuple(map(str, found)))

    async def _serve_stream(self, raw: Any) -> None:
        """A peer opened a channel to us."""
        stream = Stream(raw)
        link = self._links.get(stream.peer)
        connection = (
            next((c for c in link.connections if c.conn is stream.connection), None)
            if link is not None
            else None
        )
        if link is None or connection is None or len(link.served) >= MAX_SERVED_PER_PEER:
            await stream.reset()
            return
        served = Served(
            stream, connection.heard, self._handlers, lambda hello: self._welcome(stream.peer, hello)
        )
        link.served.add(served)
        try:
            await served.run()
        finally:
            link.served.discard(served)
            if served.violated:
                self.violations += 1
                log.event(logger, "host.peer_violated", level=30, peer=stream.peer, reason=served.reason)
                abort(connection.conn)

    def _welcome(self, peer: PeerId, hello: Hello) -> Welcome:
        self._decide(dialer.Learned(peer, endpoints_of(hello.addresses), "hello"))
        return Welcome(self.addresses())

    async def _tick(self) -> None:
        """Once a second: heartbeats out, the silent dropped."""
        while True:
            await trio.sleep(HEARTBEAT_S)
            now = trio.current_time()
            for link in list(self._links.values()):
                if link.channel is not None:
                    link.channel.check(now)
                    link.channel.ping(now)
                for served in link.served:
                    served.check(now)
                for connection in list(link.connections):
                    if now - connection.heard_at > SILENCE_S:
                        link.reason = f"silent for {now - connection.heard_at:.0f} s"
                        self._drop(link, connection)

    def _channel(self, peer: PeerId) -> Channel | None:
        link = self._links.get(peer)
        if link is None or link.channel is None or link.channel.ended.is_set():
            return None
        return link.channel

    def _tell(self, event: PeerUp | PeerDown) -> None:
        match event:
            case PeerUp():
                log.event(logger, "host.peer_up", peer=event.peer, address=event.address)
            case PeerDown():
                log.event(logger, "host.peer_down", peer=event.peer, reason=event.reason)
        try:
            self._events.send_nowait(event)
        except (trio.WouldBlock, trio.BrokenResourceError):
            log.event(logger, "host.event_lost", level=40, peer=event.peer)


async def _cancel_after(nursery: trio.Nursery, wait: Any) -> None:
    await wait()
    nursery.cancel_scope.cancel()


def _check_size(method: str, payload: bytes) -> None:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise LocalViolation(
            f"{method}: a payload of {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} fit into a frame",
            hint="send it in pieces",
        )


def _bootstrap_targets(texts: Sequence[str]) -> tuple[list[Endpoint], list[dialer.Learned]]:
    """Bootstrap addresses, split into those without an id and those with one."""
    anonymous: list[Endpoint] = []
    named: list[dialer.Learned] = []
    for text in texts:
        try:
            endpoint, peer = parse_endpoint(text)
        except ValueError as exc:
            raise MeshError(
                f"bootstrap address: {exc}", hint="write HOST:PORT or /ip4/HOST/tcp/PORT/p2p/ID"
            ) from exc
        if peer is None:
            anonymous.append(endpoint)
        else:
            named.append(dialer.Learned(peer, (endpoint,), "bootstrap"))
    return anonymous, named
