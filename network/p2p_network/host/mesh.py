"""Which peers can this node talk to right now, and how does it ask them something?

`MeshHost` owns the listener, the dialler's core, discovery, and one `Link` per connected peer. Once a
second a ticker sends heartbeats and ends what has been silent for too long; the dialler then takes over.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import trio

from p2p_network.core import log
from p2p_network.core.errors import LocalViolation, MeshError, PeerUnreachable
from p2p_network.core.ids import PeerId, short
from p2p_network.host import dialer
from p2p_network.host.addresses import Endpoint, endpoints_of, parse_endpoint
from p2p_network.host.channel import Channel, Handler
from p2p_network.host.circuits import SIGHT_METHOD, Around, Circuits
from p2p_network.host.connections import Stream, abort, peer_of
from p2p_network.host.discovery import DhtRendezvous, LocalDiscovery
from p2p_network.host.frames import MAX_METHOD_CHARS, MAX_PAYLOAD_BYTES
from p2p_network.host.gate import Gate
from p2p_network.host.gate import Refused as NotAdmitted
from p2p_network.host.guards import MeshBasicHost, MeshSwarm, SelfReached
from p2p_network.host.links import Link, Surroundings
from p2p_network.host.listener import Listener, machine_addresses
from p2p_network.host.presence import PeerDown, PeerUp
from p2p_network.host.private import SocketWire, Stranger, Wire
from p2p_network.identity import Identity
from p2p_network.tubes.flow import PACKETS, Opening
from p2p_network.tubes.tube import Ended, Refused, Tube

logger = log.get(__name__)

__all__ = ["MeshHost", "PeerDown", "PeerUp"]

HEARTBEAT_S: Final = 1.0
STALL_S: Final = 2.0
"""A ticker that wakes so much too late stood still, with all that came meanwhile unread."""
ADDRESSES_EVERY_S: Final = 15.0
EVENTS: Final = 4096
MAX_TUBES: Final = 256
MAX_TUBES_PER_PEER: Final = 64
MAX_WHY_CHARS: Final = 160


class MeshHost:
    """One node's place in a private libp2p mesh.

    Args:
        identity: who this node is.
        psk: 32-byte pre-shared key; who doesn't have it gets in nowhere. With a gate, its keys count.
        mesh_id: name of the mesh, part of the protocol's name.
        rendezvous: 32 bytes from which the names used in mDNS and the DHT are derived.
        listen: ``HOST:PORT`` or ``[HOST]:PORT``.
        bootstrap: addresses to dial first (see `addresses`); raises MeshError on a malformed one.
        mdns, dht: whether to look for members that way.
        remembered: what `known` said before the last restart.
        without_devices: network devices whose addresses are never announced: the VPN's own.
        gate: who is a member (`gate.Gate`); None: whoever has the key, as in tests of the layers below.
        relays: whether to carry circuits between two others that can't reach each other.
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
        without_devices: Sequence[str] = (),
        gate: Gate | None = None,
        relays: bool = True,
    ) -> None:
        assert len(psk) == 32, "a pre-shared key has 32 bytes"
        self.peer_id: PeerId = identity.peer_id
        self._violations = 0
        self._gate = gate
        self._refused: Counter[str] = Counter()
        self._protocol = f"/kairos-p2p/{mesh_id}/1"
        self._tube_protocol = f"/kairos-p2p/{mesh_id}/tube/1"
        self._take_tube: Callable[[Tube, Opening], Awaitable[None]] | None = None
        self._take_packets: Callable[[Tube, Opening], Awaitable[None]] | None = None
        self._tubes: Counter[PeerId] = Counter()
        self._rendezvous = rendezvous
        self._listen = tuple(listen)
        self._without_devices = tuple(without_devices)
        self._mdns = mdns
        self._use_dht = dht
        self._listener: Listener | None = None
        self._announced: tuple[Endpoint, ...] = ()
        self._swarm = MeshSwarm(identity.seed, psk, gate)
        self._host = MeshBasicHost(self._swarm, self.addresses)
        self._links: dict[PeerId, Link] = {}
        self._relays = relays
        self._circuits: Circuits | None = None
        self._handlers: dict[str, Handler] = {}
        self._events, self.events = trio.open_memory_channel[PeerUp | PeerDown](EVENTS)
        anonymous, first = _bootstrap_targets(bootstrap)
        self._dialer = dialer.Dialer(self.peer_id, anonymous, jitter=random.random)
        self._dialer_moved = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._dht: DhtRendezvous | None = None
        self._undialled: dict[PeerId, str] = {}  # why, for those that were dialled in vain
        # learned before `run`: the core gets them when it starts
        self._early: list[dialer.Learned] = first
        for peer, addresses in (remembered or {}).items():
            self._early.append(dialer.Learned(peer, endpoints_of(addresses), "disk"))

    # ------------------------------------------------------------------ what it knows

    def addresses(self) -> tuple[str, ...]:
        """Where others can dial this node: multiaddresses without ``/p2p``. Empty before it listens."""
        return tuple(map(str, dict.fromkeys((*self.own_endpoints(), *self._announced))))

    def own_endpoints(self) -> tuple[Endpoint, ...]:
        """Where this machine itself listens, by its own addresses. Empty before it listens."""
        return self._listener.endpoints() if self._listener is not None else ()

    def announce(self, endpoints: Sequence[Endpoint]) -> None:
        """Where this node can be dialled besides, since a router leads to it. Replaces the former ones."""
        self._announced = tuple(endpoints)

    def other_end(self, peer: PeerId) -> str:
        """ "ip:port" of the other end of the direct connection with a peer; "" without one."""
        link = self._links.get(peer)
        remote = link.remote if link is not None else None
        if remote is None:
            return ""
        return f"[{remote.host}]:{remote.port}" if ":" in remote.host else f"{remote.host}:{remote.port}"

    async def probe(self, endpoint: Endpoint, peer: PeerId) -> None:
        """Whether a peer answers there, proving who it is; the connection is closed then.

        Raises PeerUnreachable: why not.
        """
        await self._swarm.probe(endpoint, peer)

    @property
    def rejected(self) -> int:
        """Inbound connections that were closed because they did not prove to be a member's."""
        return self._refused.total() + (self._listener.turned_away if self._listener is not None else 0)

    @property
    def refused(self) -> Mapping[str, int]:
        """Connections that were closed because a side was not admitted, by cause (`admission.Cause`)."""
        crowd = self._listener.turned_away if self._listener is not None else 0
        return dict(self._refused) | ({"crowded_out": crowd} if crowd else {})

    @property
    def violations(self) -> int:
        """Channels that were closed because a member broke the protocol."""
        return self._violations + sum(link.violations for link in self._links.values())

    def connected(self) -> frozenset[PeerId]:
        """Peers to which a request can be made now."""
        return frozenset(peer for peer, link in self._links.items() if link.is_up)

    def round_trip_s(self, peer: PeerId) -> float | None:
        """Of the last heartbeat answered, seconds; None if there was none."""
        link = self._links.get(peer)
        return link.channel.round_trip_s if link is not None and link.channel is not None else None

    def address_of(self, peer: PeerId) -> str:
        """The other end of the connection in use with a peer; "" without one."""
        link = self._links.get(peer)
        return link.address if link is not None else ""

    def relay_of(self, peer: PeerId) -> tuple[PeerId, str] | None:
        """The member through which a peer is reached, and why; None for a direct connection, or none."""
        link = self._links.get(peer)
        return (link.via, link.why_relayed) if link is not None and link.via is not None else None

    def dialled(self, peer: PeerId) -> bool | None:
        """Whether we dialled a peer, and not it us; None without a direct connection."""
        link = self._links.get(peer)
        return link.dialled if link is not None else None

    @property
    def circuits_carried(self) -> int:
        """Circuits between others that run through this node now."""
        return self._circuits.carried if self._circuits is not None else 0

    def known(self) -> Mapping[PeerId, tuple[str, ...]]:
        """Every peer that was ever learned, and where it may be dialled; to be remembered on disk."""
        return {peer: tuple(map(str, found)) for peer, found in self._dialer.known().items()}

    def learn(self, peer: PeerId, addresses: Sequence[str], source: str) -> None:
        """Where a peer may be dialled. Untrusted: what is no concrete address is passed over."""
        if not self._may_dial(peer):
            return
        event = dialer.Learned(peer, endpoints_of(addresses), source)
        if self._nursery is None:
            self._early.append(event)
        else:
            self._decide(event)

    def want(self, peer: PeerId) -> None:
        """Dial a peer although there are enough connections, if it is not connected and may be dialled."""
        if self._nursery is not None and peer not in self._links and self._may_dial(peer):
            self._decide(dialer.Wanted(peer))

    def expel(self, peer: PeerId, reason: str) -> None:
        """Close every connection with a peer, now, and forget where it was."""
        link = self._links.get(peer)
        if link is not None:
            log.event(logger, "host.peer_expelled", peer=peer, reason=reason)
            link.expel(reason)
        if self._nursery is None:
            self._early = [event for event in self._early if event.peer != peer]
        else:
            self._decide(dialer.Forgotten(peer))

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
            self.want(peer)
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

    async def open_tube(self, peer: PeerId, opening: Opening) -> Tube:
        """A tube to a peer, which took it. It runs until one side ends it.

        Raises PeerUnreachable (not connected, connection lost), MeshError (the peer refuses; its words).
        """
        link = self._links.get(peer)
        connection = link.connection if link is not None else None
        if link is None or connection is None or self._nursery is None:
            raise PeerUnreachable(
                f"no connection with peer {short(peer)}",
                hint="see `kairos-p2p peers`; the node keeps dialling",
            )
        stream = await self._host.open_on(connection.conn, self._tube_protocol)
        tube = Tube(stream, opens=True, heard=connection.heard)
        self._nursery.start_soon(tube.run)
        try:
            await tube.open(opening)
        except Refused as exc:
            raise MeshError(f"peer {short(peer)} refuses: {exc}") from exc
        except Ended as exc:
            raise PeerUnreachable(f"peer {short(peer)}: {exc}") from exc
        except BaseException:
            tube.abort("this node gave up")
            raise
        return tube

    def serve_tubes(self, handler: Callable[[Tube, Opening], Awaitable[None]]) -> None:
        """Who takes or refuses the tubes that peers open. Called before `run`."""
        self._take_tube = handler

    def serve_packets(self, handler: Callable[[Tube, Opening], Awaitable[None]]) -> None:
        """Who takes or refuses the tubes that peers open for their packets. Called before `run`."""
        self._take_packets = handler

    # ------------------------------------------------------------------ running

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, dial and serve until cancelled; "started" once listening. Raises MeshError."""
        assert self._nursery is None, "run() is called once"
        self._listener = await Listener.bind(self._listen, without=self._without_devices)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._swarm.attach(nursery)
                self._swarm.on_connected = self._connected
                self._swarm.on_disconnected = self._disconnected
                self._host.set_stream_handler(self._protocol, self._serve_stream)
                if self._take_tube is not None or self._take_packets is not None:
                    self._host.set_stream_handler(self._tube_protocol, self._serve_tube)
                self._circuits = self._serve_circuits(nursery)
                nursery.start_soon(self._listener.serve, self._admit_stream)
                nursery.start_soon(self._tick)
                nursery.start_soon(self._drive_dialer)
                self._start_discovery(nursery, self._listener)
                for event in self._early:
                    self._decide(event)
                self._early.clear()
                log.event(logger, "host.listening", address=" ".join(self.addresses()), peer=self.peer_id)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    # first the sockets: writes are shielded (guard 6), only this ends a stuck one
                    self._swarm.abort_all()
        finally:
            self._listener.close()
            self._events.close()

    def _start_discovery(self, nursery: trio.Nursery, listener: Listener) -> None:
        if self._use_dht:
            self._dht = DhtRendezvous(self._host, self._rendezvous, self.learn)
            nursery.start_soon(self._dht.run, nursery)
        if self._mdns:
            local = LocalDiscovery(
                self.peer_id, self._rendezvous, self.learn, loopback_only=listener.is_loopback_only
            )
            nursery.start_soon(self._announce, local)

    async def _announce(self, local: LocalDiscovery) -> None:
        """Keep the mDNS announcement true while addresses come and go."""
        failing = False
        try:
            while True:
                try:
                    await local.announce(
                        self.addresses(), machine_addresses(ipv6=True, without=self._without_devices)
                    )
                    failing = False
                except OSError as exc:
                    if not failing:
                        log.event(logger, "discovery.mdns_failed", detail=str(exc))
                    failing = True
                await trio.sleep(ADDRESSES_EVERY_S)
        finally:
            await local.stop()

    def _serve_circuits(self, nursery: trio.Nursery) -> Circuits:
        around = Around(
            nursery,
            self._host.open_on,
            self._direct,
            self._neighbours,
            lambda peer, method, payload, limit_s: self.request(peer, method, payload, timeout_s=limit_s),
            self._may_dial,
            self._swarm.reach_over,
            self._admit,
        )
        circuits = Circuits(self.peer_id, self._protocol, around, carries=self._relays)
        self._host.set_stream_handler(circuits.ask_protocol, circuits.carry)
        self._host.set_stream_handler(circuits.call_protocol, circuits.take_call)
        self.serve(SIGHT_METHOD, circuits.sight)
        return circuits

    def _direct(self, peer: PeerId) -> Any:
        link = self._links.get(peer)
        return link.direct if link is not None else None

    def _neighbours(self) -> list[tuple[PeerId, float | None]]:
        """Peers with a channel on a connection of our own, and its round trip in ms."""
        found = []
        for peer, link in self._links.items():
            if link.is_up and link.via is None and link.channel is not None:
                rtt_s = link.channel.round_trip_s
                found.append((peer, None if rtt_s is None else rtt_s * 1000))
        return found

    async def _admit_stream(self, stream: trio.SocketStream, trusted: Any) -> None:
        try:
            carried_by = SocketWire(stream)
        except OSError:  # gone already
            stream.socket.close()
            return
        await self._admit(carried_by, trusted)

    async def _admit(self, carried_by: Wire, trusted: Any) -> None:
        try:
            await self._swarm.admit(carried_by, trusted)
        except Stranger as exc:
            self._refused["stranger"] += 1
            count = self._refused["stranger"]
            log.event(logger, "host.stranger_rejected", level=10, count=count, error=exc.message)
        except NotAdmitted as exc:
            self._note_refusal(exc, str(carried_by.remote))
        except (MeshError, OSError) as exc:
            log.event(logger, "host.handshake_failed", level=10, detail=str(exc))

    # ------------------------------------------------------------------ dialling

    def _decide(self, event: dialer.Event) -> None:
        """Feed the core and carry out what it wants."""
        assert self._nursery is not None
        decision = self._dialer.step(trio.current_time(), event)
        for effect in decision.effects:
            if isinstance(effect, dialer.Relay):
                self._nursery.start_soon(self._dial_through, effect.target)
            else:
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

    def _may_dial(self, peer: PeerId) -> bool:
        return self._gate is None or self._gate.may_dial(peer)

    def _note_refusal(self, exc: NotAdmitted, address: str) -> None:
        """A connection that ended at the gate, whoever closed it."""
        self._refused[f"by_peer_{exc.cause}" if exc.by_peer else exc.cause] += 1
        log.event(logger, "host.peer_refused", level=10, address=address, reason=exc.message)

    async def _dial(self, effect: dialer.Dial) -> None:
        target = effect.target
        expected = None if isinstance(target, Endpoint) else target
        reached: PeerId | None = None
        try:
            conn = await self._swarm.reach(effect.endpoints, expected)
            reached = peer_of(conn)
        except SelfReached:
            reached = self.peer_id
        except NotAdmitted as exc:
            self._note_refusal(exc, str(target))
        except MeshError as exc:
            log.event(logger, "host.dial_failed", level=10, address=str(target), detail=str(exc))
            if expected is not None:
                self._undialled[expected] = f"it can't be dialled: {exc.message}"[:MAX_WHY_CHARS]
        self._decide(dialer.DialEnded(target, reached))

    async def _dial_through(self, target: PeerId) -> None:
        """Another member may lead to a peer that we can't dial."""
        assert self._circuits is not None
        reached = False
        why = self._undialled.get(target) or "it can't be dialled directly"
        try:
            await self._circuits.reach(target, why)
            reached = True
        except NotAdmitted as exc:
            self._note_refusal(exc, target)
        except MeshError as exc:
            log.event(logger, "host.relay_failed", level=10, peer=target, detail=str(exc))
        self._decide(dialer.RelayEnded(target, reached))

    # ------------------------------------------------------------------ connections

    def _connected(self, conn: Any) -> None:
        """Called by the swarm for every new connection, whoever dialled."""
        peer = peer_of(conn)
        if peer == self.peer_id or self._nursery is None:
            abort(conn)
            return
        link = self._links.get(peer)
        if link is not None:
            link.add(conn)
            self._tell_route(link)
            return
        around = Surroundings(
            self._nursery,
            lambda conn: self._host.open_on(conn, self._protocol),
            self.addresses,
            self._greeted,
            self._tell,
            self._handlers,
        )
        link = self._links[peer] = Link(peer, self.peer_id, around)
        link.add(conn)
        self._nursery.start_soon(self._run_link, link)
        self._tell_route(link)

    def _disconnected(self, conn: Any) -> None:
        link = self._links.get(peer_of(conn))
        if link is not None:
            link.remove(conn)
            if link.connections:
                self._tell_route(link)

    def _tell_route(self, link: Link) -> None:
        """The dialler goes on for a peer that is reached through a relay only."""
        if link.told_relayed != link.only_relayed:
            link.told_relayed = link.only_relayed
            if not link.only_relayed:
                self._undialled.pop(link.peer, None)
            self._decide(dialer.Connected(link.peer, link.only_relayed))

    async def _run_link(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            del self._links[link.peer]
            self._undialled.pop(link.peer, None)
            self._violations += link.violations
        self._decide(dialer.Lost(link.peer))

    async def _serve_stream(self, raw: Any) -> None:
        """A peer opened a channel to us."""
        link = self._links.get(peer_of(raw))
        if link is None:
            raise PeerUnreachable("the connection has just ended")
        await link.serve(raw)

    async def _serve_tube(self, raw: Any) -> None:
        """A peer opened a tube to us: let the handler have it, until it has ended."""
        stream = Stream(raw)
        link = self._links.get(stream.peer)
        connection = (
            next((c for c in link.connections if c.conn is stream.connection), None) if link else None
        )
        full = self._tubes.total() >= MAX_TUBES or self._tubes[stream.peer] >= MAX_TUBES_PER_PEER
        if connection is None or full:
            await stream.reset()
            return
        tube = Tube(stream, opens=False, heard=connection.heard)
        self._tubes[stream.peer] += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tube.run)
                nursery.start_soon(self._handle_tube, tube, nursery.cancel_scope)
                await tube.closed.wait()
                if not tube.is_whole:  # else what came is still being delivered
                    nursery.cancel_scope.cancel()
        finally:
            if tube.violated:
                self._violations += 1
                log.event(logger, "host.peer_violated", level=30, peer=stream.peer, reason=tube.reason)
            self._tubes[stream.peer] -= 1
            self._tubes = +self._tubes

    async def _handle_tube(self, tube: Tube, scope: trio.CancelScope) -> None:
        try:
            opening = await tube.opening()
            take = self._take_packets if opening.service == PACKETS else self._take_tube
            if take is None:
                await tube.refuse("it takes no such tubes")
                return
            await take(tube, opening)
            if tube.is_whole:
                await tube.closed.wait()
        except Ended:
            pass
        finally:
            tube.abort("its handler ended")
            scope.cancel()

    def _greeted(self, peer: PeerId, addresses: Sequence[str]) -> None:
        found = endpoints_of(addresses)
        if not self._may_dial(peer):
            return
        self._decide(dialer.Learned(peer, found, "hello"))
        if self._dht is not None and self._nursery is not None:
            self._nursery.start_soon(self._dht.know, peer, tuple(map(str, found)))

    async def _tick(self) -> None:
        """Once a second: every link's heartbeat. A time in which this process stood still blames nobody."""
        while True:
            due = trio.current_time() + HEARTBEAT_S
            await trio.sleep_until(due)
            now = trio.current_time()
            late_s = now - due
            for link in list(self._links.values()):
                if late_s > STALL_S:
                    link.forgive(late_s)
                link.tick(now)

    def _channel(self, peer: PeerId) -> Channel | None:
        link = self._links.get(peer)
        return link.channel if link is not None else None

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
