"""Which kernel modules does the boot need, in which order, and how are they loaded without modprobe?

When an initramfs is built, `wanted` resolves names by the kernel's ``modules.dep``; they are packed unpacked,
so that nothing has to be decompressed at boot. `load` inserts them in that order by finit_module(2).
"""

from __future__ import annotations

import ctypes
import errno
import gzip
import lzma
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from p2p_network.core.errors import BootError

FOLDER: Final = "usr/lib/kairos-p2p/modules"
ORDER: Final = "order"
# what a pivot boot needs: disks, file systems (ext4 asks for a checksum by alias), loop devices, overlays
DEFAULT: Final = (
    "crc32c_generic", "virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ahci", "nvme", "usb_storage",
    "xhci_pci", "loop", "overlay", "squashfs", "erofs", "ext4", "vfat", "nls_cp437", "nls_ascii", "isofs",
    "efivarfs",
)  # fmt: skip
_SUFFIXES: Final = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")
_FINIT_MODULE: Final = {"x86_64": 313, "aarch64": 273, "riscv64": 273, "armv7l": 379}


def wanted(folder: Path, names: Iterable[str]) -> list[Path]:
    """The files of modules and of what they need, in the order of loading.

    `folder`: ``/lib/modules/VERSION``. What is built into the kernel needs no file. Raises BootError.
    """
    table: dict[str, tuple[Path, list[str]]] = {}
    try:
        lines = (folder / "modules.dep").read_text().splitlines()
        builtin = {_name(line) for line in (folder / "modules.builtin").read_text().splitlines()}
    except OSError as exc:
        raise BootError(
            f"{folder} is no folder of kernel modules: {exc.strerror}", hint="name one: /lib/modules/VERSION"
        ) from exc
    for line in lines:
        path, _, needs = line.partition(":")
        table[_name(path)] = folder / path, [_name(need) for need in needs.split()]
    order: dict[str, Path] = {}

    def visit(name: str) -> None:
        path, needs = table[name]
        for need in reversed(needs):  # modules.dep names the nearest first
            if need not in order:
                visit(need)
        order.setdefault(name, path)

    for name in names:
        plain = name.replace("-", "_")
        if plain in table:
            visit(plain)
        elif plain not in builtin and name not in DEFAULT:
            raise BootError(f"the kernel in {folder} has no module {name}", hint="check its name")
    return list(order.values())


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
    number = _FINIT_MODULE.get(os.uname().machine)
    order = folder / ORDER
    if number is None or not order.exists():
        return ()
    libc = ctypes.CDLL(None, use_errno=True)
    remarks = []
    for name in order.read_text().split():
        fd = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.syscall(number, fd, b"", 0) and (code := ctypes.get_errno()) not in (
                errno.EEXIST,
                errno.ENODEV,
            ):
                remarks.append(f"the kernel refused the module {name}: {os.strerror(code)}")
        finally:
            os.close(fd)
    return tuple(remarks)


def _name(path: str) -> str:
    base = os.path.basename(path.strip())
    for suffix in _SUFFIXES:
        base = base.removesuffix(suffix)
    return base.replace("-", "_")
