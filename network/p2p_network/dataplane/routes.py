"""Whose address is this?

Pure: one longest-prefix table for both directions. A packet goes to the peer that owns its destination, and
a packet from a peer is believed only if that peer owns its source; so one prefix has exactly one owner (the
last to claim it). Barred addresses (multicast, broadcast, link-local) never have one. Answers are
remembered per address in a bounded dict, so that the hot path costs one look-up.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, Generic, TypeVar

T = TypeVar("T", bound=Hashable)
Network = IPv4Network | IPv6Network

MAX_REMEMBERED: Final = 8192

ONE_TO_MANY: Final = tuple(
    ip_network(text)
    for text in ("224.0.0.0/4", "255.255.255.255/32", "ff00::/8", "169.254.0.0/16", "fe80::/10")
)
"""Multicast, broadcast and link-local: nothing that a mesh of single machines carries."""


def broadcast_of(networks: Iterable[Network]) -> tuple[Network, ...]:
    """The directed broadcast addresses of IPv4 networks."""
    return tuple(
        ip_network(n.broadcast_address) for n in networks if isinstance(n, IPv4Network) and n.prefixlen < 31
    )


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks of "10.144.0.0/16" or "fd00::1" (a single address). Raises ValueError naming the bad one."""
    return tuple(ip_network(text, strict=False) for text in texts)


def contains(networks: Iterable[Network], raw: bytes) -> bool:
    """Whether the address (4 or 16 raw bytes) lies in one of the networks."""
    value, bits = int.from_bytes(raw, "big"), len(raw) * 8
    return any(
        n.max_prefixlen == bits
        and value >> (bits - n.prefixlen) == int(n.network_address) >> (bits - n.prefixlen)
        for n in networks
    )


class RouteTable(Generic[T]):
    """Prefix -> owner. Owners are compared by identity and must be hashable."""

    __slots__ = ("_barred", "_owned", "_prefixes", "_remembered")

    def __init__(self) -> None:
        # (address bits, prefix length) -> prefix value -> owner; walked from the longest prefix down
        self._prefixes: dict[tuple[int, int], dict[int, T]] = {}
        self._owned: dict[T, tuple[Network, ...]] = {}
        self._barred: tuple[Network, ...] = ()
        self._remembered: dict[bytes, T | None] = {}

    def assign(self, owner: T, networks: Iterable[Network]) -> None:
        """Make `owner` the owner of exactly these networks; one that another owner had moves over."""
        self.remove(owner)
        self._owned[owner] = tuple(networks)
        for network in self._owned[owner]:
            length = network.prefixlen
            key = (network.max_prefixlen, length)
            value = int(network.network_address) >> (network.max_prefixlen - length)
            self._prefixes.setdefault(key, {})[value] = owner
        self._prefixes = dict(sorted(self._prefixes.items(), reverse=True))
        self._remembered.clear()

    def remove(self, owner: T) -> None:
        """Forget everything that `owner` owns."""
        for network in self._owned.pop(owner, ()):
            key = (network.max_prefixlen, network.prefixlen)
            value = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
            owners = self._prefixes.get(key, {})
            if owners.get(value) is owner:
                del owners[value]
                if not owners:
                    del self._prefixes[key]
        self._remembered.clear()

    def owned_by(self, owner: T) -> tuple[Network, ...]:
        """What was assigned to it last."""
        return self._owned.get(owner, ())

    def bar(self, networks: Iterable[Network]) -> None:
        """Addresses in these networks have no owner, whatever is assigned; replaces the former ones."""
        self._barred = tuple(networks)
        self._remembered.clear()

    def is_barred(self, raw: bytes) -> bool:
        """Whether the address can have no owner."""
        return contains(self._barred, raw)

    def owner_of(self, raw: bytes) -> T | None:
        """The owner of the longest prefix that holds the address (4 or 16 raw bytes)."""
        try:
            return self._remembered[raw]
        except KeyError:
            pass
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        found = self._remembered[raw] = self._search(raw)
        return found

    def _search(self, raw: bytes) -> T | None:
        if self.is_barred(raw):
            return None
        value, bits = int.from_bytes(raw, "big"), len(raw) * 8
        for (width, length), owners in self._prefixes.items():
            if width == bits:
                owner = owners.get(value >> (bits - length))
                if owner is not None:
                    return owner
        return None
