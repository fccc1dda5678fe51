"""How is a super-packet cut so that each piece can stand alone, and mended when pieces are missing?

Pure. A super-packet (`virtio-net header | IP and transport header | payload`, its segments still to be made)
travels over datagrams as segments: each repeats all headers, unchanged, before its share of the payload. A
receiver that gets a run of neighbours has one super-packet again; if the run is not the whole, its headers
must say so (`mend`): lengths, sequence number, flags, the unfinished checksum (Linux net/ipv4/tcp_offload.c
and udp_offload.c do the same to the segments they make).
"""

from __future__ import annotations

from dataclasses import dataclass
from mmap import mmap
from struct import Struct
from typing import Final

from p2p_network.dataplane.packet import GSO_ECN, GSO_UDP, VNET_BYTES

MAX_HEADER_BYTES: Final = 255
MAX_SEGMENTS: Final = 64

_VNET = Struct("<BBHHHH")
_U16 = Struct("!H")
_U32 = Struct("!I")
_TCP_OFFSET: Final = 12
_TCP_FLAGS: Final = 13
_TCP_HEADER_MIN: Final = 20
_UDP_HEADER: Final = 8
_FIN_PSH: Final = 0x09
_CWR: Final = 0x80
_IP6_HEADER: Final = 40

Buffer = bytearray | memoryview | mmap
Readable = bytes | bytearray | memoryview | mmap


class NotSegmentable(ValueError):
    """A super-packet whose headers can't be repeated in every segment."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a super-packet falls into segments.

    Attributes:
        header_bytes: IP and transport header.
        segment_bytes: payload of every segment but the last, which has the rest.
        segments: how many there are.
        payload_bytes: in all.
    """

    header_bytes: int
    segment_bytes: int
    segments: int
    payload_bytes: int


def shape_of(buffer: Readable, at: int, size: int) -> Shape:
    """The shape of the super-packet of `size` bytes whose virtio-net header lies at `at`.

    Raises NotSegmentable.
    """
    _, gso, _, segment, csum_start, _ = _VNET.unpack_from(buffer, at)
    header = _header_bytes(buffer, at + VNET_BYTES, size, gso, csum_start)
    payload = size - header
    if segment <= 0 or payload <= 0 or header > MAX_HEADER_BYTES:
        raise NotSegmentable("its headers are too long, or it has no payload")
    segments = -(-payload // segment)
    if segments > MAX_SEGMENTS:
        raise NotSegmentable(f"{segments} segments are too many")
    return Shape(header, segment, segments, payload)


def _header_bytes(buffer: Readable, start: int, size: int, gso: int, csum_start: int) -> int:
    if gso & ~GSO_ECN == GSO_UDP:
        return csum_start + _UDP_HEADER
    if csum_start + _TCP_HEADER_MIN > size:
        raise NotSegmentable("its transport header is cut off")
    return csum_start + (buffer[start + csum_start + _TCP_OFFSET] >> 4) * 4


def mend(buffer: Buffer, at: int, first: int, count: int, total: int, payload_bytes: int) -> None:
    """Make the headers at `at` true for the run of `count` segments from number `first` of `total`.

    `payload_bytes`: what the run carries. The headers must be those of the whole super-packet, checked by
    nobody so far: positions that lie outside raise NotSegmentable; everything else is left to `inspect`.
    """
    start = at + VNET_BYTES
    flags, gso, hint, segment, csum_start, csum_offset = _VNET.unpack_from(buffer, at)
    header = _header_bytes(buffer, start, csum_start + _TCP_HEADER_MIN, gso, csum_start)
    size = header + payload_bytes
    transport, checksum = start + csum_start, csum_start + csum_offset
    if checksum + 2 > header or header > MAX_HEADER_BYTES or csum_start < _TCP_HEADER_MIN:
        raise NotSegmentable("its checksum lies outside its headers")
    if gso & ~GSO_ECN == GSO_UDP:
        protocol = 17
        _U16.pack_into(buffer, transport + 4, _UDP_HEADER + payload_bytes)
    else:
        protocol = 6
        sequence = _U32.unpack_from(buffer, transport + 4)[0]
        _U32.pack_into(buffer, transport + 4, (sequence + first * segment) & 0xFFFFFFFF)
        if first + count < total:
            buffer[transport + _TCP_FLAGS] &= ~_FIN_PSH & 0xFF
        if first > 0:
            buffer[transport + _TCP_FLAGS] &= ~_CWR & 0xFF
    if buffer[start] >> 4 == 4:
        _mend_ip4(buffer, start, size, first)
        addresses = bytes(buffer[start + 12 : start + 20])
    else:
        if csum_start < _IP6_HEADER:
            raise NotSegmentable("its checksum lies in the IPv6 header")
        _U16.pack_into(buffer, start + 4, size - _IP6_HEADER)
        addresses = bytes(buffer[start + 8 : start + 40])
    partial = _sum16(addresses) + protocol + size - csum_start
    _U16.pack_into(buffer, start + checksum, _fold(partial))
    if count == 1:
        _VNET.pack_into(buffer, at, flags, 0, hint, 0, csum_start, csum_offset)


def _mend_ip4(buffer: Buffer, start: int, size: int, first: int) -> None:
    header = (buffer[start] & 15) * 4
    _U16.pack_into(buffer, start + 2, size)
    identification = _U16.unpack_from(buffer, start + 4)[0]
    _U16.pack_into(buffer, start + 4, (identification + first) & 0xFFFF)
    _U16.pack_into(buffer, start + 10, 0)
    checksum = ~_fold(_sum16(bytes(buffer[start : start + header]))) & 0xFFFF
    _U16.pack_into(buffer, start + 10, checksum)


def _sum16(data: bytes) -> int:
    """The sum of big-endian 16-bit words; `data` of even length."""
    # as one number to the base 2^16: its remainder modulo 2^16 - 1 is the ones' complement sum
    number = int.from_bytes(data, "big")
    return number % 0xFFFF or (0xFFFF if number else 0)


def _fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
