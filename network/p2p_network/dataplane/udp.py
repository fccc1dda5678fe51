"""What happens on one UDP association that carries, or wants to carry, a session?

    dialer    WELCOME -> LIVE -> RETIRING -> CLOSED
    acceptor  CONFIRM -> LIVE -> RETIRING -> CLOSED

The flights are those of `preface`, one datagram each; the dialer repeats the first until the second comes,
the acceptor answers a repeated first with the same second. Every datagram of the data (`datagrams`) is
useful without the others. All associations share the sockets of the data plane's port, so one hole in a NAT
serves both directions. The other end's address is that of the newest authentic datagram (roaming).
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from p2p_network.dataplane import preface
from p2p_network.dataplane.choice import UDP, Path
from p2p_network.dataplane.connection import (
    HANDSHAKE_S,
    RETIRE_S,
    Buffers,
    Phase,
    clock_ns,
)
from p2p_network.dataplane.datagram_socket import ANSWER, CALL, Address, UdpSocket
from p2p_network.dataplane.datagrams import (
    OVERHEAD_BYTES,
    DatagramOpener,
    DatagramSealer,
    head_of,
)
from p2p_network.dataplane.forward import Forwarder
from p2p_network.dataplane.loop import Loop, Timer
from p2p_network.dataplane.packet import MAX_PACKET_BYTES, VNET_BYTES
from p2p_network.dataplane.path import PathMtu, Quality
from p2p_network.dataplane.peers import Peer, Session
from p2p_network.dataplane.pulse import Pulse
from p2p_network.dataplane.records import (
    BYE,
    ENTRY_BYTES,
    PING,
    PONG,
    PROBE,
    PROBED,
    REPORT,
    RecordViolation,
    control_entry,
    padded_entry,
    put_length,
)
from p2p_network.dataplane.segments import MAX_SEGMENTS, NotSegmentable, mend, shape_of
from p2p_network.dataplane.sockets import name_of

TAG_BYTES: Final = 16
"""So many bytes of the dialer's salt tell it which of its calls is answered."""
_FIRST_REPEAT_S: Final = 0.2
_SEND_BYTES: Final = 65_000
"""What one sendmsg may carry, with room for IP and UDP headers."""
_VNET_AND_ENTRY: Final = ENTRY_BYTES + VNET_BYTES
_ENTRY_LENGTH = struct.Struct("!H")


class Owner(Protocol):
    """Who decides about associations (`carriers.Carriers`)."""

    loop: Loop
    buffers: Buffers
    forwarder: Forwarder

    def fresh_salt(self) -> bytes: ...

    def claim(self, connection: UdpConnection, receiver: int) -> bool: ...

    def release(self, connection: UdpConnection, receiver: int) -> None: ...

    def went_live(self, connection: UdpConnection) -> None: ...

    def was_heard(self, connection: UdpConnection) -> None: ...

    def overheard(self, peer: Peer) -> None: ...

    def writable(self, connection: UdpConnection) -> None: ...

    def peer_left(self, connection: UdpConnection) -> None: ...

    def closed(self, connection: UdpConnection, reason: str) -> None: ...


class UdpConnection:
    """A `peers.Carrier` over datagrams."""

    kind = UDP

    def __init__(
        self, owner: Owner, socket: UdpSocket, address: Address, peer: Peer, session: Session
    ) -> None:
        self._owner = owner
        self._socket = socket
        self._address = address
        self._sealer: DatagramSealer | None = None
        self._opener: DatagramOpener | None = None
        self._own_id = 0
        self._unsent: list[tuple[bytes, int]] = []
        self._repeat: Timer | None = None
        self.salt = b""
        self.number = 0
        self.preface = b""
        self.welcome = b""
        self.endpoint = name_of(address)
        self.peer: Peer = peer
        self.session: Session = session
        self.phase = Phase.CONFIRM
        self.ready = False
        self.heard = False
        self.last_received = owner.loop.now()
        self.pulse = Pulse(self.last_received)
        self.path = PathMtu(is_ip6=socket.is_ip6)
        self.quality = Quality()
        self._deadline: Timer | None = self._close_in(HANDSHAKE_S, "it did not prove a session in time")

    # --- beginning -------------------------------------------------------------------------------

    def dial(self) -> None:
        """This end calls."""
        self.salt, self.number = self._owner.fresh_salt(), self.session.next_number(self.kind)
        self.preface = preface.make_preface(self.session.keys, self.salt, self.number, self.kind)
        self.phase = Phase.WELCOME
        self._call(_FIRST_REPEAT_S)

    def _call(self, again_s: float) -> None:
        if self.phase is Phase.WELCOME:
            self._socket.send_flight(CALL, b"", self.preface, self._address)
            self._repeat = self._owner.loop.call_at(
                self._owner.loop.now() + again_s, lambda: self._call(again_s * 2)
            )

    def accept(self, flight: bytes, dialer_salt: bytes, number: int) -> None:
        """The other end called with a preface that `preface.open_preface` accepted."""
        salt = self._owner.fresh_salt()
        self.preface = flight
        self.welcome = preface.make_welcome(self.session.keys, dialer_salt, salt, number, self.kind)
        self.salt = dialer_salt
        if self._agree(dialer_salt, salt):
            self.answer_again(self._address)

    def answer_again(self, address: Address) -> None:
        """The welcome may be lost: the same answer to the same call."""
        if self.phase is Phase.CONFIRM:
            self._socket.send_flight(ANSWER, self.salt[:TAG_BYTES], self.welcome, address)

    def welcomed(self, flight: bytes) -> None:
        """The answer to our call came. Raises RecordViolation."""
        if self.phase is not Phase.WELCOME:
            return
        salt = preface.open_welcome(self.session.keys, self.salt, self.number, flight, self.kind)
        if self._agree(self.salt, salt):
            self._go_live()
            self.ping()

    def _agree(self, dialer_salt: bytes, acceptor_salt: bytes) -> bool:
        keys = preface.datagram_keys(self.session.keys, dialer_salt, acceptor_salt)
        self._sealer, self._opener, own_id = keys
        if not self._owner.claim(self, own_id):
            self.close("its id is taken by another association")  # one in millions: the next call has another
            return False
        self._own_id = own_id
        return True

    def _go_live(self) -> None:
        for timer in (self._deadline, self._repeat):
            if timer is not None:
                timer.cancel()
        self.phase = Phase.LIVE
        self.ready = True
        self.last_received = self._owner.loop.now()
        self._owner.went_live(self)

    # --- receiving -------------------------------------------------------------------------------

    def received(self, buffer: memoryview, step: int, address: Address) -> None:
        """Datagrams of `step` bytes each (the last may be shorter), all for this association."""
        if self._opener is None or self.phase is Phase.CLOSED:
            return
        at, end = 0, len(buffer)
        newest = self._opener.window.expected
        while at < end:
            try:
                at = self._read_some(buffer, at, end, step)
            except RecordViolation:
                self.peer.drop("unauthentic")
                at += step
            if self.is_closed:
                return
        if self._opener.window.expected > newest and address != self._address:
            self._address = address
            self.endpoint = name_of(address)

    def _read_some(self, buffer: memoryview, at: int, end: int, step: int) -> int:
        """Take one bundle, or a run of segments, at `at`; where the next one starts."""
        assert self._opener is not None
        opened = self._owner.forwarder.opened_view
        if end - at < OVERHEAD_BYTES:
            raise RecordViolation("a datagram is cut off")
        _, number, index, total, header = head_of(buffer, at)
        if total == 0:
            after = min(at + step, end)
            size = self._opener.open_bundle(buffer[at:after], number, opened)
            self._take_in(size)
            return after
        head = VNET_BYTES + header
        share = step - OVERHEAD_BYTES - head
        count = self._run_length(buffer, at, end, step)
        after = min(at + count * step, end)
        plain = opened[ENTRY_BYTES:]
        if total > MAX_SEGMENTS or index + count > total or end - at < OVERHEAD_BYTES + head:
            raise RecordViolation("a segment of impossible shape")
        try:
            size = self._opener.open_run(buffer[at:after], step, count, number, share, plain)
        except RecordViolation:
            if count == 1:
                raise
            return self._read_one_by_one(buffer, at, after, step)
        self._deliver_run(size, head, index, count, total)
        return after

    def _read_one_by_one(self, buffer: memoryview, at: int, end: int, step: int) -> int:
        """One of a run is not authentic: it must not take the others with it."""
        while at < end:
            after = min(at + step, end)
            try:
                self._read_some(buffer[at:after], 0, after - at, after - at)
            except RecordViolation:
                self.peer.drop("unauthentic")
            at = after
        return end

    @staticmethod
    def _run_length(buffer: memoryview, at: int, end: int, step: int) -> int:
        """How many neighbours of one super-packet lie behind each other from `at` on."""
        _, number, index, total, header = head_of(buffer, at)
        count = 1
        while True:
            next_at = at + count * step
            if next_at + OVERHEAD_BYTES > end:
                return count
            _, other, other_index, other_total, other_header = head_of(buffer, next_at)
            if (other, other_index, other_total, other_header) != (
                number + count,
                index + count,
                total,
                header,
            ):
                return count
            count += 1

    def _deliver_run(self, size: int, head: int, index: int, count: int, total: int) -> None:
        opened = self._owner.forwarder.opened_view
        if size <= head or size > MAX_PACKET_BYTES:
            raise RecordViolation("a segment without payload")
        if count != total:
            try:
                mend(opened, ENTRY_BYTES, index, count, total, size - head)
            except (NotSegmentable, struct.error, IndexError) as exc:
                self.peer.drop("forged", count)
                raise RecordViolation("a segment with impossible headers") from exc
        put_length(opened, 0, size - VNET_BYTES)
        self._take_in(ENTRY_BYTES + size)

    def _take_in(self, size: int) -> None:
        """`size` bytes of entries lie in `opened`."""
        self.last_received = self.peer.last_received = self._owner.loop.now()
        if self.phase is Phase.CONFIRM:
            self._go_live()
        self._owner.forwarder.deliver(self.peer, size, self._on_beat)
        if self.phase is not Phase.LIVE:
            return
        if not self.heard:
            self.heard = True
            self._owner.was_heard(self)
        elif self.peer.carrier is not self:
            self._owner.overheard(self.peer)

    def _on_beat(self, kind: int, value: int) -> None:
        if kind == PING and self.phase is Phase.LIVE:
            self._send_control(control_entry(PONG, value) + self._report())
        elif kind == PONG:
            self.quality.round_trip(max(0, clock_ns(self._owner.loop) - value) / 1e6)
        elif kind == REPORT:
            self.quality.reported(value >> 32, value & 0xFFFFFFFF)
        elif kind == PROBE and self.phase is Phase.LIVE:
            self._send_control(control_entry(PROBED, value))
        elif kind == PROBED:
            self.path.answered(value)
        elif kind == BYE and self.phase is Phase.LIVE:
            self.phase = Phase.RETIRING
            self.ready = False
            self._deadline = self._close_in(RETIRE_S, "the other end closed it")
            self._owner.peer_left(self)

    def _report(self) -> bytes:
        assert self._opener is not None
        expected, received = self._opener.window.expected, self._opener.received
        return control_entry(REPORT, (expected & 0xFFFFFFFF) << 32 | received & 0xFFFFFFFF)

    # --- sending ---------------------------------------------------------------------------------

    def ping(self) -> None:
        """Ask for a sign of life, and for the largest datagram that comes through."""
        if self.phase is not Phase.LIVE:
            return
        self._send_control(control_entry(PING, clock_ns(self._owner.loop)))
        for size in self.path.probes(self._owner.loop.now()):
            self._send_control(padded_entry(PROBE, size, size - self.path.outer_bytes - OVERHEAD_BYTES))

    @property
    def is_closed(self) -> bool:
        """Whether it has ended."""
        return self.phase is Phase.CLOSED

    def path_facts(self) -> Path:
        """What `choice` looks at."""
        quality = self.quality
        silent = self.pulse.is_suspect(self._owner.loop.now(), self.last_received)
        return Path(UDP, "", quality.loss, quality.rtt_ms, self.path.inner_mtu, silent)

    @property
    def rtt_ms(self) -> float | None:
        """Of the last heartbeat."""
        return self.quality.rtt_ms

    @property
    def stuck(self) -> bool:
        """Nothing waits here for what was lost."""
        return False

    @property
    def worn(self) -> bool:
        """Whether it is time for new keys, hence for a new association."""
        return self._sealer is not None and self._sealer.worn

    def _send_control(self, entry: bytes) -> None:
        assert self._sealer is not None
        frame = self._owner.buffers.frame_view
        self._put(frame, self._sealer.seal_bundle(entry, frame), 0)

    def send(self, batch: memoryview | bytes) -> None:
        """Seal and send a batch of entries; only while `ready`. A writable batch is used up."""
        assert self.ready, "a carrier got a batch that it can't take"
        if isinstance(batch, bytes):  # it waited in the queue
            scratch = self._owner.buffers.scratch_view
            scratch[: len(batch)] = batch
            batch = scratch[: len(batch)]
        assert self._sealer is not None
        room = self.path.plain_bytes
        begin = at = 0
        end = len(batch)
        while at < end:
            size = _ENTRY_LENGTH.unpack_from(batch, at)[0]
            after = at + (_VNET_AND_ENTRY + size)
            if size and batch[at + ENTRY_BYTES + 1]:
                self._send_bundle(batch[begin:at])
                self._send_segments(batch[at + ENTRY_BYTES : after], size, room)
                begin = after
            elif size and after - at > room:
                self._send_bundle(batch[begin:at])
                self._too_big(batch[at + _VNET_AND_ENTRY : after])
                begin = after
            elif after - begin > room:
                self._send_bundle(batch[begin:at])
                begin = at
            at = after
        self._send_bundle(batch[begin:at])

    def _send_bundle(self, entries: memoryview) -> None:
        if len(entries):
            assert self._sealer is not None
            frame = self._owner.buffers.frame_view
            self._put(frame, self._sealer.seal_bundle(entries, frame), 0)

    def _send_segments(self, packet: memoryview, size: int, room: int) -> None:
        assert self._sealer is not None
        try:
            shape = shape_of(packet, 0, size)
        except NotSegmentable:
            self.peer.drop("unsupported")
            return
        if VNET_BYTES + shape.header_bytes + shape.segment_bytes > room:
            self._too_big(packet[VNET_BYTES:])
            return
        frame = self._owner.buffers.frame_view
        total, step = self._sealer.seal_segments(packet, shape, frame)
        self._put(frame, total, step)

    def _too_big(self, packet: memoryview) -> None:
        """Tell the sender on this machine how large a packet may be on this path."""
        self.peer.drop("too_big")
        self._owner.forwarder.answer_too_big(packet, self.path.inner_mtu)

    def _put(self, frame: memoryview, size: int, step: int) -> None:
        """Send `size` bytes of datagrams of `step` bytes each (0: just one)."""
        at = 0
        chunk = _SEND_BYTES // step * step if step else size
        while at < size:
            piece = frame[at : min(size, at + chunk)]
            if self._unsent or not self._socket.send(piece, step, self._address):
                self._unsent.append((bytes(piece), step))
                if self.ready:
                    self.ready = False
                    self._socket.wait(self)
            at += chunk

    def on_writable(self) -> None:
        """The socket takes datagrams again."""
        while self._unsent:
            data, step = self._unsent[0]
            if not self._socket.send(memoryview(data), step, self._address):
                self._socket.wait(self)
                return
            del self._unsent[0]
        if self.phase is Phase.LIVE:
            self.ready = True
            self._owner.writable(self)

    # --- ending ----------------------------------------------------------------------------------

    def retire(self, reason: str) -> None:
        """See `peers.Carrier`."""
        if self.phase is not Phase.LIVE:
            self.close(reason)
            return
        self._send_control(control_entry(BYE, 0))
        self.phase = Phase.RETIRING
        self.ready = False
        self._deadline = self._close_in(RETIRE_S, reason)

    def close(self, reason: str) -> None:
        """End at once. No effect when closed."""
        if self.phase is Phase.CLOSED:
            return
        self.phase = Phase.CLOSED
        self.ready = False
        self._unsent.clear()
        for timer in (self._deadline, self._repeat):
            if timer is not None:
                timer.cancel()
        self._owner.release(self, self._own_id)
        self._owner.closed(self, reason)

    def _close_in(self, seconds: float, reason: str) -> Timer:
        return self._owner.loop.call_at(self._owner.loop.now() + seconds, lambda: self.close(reason))
