"""How does a connection run through another member?

The adapter of `relay`: this node's three parts in it. `reach` asks members for a circuit to a peer and makes
a connection of it, as if it were a TCP stream: same keys, same handshake, same gate, both ends' certificates.
`take_call` is its other end. `carry` is what a relay does: it splices two streams, at the rate that the
asking member may use; what it holds back waits at the sender, in the window of its stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import trio

from p2p_network import wire
from p2p_network.core import log
from p2p_network.core.errors import MeshError, PeerUnreachable
from p2p_network.core.ids import PeerId, short
from p2p_network.host import relay
from p2p_network.host.channel import ByteStream
from p2p_network.host.connections import Stream, remote_of, via_of
from p2p_network.host.private import Wire

logger = log.get(__name__)

SIGHT_METHOD: Final = "relay.sight"
SIGHT_LIMIT_S: Final = 2.0
WORD_LIMIT_S: Final = 5.0
ASKED_AT_ONCE: Final = 8
TRIED_AT_ONCE: Final = 3
UNLUCKY_S: Final = 60.0
"""So long a relay that was tried for a peer comes after the others: it may drop what it takes."""
MAX_CALLS: Final = 32
"""Circuits to this node that have not been admitted yet."""


@dataclass(frozen=True, slots=True)
class Around:
    """What circuits need from their host.

    Attributes:
        nursery: where streams are ended.
        open_on: opens a stream of a protocol on a connection, or raises PeerUnreachable.
        direct: the living connection of our own with a peer, or None.
        neighbours: peers with a channel on such a connection, and its round trip in ms, if measured.
        request: asks a peer; raises MeshError.
        may_dial: False for a peer that is known to be out.
        reach_over: makes a connection over wires (`MeshSwarm.reach_over`).
        admit: serves an inbound wire until its connection ends; the function is called once it is admitted.
    """

    nursery: trio.Nursery
    open_on: Callable[[Any, str], Awaitable[Stream]]
    direct: Callable[[PeerId], Any]
    neighbours: Callable[[], Iterable[tuple[PeerId, float | None]]]
    request: Callable[[PeerId, str, bytes, float], Awaitable[bytes]]
    may_dial: Callable[[PeerId], bool]
    reach_over: Callable[[Callable[[], Awaitable[Wire]], PeerId], Awaitable[Any]]
    admit: Callable[[Wire, Callable[[], None]], Awaitable[None]]


class Started:
    """A byte stream that begins with frames: hands out what came behind them first."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self._data = bytearray()

    async def frame(self) -> relay.Frame:
        """The next frame, within `WORD_LIMIT_S`. Raises PeerUnreachable."""
        try:
            with trio.fail_after(WORD_LIMIT_S):
                while (found := relay.read_frame(self._data)) is None:
                    more = await self.stream.read()
                    if not more:
                        raise PeerUnreachable("it ended before it said its word")
                    self._data += more
        except (ValueError, trio.TooSlowError) as exc:
            raise PeerUnreachable(f"no word on a circuit: {exc or 'it took too long'}") from exc
        frame, end = found
        del self._data[:end]
        return frame

    async def say(self, frame: relay.Frame) -> None:
        """Raises PeerUnreachable."""
        try:
            await self.stream.write(relay.frame_bytes(frame))
        except trio.BrokenResourceError as exc:
            raise PeerUnreachable("it ended before we said our word") from exc

    async def read(self) -> bytes:
        """Some bytes; b"" at the end."""
        if self._data:
            data = bytes(self._data)
            self._data.clear()
            return data
        return await self.stream.read()


class CircuitWire:
    """A `private.Wire` over a stream to or from a relay."""

    def __init__(self, started: Started, stream: Stream, why: str, nursery: trio.Nursery) -> None:
        self.remote = remote_of(stream.connection)
        self.via: PeerId | None = stream.peer
        self.why = why
        self._started, self._stream, self._nursery = started, stream, nursery
        self._rest = b""
        self._reading: trio.CancelScope | None = None
        self._aborted = False

    async def send_all(self, data: bytes) -> None:
        """See `private.Wire`."""
        if self._aborted:
            raise trio.ClosedResourceError("the circuit was ended")
        await self._stream.write(data)

    async def receive_some(self, limit: int | None) -> bytes:
        """See `private.Wire`."""
        if not self._rest:
            with trio.CancelScope() as self._reading:
                if self._aborted:
                    return b""
                self._rest = await self._started.read()
            self._reading = None
        size = len(self._rest) if limit is None else limit
        head, self._rest = self._rest[:size], self._rest[size:]
        return head

    def abort(self) -> None:
        """See `private.Wire`."""
        if self._aborted:
            return
        self._aborted = True
        if self._reading is not None:
            self._reading.cancel()
        with contextlib.suppress(RuntimeError):  # the host ends, and every stream with its connection
            self._nursery.start_soon(self._stream.reset)


class Circuits:
    """This node's circuits: to others, from others, and those that it carries.

    Args:
        protocol: prefix of the names of the two protocols.
        carries: whether this node is a relay for others.
    """

    def __init__(self, self_id: PeerId, protocol: str, around: Around, *, carries: bool) -> None:
        self.ask_protocol, self.call_protocol = f"{protocol}/ask", f"{protocol}/call"
        self.carried_bytes = 0
        self._around = around
        self._carries = carries
        self._carriage = relay.Carriage(self_id)
        self._calls = 0
        self._turn = 0
        self._tried: dict[tuple[PeerId, PeerId], float] = {}

    @property
    def carried(self) -> int:
        """Circuits that this node carries for others now."""
        return len(self._carriage)

    # ------------------------------------------------------------------ dialling

    async def reach(self, target: PeerId, why: str) -> Any:
        """A connection with `target` through the best member that leads there. Raises PeerUnreachable.

        `why`: why not directly; shown with the connection.
        """
        now = trio.current_time()
        self._tried = {key: at for key, at in self._tried.items() if now - at < UNLUCKY_S}
        relays = await self._find_relays(target)
        relays = tuple(sorted(relays, key=lambda peer: self._tried.get((target, peer), 0.0)))
        if not relays:
            raise PeerUnreachable(f"no member that we ask has a connection with peer {short(target)}")
        failures: list[str] = []
        for peer in relays[:TRIED_AT_ONCE]:
            self._tried[target, peer] = trio.current_time()
            try:
                return await self._around.reach_over(partial(self._ask, peer, target, why), target)
            except PeerUnreachable as exc:
                failures.append(f"through {short(peer)}: {exc.message}")
        raise PeerUnreachable("; ".join(failures))

    async def _find_relays(self, target: PeerId) -> tuple[PeerId, ...]:
        unknown = relay.STRANGE_RTT_MS
        seen = ((unknown if rtt is None else rtt, peer) for peer, rtt in self._around.neighbours())
        near = sorted(item for item in seen if item[1] != target)
        if len(near) > ASKED_AT_ONCE:  # others in the next round: the nearest need not know the target
            shift = self._turn * ASKED_AT_ONCE % len(near)
            near = (near[shift:] + near[:shift])[:ASKED_AT_ONCE]
        self._turn += 1
        found: list[relay.Candidate] = []

        async def look(peer: PeerId, rtt_ms: float) -> None:
            with contextlib.suppress(MeshError, ValueError):
                question = wire.encode(relay.Look(target))
                raw = await self._around.request(peer, SIGHT_METHOD, question, SIGHT_LIMIT_S)
                found.append(relay.Candidate(peer, rtt_ms, wire.decode(raw, relay.Sight)))

        async with trio.open_nursery() as nursery:
            for rtt_ms, peer in near:
                nursery.start_soon(look, peer, rtt_ms)
        return relay.ranked(found)

    async def _ask(self, peer: PeerId, target: PeerId, why: str) -> Wire:
        conn = self._around.direct(peer)
        if conn is None:
            raise PeerUnreachable("the connection with the relay is gone")
        stream = await self._around.open_on(conn, self.ask_protocol)
        started = Started(stream)
        try:
            await started.say(relay.Ask(target))
            word = await started.frame()
            if not isinstance(word, relay.Word) or word.refusal:
                said = word.refusal if isinstance(word, relay.Word) else "something else than its word"
                raise PeerUnreachable(f"it refuses: {said[:200]}")
        except BaseException:
            await stream.reset()
            raise
        return CircuitWire(started, stream, why, self._around.nursery)

    # ------------------------------------------------------------------ being called

    async def take_call(self, raw: Any) -> None:
        """A relay opened a stream to us, for another member. Serves until that connection has ended."""
        stream = Stream(raw)
        started = Started(stream)
        call = await started.frame()
        refusal = self._call_refusal(stream, call)
        await started.say(relay.Word(refusal))
        if refusal:
            await stream.reset()
            return
        self._calls += 1
        scope = contextlib.ExitStack()
        scope.callback(self._settled)
        with scope:
            ended = CircuitWire(started, stream, "the other end found no direct way", self._around.nursery)
            await self._around.admit(ended, scope.close)

    def _settled(self) -> None:
        self._calls -= 1

    def _call_refusal(self, stream: Stream, call: relay.Frame) -> str:
        if via_of(stream.connection) is not None:
            return "it was called over a circuit: one hop only"
        if not isinstance(call, relay.Call) or not self._around.may_dial(PeerId(call.source)):
            return "it does not take calls of that peer"
        if self._calls >= MAX_CALLS:
            return f"{MAX_CALLS} calls wait already"
        return ""

    # ------------------------------------------------------------------ carrying

    async def sight(self, peer: PeerId, payload: bytes) -> bytes:
        """Request handler: do we see a peer, and how far away is it?"""
        target = PeerId(wire.decode(payload, relay.Look).target)
        rtts = dict(self._around.neighbours())
        refusal = self._refusal(peer, target, asked_directly=True)
        return wire.encode(relay.Sight(not refusal and target in rtts, rtts.get(target)))

    def _refusal(self, source: PeerId, target: PeerId, *, asked_directly: bool) -> str:
        if not self._carries:
            return "it carries nothing for others (p2p.relay)"
        if not self._around.may_dial(target):
            return "that peer is no member"
        return self._carriage.refusal(
            source, target, asked_directly=asked_directly, sees_target=self._around.direct(target) is not None
        )

    async def carry(self, raw: Any) -> None:
        """A member asks us to lead it to another one: splice until one of them ends it."""
        stream = Stream(raw)
        asking = Started(stream)
        ask = await asking.frame()
        if not isinstance(ask, relay.Ask):
            raise PeerUnreachable("it asks for nothing")
        source, target = stream.peer, PeerId(ask.target)
        refusal = self._refusal(source, target, asked_directly=via_of(stream.connection) is None)
        if refusal:
            await asking.say(relay.Word(refusal))
            await stream.reset()
            return
        bucket = self._carriage.enter(source, target)
        try:
            await self._lead(asking, source, target, bucket)
        finally:
            self._carriage.leave(source, target)
            await stream.reset()

    async def _lead(self, asking: Started, source: PeerId, target: PeerId, bucket: relay.Bucket) -> None:
        try:
            onward = await self._around.open_on(self._around.direct(target), self.call_protocol)
        except PeerUnreachable as exc:
            await asking.say(relay.Word(f"its connection with that member fails: {exc.message}"[:200]))
            return
        called = Started(onward)
        try:
            await called.say(relay.Call(source))
            word = await called.frame()
            refusal = word.refusal[:200] if isinstance(word, relay.Word) else "the other end is confused"
            await asking.say(relay.Word(refusal))
            if refusal:
                return
            log.event(logger, "host.circuit_carried", peer=source, to=target, count=self.carried)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._splice, asking, called, bucket, nursery.cancel_scope)
                nursery.start_soon(self._splice, called, asking, bucket, nursery.cancel_scope)
        finally:
            await onward.reset()

    async def _splice(
        self, source: Started, sink: Started, bucket: relay.Bucket, scope: trio.CancelScope
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await source.read():
                self.carried_bytes += len(data)
                wait_s = bucket.wait_s(trio.current_time(), len(data))
                if wait_s:
                    await trio.sleep(wait_s)
                await sink.stream.write(data)
        scope.cancel()
