"""Which names can this machine's programs use, and who answers them?

While the VPN is up and `p2p.dns` is on: keeps the zone as the ledger and the view have it, answers on the
VPN addresses, and lets the machine's resolver ask there. All of it is taken back when the agent ends,
however it ends; a resolv.conf that a crash left is put back by the next start.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Final

import trio

from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.resolving import Resolving
from p2p_bootstrap.node.signal import Signal
from p2p_network import addressing
from p2p_network.core import log
from p2p_network.core.errors import P2PError
from p2p_network.ledger.reading import read_by_peer
from p2p_network.membership import MemberState
from p2p_network.names.zone import Exposed, Host, Zone, zone_of
from p2p_network.records import AddressClaim, RoleRecord, ServicesRecord
from p2p_network.services import offers

if TYPE_CHECKING:
    from p2p_bootstrap.node.vpn import Vpn
    from p2p_network.names.answering import Answering

logger = log.get(__name__)

LOOK_EVERY_S: Final = 10.0
RETRY_S: Final = 1.0
RESTORE_S: Final = 10.0


@dataclass(slots=True)
class NamesStatus:
    """What ``status`` tells. `state`: "off", "starting", "up" or "failed"."""

    state: str = "off"
    origin: str = ""
    error: str = ""


class Names:
    """The column of names: `p2p.dns`."""

    def __init__(
        self,
        *,
        is_on: bool,
        network_id: str,
        mesh_id: str,
        device: str,
        address_range: str,
        replication: Replication,
        vpn: Vpn,
        resolving: Resolving,
    ) -> None:
        self.status = NamesStatus()
        self._is_on = is_on
        self._network_id = network_id
        self._device = device
        self._networks: tuple[IPv4Network | IPv6Network, ...] = (
            IPv4Network(address_range),
            addressing.ipv6_network_of(mesh_id),
        )
        self._replication = replication
        self._vpn = vpn
        self._resolving = resolving
        self._changed = Signal()
        self._replication.subscribe_view(self._changed)
        self._replication.subscribe("role/", self._changed)
        self._replication.subscribe("services/", self._changed)
        self._changed.raise_()

    async def run(self) -> None:
        """Answer while there is a VPN, until cancelled."""
        await self._restore()  # a crash may have left our lines
        if not self._is_on:
            return
        # dnspython costs 0.1 s and some MB: only where names are wanted
        from p2p_network.names.answering import Answering

        answering = Answering(self._networks)
        self.status.state = "starting"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_zone, answering)
                nursery.start_soon(self._keep_server, answering)
        finally:
            with trio.move_on_after(RESTORE_S) as scope:
                scope.shield = True
                await self._restore()

    async def _keep_zone(self, answering: Answering) -> None:
        while True:
            await self._changed.wait()
            answering.zone = self.zone()
            self.status.origin = answering.zone.origin

    def zone(self) -> Zone:
        """All of the mesh's names, now; whether they are answered here or not."""
        ledger = self._replication.ledger
        claims = read_by_peer(ledger, "address/", AddressClaim)
        roles = read_by_peer(ledger, "role/", RoleRecord)
        hosts = [
            Host(
                peer=member.peer,
                hostname=member.record.hostname,
                region=member.record.region,
                ipv4=member.ipv4,
                ipv6=member.ipv6,
                since=claims[member.peer].claimed_ms if member.peer in claims else 0,
                alive=member.state is MemberState.ALIVE,
                role=roles[member.peer].role if member.peer in roles else "",
            )
            for member in self._replication.view.members
            if member.record is not None and member.state is not MemberState.LEFT
        ]
        offered = offers(read_by_peer(ledger, "services/", ServicesRecord))
        exposed = [Exposed(o.item.name, o.peer, o.item.protocol, o.item.port) for o in offered]
        return zone_of(self._network_id, hosts, exposed)

    async def _keep_server(self, answering: Answering) -> None:
        """Serve on the addresses that the VPN has, and again where that ends."""
        from p2p_network.names.server import NameServer

        while True:
            status = self._vpn.status
            addresses = tuple(a for a in (status.ipv4, status.ipv6) if a)
            if status.state != "up" or not addresses:
                await trio.sleep(RETRY_S)
                continue
            server = NameServer(
                answering,
                addresses,
                upstream=lambda: self._resolving.upstream,
                is_local=frozenset((*addresses, "127.0.0.1", "::1")).__contains__,
            )
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(server.run)
                    await self._keep_resolver(addresses)
                    nursery.cancel_scope.cancel()
            except* P2PError as group:
                self._fail(group)
                await trio.sleep(LOOK_EVERY_S)

    async def _keep_resolver(self, addresses: tuple[str, ...]) -> None:
        """Let programs ask here, until the VPN has other addresses or none."""
        reverse = [_reverse_zone(network) for network in self._networks]
        while True:
            status = self._vpn.status
            if status.state == "up" and tuple(a for a in (status.ipv4, status.ipv6) if a) != addresses:
                return
            await self._resolving.keep(self._device, addresses, self.status.origin or "p2p", reverse)
            self.status.state, self.status.error = "up", ""
            await trio.sleep(LOOK_EVERY_S)

    def _fail(self, group: BaseExceptionGroup[P2PError]) -> None:
        leaf: BaseException = group
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        assert isinstance(leaf, P2PError)
        text = f"{leaf.message} ({leaf.hint})" if leaf.hint else leaf.message
        if text != self.status.error:
            log.event(logger, "vpn.names_failed", logging.ERROR, error=leaf.message, hint=leaf.hint)
        self.status.state, self.status.error = "failed", text

    async def _restore(self) -> None:
        try:
            await self._resolving.restore()
        except (P2PError, OSError, ValueError) as exc:
            log.event(logger, "vpn.names_not_restored", logging.ERROR, error=str(exc))


def _reverse_zone(network: IPv4Network | IPv6Network) -> str:
    """The reverse DNS zone of a network: whole labels only, so it may be larger than the network."""
    labels = network.network_address.reverse_pointer.split(".")
    per_label = 8 if network.version == 4 else 4
    dropped = -(-(network.max_prefixlen - network.prefixlen) // per_label)
    return ".".join(labels[dropped:])
