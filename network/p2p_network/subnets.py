"""Which networks lie behind which node, and who may carry what goes to the internet?

Pure. A node offers subnets that it can reach, an administrator accepts some of them, and each node decides
by itself who carries a network: of the living nodes that were accepted for it the one with the smallest
peer id. An offer alone moves no packet. What goes to the internet is every public address, and nothing
private: whoever may use an exit does not thereby get into the exit's own networks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from p2p_network.core.ids import PeerId
from p2p_network.records import AcceptedRecord, RoutesRecord

Network = IPv4Network | IPv6Network

MAX_NETWORKS: Final = 64
"""Per node, offered or accepted."""
_MIN_PREFIX: Final = {4: 8, 6: 16}
_UNROUTABLE: Final = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "::/16",
        "fe80::/10",
        "ff00::/8",
    )
)
_PRIVATE4: Final = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3"),
)


def _internet() -> tuple[Network, ...]:
    left = [IPv4Network("0.0.0.0/0")]
    for text in _PRIVATE4:
        private = IPv4Network(text)
        left = [
            part
            for network in left
            for part in (network.address_exclude(private) if private.subnet_of(network) else (network,))
        ]
    return (*sorted(left), IPv6Network("2000::/3"))


INTERNET: Final[tuple[Network, ...]] = _internet()
"""Every public address."""


def parse_subnet(text: str, mesh: Iterable[Network] = ()) -> Network:
    """A network that a node may offer. `mesh`: the VPN's own. Raises ValueError with one sentence."""
    try:
        network = ip_network(text)
    except ValueError:
        try:
            loose = ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{text[:64]!r} is no network; write it as 192.168.7.0/24") from None
        raise ValueError(f"{text} has bits set behind its prefix; did you mean {loose}?") from None
    least = _MIN_PREFIX[network.version]
    if network.prefixlen < least:
        raise ValueError(f"{network} is wider than /{least}; to carry everything, offer an exit")
    for other in (*_UNROUTABLE, *mesh):
        if other.version == network.version and network.overlaps(other):
            what = "is not routed" if other in _UNROUTABLE else "is the VPN's own network"
            raise ValueError(f"{network} overlaps {other}, which {what}")
    return network


def sound(texts: Iterable[str], mesh: Collection[Network]) -> tuple[Network, ...]:
    """The usable ones of what a peer wrote, at most `MAX_NETWORKS`."""
    found = []
    for text in list(texts)[:MAX_NETWORKS]:
        try:
            found.append(parse_subnet(text, mesh))
        except ValueError:
            continue
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Plan:
    """Who carries what, as one node sees it.

    Attributes:
        carriers: network -> the peer that carries it, this node included.
        standby: (network, peer) that was accepted, while another carries.
        exits: peers that may carry what goes to the internet.
    """

    carriers: Mapping[Network, PeerId]
    standby: frozenset[tuple[Network, PeerId]]
    exits: frozenset[PeerId]

    def of(self, peer: PeerId) -> tuple[Network, ...]:
        """What this peer carries."""
        return tuple(network for network, carrier in self.carriers.items() if carrier == peer)


def plan(
    offered: Mapping[PeerId, RoutesRecord],
    accepted: Mapping[PeerId, AcceptedRecord],
    alive: Collection[PeerId],
    mesh: Collection[Network],
) -> Plan:
    """Who carries what. `alive`: nodes that are here now; `mesh`: the VPN's own networks."""
    candidates: dict[Network, list[PeerId]] = {}
    exits = set()
    for peer, offer in offered.items():
        word = accepted.get(peer, AcceptedRecord())
        granted = set(sound(word.networks, mesh))
        for network in sound(offer.networks, mesh):
            if network in granted:
                candidates.setdefault(network, []).append(peer)
        if offer.exit and word.exit:
            exits.add(peer)
    carriers, standby = {}, set()
    for network in sorted(candidates, key=lambda n: (n.version, n)):
        peers = sorted(candidates[network], key=lambda peer: (peer not in alive, peer))
        carriers[network] = peers[0]
        standby |= {(network, peer) for peer in peers[1:]}
    return Plan(carriers, frozenset(standby), frozenset(exits))


def installable(networks: Iterable[Network], local: Collection[Network]) -> tuple[Network, ...]:
    """Those for which a machine needs a route: not what it is connected to itself."""
    return tuple(
        network
        for network in networks
        if not any(own.version == network.version and own.overlaps(network) for own in local)
    )
