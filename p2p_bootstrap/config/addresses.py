"""Is this text an address that the mesh can use? Pure; knows no network.

Three forms: ``host:port`` and ``[IPv6]:port`` (an IP address, or a name to be looked up), and a libp2p
multiaddress (``/ip4/192.0.2.1/tcp/4701``, ``/ip6/…``, ``/dns/…``, ``/dns4/…``, ``/dns6/…``; with
``/p2p/<peer id>`` or without).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from p2p_bootstrap.config.quoting import quoted
from p2p_network.core import endpoints
from p2p_network.core.ids import public_key_of
from p2p_network.meeting.kad import entrance

MAX_CHARS: Final = 400
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


def check_listen(text: str) -> str:
    """``IP:port`` to listen on. Raises ValueError that says what is wrong."""
    host, _ = _split(text)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"{quoted(host)} is no IP address; listen on one, such as 0.0.0.0 or [::]") from None
    return text


def check_bootstrap(text: str) -> str:
    """An address to dial: any of the three forms. Raises ValueError that says what is wrong."""
    if text.startswith("/"):
        _check_multiaddress(text)
        return text
    host, _ = _split(text)
    _check_host(host)
    return text


def check_entrance(text: str) -> str:
    """Where a public DHT is entered (`meeting.kad.entrance`). Raises ValueError that says what is wrong."""
    entrance(text)
    return text


def port_of(text: str) -> int:
    """The port of a checked ``host:port``."""
    return _split(text)[1]


def _split(text: str) -> tuple[str, int]:
    if len(text) > MAX_CHARS:
        raise ValueError(f"an address has at most {MAX_CHARS} characters")
    try:
        return endpoints.split(text)
    except ValueError as exc:
        raise ValueError(f"{quoted(text)}: {exc}") from None


def _port(text: str) -> int:
    try:
        return endpoints.port(text)
    except ValueError as exc:
        raise ValueError(f"{quoted(text)}: {exc}") from None


def _check_ip(text: str, version: int) -> None:
    try:
        if ipaddress.ip_address(text).version == version:
            return
    except ValueError:
        pass
    raise ValueError(f"{quoted(text)} is not an IPv{version} address")


def _check_host(host: str) -> None:
    if ":" in host:
        return  # IPv6, checked by _split
    if re.fullmatch(r"[0-9.]+", host):
        _check_ip(host, 4)
    elif len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.rstrip(".").split(".")):
        raise ValueError(f"{quoted(host)} is neither an IP address nor a host name")


def _check_multiaddress(text: str) -> None:
    if len(text) > MAX_CHARS:
        raise ValueError(f"an address has at most {MAX_CHARS} characters")
    parts = text[1:].split("/")
    if len(parts) not in (4, 6):
        raise ValueError(f"{quoted(text)} is not /<ip4|ip6|dns>/<host>/tcp/<port>[/p2p/<peer id>]")
    kind, host, transport, port = parts[:4]
    match kind:
        case "ip4":
            _check_ip(host, 4)
        case "ip6":
            _check_ip(host, 6)
        case "dns" | "dns4" | "dns6":
            _check_host(host)
        case _:
            raise ValueError(f"/{kind[:20]} is not known; start with /ip4, /ip6, /dns, /dns4 or /dns6")
    if transport != "tcp":
        raise ValueError(f"the mesh is reached by /tcp, not by /{transport[:20]}")
    _port(port)
    if len(parts) == 6:
        if parts[4] != "p2p":
            raise ValueError(f"/{parts[4][:20]} is not known; only /p2p/<peer id> may follow the port")
        try:
            public_key_of(parts[5])
        except ValueError as exc:
            raise ValueError(f"{quoted(parts[5])} is not a peer id: {exc}") from None
