"""Where can a node be dialled, as text?

People write ``10.0.0.5:4701``, ``[fd00::5]:4701``, ``seed.example:4701`` or a multiaddress, with or without
``/p2p/ID``; nodes tell each other multiaddresses of the two shapes ``/ip4|ip6/ADDRESS/tcp/PORT``. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from p2p_network.core import endpoints
from p2p_network.core.ids import PeerId, public_key_of

MAX_ADDRESS_CHARS: Final = 320
MAX_ADDRESSES_PER_PEER: Final = 16
_LABEL: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}")
_FAMILIES: Final = ("ip4", "ip6", "dns", "dns4", "dns6")


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """A host (IPv4, IPv6 or name) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        try:
            family = f"ip{ipaddress.ip_address(self.host).version}"
        except ValueError:
            family = "dns"
        return f"/{family}/{self.host}/tcp/{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is an address of the loopback network."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_private(self) -> bool:
        """Whether it is an address that is not routed on the Internet; a name is not."""
        try:
            return not ipaddress.ip_address(self.host).is_global
        except ValueError:
            return False


def parse_endpoint(text: str) -> tuple[Endpoint, PeerId | None]:
    """An endpoint and, if the text ends in ``/p2p/ID``, whose it is. Raises ValueError."""
    if len(text) > MAX_ADDRESS_CHARS:
        raise ValueError(f"an address of {len(text)} characters")
    text = text.strip()
    return _parse_multiaddress(text) if text.startswith("/") else (_parse_host_port(text), None)


def endpoints_of(texts: Iterable[str]) -> tuple[Endpoint, ...]:
    """The concrete IP endpoints among what a peer told us, in order, without duplicates, bounded.

    Names are dropped: only our own operator may make us ask a name server.
    """
    found: dict[Endpoint, None] = {}
    for text in texts:
        try:
            endpoint, _ = parse_endpoint(text)
            usable = not ipaddress.ip_address(endpoint.host).is_unspecified
        except ValueError:
            continue
        if usable and len(found) < MAX_ADDRESSES_PER_PEER:
            found.setdefault(endpoint)
    return tuple(found)


def _parse_host_port(text: str) -> Endpoint:
    try:
        host, port = endpoints.split(text)
    except ValueError as exc:
        raise ValueError(f"{text!r}: {exc}") from None
    if ":" in host:
        return Endpoint(_ip(host, 6), port)
    if re.fullmatch(r"[0-9.]+", host):
        return Endpoint(_ip(host, 4), port)
    return Endpoint(_name(host), port)


def _parse_multiaddress(text: str) -> tuple[Endpoint, PeerId | None]:
    parts = text.strip("/").split("/")
    if len(parts) not in (4, 6) or parts[0] not in _FAMILIES or parts[2] != "tcp":
        raise ValueError(f"{text!r} is not /ip4|ip6|dns/HOST/tcp/PORT with or without /p2p/ID")
    family, host = parts[0], parts[1]
    name = _name(host) if family.startswith("dns") else _ip(host, 4 if family == "ip4" else 6)
    endpoint = Endpoint(name, endpoints.port(parts[3]))
    if len(parts) == 4:
        return endpoint, None
    if parts[4] not in ("p2p", "ipfs"):
        raise ValueError(f"{text!r}: after the port only /p2p/ID may follow")
    public_key_of(parts[5])
    return endpoint, PeerId(parts[5])


def _ip(text: str, version: int) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as exc:
        raise ValueError(f"{text!r} is not an IPv{version} address") from exc
    if address.version != version:
        raise ValueError(f"{text!r} is not an IPv{version} address")
    return str(address)


def _name(text: str) -> str:
    labels = text.removesuffix(".").split(".")
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{text!r} is neither an address nor a host name")
    return text.lower()
