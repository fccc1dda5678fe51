"""How does a running system say that the slot it booted is healthy? Slot pointer, and boot loader's counter.

Two ways to count tries exist, and a machine has one of them, or none: our slot pointer on the state partition
(`slotstore`), and systemd-boot's counters in the names of its entries (``active+2-1.efi``). Blessing ends
both. A machine that our initramfs did not boot has nothing to bless.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Final

from p2p_bootstrap.boot import files, guard, record, slots, syscalls
from p2p_bootstrap.boot.kernel import LinuxKernel
from p2p_bootstrap.boot.observe import LOADER_GUID, Observer
from p2p_bootstrap.boot.slotstore import SlotStore
from p2p_network.core.errors import BootError

SLOTS: Final = ("active", "passive", "recovery", "autoreset", "live")
STATE: Final = "run/initramfs/cos-state"
ESP_PLACES: Final = ("efi", "boot/efi", "boot")
BOOT_ESP: Final = "run/initramfs/esp"  # read-only, where the boot of a unified kernel image mounted it
COUNT_PATH: Final = f"sys/firmware/efi/efivars/LoaderBootCountPath-{LOADER_GUID}"


def running_slot(root: Path = Path("/")) -> str:
    """The slot that this system was booted from, "" if our initramfs did not boot it."""
    return next((slot for slot in SLOTS if (root / f"run/cos/{slot}_mode").exists()), "")


def bless(root: Path = Path("/")) -> tuple[str, ...]:
    """Bless what runs. Returns a sentence for each thing that this means; empty if there is nothing to bless.

    Raises BootError, OSError if it can't be written down.
    """
    slot = running_slot(root)
    if not slot:
        return ()
    said: list[str] = []
    if (root / STATE / "cOS").is_dir():
        store = SlotStore(root / STATE, LinuxKernel().remount, running_image(root))
        said += [f"finished an interrupted upgrade: {line}" for line in store.recover()]
        said.append(store.bless(slot))
    if counted := _counted(root):
        said.append(_bless_entry(root, counted))
    call_off(root)
    return tuple(said)


def running_image(root: Path = Path("/")) -> str:
    """The path of the image that runs, on its partition; "" if it is unknown."""
    made = record.from_json(files.read_text(root / "run/cos" / record.NAME, record.MAX_BYTES))
    return made.image if made else ""


def call_off(root: Path = Path("/")) -> None:
    """Tell the guard that the slot is blessed: it restarts the machine no more (`guard`)."""
    marker = root / "run" / guard.MARKER
    if marker.parent.is_dir():
        marker.touch()


def _counted(root: Path) -> str:
    """The path of the boot loader's entry with its counter, as systemd-boot left it; "" if it counts not."""
    raw = (files.read(root / COUNT_PATH, 4096) or b"")[4:]
    return raw.decode("utf-16-le", "replace").rstrip("\0").replace("\\", "/")


def _bless_entry(root: Path, counted: str) -> str:
    if os.path.ismount(root / BOOT_ESP):
        kernel = LinuxKernel()
        kernel.remount(str(root / BOOT_ESP), read_only=False)
        try:
            if _rename(root / BOOT_ESP, counted):
                return "the boot loader's entry is blessed"
        finally:
            kernel.remount(str(root / BOOT_ESP), read_only=True)
    for place in ESP_PLACES:
        if os.path.ismount(root / place) and _rename(root / place, counted):
            return "the boot loader's entry is blessed"
    efi = Observer(sys=root / "sys").efi()
    if efi is None or not efi.partuuid:
        raise BootError(
            f"the boot loader counts {counted}, and the partition with it can't be found",
            hint="mount the EFI system partition on /efi",
        )
    device = next((d for d in Observer().devices() if d.partuuid.lower() == efi.partuuid), None)
    if device is None:
        raise BootError(
            f"no partition has the PARTUUID {efi.partuuid} that the boot loader came from",
            hint="is its disk still connected?",
        )
    esp = root / "run/kairos-p2p/esp"
    esp.mkdir(mode=0o700, parents=True, exist_ok=True)
    syscalls.mount(device.path, str(esp), device.fstype or "vfat", 0)
    try:
        _rename(esp, counted)
    finally:
        syscalls.unmount(str(esp))
    return "the boot loader's entry is blessed"


def _rename(esp: Path, counted: str) -> bool:
    """Take the counter out of the name of an entry; False if neither the old nor the new one is there."""
    if ".." in PurePosixPath(counted).parts:
        raise BootError(f"{counted} is no path of an entry", hint="the boot loader's variable is damaged")
    old = esp / counted.lstrip("/")
    new = esp / slots.blessed_entry(counted).lstrip("/")
    if new.exists():
        return True
    if not old.exists():
        return False
    os.rename(old, new)
    files.sync_folder(new.parent)
    return True
