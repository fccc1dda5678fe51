"""What does a disk's partition table (GPT) say, and how does it look with one more or a larger partition?
Pure.

Works on sectors, so that neither sgdisk nor sfdisk is needed in the initramfs. A table is written as (offset,
bytes) pairs: the backup first, then the primary, so that at each moment one of them is whole.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass, replace
from typing import Final

from p2p_network.core.errors import BootError

ENTRIES: Final = 128
_ENTRY_BYTES: Final = 128
_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
LINUX: Final = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
ESP: Final = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
SWAP: Final = uuid.UUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f")
MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Slice:
    """A partition: first and last sector, both its own. `number` counts from 1."""

    number: int
    kind: uuid.UUID
    guid: uuid.UUID
    first: int
    last: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class Table:
    """A GPT on a disk of `sectors` sectors."""

    guid: uuid.UUID
    sectors: int
    sector_bytes: int
    slices: tuple[Slice, ...] = ()

    @property
    def _entry_sectors(self) -> int:
        return -(-ENTRIES * _ENTRY_BYTES // self.sector_bytes)

    @property
    def first_usable(self) -> int:
        """The first sector a partition may have."""
        return 2 + self._entry_sectors

    @property
    def last_usable(self) -> int:
        """The last sector a partition may have."""
        return self.sectors - 2 - self._entry_sectors

    @property
    def _align(self) -> int:
        return MIB // self.sector_bytes

    def last(self) -> Slice | None:
        """The partition at the end of the disk."""
        return max(self.slices, key=lambda one: one.last, default=None)

    def expanded(self, size_mib: int) -> Table:
        """With the last partition grown to a size (0: all that is free), never shrunk. Raises BootError."""
        last = self.last()
        if last is None:
            raise BootError("the disk has no partition that could grow", hint="add one")
        end = self._end(last.first, size_mib)
        if end <= last.last:
            return self
        grown = replace(last, last=end)
        return replace(self, slices=tuple(grown if one == last else one for one in self.slices))

    def added(self, name: str, size_mib: int, kind: uuid.UUID, guid: uuid.UUID) -> tuple[Table, Slice]:
        """With a partition behind the last one (size 0: all that is free). Raises BootError."""
        last = self.last()
        free = max(self.first_usable, last.last + 1 if last else 0)
        first = -(-free // self._align) * self._align
        end = self._end(first, size_mib)
        taken = {one.number for one in self.slices}
        number = next((n for n in range(1, ENTRIES + 1) if n not in taken), None)
        if number is None or end <= first:
            raise BootError(f"no room for the partition {name}", hint="the disk is full")
        slice_ = Slice(number, kind, guid, first, end, 0, name)
        return replace(self, slices=(*self.slices, slice_)), slice_

    def _end(self, first: int, size_mib: int) -> int:
        if size_mib == 0:
            return (self.last_usable + 1) // self._align * self._align - 1
        end = first + size_mib * MIB // self.sector_bytes - 1
        if end > self.last_usable:
            free = max(0, self.last_usable + 1 - first) * self.sector_bytes // MIB
            raise BootError(f"the disk has {free} MiB for it, not {size_mib}", hint="take a smaller size")
        return end

    def writes(self) -> tuple[tuple[int, bytes], ...]:
        """What to write where, in this order."""
        entries = bytearray(ENTRIES * _ENTRY_BYTES)
        for one in self.slices:
            name = one.name.encode("utf-16-le")[:72]
            _ENTRY.pack_into(entries, (one.number - 1) * _ENTRY_BYTES, one.kind.bytes_le, one.guid.bytes_le,
                             one.first, one.last, one.flags, name)  # fmt: skip
        data = bytes(entries).ljust(self._entry_sectors * self.sector_bytes, b"\0")
        backup = self.last_usable + 1
        size = self.sector_bytes
        return (
            (backup * size, data),
            ((self.sectors - 1) * size, self._header(self.sectors - 1, 1, backup, bytes(entries))),
            (2 * size, data),
            (size, self._header(1, self.sectors - 1, 2, bytes(entries))),
            (0, self._protective()),
        )

    def _header(self, here: int, other: int, entries_at: int, entries: bytes) -> bytes:
        def packed(checksum: int) -> bytes:
            return _HEADER.pack(
                b"EFI PART", 0x10000, _HEADER.size, checksum, 0, here, other, self.first_usable,
                self.last_usable, self.guid.bytes_le, entries_at, ENTRIES, _ENTRY_BYTES, zlib.crc32(entries),
            )  # fmt: skip

        return packed(zlib.crc32(packed(0))).ljust(self.sector_bytes, b"\0")

    def _protective(self) -> bytes:
        length = min(self.sectors - 1, 0xFFFFFFFF)
        entry = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, length)
        return bytes(446) + entry + bytes(48) + b"\x55\xaa"


def parse(start: bytes, sectors: int, sector_bytes: int) -> Table | None:
    """The table at the start of a disk; None if there is none. Raises BootError for a broken one."""
    header = start[sector_bytes : sector_bytes + _HEADER.size]
    if header[:8] != b"EFI PART":
        return None
    (_, _, size, checksum, _, _, _, _, _, guid, at, count, length, entries_sum) = _HEADER.unpack(header)
    whole = start[sector_bytes : sector_bytes + min(size, sector_bytes)]
    if zlib.crc32(whole[:16] + bytes(4) + whole[20:]) != checksum or length != _ENTRY_BYTES or count > 1024:
        raise BootError("the partition table is broken", hint="repair it from its backup with gdisk")
    entries = start[at * sector_bytes : at * sector_bytes + count * length]
    if len(entries) != count * length or zlib.crc32(entries) != entries_sum:
        raise BootError("the partition table is broken", hint="repair it from its backup with gdisk")
    if count > ENTRIES and any(entries[ENTRIES * length :]):
        raise BootError(f"the partition table has more than {ENTRIES} partitions")
    slices = []
    for number in range(min(count, ENTRIES)):
        kind, own, first, last, flags, name = _ENTRY.unpack_from(entries, number * length)
        if any(kind):
            text = name.decode("utf-16-le", "replace").split("\0")[0]
            slices.append(
                Slice(number + 1, uuid.UUID(bytes_le=kind), uuid.UUID(bytes_le=own), first, last, flags, text)
            )
    return Table(uuid.UUID(bytes_le=guid), sectors, sector_bytes, tuple(slices))


def protective(table: Table, start: bytes) -> bytes:
    """The first sector to write: boot code of an old one is kept."""
    fresh = table.writes()[-1][1]
    return start[:446].ljust(446, b"\0") + fresh[446:]
