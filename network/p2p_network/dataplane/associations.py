"""Whose datagram is that?

Owns the UDP sockets and the receivers' ids: calls of dialers find their session, answers their call, data
its association. A stranger gets no byte back, and costs one look-up; a caller that proved to have a
session's keys costs one of the places of `carriers.MAX_UNPROVEN` for 3 seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import Struct
from typing import Final

from p2p_network.core.errors import MeshError
from p2p_network.dataplane import preface, sockets
from p2p_network.dataplane.datagram_socket import ANSWER, CALL, FLIGHT_BYTES, Address, UdpSocket
from p2p_network.dataplane.loop import Loop
from p2p_network.dataplane.peers import Peer, Session
from p2p_network.dataplane.preface import PREFACE_BYTES, WELCOME_BYTES
from p2p_network.dataplane.records import RecordViolation
from p2p_network.dataplane.udp import TAG_BYTES, Owner, UdpConnection

_ID = Struct("!I")
_ID_BYTES: Final = 4
_KNOCK: Final = bytes(_ID_BYTES)
"""Shorter than any datagram of the data, and no flight: passed over by whoever gets it."""


class Associations:
    """All UDP sockets and who answers to which id.

    Args:
        owner: of the associations.
        find_session: whose session that is.
        called: a dialer proved to have a session's keys; this association is to be counted as unproven.
        refused: somebody proved nothing.
    """

    def __init__(
        self,
        loop: Loop,
        owner: Owner,
        *,
        find_session: Callable[[bytes], tuple[Peer, Session] | None],
        called: Callable[[UdpConnection], None],
        refused: Callable[[str, str], None],
    ) -> None:
        self._loop = loop
        self._owner = owner
        self._find_session = find_session
        self._called = called
        self._refused = refused
        self._sockets: dict[str, UdpSocket] = {}
        self._by_id: dict[int, UdpConnection] = {}
        self._calls: dict[bytes, UdpConnection] = {}  # own calls by the tag of their salt
        self._answered: dict[bytes, UdpConnection] = {}  # others' calls by the whole flight

    def listen(self, endpoints: Iterable[str]) -> None:
        """Use exactly these endpoints. Raises MeshError; then nothing changes."""
        wanted: dict[str, UdpSocket] = {}
        try:
            for endpoint in endpoints:
                wanted[endpoint] = self._sockets.get(endpoint) or UdpSocket(
                    self._loop, endpoint, self._on_datagrams
                )
        except MeshError:
            for endpoint in wanted.keys() - self._sockets.keys():
                wanted[endpoint].close()
            raise
        before, self._sockets = self._sockets, wanted
        for endpoint in before.keys() - wanted.keys():
            before[endpoint].close()

    def dial(self, peer: Peer, session: Session, endpoint: str) -> UdpConnection | None:
        """Call the peer there, or None without a socket of that address family."""
        ip, port = sockets.parse_endpoint(endpoint)
        socket = next((s for s in self._sockets.values() if s.is_ip6 == (":" in ip)), None)
        if socket is None:
            return None
        call = UdpConnection(self._owner, socket, (ip, port), peer, session)
        call.dial()
        self._calls[call.salt[:TAG_BYTES]] = call
        return call

    def knock(self, endpoint: str) -> None:
        """Send a datagram that means nothing, so that a NAT of ours lets in what comes from there."""
        ip, port = sockets.parse_endpoint(endpoint)
        socket = next((s for s in self._sockets.values() if s.is_ip6 == (":" in ip)), None)
        if socket is not None:
            socket.send(memoryview(_KNOCK), 0, (ip, port))

    def claim(self, connection: UdpConnection, receiver: int) -> bool:
        """Let `connection` answer to this id; False if another one does."""
        return self._by_id.setdefault(receiver, connection) is connection

    def forget(self, connection: UdpConnection, receiver: int) -> None:
        """It is closed."""
        if self._by_id.get(receiver) is connection:
            del self._by_id[receiver]
        if self._calls.get(connection.salt[:TAG_BYTES]) is connection:
            del self._calls[connection.salt[:TAG_BYTES]]
        if self._answered.get(connection.preface) is connection:
            del self._answered[connection.preface]

    def _on_datagrams(self, socket: UdpSocket, data: memoryview, step: int, address: Address) -> None:
        """One receive: mostly all for one association, but the kernel only promises one sender."""
        at, end = 0, len(data)
        while at + _ID_BYTES <= end:
            first = bytes(data[at : at + _ID_BYTES])
            after = at + step
            while after + _ID_BYTES <= end and data[after : after + _ID_BYTES] == first:
                after += step
            after = min(after, end)
            receiver = _ID.unpack(first)[0]
            connection = self._by_id.get(receiver)
            if connection is not None:
                connection.received(data[at:after], step, address)
            elif receiver in (CALL, ANSWER) and after - at == FLIGHT_BYTES:
                flight = bytes(data[at + _ID_BYTES : after])
                self._on_flight(socket, receiver, flight, address)
            at = after

    def _on_flight(self, socket: UdpSocket, kind: int, flight: bytes, address: Address) -> None:
        try:
            if kind == CALL:
                self._on_call(socket, flight[:PREFACE_BYTES], address)
            elif (call := self._calls.get(flight[:TAG_BYTES])) is not None:
                call.welcomed(flight[TAG_BYTES : TAG_BYTES + WELCOME_BYTES])
        except RecordViolation as exc:
            self._refused(sockets.name_of(address), f"violation: {exc}")

    def _on_call(self, socket: UdpSocket, flight: bytes, address: Address) -> None:
        known = self._answered.get(flight)
        if known is not None:
            known.answer_again(address)
            return
        found = self._find_session(preface.session_id_of(flight))
        if found is None:
            raise RecordViolation("unknown session")
        peer, session = found
        dialer_salt, number = preface.open_preface(session.keys, flight, UdpConnection.kind)
        if not session.take_number(UdpConnection.kind, number):
            raise RecordViolation("a preface that was used before")
        answering = UdpConnection(self._owner, socket, address, peer, session)
        self._answered[flight] = answering
        self._called(answering)
        answering.accept(flight, dialer_salt, number)
