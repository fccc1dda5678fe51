"""Which services does this node offer, which can it reach, and how do connections get there?

Offers are those of the cloud-config and those an operator added; they stand in the ledger under
`services/<peer>`. A connection to one travels through a tube of the mesh, with or without a VPN; where this
node has a VPN address, the service also answers there. Every tube that a peer opens is judged by the access
rules before anything is connected. A peer may also ask for an address: this node's own VPN address, or one in
a network that it carries.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.routing import Routing
from p2p_bootstrap.node.runtime import Runtime
from p2p_bootstrap.node.signal import Signal
from p2p_network import services as offers_of
from p2p_network import wire
from p2p_network.core import log
from p2p_network.core.errors import MeshError, UsageError, nearest
from p2p_network.core.ids import PeerId, short
from p2p_network.host.mesh import MeshHost
from p2p_network.ledger.reading import read_by_peer
from p2p_network.membership import MemberState
from p2p_network.records import ServiceItem, ServicesRecord
from p2p_network.services import Offer, Standing
from p2p_network.tubes.flow import Opening, Protocol
from p2p_network.tubes.ports import LocalDatagrams, TcpDoor, UdpDoor, carry_locally, reach
from p2p_network.tubes.tube import Tube, join

if TYPE_CHECKING:
    from p2p_bootstrap.config.model import Service
    from p2p_bootstrap.node.ports import Durable
    from p2p_bootstrap.node.vpn import Vpn

logger = log.get(__name__)

DURABLE_KEY: Final = "services/own"
LOOK_EVERY_S: Final = 5.0
_TRIES: Final = 3


class Exposed(msgspec.Struct, frozen=True):
    """One service of this node. `host`, `port`: where its program listens; `public_port`: on the VPN."""

    name: str
    protocol: Protocol
    host: str
    port: int
    public_port: int


@dataclass(frozen=True, slots=True)
class Row:
    """One line of ``service list``. `target`: this node's only; `error`: why not on the VPN."""

    offer: Offer
    hostname: str
    region: str
    alive: bool
    allowed: bool
    target: str
    error: str


class Services:
    """The column of services.

    Args:
        declared: the cloud-config's.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        self_id: PeerId,
        declared: tuple[Service, ...],
        host: MeshHost,
        replication: Replication,
        durable: Durable,
        routing: Routing,
        vpn: Vpn,
        region: Callable[[], str],
    ) -> None:
        self._runtime = runtime
        self._self_id = self_id
        self._declared = tuple(Exposed(s.name, s.protocol, *s.target, s.public_port) for s in declared)
        self._host = host
        self._replication = replication
        self._durable = durable
        self._routing = routing
        self._vpn = vpn
        self._region = region
        self._added: tuple[Exposed, ...] = ()
        self._changed = Signal()
        self._doors: dict[tuple[str, Exposed], trio.CancelScope] = {}
        self._errors: dict[str, str] = {}
        self.refused = 0
        """Tubes that the access rules kept out."""
        host.serve_tubes(self._take)

    @property
    def own(self) -> tuple[Exposed, ...]:
        """What this node offers."""
        names = {(s.name, s.protocol) for s in self._declared}
        return (*self._declared, *(s for s in self._added if (s.name, s.protocol) not in names))

    async def load(self) -> None:
        """Read what an operator added; first of all calls."""
        raw = await self._runtime.in_thread(self._durable.get, DURABLE_KEY)
        if raw:
            self._added = msgspec.json.decode(raw, type=tuple[Exposed, ...])

    async def run(self) -> None:
        """Keep the offers in the ledger, and answer on the VPN's addresses, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._publish()
                await self._keep_doors(nursery)
                await self._changed.wait(LOOK_EVERY_S)

    async def _publish(self) -> None:
        key = f"services/{self._self_id}"
        items = tuple(ServiceItem(s.name, s.protocol, s.public_port) for s in self.own)
        if items:
            await self._replication.write(key, wire.encode(ServicesRecord(items)))
        elif self._replication.ledger.get(key) is not None:
            await self._replication.delete(key)

    # ------------------------------------------------------------ on the VPN's addresses

    async def _keep_doors(self, nursery: trio.Nursery) -> None:
        """A door per VPN address and service. Where its program listens there itself, none is needed."""
        status = self._vpn.status
        addresses = [a for a in (status.ipv4, status.ipv6) if a and status.state == "up"]
        wanted = {(address, service) for address in addresses for service in self.own}
        for gone in self._doors.keys() - wanted:
            self._doors.pop(gone).cancel()
        for address, service in wanted - self._doors.keys():
            door: TcpDoor | UdpDoor
            try:
                if service.protocol == "tcp":
                    door = await TcpDoor.bind(address, service.public_port)
                else:
                    door = await UdpDoor.bind(address, service.public_port)
            except MeshError as exc:
                # most often the program itself, which listens on all addresses
                self._errors[service.name] = exc.message
                continue
            self._errors.pop(service.name, None)
            scope = self._doors[(address, service)] = trio.CancelScope()
            nursery.start_soon(self._run_door, door, service, scope)

    async def _run_door(self, door: TcpDoor | UdpDoor, service: Exposed, scope: trio.CancelScope) -> None:
        def note(text: str) -> None:
            log.event(logger, "service.failed", logging.DEBUG, name=service.name, error=text)

        async def opener() -> LocalDatagrams:
            return await LocalDatagrams.connect(service.host, service.port)

        async def carry(stream: trio.SocketStream) -> None:
            await carry_locally(stream, service.host, service.port)

        try:
            with scope:
                if isinstance(door, TcpDoor):
                    await door.run(carry, note)
                else:
                    await door.run(opener, note)
        finally:
            door.close()

    # ------------------------------------------------------------ what peers open

    async def _take(self, tube: Tube, opening: Opening) -> None:
        """Judge, connect, carry."""
        verdict = self._routing.may(tube.peer, self._self_id)
        if not verdict.allowed:
            self.refused += 1
            await tube.refuse(f"the access rules do not allow it ({verdict.rule})")
            return
        if not opening.service:
            await self._take_address(tube, opening)
            return
        found = [s for s in self.own if (s.name, s.protocol) == (opening.service, opening.protocol)]
        if not found:
            await tube.refuse(f"it offers no {opening.protocol} service {opening.service}")
            return
        await reach(tube, opening.protocol, found[0].host, found[0].port)

    async def _take_address(self, tube: Tube, opening: Opening) -> None:
        """Only this node's own VPN addresses, and what it carries for the mesh anyway."""
        try:
            address = ip_address(opening.host)
        except ValueError:
            await tube.refuse("only addresses can be asked for")
            return
        own = {self._vpn.status.ipv4, self._vpn.status.ipv6} - {""}
        carried = (ip_network(text) for text in self._routing.own_networks())
        if str(address) not in own and not any(
            n.version == address.version and address in n for n in carried
        ):
            await tube.refuse(f"{address} is not behind it")
            return
        await reach(tube, opening.protocol, str(address), opening.port)

    # ------------------------------------------------------------ reaching others

    @property
    def region(self) -> str:
        """Where this node is."""
        return self._region()

    def standing(self) -> dict[PeerId, Standing]:
        """What is known of every node that may offer something."""
        connected = self._host.connected()
        return {
            member.peer: Standing(
                member.record.region if member.record is not None else "",
                member.state is MemberState.ALIVE and member.peer in connected,
                self._host.round_trip_s(member.peer),
            )
            for member in self._replication.view.members
        }

    def offers(self) -> list[Offer]:
        """Every service of every node."""
        return offers_of.offers(read_by_peer(self._replication.ledger, "services/", ServicesRecord))

    def find(self, name: str, protocol: Protocol, *, region: str = "", node: str = "") -> list[Offer]:
        """Who offers a service, the nearest first, this node left out. Raises UsageError if nobody does.

        `node`: only there; host name, peer id or its end.
        """
        known = [offer for offer in self.offers() if offer.peer != self._self_id]
        found = offers_of.nearest_first(
            known, name, protocol, self.standing(), own_region=self._region(), region=region
        )
        if node:
            names = {m.peer: m.record.hostname for m in self._replication.view.members if m.record}
            found = [o for o in found if node in (o.peer, names.get(o.peer)) or o.peer.endswith(node)]
        if found:
            return found
        if any((s.name, s.protocol) == (name, protocol) for s in self.own) and not node:
            raise UsageError(f"this node itself offers {name}", hint="connect to its program directly")
        near = nearest(name, sorted({o.item.name for o in known if o.item.protocol == protocol}))
        place = f" in region {region}" if region else f" on {node}" if node else ""
        raise UsageError(
            f"nobody who is here offers a {protocol} service {name}{place}",
            hint=f"did you mean {near}?" if near else "see what there is with: kairos-p2p service list",
        )

    async def open(self, name: str, protocol: Protocol, *, region: str = "", node: str = "") -> Tube:
        """A tube to the nearest node that offers a service and takes it. Raises MeshError, UsageError."""
        failures = []
        for offer in self.find(name, protocol, region=region, node=node)[:_TRIES]:
            try:
                return await self._host.open_tube(offer.peer, Opening(protocol, service=name))
            except MeshError as exc:
                failures.append(exc.message)
        raise MeshError(f"service {name}: {'; '.join(failures)}", hint="see: kairos-p2p service list")

    def carry(
        self, name: str, *, region: str = "", node: str = ""
    ) -> Callable[[trio.SocketStream], Awaitable[None]]:
        """Carries a TCP connection to a service."""

        async def through(stream: trio.SocketStream) -> None:
            await join(stream, await self.open(name, "tcp", region=region, node=node))

        return through

    # ------------------------------------------------------------ for operators

    def rows(self) -> list[Row]:
        """Every service of every node."""
        standing = self.standing()
        names = {m.peer: m.record.hostname for m in self._replication.view.members if m.record}
        targets = {(s.name, s.protocol): f"{s.host}:{s.port}" for s in self.own}
        return [
            Row(
                offer,
                names.get(offer.peer, short(offer.peer)),
                standing[offer.peer].region if offer.peer in standing else "",
                offer.peer == self._self_id or (offer.peer in standing and standing[offer.peer].alive),
                self._routing.may(self._self_id, offer.peer).allowed,
                targets.get((offer.item.name, offer.item.protocol), "")
                if offer.peer == self._self_id
                else "",
                self._errors.get(offer.item.name, "") if offer.peer == self._self_id else "",
            )
            for offer in self.offers()
        ]

    async def expose(self, name: str, protocol: Protocol, host: str, port: int, public_port: int) -> None:
        """Offer a service, also after a restart. Raises UsageError."""
        try:
            offers_of.check_name(name)
        except ValueError as exc:
            raise UsageError(str(exc)) from exc
        self._not_declared(name, protocol)
        others = tuple(s for s in self._added if (s.name, s.protocol) != (name, protocol))
        if len(others) + len(self._declared) >= offers_of.MAX_SERVICES:
            raise UsageError(f"a node offers at most {offers_of.MAX_SERVICES} services")
        await self._keep((*others, Exposed(name, protocol, host, port, public_port)))

    async def remove(self, name: str, protocol: Protocol) -> None:
        """Offer it no longer. Raises UsageError."""
        self._not_declared(name, protocol)
        left = tuple(s for s in self._added if (s.name, s.protocol) != (name, protocol))
        if left == self._added:
            near = nearest(name, [s.name for s in self._added])
            raise UsageError(
                f"this node offers no {protocol} service {name}", hint=f"did you mean {near}?" if near else ""
            )
        await self._keep(left)

    def _not_declared(self, name: str, protocol: Protocol) -> None:
        if any((s.name, s.protocol) == (name, protocol) for s in self._declared):
            raise UsageError(
                f"{name} stands in the cloud-config", hint="change p2p.services there, and restart the agent"
            )

    async def _keep(self, added: tuple[Exposed, ...]) -> None:
        await self._runtime.in_thread(self._durable.set, DURABLE_KEY, msgspec.json.encode(added))
        self._added = added
        await self._publish()
        self._changed.raise_()
