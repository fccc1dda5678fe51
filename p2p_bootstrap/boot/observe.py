"""What is this machine like, as far as booting goes? Reads the facts that `plan` wants.

``/proc/cmdline``, sysfs for the block devices, their first sectors for labels and UUIDs (`superblock`), the
partition tables for PARTUUIDs, EFI variables, and, as soon as they can be reached, the slot images, the
layout files and the cloud-config.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

from p2p_bootstrap.boot import files, layout, superblock, uki
from p2p_bootstrap.boot.facts import (
    BlockDevice,
    Efi,
    Facts,
    Places,
    SlotFailure,
    SlotImage,
    TextFile,
    UkiRoot,
    Unlocking,
)
from p2p_bootstrap.boot.slots import BLOCK_BYTES, POINTER
from p2p_bootstrap.boot.tail import UNLOCKED
from p2p_bootstrap.cloudconfig.collect import collect_system
from p2p_network.core.errors import BootError

SECTOR_BYTES: Final = 512
MAX_DEVICES: Final = 512
MAX_LAYOUT_BYTES: Final = 256 * 1024
LOADER_GUID: Final = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"  # systemd's Boot Loader Interface
GLOBAL_GUID: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
# never hold what we boot from; probing some of them waits for hardware
_UNINTERESTING: Final = ("ram", "zram", "fd", "nbd")


class Observer:
    """Looks at one machine.

    Args:
        places: where things are.
        proc, sys, dev: where the kernel's file systems are.
        only: names of the only block devices to look at (a laboratory's), None for all.
    """

    def __init__(
        self,
        places: Places | None = None,
        *,
        cmdline: str | None = None,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        dev: Path = Path("/dev"),
        only: Collection[str] | None = None,
    ) -> None:
        self.places = places or Places()
        self._cmdline = cmdline
        self._proc, self._sys, self._dev = proc, sys, dev
        self._only = only

    def facts(self, *, layout_ready: bool = False, failures: tuple[SlotFailure, ...] = ()) -> Facts:
        """The facts now. `layout_ready`: whether the layout files may be believed already."""
        places = self.places
        found = Facts(
            cmdline=self._cmdline if self._cmdline is not None else self._read_cmdline(),
            devices=self.devices(),
            efi=self.efi(),
            uki_root=_uki_root(places.initrd),
            unlocked=_unlocked(Path(places.cos, UNLOCKED)),
            images=_images(places.state),
            recovery_images=_images(places.recovery),
            pointer=files.read_text(Path(places.state + POINTER), BLOCK_BYTES),
            failures=failures,
            places=places,
            now_s=time.time(),
        )
        if not layout_ready:
            return found
        # the mounts may be asked for by every source there is: the image's own files, OEM, the command line
        collected = collect_system(Path(places.sysroot), fetch=None, command_line=found.cmdline)
        wishes = layout.wishes_of(collected.root)
        remarks = tuple(str(problem) for problem in collected.problems)
        texts = tuple(
            TextFile(name, text)
            for name in layout.FILES
            if (text := files.read_text(Path(places.cos, name), MAX_LAYOUT_BYTES))
        )
        return replace(found, layout=texts, wishes=wishes, remarks=remarks)

    def devices(self) -> tuple[BlockDevice, ...]:
        """Every block device that holds a file system, in the order of its name."""
        folder = self._sys / "class/block"
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        found = []
        tables: dict[str, tuple[superblock.Partition, ...]] = {}
        for name in names[:MAX_DEVICES]:
            if name.startswith(_UNINTERESTING) or (self._only is not None and name not in self._only):
                continue
            if device := self._device(folder / name, tables):
                found.append(device)
        return tuple(found)

    def _device(self, entry: Path, tables: dict[str, tuple[superblock.Partition, ...]]) -> BlockDevice | None:
        size_bytes = _number(entry / "size") * SECTOR_BYTES
        if size_bytes == 0:
            return None  # an empty drive, a free loop device
        facts = dict(
            line.split("=", 1) for line in files.read_text(entry / "uevent", 4096).splitlines() if "=" in line
        )
        path = self._dev / facts.get("DEVNAME", entry.name)
        block = probe_file(path)
        partition = None
        if (entry / "partition").exists():
            disk = os.path.basename(os.path.dirname(os.path.realpath(entry)))
            if disk not in tables:
                tables[disk] = _read_table(self._dev / disk)
            start = _number(entry / "start")
            partition = next((p for p in tables[disk] if p.start == start), None)
        partuuid = partition.partuuid if partition else facts.get("PARTUUID", "")
        partlabel = partition.partlabel if partition else facts.get("PARTNAME", "")
        if block is None and not partuuid and not partlabel:
            return None
        return BlockDevice(
            path=str(path), fstype=block.fstype if block else "", label=block.label if block else "",
            uuid=block.uuid if block else "", partuuid=partuuid, partlabel=partlabel, size_bytes=size_bytes,
            read_only=_number(entry / "ro") == 1,
            held=(entry / "holders").is_dir() and any((entry / "holders").iterdir()),
        )  # fmt: skip

    def efi(self) -> Efi | None:
        """The EFI variables, None on a machine without EFI."""
        folder = self._sys / "firmware/efi/efivars"
        if not folder.is_dir():
            return None

        def variable(name: str, guid: str) -> bytes:
            return (files.read(folder / f"{name}-{guid}", 65536) or b"")[4:]

        def text(name: str) -> str:
            return variable(name, LOADER_GUID).decode("utf-16-le", "replace").rstrip("\0")

        return Efi(
            secure_boot=variable("SecureBoot", GLOBAL_GUID)[:1] == b"\1",
            entry=text("LoaderEntrySelected"),
            partuuid=text("LoaderDevicePartUUID").lower(),
            counted=text("LoaderBootCountPath"),
        )

    def _read_cmdline(self) -> str:
        return files.read_text(self._proc / "cmdline", 65536).rstrip("\n")


def probe_file(path: Path) -> superblock.Superblock | None:
    """The file system on a device or in an image file; None if there is none or it can't be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return superblock.probe(lambda offset, size: os.pread(fd, size, offset))
    except OSError:
        return None  # a broken disk reads as one without a file system
    finally:
        os.close(fd)


def _read_table(path: Path) -> tuple[superblock.Partition, ...]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ()
    try:
        return superblock.partitions(lambda offset, size: os.pread(fd, size, offset))
    except OSError:
        return ()
    finally:
        os.close(fd)


def _unlocked(path: Path) -> tuple[Unlocking, ...] | None:
    """What the step `unlock` wrote in this boot; None before it."""
    try:
        found = files.read_map(path)
    except BootError:
        found = {}
    return None if found is None else tuple(Unlocking(name, str(why)) for name, why in found.items())


def _uki_root(initrd: str) -> UkiRoot | None:
    """What the note in the initrd says, or the image that a boot loader put there; None without both."""
    text = files.read_text(Path(f"{initrd}/{uki.ROOT_NOTE}"), uki.MAX_NOTE_BYTES)
    if not text:
        plain = Path(f"{initrd}/{uki.LOADED_ROOT}")
        if not plain.exists():
            return None
        block = probe_file(plain)
        return UkiRoot(str(plain), "", "", block.fstype if block else "", block.identity if block else "")
    try:
        note = uki.parse_note(text)
    except BootError:
        return UkiRoot("", "", "", "")
    file = "" if note.path else f"{initrd}/{uki.ROOT_FILE}"
    return UkiRoot(file, note.path, note.sha256, note.fstype, note.sha256)


def _images(mounted_on: str) -> tuple[SlotImage, ...] | None:
    """The slot images on a partition, None if it isn't mounted."""
    if not os.path.ismount(mounted_on):
        return None
    found = []
    for path in sorted(Path(mounted_on, "cOS").glob("*.img")):
        block = probe_file(path)
        status = path.stat()
        name, size = f"/cOS/{path.name}", status.st_size
        found.append(
            SlotImage(name, block.fstype, _identity(block, status), size)
            if block
            else SlotImage(name, "", "", size)
        )
    return tuple(found)


def _identity(block: superblock.Superblock, status: os.stat_result) -> str:
    """Tells images apart. A superblock alone does not: reproducible builds can differ in content only.

    The file's inode and time follow it when a slot is renamed; a false alarm costs no more than a merge.
    """
    parts = (block.identity, status.st_ino, status.st_mtime_ns, status.st_size)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _number(path: Path) -> int:
    text = files.read_text(path, 100).strip()
    return int(text) if text.isascii() and text.isdigit() else 0
