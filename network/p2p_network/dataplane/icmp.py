"""How do we tell a program on this machine that its packet is too large for the path?

Pure. An ICMP "fragmentation needed" (RFC 792, 1191) or ICMPv6 "packet too big" (RFC 4443) to the packet's
sender, in the name of its destination; the kernel then remembers the smaller MTU for that destination and
makes smaller segments.
"""

from __future__ import annotations

from struct import Struct, pack
from typing import Final

_IP4: Final = Struct("!BBHHHBBH4s4s")
_IP6_HEADER: Final = 40
_MIN_IP6_MTU: Final = 1280
_ICMP: Final = 1
_ICMP6: Final = 58
_MAX_ANSWER6: Final = 1280


def too_big(packet: bytes, mtu: int) -> bytes:
    """The answer to `packet`, or b"" if none may be given (an ICMP error, a fragment that isn't the first,
    neither IPv4 nor IPv6, or an MTU below what IPv6 asks for).
    """
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        return _too_big4(packet, mtu)
    if version == 6 and len(packet) >= _IP6_HEADER and mtu >= _MIN_IP6_MTU:
        return _too_big6(packet, mtu)
    return b""


def _too_big4(packet: bytes, mtu: int) -> bytes:
    header = (packet[0] & 15) * 4
    first = packet[header] if len(packet) > header else 0
    if int.from_bytes(packet[6:8], "big") & 0x1FFF or (packet[9] == _ICMP and first not in (0, 8)):
        return b""
    quoted = packet[: header + 8]
    body = pack("!BBHHH", 3, 4, 0, 0, mtu) + quoted
    body = body[:2] + pack("!H", checksum(body)) + body[4:]
    source, target = packet[16:20], packet[12:16]
    head = _IP4.pack(0x45, 0, 20 + len(body), 0, 0, 64, _ICMP, 0, source, target)
    return head[:10] + pack("!H", checksum(head)) + head[12:] + body


def _too_big6(packet: bytes, mtu: int) -> bytes:
    if packet[6] == _ICMP6 and len(packet) > _IP6_HEADER and packet[_IP6_HEADER] < 128:
        return b""
    body = pack("!BBHI", 2, 0, 0, mtu) + packet[: _MAX_ANSWER6 - _IP6_HEADER - 8]
    source, target = packet[24:40], packet[8:24]
    pseudo = source + target + pack("!IxxxB", len(body), _ICMP6)
    body = body[:2] + pack("!H", checksum(pseudo + body)) + body[4:]
    return pack("!IHBB", 6 << 28, len(body), _ICMP6, 64) + source + target + body


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of `data`."""
    number = int.from_bytes(data + bytes(len(data) % 2), "big")
    return ~(number % 0xFFFF or (0xFFFF if number else 0)) & 0xFFFF
