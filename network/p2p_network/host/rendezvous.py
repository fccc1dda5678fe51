"""How do members find each other through a machine of their own that is no member?

A rendezvous server speaks libp2p's rendezvous protocol inside a pre-shared key of its own, which follows from
the mesh's rendezvous key (`meeting.notes.meeting_psk`): it learns from which addresses members come, and
keeps sealed notes for them under a namespace that is new every day. It can read none, knows no peer id
(members visit it with a throw-away key), and holds nothing that lets it into the mesh. Members visit the
servers that they are told of, leave their note, take the others', and go.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from p2p_network.core import log
from p2p_network.core.errors import MeshError, PeerUnreachable
from p2p_network.core.ids import PeerId
from p2p_network.host.addresses import Endpoint, parse_endpoint
from p2p_network.host.connections import Stream
from p2p_network.host.discovery import Learn
from p2p_network.host.guards import MeshBasicHost, MeshSwarm
from p2p_network.host.listener import Listener
from p2p_network.host.private import SocketWire
from p2p_network.meeting import notes, protobuf, rendezvous, witness
from p2p_network.meeting.pace import Outcome
from p2p_network.meeting.rendezvous import Discover, Discovered, Message, Register, Registered, Registry
from p2p_network.meeting.witness import Witnesses

logger = log.get(__name__)

SOURCE: Final = "rendezvous"
VISIT_LIMIT_S: Final = 20.0
MAX_VISIT_S: Final = 60.0
"""Longer nobody stays at a server."""
MAX_REQUESTS: Final = 64
TTL_S: Final = rendezvous.DEFAULT_TTL_S


class RendezvousServer:
    """A meeting point for the members of one mesh.

    Args:
        psk: `notes.meeting_psk` of the mesh.
        listen: ``HOST:PORT`` or ``[HOST]:PORT``.
    """

    def __init__(self, psk: bytes, listen: Sequence[str]) -> None:
        self._listen = tuple(listen)
        self._listener: Listener | None = None
        self._swarm = MeshSwarm(os.urandom(32), psk)
        self._host = MeshBasicHost(self._swarm, self.addresses)
        self.registry = Registry(os.urandom(8))

    def addresses(self) -> tuple[str, ...]:
        """Where members can reach it: multiaddresses. Empty before it listens."""
        return tuple(map(str, self._listener.endpoints())) if self._listener is not None else ()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; "started" once listening. Raises MeshError, NotPermitted."""
        self._listener = await Listener.bind(self._listen)
        try:
            async with trio.open_nursery() as nursery:
                self._swarm.attach(nursery)
                self._host.set_stream_handler(rendezvous.PROTOCOL, self._serve)
                nursery.start_soon(self._listener.serve, self._admit)
                log.event(logger, "rendezvous.listening", address=" ".join(self.addresses()))
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._swarm.abort_all()
        finally:
            self._listener.close()

    async def _admit(self, stream: trio.SocketStream, trusted: Callable[[], None]) -> None:
        try:
            wire = SocketWire(stream)
        except OSError:  # gone already
            stream.socket.close()
            return
        try:
            with trio.move_on_after(MAX_VISIT_S):
                await self._swarm.admit(wire, trusted)
        except (MeshError, OSError) as exc:
            log.event(logger, "rendezvous.turned_away", level=10, address=str(wire.remote), detail=str(exc))
        finally:
            wire.abort()

    async def _serve(self, raw: Any) -> None:
        stream, heard = Stream(raw), b""
        for _ in range(MAX_REQUESTS):
            request, heard = await _heard(stream, heard)
            answer = self.registry.answer(trio.current_time(), stream.peer, rendezvous.decode(request))
            if answer is not None:
                await stream.write(protobuf.framed(rendezvous.encode(answer)))
        await stream.reset()


async def _heard(stream: Stream, heard: bytes) -> tuple[bytes, bytes]:
    """The next message and what follows. Raises PeerUnreachable at the end, ValueError."""
    while (found := protobuf.unframed(heard, rendezvous.MAX_MESSAGE_BYTES)) is None:
        more = await stream.read()
        if not more:
            raise PeerUnreachable("it closed the stream")
        heard += more
    return found


class RendezvousNotes:
    """One node's visits to rendezvous servers.

    Args:
        peer: this node.
        key: the mesh's rendezvous key.
        servers: where they are (see `addresses`); raises MeshError on a malformed one.
        addresses: where this node can be dialled.
        learn: who wants to know where members are.
    """

    def __init__(
        self,
        peer: PeerId,
        key: bytes,
        servers: Sequence[str],
        *,
        addresses: Callable[[], Sequence[str]],
        learn: Learn,
    ) -> None:
        self._peer = peer
        self._key = key
        self._seed = os.urandom(32)
        try:
            self._servers = tuple(dict.fromkeys(map(parse_endpoint, servers)))
        except ValueError as exc:
            raise MeshError(
                f"rendezvous server: {exc}", hint="write HOST:PORT or /ip4/HOST/tcp/PORT/p2p/ID"
            ) from exc
        self._addresses = addresses
        self._learn = learn
        self._failing: set[Endpoint] = set()
        self._seen_at: dict[Endpoint, Witnesses] = {}

    async def look_once(self) -> Outcome:
        """Visit all servers; it is enough that one of them keeps this node's note."""
        kept: list[Endpoint] = []

        async def visit(endpoint: Endpoint, expected: PeerId | None) -> None:
            try:
                with trio.fail_after(VISIT_LIMIT_S):
                    await self._visit(endpoint, expected)
            except (MeshError, ValueError, OSError, trio.BrokenResourceError, trio.TooSlowError) as exc:
                if endpoint not in self._failing:
                    why = str(exc) or "no answer in time"
                    log.event(logger, "rendezvous.out_of_reach", address=str(endpoint), reason=why[:300])
                self._failing.add(endpoint)
                return
            if endpoint in self._failing:
                log.event(logger, "rendezvous.back", address=str(endpoint))
            self._failing.discard(endpoint)
            kept.append(endpoint)

        async with trio.open_nursery() as nursery:
            for endpoint, expected in self._servers:
                nursery.start_soon(visit, endpoint, expected)
        return Outcome.WROTE if kept else Outcome.FAILED

    async def _visit(self, endpoint: Endpoint, expected: PeerId | None) -> None:
        swarm = MeshSwarm(self._seed, notes.meeting_psk(self._key))
        host = MeshBasicHost(swarm, lambda: ())
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            swarm.attach(nursery)
            try:
                connection = await swarm.reach([endpoint], expected)
                await self._ask_where_from(await host.open_on(connection, witness.PROTOCOL), endpoint)
                await self._talk(await host.open_on(connection, rendezvous.PROTOCOL))
            except (MeshError, ValueError, OSError, trio.BrokenResourceError) as exc:
                failure = exc
            finally:
                swarm.abort_all()
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _ask_where_from(self, stream: Stream, server: Endpoint) -> None:
        """At which address the server sees us: a node behind a router that leads to it can't know."""
        identified, _ = await _heard(stream, b"")
        seen = witness.observed_in(identified)
        if seen is not None:
            self._seen_at[server] = Witnesses(needed=1)
            self._seen_at[server].heard(seen.host, seen.host)

    def _own_addresses(self) -> tuple[str, ...]:
        addresses = tuple(self._addresses())
        believed = (one for seen in self._seen_at.values() for one in seen.believed(addresses))
        return (*dict.fromkeys(believed), *addresses)

    async def _talk(self, stream: Stream) -> None:
        """Leave this node's note, and take the others'."""
        wall_s = time.time()
        today = notes.day_of(wall_s)
        own = notes.note_of(self._peer, self._own_addresses(), wall_s)
        sealed = notes.seal(self._key, today, [own], os.urandom(12), notes.SINGLE_BYTES)
        heard = b""

        async def ask(message: Message) -> Message:
            nonlocal heard
            await stream.write(protobuf.framed(rendezvous.encode(message)))
            answer, heard = await _heard(stream, heard)
            return rendezvous.decode(answer)

        if own.endpoints:
            answer = await ask(Register(notes.namespace(self._key, today), sealed, TTL_S))
            if not isinstance(answer, Registered) or answer.status != rendezvous.OK:
                raise PeerUnreachable(f"it does not keep our note: {rendezvous.why(answer)}")
        for day in notes.days_around(wall_s):
            found = await ask(Discover(notes.namespace(self._key, day)))
            if not isinstance(found, Discovered):
                raise PeerUnreachable("it answers something else")
            for record in found.records:
                self._take(day, record, wall_s)

    def _take(self, day: int, record: bytes, wall_s: float) -> None:
        try:
            inside = notes.merged(notes.unseal(self._key, day, record), None, wall_s)
        except ValueError as exc:
            log.event(logger, "rendezvous.note_ignored", level=10, detail=str(exc))
            return
        for note in inside:
            if note.peer != self._peer:
                self._learn(note.peer, tuple(map(str, note.endpoints)), SOURCE)
