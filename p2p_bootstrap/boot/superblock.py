"""Which file system is this, and what are its label and UUID? What `blkid` answers, in pure Python.

`probe` gets a function that reads bytes at an offset, so it works on a partition, an image file or a bytes
object. The layouts are those of the kernel's own headers. `identity` tells most images apart even if their
builder gave all the same UUID: it is a hash over the superblock, which counts what is inside.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

Read = Callable[[int, int], bytes]  # offset, size -> bytes (fewer at the end)

MAX_READ_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a superblock says. `uuid` is written as `blkid` writes it; `fstype` as mount(2) wants it."""

    fstype: str
    label: str
    uuid: str
    identity: str


def probe(read: Read) -> Superblock | None:
    """The file system at the start of what `read` reads, or None if there is none that we know."""
    for one in (_squashfs, _erofs, _ext, _luks, _lvm, _xfs, _btrfs, _iso9660, _vfat):
        if found := one(read):
            return found
    return None


def _made(fstype: str, label: bytes, uuid: str, block: bytes) -> Superblock:
    text = label.split(b"\0")[0].decode("utf-8", "replace").strip()
    return Superblock(fstype, text, uuid, hashlib.sha256(fstype.encode() + block).hexdigest()[:32])


def _dashed(raw: bytes) -> str:
    if not any(raw):
        return ""
    h = raw.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:32]}"


def _squashfs(read: Read) -> Superblock | None:
    block = read(0, 96)
    if len(block) < 96 or block[:4] != b"hsqs":
        return None
    major, minor = struct.unpack_from("<HH", block, 28)
    (used,) = struct.unpack_from("<Q", block, 40)
    if (major, minor) != (4, 0) or not 96 <= used < 1 << 50:
        return None
    return _made("squashfs", b"", "", block)


def _erofs(read: Read) -> Superblock | None:
    block = read(1024, 128)
    if len(block) < 128 or block[:4] != b"\xe2\xe1\xf5\xe0":
        return None
    return _made("erofs", block[64:80], _dashed(block[48:64]), block)


def _ext(read: Read) -> Superblock | None:
    block = read(1024, 1024)
    if len(block) < 1024 or block[56:58] != b"\x53\xef":
        return None
    blocks, log_size = struct.unpack_from("<I", block, 4)[0], struct.unpack_from("<I", block, 24)[0]
    compat, incompat, ro_compat = struct.unpack_from("<III", block, 92)
    if blocks == 0 or log_size > 6:
        return None
    if ro_compat & 0x400 and crc32c(block[:1020]) != struct.unpack_from("<I", block, 1020)[0]:
        return None  # metadata_csum: the superblock is damaged, and the kernel would refuse it too
    modern = incompat & ~0x16 or ro_compat & ~0x7
    fstype = "ext4" if modern else ("ext3" if compat & 0x4 else "ext2")
    # what changes by being mounted (times, counts, state) is no part of the identity
    still = block[0:12] + block[20:44] + block[88:136] + block[264:268]
    return _made(fstype, block[120:136], _dashed(block[104:120]), still)


def _luks(read: Read) -> Superblock | None:
    block = read(0, 512)
    if len(block) < 512 or block[:6] != b"LUKS\xba\xbe":
        return None
    label = block[24:72] if block[6:8] == b"\0\2" else b""
    uuid = block[168:208].split(b"\0")[0].decode("ascii", "replace")
    return _made("crypto_LUKS", label, uuid, block)


def _lvm(read: Read) -> Superblock | None:
    for sector in range(4):
        block = read(sector * 512, 64)
        if block[:8] == b"LABELONE" and block[24:32] == b"LVM2 001":
            return _made("LVM2_member", b"", block[32:64].decode("ascii", "replace"), block)
    return None


def _xfs(read: Read) -> Superblock | None:
    block = read(0, 512)
    if len(block) < 512 or block[:4] != b"XFSB":
        return None
    return _made("xfs", block[108:120], _dashed(block[32:48]), block[:120])


def _btrfs(read: Read) -> Superblock | None:
    block = read(65536, 4096)
    if len(block) < 1024 or block[64:72] != b"_BHRfS_M":
        return None
    return _made("btrfs", block[299:555], _dashed(block[32:48]), block[32:48])


def _iso9660(read: Read) -> Superblock | None:
    block = read(32768, 2048)
    if len(block) < 2048 or block[1:6] != b"CD001":
        return None
    stamp = block[813:829].decode("ascii", "replace")
    uuid = f"{stamp[:4]}-" + "-".join(stamp[i : i + 2] for i in range(4, 16, 2))
    return _made("iso9660", block[40:72], uuid, block[:1024])


def _vfat(read: Read) -> Superblock | None:
    block = read(0, 512)
    if len(block) < 512 or block[510:512] != b"\x55\xaa" or block[0] not in (0xEB, 0xE9):
        return None
    if block[82:87] == b"FAT32":
        serial, label = block[67:71], block[71:82]
    elif block[54:58] == b"FAT1":
        serial, label = block[39:43], block[43:54]
    else:
        return None
    number = serial[::-1].hex().upper()
    label = b"" if label.strip() == b"NO NAME" else label
    return _made("vfat", label, f"{number[:4]}-{number[4:]}", block)


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C: Final = _crc32c_table()


def crc32c(data: bytes) -> int:
    """ext4's checksum: CRC-32C (Castagnoli) from all ones, without a final inversion."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC32C[(value ^ byte) & 0xFF]
    return value


@dataclass(frozen=True, slots=True)
class Partition:
    """One entry of a partition table. `start` in sectors of 512 bytes."""

    start: int
    partuuid: str
    partlabel: str


def partitions(read: Read) -> tuple[Partition, ...]:
    """The partitions of a disk: GPT (its checksum must be right), else the four primary ones of an MBR."""
    for sector_bytes in (512, 4096):
        header = read(sector_bytes, 92)
        if len(header) == 92 and header[:8] == b"EFI PART":
            return _gpt(read, header, sector_bytes)
    mbr = read(0, 512)
    if len(mbr) < 512 or mbr[510:512] != b"\x55\xaa":
        return ()
    disk = mbr[440:444][::-1].hex()
    found = []
    for number in range(4):
        kind, start = mbr[446 + 16 * number + 4], struct.unpack_from("<I", mbr, 446 + 16 * number + 8)[0]
        if kind and kind != 0xEE and start and disk != "00000000":
            found.append(Partition(start, f"{disk}-{number + 1:02x}", ""))
    return tuple(found)


def _gpt(read: Read, header: bytes, sector_bytes: int) -> tuple[Partition, ...]:
    (crc,) = struct.unpack_from("<I", header, 16)
    if zlib.crc32(header[:16] + bytes(4) + header[20:92]) != crc:
        return ()
    first, count, size, entries_crc = struct.unpack_from("<QIII", header, 72)
    if not (128 <= size <= 4096 and count * size <= 1 << 18):
        return ()
    table = b"".join(
        read(first * sector_bytes + at, min(MAX_READ_BYTES, count * size - at))
        for at in range(0, count * size, MAX_READ_BYTES)
    )
    if zlib.crc32(table) != entries_crc:
        return ()
    found = []
    for at in range(0, len(table) - size + 1, size):
        entry = table[at : at + size]
        if any(entry[:16]):
            (start,) = struct.unpack_from("<Q", entry, 32)
            label = entry[56:128].decode("utf-16-le", "replace").split("\0")[0]
            found.append(Partition(start * (sector_bytes // 512), _guid(entry[16:32]), label))
    return tuple(found)


def _guid(raw: bytes) -> str:
    a, b, c = struct.unpack_from("<IHH", raw)
    return f"{a:08x}-{b:04x}-{c:04x}-{raw[8:10].hex()}-{raw[10:16].hex()}"
