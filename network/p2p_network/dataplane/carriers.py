"""Which connections exist, and which of them carries each peer's packets?

Accepts and dials connections of every kind that a session allows, keeps the newest proven one of each kind,
lets `choice` say which of them is the peer's carrier (never one of an older session than the carrier's),
retires those that were replaced, and dials again for ever. A stranger can't cost more than one of
`MAX_UNPROVEN` places for 3 seconds; when they are full the oldest goes.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterable
from typing import Final

from p2p_network.core import log
from p2p_network.core.errors import MeshError
from p2p_network.dataplane import sockets
from p2p_network.dataplane.associations import Associations
from p2p_network.dataplane.choice import DIRECT, KINDS, MESH, TCP, UDP, choose
from p2p_network.dataplane.connection import Buffers, Phase, TcpConnection
from p2p_network.dataplane.detour import MeshConnection
from p2p_network.dataplane.forward import Forwarder
from p2p_network.dataplane.loop import READ, Loop, Timer
from p2p_network.dataplane.path import SIZES
from p2p_network.dataplane.peers import Peer, PeerTable, Session
from p2p_network.dataplane.preface import SALT_BYTES
from p2p_network.dataplane.pulse import BEAT_S, SILENCE_S
from p2p_network.dataplane.records import MAX_PLAIN_BYTES
from p2p_network.dataplane.udp import UdpConnection

MAX_UNPROVEN: Final = 64
_FIRST_REDIAL_S: Final = 0.1
_LAST_REDIAL_S: Final = 2.0
_LOOK_AGAIN_S: Final = 0.1
_KNOCK_S: Final = 0.25
_LATE_KNOCK_S: Final = 2.0
_QUICK_KNOCKS: Final = 40
_KNOCKS: Final = 80
"""Ten quick seconds and eighty slow ones: by then it is the other side's turn to dial, with a new session."""

Connection = TcpConnection | UdpConnection

logger = log.get(__name__)


class DialPlan:
    """Attempts at one peer by one kind: all endpoints at once, then again after a growing pause until one
    was heard.
    """

    __slots__ = ("attempts", "pause_s", "timer")

    def __init__(self) -> None:
        self.attempts: set[Connection] = set()
        self.pause_s = _FIRST_REDIAL_S
        self.timer: Timer | None = None

    def cancel(self) -> None:
        """No attempt is to follow for now."""
        if self.timer is not None:
            self.timer.cancel()


class Carriers:
    """All connections. The `connection.Owner` and `udp.Owner`."""

    def __init__(self, loop: Loop, table: PeerTable, forwarder: Forwarder) -> None:
        self.loop = loop
        self.buffers = Buffers()
        self.forwarder = forwarder
        self.refused = 0
        self._table = table
        self._kinds: tuple[str, ...] = KINDS
        self._listeners: dict[str, socket.socket] = {}
        self._unproven: dict[Connection, None] = {}  # accepted, in order of arrival
        self._live: dict[Connection, None] = {}  # proven, carrying or waiting to or retiring
        self._plans: dict[tuple[Peer, str], DialPlan] = {}
        self._look_again_at = 0.0
        self._associations = Associations(
            loop,
            self,
            find_session=table.find_session,
            called=self._add_unproven,
            refused=self._refuse,
        )
        self._beat()

    # --- listening -------------------------------------------------------------------------------

    def listen(self, endpoints: Iterable[str], kinds: tuple[str, ...] = KINDS) -> None:
        """Accept on exactly these endpoints, by these kinds.

        Raises MeshError if one can't be had; then nothing changes.
        """
        wanted: dict[str, socket.socket] = {}
        try:
            for endpoint in endpoints:
                wanted[endpoint] = self._listeners.get(endpoint) or sockets.listen(endpoint)
            # a free port (0) is chosen by TCP; datagrams use the same
            self._associations.listen(
                [sockets.name_of(s.getsockname()) for s in wanted.values()] if UDP in kinds else ()
            )
        except MeshError:
            for endpoint in wanted.keys() - self._listeners.keys():
                wanted[endpoint].close()
            raise
        self._kinds = kinds
        before, self._listeners = self._listeners, wanted
        for endpoint in before.keys() - wanted.keys():
            self.loop.forget(before[endpoint].fileno())
            before[endpoint].close()
        for endpoint in wanted.keys() - before.keys():
            sock = wanted[endpoint]
            self.loop.watch(sock.fileno(), READ, functools.partial(self._accept, sock))

    def listening(self) -> tuple[str, ...]:
        """The endpoints listened on."""
        return tuple(sockets.name_of(sock.getsockname()) for sock in self._listeners.values())

    def _accept(self, listener: socket.socket, _events: int) -> None:
        try:
            sock, address = listener.accept()
        except OSError:  # gone again, or no descriptors left: the next event will tell
            return
        if TCP not in self._kinds:
            sock.close()
            return
        sock.setblocking(False)
        connection = TcpConnection(self, sock, sockets.name_of(address))
        self._add_unproven(connection)
        connection.accept()

    def _add_unproven(self, connection: Connection) -> None:
        if len(self._unproven) >= MAX_UNPROVEN:
            next(iter(self._unproven)).close("too many connections that prove nothing")
        self._unproven[connection] = None

    def _refuse(self, endpoint: str, reason: str) -> None:
        self.refused += 1
        log.event(logger, "network.carrier_refused", address=endpoint, reason=reason)

    # --- dialling --------------------------------------------------------------------------------

    def put(self, peer: Peer) -> None:
        """The peer's endpoints, sessions or duty to dial changed."""
        for kind in KINDS:
            plan = self._plans.setdefault((peer, kind), DialPlan())
            for attempt in list(plan.attempts):
                if attempt.session is not peer.newest or not (peer.dial or kind == MESH):
                    attempt.close("its session or duty changed")
            plan.pause_s = _FIRST_REDIAL_S
            self._dial(peer, kind)
        if peer.punch and not peer.dial:
            self._knock(peer, peer.newest, _KNOCKS)

    def _knock(self, peer: Peer, session: Session, left: int) -> None:
        """The peer calls us: let our NAT know that we want to hear it. It hears nothing of that itself."""
        plan = self._plans.get((peer, UDP))
        wanted = plan is not None and session is peer.newest and peer.punch and not peer.dial
        if not wanted or UDP not in self._kinds or UDP not in session.keys.carriers:
            return
        if any(c.kind == UDP and c.session is session for c in self._live_of(peer)):
            return
        for endpoint in peer.punch:
            self._associations.knock(endpoint)
        if left > 1:
            pause_s = _KNOCK_S if left > _KNOCKS - _QUICK_KNOCKS else _LATE_KNOCK_S
            self.loop.call_at(self.loop.now() + pause_s, lambda: self._knock(peer, session, left - 1))

    def carry(self, peer: Peer, sock: socket.socket, *, dial: bool) -> None:
        """The control process opened a way through the mesh: a session's connection is to run over `sock`."""
        sock.setblocking(False)
        connection = MeshConnection(self, sock)
        if not dial:
            self._add_unproven(connection)
            connection.accept()
            return
        self._plans.setdefault((peer, MESH), DialPlan()).attempts.add(connection)
        connection.dial(peer, peer.newest)

    def drop_session(self, peer: Peer, session: Session, reason: str) -> None:
        """End all connections of a session."""
        for connection in [c for c in (*self._live, *self._unproven) if c.session is session]:
            connection.retire(reason)

    def drop(self, peer: Peer) -> None:
        """End all connections of a peer."""
        attempts: list[Connection] = []
        for kind in KINDS:
            plan = self._plans.pop((peer, kind), None)
            if plan is not None:
                plan.cancel()
                attempts += plan.attempts
        for connection in [c for c in (*self._live, *self._unproven, *attempts) if c.peer is peer]:
            connection.close("the peer was dropped")
        peer.carrier = None
        peer.queue.clear()

    def _wants_dial(self, peer: Peer, kind: str) -> bool:
        return (
            peer.dial
            and kind in DIRECT
            and kind in self._kinds
            and kind in peer.newest.keys.carriers
            and not any(c.session is peer.newest for c in self._live_of(peer) if c.kind == kind)
        )

    def _dial(self, peer: Peer, kind: str) -> None:
        plan = self._plans.get((peer, kind))
        if plan is None or plan.attempts or not self._wants_dial(peer, kind):
            return
        plan.cancel()
        for endpoint in peer.endpoints if kind != UDP else dict.fromkeys((*peer.endpoints, *peer.punch)):
            attempt = self._attempt(peer, kind, endpoint)
            if attempt is not None:
                plan.attempts.add(attempt)
        if not plan.attempts:
            self._dial_later(peer, kind)

    def _attempt(self, peer: Peer, kind: str, endpoint: str) -> Connection | None:
        if kind == UDP:
            return self._associations.dial(peer, peer.newest, endpoint)
        try:
            sock = sockets.connect(endpoint, self._known_path_bytes(peer))
        except OSError:  # no route to it now; the next round may have one
            return None
        connection = TcpConnection(self, sock, endpoint)
        connection.dial(peer, peer.newest)
        return connection

    def _known_path_bytes(self, peer: Peer) -> int:
        """What datagrams found out about the path, if it takes less than usual; 0 for nothing special.

        A router that says nothing of packets it drops would leave large records stuck.
        """
        found = [c.path.bytes for c in self._live_of(peer) if isinstance(c, UdpConnection)]
        return min((size for size in found if size < SIZES[0]), default=0)

    def _dial_later(self, peer: Peer, kind: str) -> None:
        plan = self._plans.get((peer, kind))
        if plan is None or plan.attempts or not self._wants_dial(peer, kind):
            return
        plan.cancel()
        pause = plan.pause_s * (0.75 + os.urandom(1)[0] / 512)
        plan.pause_s = min(plan.pause_s * 2, _LAST_REDIAL_S)
        plan.timer = self.loop.call_at(self.loop.now() + pause, lambda: self._dial(peer, kind))

    # --- what connections report (connection.Owner, udp.Owner) -------------------------------------

    def fresh_salt(self) -> bytes:
        """Random bytes for one connection."""
        return os.urandom(SALT_BYTES)

    def find_session(self, session_id: bytes) -> tuple[Peer, Session] | None:
        """See `PeerTable.find_session`."""
        return self._table.find_session(session_id)

    def claim(self, connection: UdpConnection, receiver: int) -> bool:
        """See `Associations.claim`."""
        return self._associations.claim(connection, receiver)

    def release(self, connection: UdpConnection, receiver: int) -> None:
        """See `Associations.forget`."""
        self._associations.forget(connection, receiver)

    def went_live(self, connection: Connection) -> None:
        """It proved its session.

        A dialer doesn't know yet that the acceptor is content: it goes on with what it has.
        """
        self._unproven.pop(connection, None)
        self._live[connection] = None
        peer = connection.peer
        assert peer is not None
        plan = self._plans.get((peer, connection.kind))
        if plan is not None:
            plan.attempts.discard(connection)
            for rival in list(plan.attempts):
                rival.close("another endpoint was faster")
        if peer.carrier is None:
            self._promote(connection, "the first that was proven")

    def was_heard(self, connection: Connection) -> None:
        """Its first record came: both ends use it, and no other one of its kind and session."""
        peer = connection.peer
        assert peer is not None
        plan = self._plans.get((peer, connection.kind))
        if plan is not None:
            plan.pause_s = _FIRST_REDIAL_S
        for other in self._live_of(peer):
            same = other.kind == connection.kind and other is not connection
            if same and not self._is_newer(peer, other, connection):
                if other is peer.carrier:
                    self._promote(connection, "a newer connection carries")
                other.retire("a newer connection carries")
        self._decide(peer)

    def overheard(self, peer: Peer) -> None:
        """The peer sends by another way than this side: it may know of a fault that this side doesn't."""
        now = self.loop.now()
        if now >= self._look_again_at:
            self._look_again_at = now + _LOOK_AGAIN_S
            self._decide(peer)

    def writable(self, connection: Connection) -> None:
        """It takes batches again."""
        peer = connection.peer
        if peer is not None and peer.carrier is connection:
            peer.pump(MAX_PLAIN_BYTES)

    def peer_left(self, connection: Connection) -> None:
        """The other end will send no more on it."""
        self._lose(connection, "the other end closed it")
        assert connection.peer is not None
        self._dial_later(connection.peer, connection.kind)

    def closed(self, connection: Connection, reason: str) -> None:
        """It is gone."""
        self._live.pop(connection, None)
        if connection in self._unproven:
            del self._unproven[connection]
            self._refuse(connection.endpoint, reason)
        peer = connection.peer
        plan = self._plans.get((peer, connection.kind)) if peer is not None else None
        if peer is None or plan is None:
            return
        plan.attempts.discard(connection)
        self._lose(connection, reason)
        self._dial_later(peer, connection.kind)

    # --- the carrier of a peer -------------------------------------------------------------------

    def seen(self, peer: Peer) -> dict[str, str]:
        """By kind of direct carrier, where the peer is at the other end of a live connection."""
        return {c.kind: c.endpoint for c in self._live_of(peer) if c.kind in DIRECT and c.heard}

    def _live_of(self, peer: Peer) -> list[Connection]:
        return [c for c in self._live if c.peer is peer and c.phase is Phase.LIVE]

    @staticmethod
    def _is_newer(peer: Peer, one: Connection, other: Connection) -> bool:
        """Whether `one` belongs to a newer session than `other`."""
        order = peer.sessions
        return other.session in order and one.session in order[order.index(other.session) + 1 :]

    def _decide(self, peer: Peer) -> None:
        """Let the best of the newest session's live connections carry."""
        live = self._live_of(peer)
        live = [c for c in live if c.heard] or live
        newest = next((s for s in reversed(peer.sessions) if any(c.session is s for c in live)), None)
        candidates = {c.kind: c for c in live if c.session is newest}
        if not candidates:
            return
        current = peer.carrier.kind if peer.carrier is not None else ""
        kind, reason = choose([c.path_facts() for c in candidates.values()], current)
        peer.reason = reason
        if candidates[kind] is not peer.carrier:
            self._promote(candidates[kind], reason)
        if kind != MESH and candidates[kind].heard and candidates[kind] is peer.carrier:
            for way in live:
                if way.kind == MESH:
                    way.retire("a direct carrier reaches the peer")

    def _promote(self, connection: Connection, reason: str) -> None:
        peer, session = connection.peer, connection.session
        assert peer is not None
        assert session is not None
        if connection.phase is not Phase.LIVE or session not in peer.sessions:
            connection.close("its session was replaced")
            return
        before = peer.carrier
        if before is not None and before.session in peer.sessions[peer.sessions.index(session) + 1 :]:
            connection.close("a newer session carries")
            return
        peer.carrier, peer.reason = connection, reason
        peer.connects += 1
        log.event(
            logger,
            "network.carrier_up",
            peer=peer.name,
            address=f"{connection.kind} {connection.endpoint}",
            reason=reason,
        )
        for old in peer.sessions[: peer.sessions.index(session)]:
            self.drop_session(peer, old, "a newer session carries")
        del peer.sessions[: peer.sessions.index(session)]
        peer.pump(MAX_PLAIN_BYTES)

    def _lose(self, connection: Connection, reason: str) -> None:
        peer = connection.peer
        if peer is None or peer.carrier is not connection:
            return
        peer.carrier = None
        log.event(
            logger,
            "network.carrier_down",
            peer=peer.name,
            address=f"{connection.kind} {connection.endpoint}",
            reason=reason,
        )
        self._decide(peer)
        if peer.carrier is None:
            peer.drop("no_carrier", peer.queue.clear())

    def _beat(self) -> None:
        """Once a second: ping live connections in use, end the silent and the worn ones, choose again."""
        now = self.loop.now()
        self.loop.call_at(now + BEAT_S, self._beat)
        for peer in self._table.by_name.values():
            peer.measure(BEAT_S, now)
        peers: dict[Peer, None] = {}
        for connection in list(self._live):
            if connection.pulse.is_gone(now, connection.last_received):
                connection.close(f"silent for {SILENCE_S:.0f} s")
            elif connection.stuck:
                connection.close("nothing that it sends is acknowledged, or only on a longer way")
            elif connection.worn:
                connection.close("its keys are worn")
            elif connection.phase is Phase.LIVE:
                assert connection.peer is not None
                peers[connection.peer] = None
                if connection.pulse.due(now, connection.peer.active_at, connection.peer.idle_s):
                    connection.ping()
        for peer in peers:
            self._decide(peer)

    def close(self) -> None:
        """End everything, and say so: the others then dial at once."""
        for connection in list(self._live):
            connection.retire("the data plane ends")
        for peer in {peer for peer, _ in self._plans}:
            self.drop(peer)
        self.listen(())
        for connection in list(self._unproven):
            connection.close("the data plane ends")
