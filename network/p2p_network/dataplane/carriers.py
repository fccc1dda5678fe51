"""Which connections exist, and which of them carries each peer's packets?

Accepts and dials TCP connections, promotes the newest proven one to its peer's carrier (never one of an
older session than the carrier's), retires the one before, and dials again for ever. A stranger can't cost
more than one of `MAX_UNPROVEN` places for 3 seconds; when they are full the oldest goes.
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
from p2p_network.dataplane.connection import SILENCE_S, Buffers, Phase, TcpConnection
from p2p_network.dataplane.forward import Forwarder
from p2p_network.dataplane.loop import READ, Loop, Timer
from p2p_network.dataplane.peers import Peer, PeerTable, Session
from p2p_network.dataplane.preface import SALT_BYTES
from p2p_network.dataplane.records import MAX_PLAIN_BYTES

MAX_UNPROVEN: Final = 64
BEAT_S: Final = 1.0
_FIRST_REDIAL_S: Final = 0.1
_LAST_REDIAL_S: Final = 2.0

logger = log.get(__name__)


class DialPlan:
    """One peer's attempts: all endpoints at once, then again after a growing pause until one was heard."""

    __slots__ = ("attempts", "pause_s", "timer")

    def __init__(self) -> None:
        self.attempts: set[TcpConnection] = set()
        self.pause_s = _FIRST_REDIAL_S
        self.timer: Timer | None = None


class Carriers:
    """All TCP connections. The `connection.Owner`."""

    def __init__(self, loop: Loop, table: PeerTable, forwarder: Forwarder) -> None:
        self.loop = loop
        self.buffers = Buffers()
        self.forwarder = forwarder
        self.refused = 0
        self._table = table
        self._listeners: dict[str, socket.socket] = {}
        self._unproven: dict[TcpConnection, None] = {}  # accepted, in order of arrival
        self._live: dict[TcpConnection, None] = {}  # proven, carrying or waiting to or retiring
        self._plans: dict[Peer, DialPlan] = {}
        self._beat()

    # --- listening -------------------------------------------------------------------------------

    def listen(self, endpoints: Iterable[str]) -> None:
        """Accept on exactly these endpoints. Raises MeshError if one can't be had; then nothing changes."""
        wanted: dict[str, socket.socket] = {}
        try:
            for endpoint in endpoints:
                wanted[endpoint] = self._listeners.get(endpoint) or sockets.listen(endpoint)
        except MeshError:
            for endpoint in wanted.keys() - self._listeners.keys():
                wanted[endpoint].close()
            raise
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
        sock.setblocking(False)
        if len(self._unproven) >= MAX_UNPROVEN:
            next(iter(self._unproven)).close("too many connections that prove nothing")
        connection = TcpConnection(self, sock, sockets.name_of(address))
        self._unproven[connection] = None
        connection.accept()

    # --- dialling --------------------------------------------------------------------------------

    def put(self, peer: Peer) -> None:
        """The peer's endpoints, sessions or duty to dial changed."""
        plan = self._plans.setdefault(peer, DialPlan())
        for attempt in list(plan.attempts):
            if not peer.dial or attempt.session is not peer.newest:
                attempt.close("its session or duty changed")
        plan.pause_s = _FIRST_REDIAL_S
        self._dial(peer)

    def drop_session(self, peer: Peer, session: Session, reason: str) -> None:
        """End all connections of a session."""
        for connection in [c for c in (*self._live, *self._unproven) if c.session is session]:
            connection.retire(reason)

    def drop(self, peer: Peer) -> None:
        """End all connections of a peer."""
        plan = self._plans.pop(peer, None)
        if plan is not None and plan.timer is not None:
            plan.timer.cancel()
        attempts = plan.attempts if plan is not None else set()
        for connection in [c for c in (*self._live, *self._unproven, *attempts) if c.peer is peer]:
            connection.close("the peer was dropped")
        peer.carrier = None
        peer.queue.clear()

    def _wants_dial(self, peer: Peer) -> bool:
        return peer.dial and not any(
            c.session is peer.newest and c.phase is Phase.LIVE for c in self._live if c.peer is peer
        )

    def _dial(self, peer: Peer) -> None:
        plan = self._plans.get(peer)
        if plan is None or plan.attempts or not self._wants_dial(peer):
            return
        if plan.timer is not None:
            plan.timer.cancel()
        for endpoint in peer.endpoints:
            try:
                sock = sockets.connect(endpoint)
            except OSError:  # no route to it now; the next round may have one
                continue
            attempt = TcpConnection(self, sock, endpoint)
            plan.attempts.add(attempt)
            attempt.dial(peer, peer.newest)
        if not plan.attempts:
            self._dial_later(peer)

    def _dial_later(self, peer: Peer) -> None:
        plan = self._plans.get(peer)
        if plan is None or plan.attempts or not self._wants_dial(peer):
            return
        if plan.timer is not None:
            plan.timer.cancel()
        pause = plan.pause_s * (0.75 + os.urandom(1)[0] / 512)
        plan.pause_s = min(plan.pause_s * 2, _LAST_REDIAL_S)
        plan.timer = self.loop.call_at(self.loop.now() + pause, lambda: self._dial(peer))

    # --- what connections report (connection.Owner) ------------------------------------------------

    def fresh_salt(self) -> bytes:
        """Random bytes for one connection."""
        return os.urandom(SALT_BYTES)

    def find_session(self, session_id: bytes) -> tuple[Peer, Session] | None:
        """See `PeerTable.find_session`."""
        return self._table.find_session(session_id)

    def went_live(self, connection: TcpConnection) -> None:
        """It proved its session.

        A dialer doesn't know yet that the acceptor is content: it goes on with what it has.
        """
        self._unproven.pop(connection, None)
        self._live[connection] = None
        peer = connection.peer
        assert peer is not None
        plan = self._plans.get(peer)
        if plan is not None:
            plan.attempts.discard(connection)
            for rival in list(plan.attempts):
                rival.close("another endpoint was faster")
        if peer.carrier is None:
            self._promote(connection)

    def was_heard(self, connection: TcpConnection) -> None:
        """Its first record came: both ends use it."""
        peer = connection.peer
        assert peer is not None
        plan = self._plans.get(peer)
        if plan is not None:
            plan.pause_s = _FIRST_REDIAL_S
        if peer.carrier is not connection:
            self._promote(connection)

    def writable(self, connection: TcpConnection) -> None:
        """It takes batches again."""
        peer = connection.peer
        if peer is not None and peer.carrier is connection:
            peer.pump(MAX_PLAIN_BYTES)

    def peer_left(self, connection: TcpConnection) -> None:
        """The other end will send no more on it."""
        self._lose(connection, "the other end closed it")
        assert connection.peer is not None
        self._dial_later(connection.peer)

    def closed(self, connection: TcpConnection, reason: str) -> None:
        """It is gone."""
        self._live.pop(connection, None)
        if connection in self._unproven:
            del self._unproven[connection]
            self.refused += 1
            log.event(logger, "network.carrier_refused", address=connection.endpoint, reason=reason)
        peer = connection.peer
        plan = self._plans.get(peer) if peer is not None else None
        if peer is None or plan is None:
            return
        plan.attempts.discard(connection)
        self._lose(connection, reason)
        self._dial_later(peer)

    # --- the carrier of a peer -------------------------------------------------------------------

    def _promote(self, connection: TcpConnection) -> None:
        peer, session = connection.peer, connection.session
        assert peer is not None
        assert session is not None
        if connection.phase is not Phase.LIVE or session not in peer.sessions:
            connection.close("its session was replaced")
            return
        before = peer.carrier
        newer = peer.sessions[peer.sessions.index(session) + 1 :]
        if before is not None and before.session in newer:
            connection.close("a newer session carries")
            return
        peer.carrier = connection
        peer.connects += 1
        log.event(
            logger,
            "network.carrier_up",
            peer=peer.name,
            address=connection.endpoint,
            reason="the newest proven connection carries",
        )
        if before is not None:
            before.retire("a newer connection carries")
        for old in peer.sessions[: peer.sessions.index(session)]:
            self.drop_session(peer, old, "a newer session carries")
        del peer.sessions[: peer.sessions.index(session)]
        peer.pump(MAX_PLAIN_BYTES)

    def _lose(self, connection: TcpConnection, reason: str) -> None:
        peer = connection.peer
        if peer is None or peer.carrier is not connection:
            return
        peer.carrier = None
        log.event(logger, "network.carrier_down", peer=peer.name, address=connection.endpoint, reason=reason)
        waiting = [c for c in self._live if c.peer is peer and c.phase is Phase.LIVE]
        if waiting:
            self._promote(waiting[-1])
        if peer.carrier is None:
            peer.drop("no_carrier", peer.queue.clear())

    def _beat(self) -> None:
        """Once a second: ping every live connection, end the silent and the worn ones."""
        now = self.loop.now()
        self.loop.call_at(now + BEAT_S, self._beat)
        for connection in list(self._live):
            if now - connection.last_received > SILENCE_S:
                connection.close(f"silent for {SILENCE_S:.0f} s")
            elif connection.worn:
                connection.close("its keys are worn")
            elif connection.phase is Phase.LIVE:
                connection.ping()

    def close(self) -> None:
        """End everything."""
        for peer in list(self._plans):
            self.drop(peer)
        self.listen(())
        for connection in list(self._unproven):
            connection.close("the data plane ends")
