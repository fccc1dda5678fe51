"""Which kernel modules does the boot need, in which order, and how are they loaded without modprobe?

When an initramfs is built, `wanted` resolves names by the kernel's ``modules.dep``; they are packed unpacked,
so that nothing has to be decompressed at boot. Each one costs time at each boot (the kernel checks its
signature), so only a few are inserted always (`load`, by finit_module(2)): drivers of disks follow as the
devices ask for them (`coldplug`), and file systems when one is to be mounted that the kernel does not know
(`demand`).
"""

from __future__ import annotations

import ctypes
import errno
import gzip
import json
import lzma
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2p_network.core.errors import BootError

FOLDER: Final = "usr/lib/kairos-p2p/modules"
ORDER: Final = "order"
DEMAND: Final = "demand.json"
# what every boot from an image needs
DEFAULT: Final = ("loop", "overlay")
# loaded where a device asks for them
CONTROLLERS: Final = (
    "virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "sr_mod", "ahci", "nvme", "usb_storage", "xhci_pci",
)  # fmt: skip
# loaded when one is to be mounted; ext4 asks for its checksum by an alias
FILE_SYSTEMS: Final[Mapping[str, tuple[str, ...]]] = {
    "squashfs": ("squashfs",), "erofs": ("erofs",), "ext4": ("crc32c_generic", "ext4"),
    "ext3": ("crc32c_generic", "ext4"), "ext2": ("crc32c_generic", "ext4"),
    "vfat": ("vfat", "nls_cp437", "nls_ascii"), "iso9660": ("isofs",), "efivarfs": ("efivarfs",),
}  # fmt: skip
# what cryptsetup and lvm need of the kernel
VOLUMES: Final = (
    "dm_mod",
    "dm_crypt",
    "xts",
    "cbc",
    "essiv",
    "aes_generic",
    "sha256_generic",
    "algif_skcipher",
)
# a kernel may go without: what needs them then says so
_MAY_LACK: Final = {*DEFAULT, *VOLUMES, *CONTROLLERS, *(n for names in FILE_SYSTEMS.values() for n in names)}
_SUFFIXES: Final = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")
_FINIT_MODULE: Final = {"x86_64": 313, "aarch64": 273, "riscv64": 273, "armv7l": 379}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel's modules: file and needs of each by name, and which are built in."""

    folder: Path
    table: dict[str, tuple[Path, list[str]]]
    builtin: frozenset[str]

    @classmethod
    def read(cls, folder: Path) -> Kernel:
        """Of ``/lib/modules/VERSION``. Raises BootError."""
        try:
            lines = (folder / "modules.dep").read_text().splitlines()
            builtin = frozenset(map(name_of, (folder / "modules.builtin").read_text().splitlines()))
        except OSError as exc:
            raise BootError(
                f"{folder} is no folder of kernel modules: {exc.strerror}",
                hint="name one: /lib/modules/VERSION",
            ) from exc
        table = {}
        for line in lines:
            path, _, needs = line.partition(":")
            table[name_of(path)] = folder / path, [name_of(need) for need in needs.split()]
        return cls(folder, table, builtin)

    def wanted(self, names: Iterable[str]) -> list[Path]:
        """The files of modules and of what they need, in the order of loading. Raises BootError.

        What is built into the kernel needs no file.
        """
        order: dict[str, Path] = {}

        def visit(name: str) -> None:
            path, needs = self.table[name]
            for need in reversed(needs):  # modules.dep names the nearest first
                if need not in order:
                    visit(need)
            order.setdefault(name, path)

        for name in names:
            plain = name.replace("-", "_")
            if plain in self.table:
                visit(plain)
            elif plain not in self.builtin and name not in _MAY_LACK:
                raise BootError(f"the kernel in {self.folder} has no module {name}", hint="check its name")
        return list(order.values())


def wanted(folder: Path, names: Iterable[str]) -> list[Path]:
    """See `Kernel.wanted`. `folder`: ``/lib/modules/VERSION``."""
    return Kernel.read(folder).wanted(names)


def unpacked(path: Path) -> bytes:
    """A module's content, decompressed."""
    raw = path.read_bytes()
    match path.suffix:
        case ".xz":
            return lzma.decompress(raw)
        case ".gz":
            return gzip.decompress(raw)
        case ".zst":
            program = shutil.which("zstd")
            if program is None:
                raise BootError(f"{path} is compressed by zstd", hint="install zstd")
            return subprocess.run([program, "-dcq"], input=raw, capture_output=True, check=True).stdout
        case _:
            return raw


def load(folder: Path) -> tuple[str, ...]:
    """Insert the modules of an initramfs. Returns a remark for each that the kernel refused."""
    order = folder / ORDER
    if not order.exists():
        return ()
    remarks = (insert(folder / name) for name in order.read_text().split())
    return tuple(remark for remark in remarks if remark)


def insert(path: Path) -> str:
    """Insert one module. Returns a remark if the kernel refused it; one that is there already is fine."""
    number = _FINIT_MODULE.get(os.uname().machine)
    if number is None:
        return ""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        refused = ctypes.CDLL(None, use_errno=True).syscall(number, fd, b"", 0)
        if refused and (code := ctypes.get_errno()) not in (errno.EEXIST, errno.ENODEV):
            return f"the kernel refused the module {path.name}: {os.strerror(code)}"
        return ""
    finally:
        os.close(fd)


def demand(name: str, folder: Path = Path("/", FOLDER), put: Callable[[Path], str] = insert) -> bool:
    """Load what a file system needs, if it is packed. Returns whether there was anything to load."""
    try:
        files = json.loads((folder / DEMAND).read_bytes()).get(name, ())
    except (OSError, ValueError):
        return False
    for file in files:
        put(folder / file)
    return bool(files)


def file_name(path: Path) -> str:
    """What a module's file is called in the initramfs, where it is not compressed."""
    return path.name.split(".ko")[0] + ".ko"


def name_of(path: str) -> str:
    """The module's name, as the kernel tells it."""
    base = os.path.basename(path.strip())
    for suffix in _SUFFIXES:
        base = base.removesuffix(suffix)
    return base.replace("-", "_")
