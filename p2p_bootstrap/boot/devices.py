"""Which block device is meant by ``LABEL=...``, ``UUID=...``, ``PARTUUID=...``, ``PARTLABEL=...`` or a path?

Exactly one device, or a refusal with the reason: two partitions with one label are never guessed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from p2p_bootstrap.boot.facts import BlockDevice
from p2p_network.core.errors import BootError, nearest

KINDS: Final = ("LABEL", "UUID", "PARTUUID", "PARTLABEL")
LOCKED: Final = {
    "crypto_LUKS": "is encrypted and was not unlocked",
    "LVM2_member": "is part of an LVM group that is not active",
}

UNLOCK_HINT: Final = (
    "put a key, or a hook that prints it, into the initramfs: boot build initramfs --key, --hook"
)


class Refused(BootError):
    """A way to boot can't be planned with the facts at hand. `locked`: for want of a key."""

    locked = False


class Missing(Refused):
    """A device isn't there (yet)."""

    def __init__(self, selector: str, message: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.selector = selector


def matches(device: BlockDevice, selector: str) -> bool:
    """Whether a device is meant by a selector."""
    kind, equals, value = selector.partition("=")
    if not equals or selector.startswith("/"):
        return device.path == selector
    match kind:
        case "LABEL" | "CDLABEL":
            return device.label == value
        case "UUID":
            return device.uuid.lower() == value.lower()
        case "PARTUUID":
            return device.partuuid.lower() == value.lower()
        case "PARTLABEL":
            return device.partlabel == value
        case _:
            return False


def find(devices: Sequence[BlockDevice], selector: str) -> BlockDevice | None:
    """The device meant, or None if there is none. Raises Refused if there are several."""
    kind, _, value = selector.partition("=")
    if not value and not selector.startswith("/"):
        raise Refused(f"{selector!r} names no device", hint=f"write it like {KINDS[0]}=NAME or /dev/NAME")
    found = [device for device in devices if matches(device, selector)]
    found = [device for device in found if device.fstype not in LOCKED] or found  # what is inside is meant
    if len(found) > 1:
        places = ", ".join(device.path for device in found)
        raise Refused(
            f"{len(found)} partitions answer to {selector}: {places}",
            hint="unplug the disk that does not belong here, or give one of them another "
            + ("label" if "LABEL" in kind else "UUID"),
        )
    return found[0] if found else None


def need(devices: Sequence[BlockDevice], selector: str) -> BlockDevice:
    """The device meant, usable. Raises Missing or Refused."""
    device = find(devices, selector)
    if device is None:
        kind, _, value = selector.partition("=")
        labels = sorted({d.label for d in devices if d.label})
        near = nearest(value, labels) if kind == "LABEL" else None
        seen = (
            f"there are: {', '.join(labels)[:200]}" if labels else "no partition with a label is there at all"
        )
        raise Missing(
            selector,
            f"no partition answers to {selector}",
            f"did you mean LABEL={near}?" if near else f"is the disk connected and its driver loaded? {seen}",
        )
    if why := LOCKED.get(device.fstype):
        locked = Refused(f"{selector} ({device.path}) {why}", hint=UNLOCK_HINT)
        locked.locked = True
        raise locked
    if not device.fstype:
        raise Refused(
            f"{selector} ({device.path}) holds no file system that we know",
            hint="its superblock may be damaged: check it from recovery (fsck), or restore it",
        )
    return device
