"""Through which peer is this host and port reached, without a VPN?

Pure. A host is an address (of a peer, or in a network that a peer carries) or one of the mesh's names: a
node, a service, a role. Bare names of one label count as the mesh's. A service is asked for by its
name, so that it is found where its node has no VPN address; all else by address.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from p2p_network.core.ids import PeerId
from p2p_network.names.zone import Zone, label
from p2p_network.services import Offer, Standing, nearest_first
from p2p_network.tubes.flow import Opening, Protocol

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class NotHere(ValueError):
    """The mesh knows no such place. `is_foreign`: it is no name or address of the mesh's at all."""

    def __init__(self, message: str, *, is_foreign: bool = False) -> None:
        super().__init__(message)
        self.is_foreign = is_foreign


@dataclass(frozen=True, slots=True)
class Way:
    """Ask this peer for this."""

    peer: PeerId
    opening: Opening


@dataclass(frozen=True, slots=True)
class Map:
    """What is known.

    Attributes:
        owners: VPN address -> its peer.
        carrier_of: who carries an address that is no peer's; None: nobody.
    """

    zone: Zone
    owners: Mapping[Address, PeerId]
    offers: Sequence[Offer]
    standing: Mapping[PeerId, Standing]
    own_region: str
    carrier_of: Callable[[Network], PeerId | None]

    def ways(self, host: str, port: int, protocol: Protocol) -> list[Way]:
        """Whom to ask, in this order. Raises NotHere."""
        text = host.rstrip(".").lower()
        try:
            address = ip_address(text)
        except ValueError:
            return self._by_name(text, port, protocol)
        return [self._by_address(address, port, protocol)]

    def _by_address(self, address: Address, port: int, protocol: Protocol) -> Way:
        peer = self.owners.get(address) or self.carrier_of(ip_network(address))
        if peer is None:
            raise NotHere(
                f"{address} is neither a node's nor in a network that a node carries", is_foreign=True
            )
        return Way(peer, Opening(protocol, host=str(address), port=port))

    def _by_name(self, text: str, port: int, protocol: Protocol) -> list[Way]:
        origin = f".{self.zone.origin}"
        if not text.endswith(origin) and "." in text:
            raise NotHere(f"{text[:80]} is no name of the mesh (they end in {origin})", is_foreign=True)
        name = text.removesuffix(origin)
        full = name + origin
        if full not in self.zone.reverse.values():
            ways = self._by_service(name, port, protocol)
            if ways:
                return ways
        addresses = self.zone.addresses.get(full, ())
        ways = []
        for address in addresses:
            peer = self.owners.get(address)
            if peer is not None and all(way.peer != peer for way in ways):
                ways.append(Way(peer, Opening(protocol, host=str(address), port=port)))
        if not ways:
            raise NotHere(f"the mesh has no name {full[:80]}, or its node has no VPN address")
        return sorted(ways, key=lambda way: self._distance(way.peer))

    def _by_service(self, name: str, port: int, protocol: Protocol) -> list[Way]:
        service, _, region = name.partition(".")
        standing = {peer: replace(s, region=label(s.region)) for peer, s in self.standing.items()}
        found = nearest_first(
            self.offers, service, protocol, standing, own_region=label(self.own_region), region=region
        )
        fitting = [offer for offer in found if offer.item.port == port]
        if found and not fitting:
            ports = sorted({offer.item.port for offer in found})
            raise NotHere(f"service {service} answers on port {', '.join(map(str, ports))}, not {port}")
        return [Way(offer.peer, Opening(protocol, service=service)) for offer in fitting]

    def _distance(self, peer: PeerId) -> tuple[bool, bool, float, str]:
        known = self.standing.get(peer, Standing("", False, None))
        rtt_s = known.rtt_s if known.rtt_s is not None else float("inf")
        return (not known.alive, known.region != self.own_region, rtt_s, peer)
