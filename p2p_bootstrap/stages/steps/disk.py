"""``layout``: which partitions does a disk get in its free space?

The table is changed by `gpt`, the kernel is told partition by partition (so a mounted disk may grow), then
file systems are made or grown by their own programs. A partition that is there already, by its label, is
left alone: so one without any label is refused, since each boot would add it again.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import stat
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2p_bootstrap.stages import gpt
from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.gpt import Slice, Table
from p2p_bootstrap.stages.media import holds_something
from p2p_bootstrap.stages.model import Layout, Partition
from p2p_bootstrap.stages.system import check
from p2p_network.core.errors import BootError

_BLKGETSIZE64: Final = 0x80081272
_BLKSSZGET: Final = 0x1268
_BLKPG: Final = 0x1269
_BLKPG_ADD: Final = 1
_BLKPG_RESIZE: Final = 3
_DNS: Final = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
SCRIPT: Final = "script://"


@dataclass(frozen=True, slots=True)
class ApplyLayout:
    """``layout``."""

    spec: Layout

    def describe(self) -> str:
        """See `Action`."""
        spec = self.spec
        disk = spec.device.path or f"the disk of {spec.device.label}"
        parts = ["make an empty partition table"] if spec.device.init_disk else []
        if spec.expand_partition:
            size = spec.expand_partition.size
            parts.append(f"grow the last partition to {f'{size} MiB' if size else 'all that is free'}")
        parts += [f"add {one.p_label or one.fs_label} ({one.filesystem})" for one in spec.add_partitions]
        return f"{disk}: {', '.join(parts) or 'nothing'}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        device = _device(self.spec, context)
        path = context.root.path(device)
        table = self._table(path, device)
        if self.spec.expand_partition:
            grown = table.expanded(self.spec.expand_partition.size)
            last = grown.last()
            if grown != table and last:
                _write(path, grown)
                _tell_kernel(path, last, _BLKPG_RESIZE, table.sector_bytes)
                _grow(_node(device, last.number), context)
            table = grown
        for partition in self.spec.add_partitions:
            table = self._add(table, partition, path, device, context)

    def _table(self, path: Path, device: str) -> Table:
        size, sector = _size(path)
        with path.open("rb") as file:
            start = file.read(max(sector * 64, 72 * 1024))
        table = gpt.parse(start, size // sector, sector)
        if table is None:
            if not self.spec.device.init_disk:
                raise BootError(f"{device} has no GPT", hint="init_disk: true makes one, and erases the disk")
            if holds_something(start):
                raise BootError(f"{device} is not empty", hint="erase it first: wipefs -a")
            table = Table(uuid.uuid5(_DNS, self.spec.device.disk_name), size // sector, sector)
            _write(path, table)
        return table

    def _add(self, table: Table, spec: Partition, path: Path, device: str, context: Context) -> Table:
        name = spec.p_label or spec.fs_label
        if not name:
            raise BootError(
                f"{device}: a partition without a label can't be told from others",
                hint="give it a pLabel or fsLabel; else each boot would add it again",
            )
        there = any(one.name == name for one in table.slices)
        if there or (spec.fs_label and context.root.exists(f"/dev/disk/by-label/{spec.fs_label}")):
            return table
        kind = gpt.ESP if spec.bootable else gpt.SWAP if spec.filesystem == "swap" else gpt.LINUX
        table, slice_ = table.added(name, spec.size, kind, uuid.uuid5(table.guid, name))
        node = _node(device, slice_.number)
        _erase(path, slice_, table.sector_bytes)
        _write(path, table)
        _tell_kernel(path, slice_, _BLKPG_ADD, table.sector_bytes)
        argv = mkfs(spec, node)
        check(context.system.run(argv), " ".join(argv))
        return table


def mkfs(spec: Partition, node: str) -> list[str]:
    """The command that makes a partition's file system."""
    match spec.filesystem:
        case "swap":
            return ["mkswap", *(["-L", spec.fs_label] if spec.fs_label else []), node]
        case "fat" | "fat16" | "fat32" | "vfat":
            bits = {"fat16": ["-F", "16"], "fat32": ["-F", "32"]}.get(spec.filesystem, [])
            return ["mkfs.fat", *bits, *(["-n", spec.fs_label] if spec.fs_label else []), node]
        case name:
            force = {"xfs": "-f", "btrfs": "-f"}.get(name, "-F")
            return [f"mkfs.{name}", force, *(["-L", spec.fs_label] if spec.fs_label else []), node]


def _device(spec: Layout, context: Context) -> str:
    label, path = spec.device.label, spec.device.path
    for folder in ("by-label", "by-partlabel"):
        name = f"/dev/disk/{folder}/{label}"
        if label and context.root.exists(name):
            return _disk_of(context.root.path(name).name, context)
    if path.startswith(SCRIPT):
        ended = context.system.run(["/bin/sh", "-c", path.removeprefix(SCRIPT)])
        path = check(ended, "the script that names the disk").strip()
    if path and not path.startswith("/dev/"):
        path = _mounted_at(path, context)
    if not path:
        what = f"no partition has the label {label}" if label else "the layout names no device"
        raise BootError(what, hint="write device.label or device.path")
    if not context.root.exists(path):
        raise BootError(f"{path} is not there", hint="check the device; lsblk lists them")
    return _disk_of(path.rpartition("/")[2], context, spare=path)


def _disk_of(name: str, context: Context, spare: str = "") -> str:
    """The disk of a partition's name."""
    folder = f"/sys/class/block/{name}"
    if context.root.exists(f"{folder}/partition"):
        return f"/dev/{context.root.path(folder).parent.name}"
    return spare or f"/dev/{name}"


def _mounted_at(point: str, context: Context) -> str:
    """growpart's ``/`` means the device that is mounted there."""
    for line in context.root.text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        words, source = left.split(), right.split()
        if len(words) > 4 and len(source) > 1 and words[4] == point and source[1].startswith("/dev/"):
            return source[1]
    raise BootError(f"no device is mounted at {point}", hint="name the device, such as /dev/sda")


def _node(device: str, number: int) -> str:
    return f"{device}{'p' if re.search(r'[0-9]$', device) else ''}{number}"


def _size(path: Path) -> tuple[int, int]:
    """Bytes of a disk (or its image) and of its sectors."""
    with path.open("rb") as file:
        if stat.S_ISBLK(os.fstat(file.fileno()).st_mode):
            size = struct.unpack("Q", fcntl.ioctl(file, _BLKGETSIZE64, bytes(8)))[0]
            return size, struct.unpack("I", fcntl.ioctl(file, _BLKSSZGET, bytes(4)))[0]
        return os.fstat(file.fileno()).st_size, 512


def _write(path: Path, table: Table) -> None:
    with path.open("r+b", buffering=0) as file:
        start = file.read(512)
        for offset, data in (*table.writes()[:-1], (0, gpt.protective(table, start))):
            file.seek(offset)
            file.write(data)
            os.fsync(file.fileno())


def _erase(path: Path, slice_: Slice, sector_bytes: int) -> None:
    """Remove the traces of a file system that was there once."""
    with path.open("r+b") as file:
        file.seek(slice_.first * sector_bytes)
        file.write(bytes(min(gpt.MIB, (slice_.last - slice_.first + 1) * sector_bytes)))


class _BlkpgPartition(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_longlong),
        ("length", ctypes.c_longlong),
        ("pno", ctypes.c_int),
        ("names", ctypes.c_char * 128),
    )


class _BlkpgArgument(ctypes.Structure):
    _fields_ = (
        ("op", ctypes.c_int),
        ("flags", ctypes.c_int),
        ("datalen", ctypes.c_int),
        ("data", ctypes.c_void_p),
    )


def _tell_kernel(path: Path, slice_: Slice, operation: int, sector_bytes: int) -> None:
    if not stat.S_ISBLK(path.stat().st_mode):
        return  # an image: the kernel doesn't know it
    length = (slice_.last - slice_.first + 1) * sector_bytes
    data = _BlkpgPartition(slice_.first * sector_bytes, length, slice_.number)
    argument = _BlkpgArgument(operation, 0, ctypes.sizeof(data), ctypes.addressof(data))
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file:
        # not fcntl.ioctl: an address is no 32-bit number
        if libc.ioctl(file.fileno(), ctypes.c_ulong(_BLKPG), ctypes.byref(argument)) != 0:
            what = f"the kernel refuses partition {slice_.number}: {os.strerror(ctypes.get_errno())}"
            raise BootError(what, hint="it takes the new table at the next boot")


def _grow(node: str, context: Context) -> None:
    """The file system follows its partition."""
    try:
        with context.root.path(node).open("rb") as file:
            start = file.read(1090 + 4096 * 17)
    except OSError:
        return  # no node: an image
    if start[1080:1082] == b"\x53\xef":
        if f"{node} " not in context.root.text("/proc/mounts"):
            context.system.run(["e2fsck", "-f", "-p", node])  # resize2fs wants one that was checked just now
        check(context.system.run(["resize2fs", node]), f"resize2fs {node}")
    elif start[:4] == b"XFSB":
        check(context.system.run(["xfs_growfs", node]), f"xfs_growfs {node}")
    elif start[0x10040:0x10048] == b"_BHRfS_M":
        check(context.system.run(["btrfs", "filesystem", "resize", "max", node]), f"btrfs resize {node}")
