"""How do programs of a machine without a VPN reach the mesh? Through ports of this machine.

SOCKS5 (`p2p.socks`, ``kairos-p2p socks``) for programs that can use it, and port forwards (`p2p.forwards`,
``kairos-p2p forward``) for all others. The mesh's names are resolved here; each connection gets a tube to the
node in question, whose agent judges it by the access rules and connects. Needs no right but to listen.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import trio

from p2p_bootstrap.node.names import Names
from p2p_bootstrap.node.routing import Routing
from p2p_bootstrap.node.services import Services
from p2p_network.core import log
from p2p_network.core.errors import MeshError, P2PError
from p2p_network.core.ids import PeerId
from p2p_network.destinations import Map, NotHere
from p2p_network.host.mesh import MeshHost
from p2p_network.socks import Code, Handshake, NoSocks, Request, make_datagram, parse_datagram, reply
from p2p_network.tubes.flow import MAX_DATAGRAM_BYTES, Protocol
from p2p_network.tubes.ports import Carry, TcpDoor, UdpDoor
from p2p_network.tubes.tube import Ended, Tube, join

if TYPE_CHECKING:
    from p2p_bootstrap.config.model import Forward
    from p2p_bootstrap.node.replication import Replication

logger = log.get(__name__)

HANDSHAKE_LIMIT_S: Final = 10.0
RETRY_S: Final = 10.0
_TRIES: Final = 3
_MAX_FLOWS: Final = 64
_CHUNK_BYTES: Final = 4096


class Proxy:
    """The column of local ports that lead into the mesh.

    Args:
        socks: host and port to listen on; None: not.
        forwards: the cloud-config's.
    """

    def __init__(
        self,
        *,
        self_id: PeerId,
        socks: tuple[str, int] | None,
        forwards: tuple[Forward, ...],
        host: MeshHost,
        replication: Replication,
        routing: Routing,
        services: Services,
        names: Names,
    ) -> None:
        self._self_id = self_id
        self._socks = socks
        self._forwards = forwards
        self._host = host
        self._replication = replication
        self._routing = routing
        self._services = services
        self._names = names

    async def run(self) -> None:
        """Keep the configured ports open until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._socks is not None:
                host, port = self._socks
                nursery.start_soon(self._keep, host, port, "tcp", self.answer_socks, None)
            for forward in self._forwards:
                carry, opener = self.forward(*forward.target, forward.protocol)
                nursery.start_soon(self._keep, *forward.endpoint, forward.protocol, carry, opener)

    async def _keep(
        self,
        host: str,
        port: int,
        protocol: Protocol,
        carry: Carry,
        opener: Callable[[], Awaitable[Tube]] | None,
    ) -> None:
        """One port; tried again and again, since its address may come up later."""
        said = ""
        while True:
            try:
                door = await (TcpDoor if protocol == "tcp" else UdpDoor).bind(host, port)
            except MeshError as exc:
                if exc.message != said:
                    log.event(logger, "proxy.failed", logging.ERROR, error=exc.message, hint=exc.hint)
                said = exc.message
                await trio.sleep(RETRY_S)
                continue
            log.event(logger, "proxy.listening", address=f"{host}:{door.port}")
            try:
                if isinstance(door, TcpDoor):
                    await door.run(carry, _note)
                else:
                    assert opener is not None
                    await door.run(opener, _note)
            finally:
                door.close()

    # ------------------------------------------------------------ finding the way

    async def open(self, host: str, port: int, protocol: Protocol) -> Tube:
        """A tube to wherever this is. Raises NotHere, MeshError (with what those who were asked said)."""
        known = self._map()
        try:
            ways = known.ways(host, port, protocol)
        except NotHere as exc:
            if not exc.is_foreign or not self._routing.has_exit:
                raise
            ways = [way for address in await _resolved(host) for way in known.ways(address, port, protocol)]
        failures = []
        for way in ways[:_TRIES]:
            if way.peer == self._self_id:
                failures.append("that is this node itself")
                continue
            try:
                return await self._host.open_tube(way.peer, way.opening)
            except MeshError as exc:
                failures.append(exc.message)
        raise MeshError(f"{host}:{port}: {'; '.join(failures)}", hint="see: kairos-p2p peers")

    def _map(self) -> Map:
        owners = {
            ip_address(text): peer
            for peer, own in self._replication.addresses().items()
            for text in own
            if text
        }
        return Map(
            zone=self._names.zone(),
            owners=owners,
            offers=self._services.offers(),
            standing=self._services.standing(),
            own_region=self._services.region,
            carrier_of=self._routing.carrier_of,
        )

    def forward(
        self, host: str, port: int, protocol: Protocol
    ) -> tuple[Carry, Callable[[], Awaitable[Tube]]]:
        """What carries a connection, or the datagrams of one sender, to a host and port."""

        async def opener() -> Tube:
            try:
                return await self.open(host, port, protocol)
            except NotHere as exc:
                raise MeshError(str(exc), hint="names end in NETWORK_ID.p2p") from exc

        async def carry(stream: trio.SocketStream) -> None:
            await join(stream, await opener())

        return carry, opener

    # ------------------------------------------------------------ SOCKS5

    async def answer_socks(self, stream: trio.SocketStream) -> None:
        """One client, to its end. Raises MeshError with what did not work, once the client was told."""
        try:
            handshake, request = await self._ask(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            stream.socket.close()
            return
        if request.command == "udp":
            await self._associate(stream)
            return
        try:
            tube = await self.open(request.host, request.port, "tcp")
        except (NotHere, MeshError) as exc:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await stream.send_all(reply(_code(exc)))
            raise exc if isinstance(exc, MeshError) else MeshError(str(exc)) from exc
        try:
            await stream.send_all(reply(Code.GRANTED))
            if handshake.rest:
                await tube.send(handshake.rest)
        except (trio.BrokenResourceError, trio.ClosedResourceError, Ended):
            tube.abort("the program is gone")
        await join(stream, tube)

    @staticmethod
    async def _ask(stream: trio.SocketStream) -> tuple[Handshake, Request]:
        handshake = Handshake()
        with trio.fail_after(HANDSHAKE_LIMIT_S):
            while True:
                data = await stream.receive_some(_CHUNK_BYTES)
                if not data:
                    raise trio.ClosedResourceError("the client closed before it asked")
                try:
                    answer, request = handshake.feed(bytes(data))
                except NoSocks as exc:
                    if exc.answer:
                        await stream.send_all(exc.answer)
                    raise MeshError(f"a program on this machine: {exc}", hint="it must speak SOCKS5") from exc
                if answer:
                    await stream.send_all(answer)
                if request is not None:
                    return handshake, request

    async def _associate(self, stream: trio.SocketStream) -> None:
        """Datagrams of one client, for as long as its TCP connection stands."""
        host = str(stream.socket.getsockname()[0])
        client = str(stream.socket.getpeername()[0])
        sock = trio.socket.socket(stream.socket.family, trio.socket.SOCK_DGRAM)
        try:
            await sock.bind((host, 0))
            await stream.send_all(reply(Code.GRANTED, host, sock.getsockname()[1]))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._relay, sock, client, nursery)
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while await stream.receive_some(_CHUNK_BYTES):
                        pass
                nursery.cancel_scope.cancel()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            sock.close()
            stream.socket.close()

    async def _relay(self, sock: trio.socket.SocketType, client: str, nursery: trio.Nursery) -> None:
        flows: dict[tuple[str, int], Tube | None] = {}
        while True:
            try:
                data, sender = await sock.recvfrom(MAX_DATAGRAM_BYTES)
                host, port, payload = parse_datagram(data)
            except (ConnectionError, ValueError):
                continue
            if str(sender[0]) != client:
                continue
            where = (host, port)
            tube = flows.get(where)
            if tube is not None:
                if payload:
                    tube.send_datagram(payload)
            elif where not in flows and len(flows) < _MAX_FLOWS:
                flows[where] = None  # datagrams that come before the tube is there are lost, as they may be
                nursery.start_soon(self._answer_flow, sock, sender, where, payload, flows)

    async def _answer_flow(
        self,
        sock: trio.socket.SocketType,
        sender: tuple[str, int],
        where: tuple[str, int],
        first: bytes,
        flows: dict[tuple[str, int], Tube | None],
    ) -> None:
        tube: Tube | None = None
        try:
            tube = flows[where] = await self.open(*where, "udp")
            if first:
                tube.send_datagram(first)
            while data := await tube.receive():
                with contextlib.suppress(OSError):
                    await sock.sendto(make_datagram(*where, data), sender)
        except (NotHere, P2PError) as exc:
            _note(str(exc))
        except Ended:
            pass
        finally:
            if tube is not None:
                tube.abort("the flow has ended")
            del flows[where]


def _code(exc: Exception) -> Code:
    if isinstance(exc, NotHere):
        return Code.HOST_UNREACHABLE
    text = str(exc)
    if "access rules" in text:
        return Code.NOT_ALLOWED
    return Code.REFUSED if "refused" in text else Code.FAILED


async def _resolved(host: str) -> list[str]:
    """Addresses of a name that is not the mesh's. Raises MeshError."""
    try:
        found = await trio.socket.getaddrinfo(host, None, type=trio.socket.SOCK_STREAM)
    except OSError as exc:
        raise MeshError(f"{host[:80]}: {exc.strerror or exc}") from exc
    return list(dict.fromkeys(str(item[4][0]) for item in found))


def _note(text: str) -> None:
    log.event(logger, "proxy.connection_failed", logging.DEBUG, error=text)
