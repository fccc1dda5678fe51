"""How are a host and a port written as one text, everywhere in the house?

``host:port``, with an IPv6 address in brackets. Who reads a text says what may be the host (`split_ip`: an IP
address) and quotes it in the error or doesn't: a text in the wrong place may be a secret.
"""

from __future__ import annotations

import ipaddress
from typing import Final

MAX_PORT: Final = 65535


def split(text: str, *, lowest: int = 1) -> tuple[str, int]:
    """Host, not further looked at unless it is in brackets, and port. Raises ValueError without the text."""
    host, colon, digits = text.rpartition(":")
    if "://" in text:
        raise ValueError("this is a URL; write only host:port")
    if not colon:
        raise ValueError("it has no port; write host:port, such as 192.0.2.1:4701")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise ValueError("what stands in the brackets is not an IPv6 address")
    elif ":" in host:
        raise ValueError("an IPv6 address needs brackets: [2001:db8::1]:4701")
    if not host:
        raise ValueError("the host is missing before the colon")
    return host, port(digits, lowest=lowest)


def split_ip(text: str, *, lowest: int = 1) -> tuple[str, int]:
    """IP address, as Python writes it, and port. Raises ValueError without the text."""
    host, number = split(text, lowest=lowest)
    try:
        return str(ipaddress.ip_address(host)), number
    except ValueError:
        raise ValueError("what stands before the port is no IP address") from None


def port(digits: str, *, lowest: int = 1) -> int:
    """A port from its decimal digits. Raises ValueError."""
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and lowest <= int(digits) <= MAX_PORT):
        raise ValueError(f"that is not a port; a port is a number from {lowest} to {MAX_PORT}")
    return int(digits)


def join(host: str, number: int) -> str:
    """Inverse of `split`."""
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False
