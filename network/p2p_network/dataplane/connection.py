"""What happens on one TCP connection that carries, or wants to carry, a session?

    dialer    CONNECTING -> WELCOME -> LIVE -> RETIRING -> CLOSED
    acceptor  PREFACE -> CONFIRM    -> LIVE -> RETIRING -> CLOSED

`preface` says what the flights prove. LIVE means proven: the owner decides which live connection is its
peer's carrier. RETIRING: another one took over; what was begun is sent, what arrives is still delivered,
both ends send FIN. Anything malformed ends the connection; nothing here ends the process.
"""

from __future__ import annotations

import enum
import mmap
import socket
from typing import Final, Protocol

from p2p_network.dataplane import preface
from p2p_network.dataplane.choice import BEARS_LOSS, TCP, Path, has_grown, needs_bbr
from p2p_network.dataplane.forward import Forwarder
from p2p_network.dataplane.inbox import Inbox, Unfinished
from p2p_network.dataplane.loop import READ, WRITE, Loop, Timer
from p2p_network.dataplane.path import LEAST_SAMPLE
from p2p_network.dataplane.peers import Peer, Session
from p2p_network.dataplane.pulse import Pulse
from p2p_network.dataplane.records import (
    MAX_FRAME_BYTES,
    PING,
    PONG,
    SIZE_BYTES,
    Opener,
    RecordViolation,
    Sealer,
    control_entry,
    sealed_size,
)
from p2p_network.dataplane.sockets import bear_loss, can_bear_loss, suit_rate, tcp_facts

HANDSHAKE_S: Final = 3.0
RETIRE_S: Final = 5.0
"""So long may both ends take to send what was begun, and to say that they are done."""
_STUCK_TIMEOUTS: Final = 2
"""After so many retransmissions in a row (0.6 s) what goes in does not come out: see `Path.silent`."""
_GONE_TIMEOUTS: Final = 5
"""... and after so many (six seconds) it is given up, even if what is small comes through."""
_NEAR_ONLY: Final = "cubic"

_NOTHING: Final = memoryview(b"")


class Phase(enum.Enum):
    """Where a connection stands."""

    CONNECTING = "connecting"
    WELCOME = "waiting for the welcome"
    PREFACE = "waiting for the preface"
    CONFIRM = "waiting for the first record"
    LIVE = "live"
    RETIRING = "retiring"
    CLOSED = "closed"


class Buffers:
    """Scratch memory that all connections share: each is used within one callback only."""

    def __init__(self) -> None:
        # Mapped and not made: pages that are never touched take no memory.
        self.inbox = Inbox()
        self.frame_view = memoryview(mmap.mmap(-1, MAX_FRAME_BYTES))
        self.scratch_view = memoryview(mmap.mmap(-1, MAX_FRAME_BYTES))


class Owner(Protocol):
    """Who decides about connections (`carriers.Carriers`)."""

    loop: Loop
    buffers: Buffers
    forwarder: Forwarder

    def fresh_salt(self) -> bytes: ...

    def find_session(self, session_id: bytes) -> tuple[Peer, Session] | None: ...

    def went_live(self, connection: TcpConnection) -> None: ...

    def was_heard(self, connection: TcpConnection) -> None: ...

    def overheard(self, peer: Peer) -> None: ...

    def writable(self, connection: TcpConnection) -> None: ...

    def peer_left(self, connection: TcpConnection) -> None: ...

    def closed(self, connection: TcpConnection, reason: str) -> None: ...


class TcpConnection:
    """A `peers.Carrier` over one TCP connection."""

    kind: str = TCP

    def __init__(self, owner: Owner, sock: socket.socket, endpoint: str) -> None:
        self._owner = owner
        self._sock = sock
        self._flight = b""  # of the beginning, as far as it came
        self._unfinished = Unfinished()
        self._unsent = _NOTHING  # sealed, not yet taken by the kernel
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None
        self._salt = b""
        self._number = 0
        self.heard = False
        self._peer_finished = False
        self._finished = False
        self._events = 0
        self.endpoint = endpoint
        self.peer: Peer | None = None
        self.session: Session | None = None
        self.phase = Phase.PREFACE
        self.ready = False
        self.rtt_ms: float | None = None
        self._counted = (0, 0)
        self._timeouts = 0
        self._bears_loss = self._outgrown = False
        self._loss: float | None = None
        self.last_received = owner.loop.now()
        self.pulse = Pulse(self.last_received)
        self._deadline: Timer | None = self._close_in(HANDSHAKE_S, "it did not prove a session in time")

    # --- beginning -------------------------------------------------------------------------------

    def accept(self) -> None:
        """This end was called: wait for the preface."""
        self._watch(READ)

    def dial(self, peer: Peer, session: Session) -> None:
        """This end calls: the socket is connecting."""
        self.peer, self.session = peer, session
        self.phase = Phase.CONNECTING
        self._watch(WRITE)

    def _connected(self) -> None:
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.close(f"cannot connect: errno {code}")
            return
        assert self.session is not None
        self._salt, self._number = self._owner.fresh_salt(), self.session.next_number(self.kind)
        self.phase = Phase.WELCOME
        self._send_whole(preface.make_preface(self.session.keys, self._salt, self._number, self.kind))
        self._watch(READ)

    def _take_preface(self, flight: bytes) -> None:
        found = self._owner.find_session(preface.session_id_of(flight))
        if found is None:
            raise RecordViolation("unknown session")
        peer, session = found
        dialer_salt, number = preface.open_preface(session.keys, flight, self.kind)
        if not session.take_number(self.kind, number):
            raise RecordViolation("a preface that was used before")
        self.peer, self.session = peer, session
        salt = self._owner.fresh_salt()
        self._sealer, self._opener = preface.record_keys(session.keys, dialer_salt, salt)
        self.phase = Phase.CONFIRM
        self._send_whole(preface.make_welcome(session.keys, dialer_salt, salt, number, self.kind))

    def _take_welcome(self, flight: bytes) -> None:
        assert self.session is not None
        salt = preface.open_welcome(self.session.keys, self._salt, self._number, flight, self.kind)
        self._sealer, self._opener = preface.record_keys(self.session.keys, self._salt, salt)
        self._go_live()
        self.ping()

    def _go_live(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self.phase = Phase.LIVE
        self.ready = True
        self.last_received = self._owner.loop.now()
        self._suit_path()
        self._owner.went_live(self)

    # --- events ----------------------------------------------------------------------------------

    def on_events(self, events: int) -> None:
        """epoll saw something."""
        try:
            if self.phase is Phase.CONNECTING:
                self._connected()
                return
            if events & WRITE:
                self._flush()
            if events & ~WRITE and self.phase is not Phase.CLOSED:
                self._receive()
        except RecordViolation as exc:
            self.close(f"violation: {exc}")
        except OSError as exc:
            self.close(f"connection lost: {exc.strerror}")

    def _receive(self) -> None:
        if self.phase is Phase.PREFACE or self.phase is Phase.WELCOME:
            self._receive_flight()
            return
        try:
            count = self._sock.recv_into(self._owner.buffers.inbox.take_up(self._unfinished))
        except BlockingIOError:
            return
        if count == 0:
            self._end_of_stream()
            return
        self.last_received = self._owner.loop.now()
        self._read_records(self._unfinished.at, self._unfinished.end + count)

    def _read_records(self, at: int, end: int) -> None:
        inbox, forwarder, opener = self._owner.buffers.inbox, self._owner.forwarder, self._opener
        assert opener is not None
        assert self.peer is not None
        plain = forwarder.opened_view
        while (size := sealed_size(inbox.buffer, at, end)) is not None:
            start, at = at + SIZE_BYTES, at + SIZE_BYTES + size
            opened = opener.open_into(inbox.view[start:at], plain)
            self.peer.last_received = self.last_received
            if self.phase is Phase.CONFIRM:
                self._go_live()
            forwarder.deliver(self.peer, opened, self._on_beat)
            if not self.heard:
                self.heard = True
                self._owner.was_heard(self)
            elif self.peer.carrier is not self:
                self._owner.overheard(self.peer)
            if self.phase is Phase.CLOSED:
                return
        inbox.leave(self._unfinished, at, end)

    def _receive_flight(self) -> None:
        wanted = preface.PREFACE_BYTES if self.phase is Phase.PREFACE else preface.WELCOME_BYTES
        try:
            data = self._sock.recv(wanted - len(self._flight))
        except BlockingIOError:
            return
        if not data:
            self.close("closed by the other end")
            return
        self._flight += data
        if len(self._flight) == wanted:
            flight, self._flight = self._flight, b""
            (self._take_preface if self.phase is Phase.PREFACE else self._take_welcome)(flight)

    def _end_of_stream(self) -> None:
        if self.phase is Phase.CONFIRM or self._unfinished:
            self.close("closed by the other end")
            return
        self._peer_finished = True
        self._watch(WRITE)  # the end of a stream stays readable for ever
        if self.phase is Phase.LIVE:
            self.phase = Phase.RETIRING
            self.ready = False
            self._deadline = self._close_in(RETIRE_S, "the other end closed")
            self._owner.peer_left(self)
        self._finish()

    def _on_beat(self, kind: int, value: int) -> None:
        if kind == PING and self.ready:
            self.send(control_entry(PONG, value))
        elif kind == PONG:
            self.rtt_ms = max(0, clock_ns(self._owner.loop) - value) / 1e6

    # --- sending ---------------------------------------------------------------------------------

    def _suit_path(self) -> None:
        """A near path that loses nothing needs no pacing; every other one does, from then on."""
        suit_rate(self._sock)
        if self._bears_loss or self.session is None:
            return
        facts = tcp_facts(self._sock)
        if self.session.is_far or needs_bbr(facts.min_rtt_ms, facts.sent, facts.again):
            self._bears_loss = True
            bear_loss(self._sock)
        elif has_grown(facts.min_rtt_ms, facts.rtt_ms):
            self.session.is_far = self._outgrown = True

    def ping(self) -> None:
        """Ask for a sign of life, unless bytes are waiting anyway."""
        self._suit_path()
        if self.ready:
            self.send(control_entry(PING, clock_ns(self._owner.loop)))

    def path_facts(self) -> Path:
        """What `choice` looks at."""
        facts = tcp_facts(self._sock)
        self._timeouts, sent, again = facts.timeouts, facts.sent, facts.again
        before_sent, before_again = self._counted
        if sent - before_sent >= LEAST_SAMPLE:
            self._counted = (sent, again)
            self._loss = (again - before_again) / (sent - before_sent)
        silent = self._timeouts >= _STUCK_TIMEOUTS or self.pulse.is_suspect(
            self._owner.loop.now(), self.last_received
        )
        return Path(
            TCP, BEARS_LOSS if can_bear_loss() else _NEAR_ONLY, self._loss, self.rtt_ms, silent=silent
        )

    @property
    def stuck(self) -> bool:
        """Whether what goes in has not come out for too long, or a new connection would do better."""
        return self._outgrown or self._timeouts >= _GONE_TIMEOUTS

    @property
    def worn(self) -> bool:
        """Whether it is time for new keys, hence for a new connection."""
        return self._sealer is not None and self._sealer.worn

    def send(self, batch: memoryview | bytes) -> None:
        """Seal and send a batch of entries; only while `ready`."""
        assert self._sealer is not None
        assert self.ready, "a carrier got a batch that it can't take"
        frame = self._owner.buffers.frame_view
        size = self._sealer.seal_into(batch, frame)
        try:
            sent = self._sock.send(frame[:size])
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self.close(f"connection lost: {exc.strerror}")
            return
        if sent < size:
            self._unsent = memoryview(bytes(frame[sent:size]))
            self.ready = False
            self._watch(READ | WRITE)

    def _flush(self) -> None:
        if self._unsent:
            try:
                sent = self._sock.send(self._unsent)
            except BlockingIOError:
                return
            self._unsent = self._unsent[sent:]
        if self._unsent:
            return
        if not self._peer_finished:
            self._watch(READ)
        if self.phase is Phase.LIVE:
            self.ready = True
            self._owner.writable(self)
        else:
            self._finish()

    def _send_whole(self, flight: bytes) -> None:
        """The first bytes on a connection always fit into the kernel's buffer."""
        try:
            sent = self._sock.send(flight)
        except BlockingIOError:
            sent = 0
        if sent != len(flight):
            raise RecordViolation("the connection took no flight")

    # --- ending ----------------------------------------------------------------------------------

    def retire(self, reason: str) -> None:
        """See `peers.Carrier`."""
        if self.phase is not Phase.LIVE:
            self.close(reason)
            return
        self.phase = Phase.RETIRING
        self.ready = False
        self._deadline = self._close_in(RETIRE_S, reason)
        self._finish()

    def _finish(self) -> None:
        """Send FIN once everything is out; close once both ends have."""
        if self._unsent or self.phase is Phase.CLOSED:
            return
        self.ready = False
        if not self._finished:
            self._finished = True
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._peer_finished = True
        if self._peer_finished:
            self.close("retired")

    def close(self, reason: str) -> None:
        """End at once. No effect when closed."""
        if self.phase is Phase.CLOSED:
            return
        self.phase = Phase.CLOSED
        self.ready = False
        self._unsent = _NOTHING
        self._owner.buffers.inbox.forget(self._unfinished)
        if self._deadline is not None:
            self._deadline.cancel()
        self._owner.loop.forget(self._sock.fileno())
        self._sock.close()
        self._owner.closed(self, reason)

    def _close_in(self, seconds: float, reason: str) -> Timer:
        return self._owner.loop.call_at(self._owner.loop.now() + seconds, lambda: self.close(reason))

    def _watch(self, events: int) -> None:
        if self._events == 0:
            self._owner.loop.watch(self._sock.fileno(), events, self.on_events)
        elif self._events != events:
            self._owner.loop.change(self._sock.fileno(), events)
        self._events = events


def clock_ns(loop: Loop) -> int:
    """What a ping carries."""
    return int(loop.now() * 1e9)
