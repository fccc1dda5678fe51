"""Is this an IP packet with an honest virtio-net header, and where does it come from and go to?

Pure. A packet in a buffer is always `virtio-net header (10 bytes) | IP packet`, as the TUN device gives and
takes it. What a peer sent is checked in full before the kernel sees it (`inspect`); what the own kernel
gave is only looked at for its destination (`destination`).

The virtio-net header ("<BBHHHH": flags, gso_type, hdr_len, gso_size, csum_start, csum_offset; Linux
include/uapi/linux/virtio_net.h) tells the kernel to finish checksums and to cut super-packets; a forged one
would let a peer make the kernel write outside headers or cut one packet into tens of thousands.
"""

from __future__ import annotations

from mmap import mmap
from struct import Struct
from typing import Final

VNET_BYTES: Final = 10
MAX_PACKET_BYTES: Final = 65535
MIN_PACKET_BYTES: Final = 20

# TUN_F_* bits (include/uapi/linux/if_tun.h): which kinds of unfinished packets a node's kernel takes.
OFFLOAD_CSUM: Final = 0x01
OFFLOAD_TSO4: Final = 0x02
OFFLOAD_TSO6: Final = 0x04
OFFLOAD_USO: Final = 0x60

GSO_NONE: Final = 0
GSO_TCP4: Final = 1
GSO_TCP6: Final = 4
GSO_UDP: Final = 5
GSO_ECN: Final = 0x80

OFFLOAD_OF_GSO: Final = {
    GSO_TCP4: OFFLOAD_TSO4,
    GSO_TCP4 | GSO_ECN: OFFLOAD_TSO4,
    GSO_TCP6: OFFLOAD_TSO6,
    GSO_TCP6 | GSO_ECN: OFFLOAD_TSO6,
    GSO_UDP: OFFLOAD_USO,
}

_NEEDS_CSUM: Final = 1
_KNOWN_FLAGS: Final = 3  # NEEDS_CSUM and DATA_VALID
_TCP: Final = 6
_UDP: Final = 17
_TCP_CSUM_OFFSET: Final = 16
_UDP_CSUM_OFFSET: Final = 6
_TCP_HEADER_MIN: Final = 20
_UDP_HEADER: Final = 8
_MIN_TCP_SEGMENT: Final = 8  # the kernel's TCP_MIN_GSO_SIZE
_MAX_UDP_SEGMENTS: Final = 128  # the kernel's UDP_MAX_SEGMENTS
_IP6_HEADER: Final = 40

_VNET = Struct("<BBHHHH")
_IP4 = Struct("!BxHxxHxBxx4s4s")  # version and length, total, fragment, protocol, source, destination
_IP6 = Struct("!BxxxHBx16s16s")  # version, payload, next header, source, destination
_ADDRESS4 = Struct("4s")
_ADDRESS6 = Struct("16s")

Buffer = bytes | bytearray | memoryview | mmap


class Forged(ValueError):
    """A peer sent something that no honest kernel hands out."""


def destination(buffer: Buffer, at: int, size: int) -> bytes | None:
    """The destination (4 or 16 bytes) of the packet of `size` bytes at `at`; None if it is no IP packet."""
    version = buffer[at] >> 4 if size >= MIN_PACKET_BYTES else 0
    if version == 4:
        return _ADDRESS4.unpack_from(buffer, at + 16)[0]  # type: ignore[no-any-return]
    if version == 6 and size >= _IP6_HEADER:
        return _ADDRESS6.unpack_from(buffer, at + 24)[0]  # type: ignore[no-any-return]
    return None


def inspect(buffer: Buffer, at: int, size: int) -> tuple[bytes, bytes]:
    """Check a peer's packet: header at `at`, IP packet of `size` bytes behind it.

    Returns:
        (source, destination), 4 or 16 bytes each.

    Raises:
        Forged: lengths that contradict each other, or a virtio-net header that points outside or lies.
    """
    if not MIN_PACKET_BYTES <= size <= MAX_PACKET_BYTES or len(buffer) < at + VNET_BYTES + size:
        raise Forged("its length is impossible")
    start = at + VNET_BYTES
    version = buffer[start] >> 4
    if version == 4:
        first, total, fragment, protocol, source, target = _IP4.unpack_from(buffer, start)
        header = (first & 15) * 4
        if header < MIN_PACKET_BYTES or header > size or total != size:
            raise Forged("its IPv4 lengths contradict each other")
        fragmented = fragment & 0x3FFF != 0
    elif version == 6 and size >= _IP6_HEADER:
        _, payload, protocol, source, target = _IP6.unpack_from(buffer, start)
        header = _IP6_HEADER
        if payload + header != size:
            raise Forged("its IPv6 lengths contradict each other")
        fragmented = protocol == 44
    else:
        raise Forged("it is neither IPv4 nor IPv6")
    flags, gso, header_hint, segment, csum_start, csum_offset = _VNET.unpack_from(buffer, at)
    if flags or gso:
        if flags & ~_KNOWN_FLAGS or header_hint > size:
            raise Forged("its virtio-net header has unknown flags or points outside")
        if flags & _NEEDS_CSUM and not header <= csum_start <= size - csum_offset - 2:
            raise Forged("its checksum lies outside")
        if gso:
            _check_segments(gso, flags, segment, csum_start, csum_offset, version, protocol, header, size)
            if fragmented:
                raise Forged("it is a fragment and a super-packet at once")
    return source, target


def _check_segments(
    gso: int,
    flags: int,
    segment: int,
    csum_start: int,
    csum_offset: int,
    version: int,
    protocol: int,
    header: int,
    size: int,
) -> None:
    if not flags & _NEEDS_CSUM:
        raise Forged("a super-packet without a checksum to finish")
    # Behind IPv6 extension headers the transport lies further on; without them it lies where the header ends.
    if csum_start != header and (version == 4 or protocol in (_TCP, _UDP)):
        raise Forged("its checksum is not the transport's")
    payload = size - csum_start
    kind = gso & ~GSO_ECN
    if (kind == GSO_TCP4 and version == 4) or (kind == GSO_TCP6 and version == 6):
        right = csum_offset == _TCP_CSUM_OFFSET and payload >= _TCP_HEADER_MIN and segment >= _MIN_TCP_SEGMENT
        right = right and protocol != _UDP and (version == 6 or protocol == _TCP)
    elif gso == GSO_UDP:
        right = csum_offset == _UDP_CSUM_OFFSET and segment > 0 and protocol != _TCP
        right = right and (version == 6 or protocol == _UDP)
        right = right and 0 < payload - _UDP_HEADER <= segment * _MAX_UDP_SEGMENTS
    else:
        right = False
    if not right:
        raise Forged("its kind of segments does not fit its headers")
