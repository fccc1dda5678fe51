"""Which names does the mesh have, and what do they stand for?

Pure. All names end in ``<network id>.p2p``:

- ``<host>``: a node, by its host name. Two nodes of one host name: the one whose address is older keeps it.
- ``<last 8 characters of its peer id>``: always that node, whatever it is called.
- ``<service>``, ``<service>.<region>``: the living nodes that expose it (there), with an SRV record under
  ``_<service>._tcp`` or ``_udp``.
- ``servers``, ``agents`` and ``<role>s.<region>``: the living nodes with this role in their cluster.

A host name beats a service's name, a service's name beats a role's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Literal

from p2p_network.core.ids import PeerId

TOP: Final = "p2p"
_LABEL_CHARS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_MAX_LABEL: Final = 63
_PEER_CHARS: Final = 8


@dataclass(frozen=True, slots=True)
class Host:
    """One node, as the zone needs it.

    Attributes:
        since: order of claims to a host name; lower is older.
        alive: whether it is there now; the dead keep their own name but serve nothing.
        role: "server", "agent" or "".
    """

    peer: PeerId
    hostname: str
    region: str
    ipv4: str
    ipv6: str
    since: int
    alive: bool
    role: str = ""


@dataclass(frozen=True, slots=True)
class Exposed:
    """One service of one node."""

    name: str
    peer: PeerId
    protocol: Literal["tcp", "udp"]
    port: int


@dataclass(frozen=True, slots=True)
class Service:
    """Target of an SRV record."""

    target: str
    port: int


@dataclass(frozen=True, slots=True)
class Zone:
    """Everything the mesh has a name for. Names are lower case, without the final dot.

    Attributes:
        origin: ``<network id>.p2p``.
        addresses: name -> addresses.
        services: SRV name -> targets.
        reverse: address -> name of its node.
    """

    origin: str
    addresses: Mapping[str, tuple[IPv4Address | IPv6Address, ...]] = field(default_factory=dict)
    services: Mapping[str, tuple[Service, ...]] = field(default_factory=dict)
    reverse: Mapping[IPv4Address | IPv6Address, str] = field(default_factory=dict)

    def holds(self, name: str) -> bool:
        """Whether there is such a name, or names below it (an empty non-terminal, RFC 8020)."""
        if name == self.origin or name in self.addresses or name in self.services:
            return True
        below = f".{name}"
        return any(known.endswith(below) for known in (*self.addresses, *self.services))


def label(text: str) -> str:
    """The DNS label nearest to a free text, or "" if nothing is left of it."""
    made = "".join(char if char in _LABEL_CHARS else "-" for char in text.lower().split(".")[0])
    return made.strip("-")[:_MAX_LABEL].strip("-")


def zone_of(network_id: str, hosts: Iterable[Host], exposed: Iterable[Exposed]) -> Zone:
    """The zone of one mesh."""
    origin = f"{label(network_id) or 'mesh'}.{TOP}"
    ordered = sorted(hosts, key=lambda host: (host.since, host.peer))
    by_peer = {host.peer: host for host in ordered}
    addresses: dict[str, tuple[IPv4Address | IPv6Address, ...]] = {}
    reverse: dict[IPv4Address | IPv6Address, str] = {}
    names: dict[PeerId, str] = {}
    for host in ordered:
        own = tuple(ip_address(text) for text in (host.ipv4, host.ipv6) if text)
        if not own:
            continue
        last = host.peer[-_PEER_CHARS:].lower()
        called = label(host.hostname)
        for short in (called, last):
            if short and f"{short}.{origin}" not in addresses:
                addresses[f"{short}.{origin}"] = own
                names.setdefault(host.peer, f"{short}.{origin}")
        reverse.update((address, names[host.peer]) for address in own if host.peer in names)
    pools, services = _services(origin, exposed, by_peer, names)
    for role in ("server", "agent"):
        for host in ordered:
            if host.alive and host.role == role:
                _join(pools, origin, f"{role}s", host)
    for name, members in pools.items():
        if name not in addresses:
            addresses[name] = tuple(ip_address(t) for h in members for t in (h.ipv4, h.ipv6) if t)
    return Zone(origin, addresses, services, reverse)


def _services(
    origin: str, exposed: Iterable[Exposed], by_peer: Mapping[PeerId, Host], names: Mapping[PeerId, str]
) -> tuple[dict[str, list[Host]], dict[str, tuple[Service, ...]]]:
    pools: dict[str, list[Host]] = {}
    found: dict[str, list[Service]] = {}
    for service in sorted(exposed, key=lambda s: (s.name, s.peer)):
        host, short = by_peer.get(service.peer), label(service.name)
        if host is None or not host.alive or not short or service.peer not in names:
            continue
        _join(pools, origin, short, host)
        target = Service(names[service.peer], service.port)
        found.setdefault(f"_{short}._{service.protocol}.{origin}", []).append(target)
    return pools, {name: tuple(targets) for name, targets in found.items()}


def _join(pools: dict[str, list[Host]], origin: str, short: str, host: Host) -> None:
    region = label(host.region)
    for name in (f"{short}.{origin}", *((f"{short}.{region}.{origin}",) if region else ())):
        members = pools.setdefault(name, [])
        if host not in members:
            members.append(host)
