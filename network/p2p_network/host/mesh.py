"""Which peers can this node talk to right now, and how does it ask them something?

`MeshHost` owns the listener, the dialler's core, discovery, and one `Link` per connected peer. Once a
second a ticker sends heartbeats and ends what has been silent for too long; the dialler then takes over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import trio

from p2p_network.core import endpoints, log
from p2p_network.core.errors import LocalViolation, MeshError, PeerUnreachable
from p2p_network.core.ids import PeerId, short
from p2p_network.host import dialer
from p2p_network.host.addresses import Endpoint, endpoints_of
from p2p_network.host.channel import Channel, Handler
from p2p_network.host.circuits import SIGHT_METHOD, Around, Circuits
from p2p_network.host.connections import abort, peer_of
from p2p_network.host.dialling import Dialling
from p2p_network.host.finding import Finding, Ways
from p2p_network.host.frames import MAX_METHOD_CHARS, MAX_PAYLOAD_BYTES
from p2p_network.host.gate import Gate
from p2p_network.host.gate import Refused as NotAdmitted
from p2p_network.host.guards import MeshBasicHost, MeshSwarm
from p2p_network.host.links import Link, Surroundings
from p2p_network.host.listener import Listener
from p2p_network.host.presence import PeerDown, PeerUp
from p2p_network.host.private import SocketWire, Stranger, Wire
from p2p_network.host.tube_ends import TakesTube, TubeEnds
from p2p_network.identity import Identity
from p2p_network.tubes.flow import Opening
from p2p_network.tubes.tube import Tube

logger = log.get(__name__)

__all__ = ["MeshHost", "PeerDown", "PeerUp"]

HEARTBEAT_S: Final = 1.0
STALL_S: Final = 2.0
"""A ticker that wakes so much too late stood still, with all that came meanwhile unread."""
EVENTS: Final = 4096


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
        public_dht: where a public DHT is entered to look for members there too (`finding.Ways`).
        rendezvous_servers: where members meet who know nothing else of each other (`host.rendezvous`).
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
        public_dht: Sequence[str] = (),
        rendezvous_servers: Sequence[str] = (),
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
        self._listen = tuple(listen)
        self._without_devices = tuple(without_devices)
        self._listener: Listener | None = None
        self._announced: tuple[Endpoint, ...] = ()
        self._swarm = MeshSwarm(identity.seed, psk, gate)
        self._host = MeshBasicHost(self._swarm, self.addresses)
        self._links: dict[PeerId, Link] = {}
        self._relays = relays
        self._circuits: Circuits | None = None
        self._handlers: dict[str, Handler] = {}
        self._events, self.events = trio.open_memory_channel[PeerUp | PeerDown](EVENTS)
        self._dialling = Dialling(
            self.peer_id, self._swarm, bootstrap, remembered or {}, self._may_dial, self._note_refusal
        )
        self._tubes = TubeEnds(lambda conn: self._host.open_on(conn, self._tube_protocol), self._links.get)
        self._finding = Finding(
            self.peer_id,
            Ways(rendezvous, mdns, dht, tuple(public_dht), tuple(rendezvous_servers)),
            self.addresses,
            self.learn,
            lambda: not self.connected(),
            without_devices,
        )
        self._nursery: trio.Nursery | None = None

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
        return endpoints.join(remote.host, remote.port)

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
        return (
            self._violations + self._tubes.violations + sum(link.violations for link in self._links.values())
        )

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
        return self._dialling.known()

    def learn(self, peer: PeerId, addresses: Sequence[str], source: str) -> None:
        """Where a peer may be dialled. Untrusted: what is no concrete address is passed over."""
        self._dialling.learn(peer, addresses, source)

    def want(self, peer: PeerId) -> None:
        """Dial a peer although there are enough connections, if it is not connected and may be dialled."""
        if peer not in self._links:
            self._dialling.want(peer)

    def expel(self, peer: PeerId, reason: str) -> None:
        """Close every connection with a peer, now, and forget where it was."""
        link = self._links.get(peer)
        if link is not None:
            log.event(logger, "host.peer_expelled", peer=peer, reason=reason)
            link.expel(reason)
        self._dialling.forget(peer)

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
        return await self._tubes.open(self._nursery, peer, opening)

    def serve_tubes(self, handler: TakesTube) -> None:
        """Who takes or refuses the tubes that peers open. Called before `run`."""
        self._tubes.take_tube = handler

    def serve_packets(self, handler: TakesTube) -> None:
        """Who takes or refuses the tubes that peers open for their packets. Called before `run`."""
        self._tubes.take_packets = handler

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
                if self._tubes.is_served:
                    self._host.set_stream_handler(self._tube_protocol, self._tubes.serve)
                self._circuits = self._serve_circuits(nursery)
                nursery.start_soon(self._listener.serve, self._admit_stream)
                nursery.start_soon(self._tick)
                self._dialling.start(nursery, self._circuits.reach)
                self._finding.start(nursery, self._host, loopback_only=self._listener.is_loopback_only)
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

    def _may_dial(self, peer: PeerId) -> bool:
        return self._gate is None or self._gate.may_dial(peer)

    def _note_refusal(self, exc: NotAdmitted, address: str) -> None:
        """A connection that ended at the gate, whoever closed it."""
        self._refused[f"by_peer_{exc.cause}" if exc.by_peer else exc.cause] += 1
        log.event(logger, "host.peer_refused", level=10, address=address, reason=exc.message)

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
                self._dialling.settle(link.peer)
            self._dialling.decide(dialer.Connected(link.peer, link.only_relayed))

    async def _run_link(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            del self._links[link.peer]
            self._dialling.settle(link.peer)
            self._violations += link.violations
        self._dialling.decide(dialer.Lost(link.peer))

    async def _serve_stream(self, raw: Any) -> None:
        """A peer opened a channel to us."""
        link = self._links.get(peer_of(raw))
        if link is None:
            raise PeerUnreachable("the connection has just ended")
        await link.serve(raw)

    def _greeted(self, peer: PeerId, addresses: Sequence[str]) -> None:
        found = endpoints_of(addresses)
        if not self._may_dial(peer):
            return
        self._dialling.decide(dialer.Learned(peer, found, "hello"))
        self._finding.met(peer, tuple(map(str, found)))

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
