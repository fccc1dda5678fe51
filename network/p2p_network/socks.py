"""What does a SOCKS5 client say, and what is it told?

Pure (RFC 1928): no authentication, `CONNECT` and `UDP ASSOCIATE`, addresses and names. The bytes come from
any program of this machine: `Handshake` takes them as they come, holds a few hundred at most, and ends with a
`Request` or an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address, ip_address
from typing import Final, Literal

VERSION: Final = 5
MAX_HANDSHAKE_BYTES: Final = 600
_NO_AUTHENTICATION: Final = 0
_NONE_ACCEPTABLE: Final = 0xFF
_COMMANDS: Final[dict[int, Literal["connect", "udp"]]] = {1: "connect", 3: "udp"}
_IP4, _NAME, _IP6 = 1, 3, 4


class Code(IntEnum):
    """What became of a request."""

    GRANTED = 0
    FAILED = 1
    NOT_ALLOWED = 2
    HOST_UNREACHABLE = 4
    REFUSED = 5
    COMMAND_UNKNOWN = 7
    ADDRESS_UNKNOWN = 8


class NoSocks(ValueError):
    """The client does not speak SOCKS5 as we do. `answer`: what to tell it before closing."""

    def __init__(self, message: str, answer: bytes = b"") -> None:
        super().__init__(message)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants. `host`: an address or a name."""

    command: Literal["connect", "udp"]
    host: str
    port: int


class Handshake:
    """One client's way to its request."""

    __slots__ = ("_buffer", "_greeted")

    def __init__(self) -> None:
        self._buffer = b""
        self._greeted = False

    @property
    def rest(self) -> bytes:
        """What came behind the request: the client's first data."""
        return self._buffer

    def feed(self, data: bytes) -> tuple[bytes, Request | None]:
        """What to answer, and the request once it is whole. Raises NoSocks."""
        self._buffer += data
        answer = b""
        if not self._greeted:
            if len(self._buffer) < 2 or len(self._buffer) < 2 + self._buffer[1]:
                self._bounded()
                return b"", None
            if self._buffer[0] != VERSION:
                raise NoSocks(f"it speaks version {self._buffer[0]}, not SOCKS5")
            methods = self._buffer[2 : 2 + self._buffer[1]]
            if _NO_AUTHENTICATION not in methods:
                raise NoSocks("it insists on authentication", bytes([VERSION, _NONE_ACCEPTABLE]))
            self._buffer = self._buffer[2 + self._buffer[1] :]
            self._greeted = True
            answer = bytes([VERSION, _NO_AUTHENTICATION])
        return answer, self._request()

    def _request(self) -> Request | None:
        if len(self._buffer) < 4:
            return None
        version, command = self._buffer[0], self._buffer[1]
        if version != VERSION:
            raise NoSocks("its request is not SOCKS5")
        if command not in _COMMANDS:
            raise NoSocks(f"command {command} is not supported", reply(Code.COMMAND_UNKNOWN))
        try:
            found = _address(self._buffer, 3)
        except ValueError as exc:
            raise NoSocks(str(exc), reply(Code.ADDRESS_UNKNOWN)) from exc
        if found is None:
            self._bounded()
            return None
        host, port, end = found
        self._buffer = self._buffer[end:]
        return Request(_COMMANDS[command], host, port)

    def _bounded(self) -> None:
        if len(self._buffer) > MAX_HANDSHAKE_BYTES:
            raise NoSocks("its handshake is too long")


def reply(code: Code, host: str = "0.0.0.0", port: int = 0) -> bytes:  # noqa: S104  (the RFC's "none")
    """The answer to a request. `host`, `port`: where this side speaks from."""
    return bytes([VERSION, code, 0]) + _encoded(host, port)


def parse_datagram(data: bytes) -> tuple[str, int, bytes]:
    """(host, port, payload) of a client's datagram. Raises ValueError; fragments are not put together."""
    if len(data) < 4 or data[0] or data[1]:
        raise ValueError("no SOCKS5 datagram")
    if data[2]:
        raise ValueError("a fragment")
    found = _address(data, 3)
    if found is None:
        raise ValueError("cut short")
    host, port, end = found
    return host, port, data[end:]


def make_datagram(host: str, port: int, payload: bytes) -> bytes:
    """A datagram for the client, from that sender."""
    return b"\0\0\0" + _encoded(host, port) + payload


def _address(data: bytes, at: int) -> tuple[str, int, int] | None:
    """(host, port, where it ends) of the address whose kind stands at `at`; None if it is not whole yet."""
    kind = data[at]
    start = at + 1
    if kind == _NAME:
        if len(data) <= start:
            return None
        size = data[start]
        start += 1
    elif kind in (_IP4, _IP6):
        size = 4 if kind == _IP4 else 16
    else:
        raise ValueError(f"an address of kind {kind}")
    end = start + size
    if len(data) < end + 2:
        return None
    raw = data[start:end]
    if kind == _NAME:
        try:
            host = raw.decode("ascii")
        except UnicodeDecodeError as exc:
            raise ValueError("a name beyond ASCII") from exc
        if not host or not host.isprintable():
            raise ValueError("an empty or unprintable name")
    else:
        host = str(ip_address(raw))
    return host, int.from_bytes(data[end : end + 2], "big"), end + 2


def _encoded(host: str, port: int) -> bytes:
    try:
        address = ip_address(host)
    except ValueError:
        raw = host.encode("ascii")[:255]
        return bytes([_NAME, len(raw)]) + raw + port.to_bytes(2, "big")
    kind = _IP6 if isinstance(address, IPv6Address) else _IP4
    return bytes([kind]) + address.packed + port.to_bytes(2, "big")
