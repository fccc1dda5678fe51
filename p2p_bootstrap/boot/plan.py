"""What has to be done, in which order, so that this machine boots? `plan(facts)` is the whole answer.

Pure and total: whatever the facts, there is a plan; at worst one of mode ``stop``, which says why. Steps name
the steps they need, so independent ones may run side by side. A `Look` step is a horizon: what is behind it
is planned with assumptions, and the runner plans anew when it gets there. Everything before a horizon stays
the same (the tests hold us to that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from p2p_bootstrap.boot import cmdline as cmd
from p2p_bootstrap.boot import devices, dispatch, slots
from p2p_bootstrap.boot import steps as do
from p2p_bootstrap.boot.devices import Missing
from p2p_bootstrap.boot.dispatch import Choice, Mode, Slot
from p2p_bootstrap.boot.facts import Facts, SlotImage
from p2p_bootstrap.boot.tail import Builder, tail
from p2p_network.core.errors import BootError

DEFAULT_INIT: Final = "/sbin/init"
IMAGE_TYPES: Final = ("squashfs", "erofs", "ext4", "ext3", "ext2", "xfs", "btrfs")
LIVE_IMAGES: Final = "rootfs.squashfs"


@dataclass(frozen=True, slots=True)
class Plan:
    """A boot.

    Attributes:
        steps: in an order that respects their needs.
        reason: one sentence, why this mode and slot.
        required: mounts without which the boot fails.
        awaits: selectors of devices that were not there; worth waiting for before falling back.
        remarks: what a person should know.
        hint: what to do, if the mode is ``stop``.
        image: path of the slot's image on its partition, if it has one.
        within_s: the time in which a slot on trial has to be blessed; None: no limit.
    """

    mode: Mode
    slot: Slot
    reason: str
    steps: tuple[do.Step, ...] = ()
    required: tuple[do.Required, ...] = ()
    awaits: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    hint: str = ""
    image: str = ""
    within_s: float | None = None

    def horizon(self) -> tuple[do.Step, ...]:
        """The steps up to and with the first `Look`."""
        for number, step in enumerate(self.steps):
            if isinstance(step.action, do.Look):
                return self.steps[: number + 1]
        return self.steps


def plan(facts: Facts) -> Plan:
    """The plan for these facts. Never raises for anything that facts can say."""
    command = cmd.parse(facts.cmdline)
    ways, passed = dispatch.candidates(facts, command)
    refusals: list[str] = list(passed)
    hints: list[str] = [failure.hint for failure in facts.failures if failure.hint]
    awaits: list[str] = []
    for way in ways:
        try:
            made = _plan_way(facts, command, way)
        except BootError as exc:
            refusals.append(f"{way.slot} can't boot: {exc.message}")
            hints.append(exc.hint)
            if isinstance(exc, Missing):
                awaits.append(exc.selector)
            continue
        refused = "; ".join(refusals[len(passed) :])
        reason = f"{made.reason} ({refused})" if refused else made.reason
        return replace(
            made,
            reason=reason,
            awaits=tuple(awaits),
            remarks=(*facts.remarks, *command.unknown, *made.remarks),
        )
    first = dispatch.wanted(facts, command)
    reason = "; ".join(refusals) or f"there is no way left to boot {first.slot}"
    return Plan(
        "stop", "none", reason, awaits=tuple(awaits), remarks=command.unknown, hint=next(iter(hints), "")
    )


def _plan_way(facts: Facts, command: cmd.CommandLine, way: Choice) -> Plan:
    build = Builder(facts, command)
    build.add("sentinel", do.Sentinels(facts.places.cos, way.sentinels, _others(way)))
    if way.mode == "uki":
        _esp(build, way)  # before the volumes are opened: sealed keys lie there
    wants = command.ram is not None and bool(command.ram.oem or command.ram.persistent)
    build.unlock(secrets=wants or (way.mode in ("normal", "uki") and way.slot in ("active", "passive")))
    image = ""
    match way.mode:
        case "normal":
            image = _normal(build, way)
        case "ram":
            _ram(build, way)
        case "uki":
            _uki(build, way)
        case _:
            _live(build, way)
    within_s = _deadline_s(facts, way)
    switch = do.SwitchRoot(facts.places.sysroot, command.init or DEFAULT_INIT, within_s)
    build.add("switch-root", switch, *build.names())
    return Plan(
        way.mode, way.slot, way.reason, build.steps(), build.required(), remarks=tuple(build.remarks),
        image=image, within_s=within_s,
    )  # fmt: skip


def _deadline_s(facts: Facts, way: Choice) -> float | None:
    """Until when this slot has to be blessed. None: it is not on trial, or nothing stands behind it."""
    match way.mode:
        case "normal" if way.slot == "active":
            try:
                table = slots.parse(facts.pointer)
            except BootError:
                return None  # told where the slots are looked at
            passive = any(image.path == table.passive and image.fstype for image in facts.images or ())
            recovery = any(device.label in dispatch.RECOVERY_LABELS for device in facts.devices)
            if not table.trial or not (passive or recovery):
                return None
        case "uki" if way.slot in ("active", "passive"):
            if facts.efi is None or not facts.efi.counted:
                return None
        case _:
            return None
    wished = facts.wishes.bless_within_s
    return float(slots.DEFAULT_WITHIN_S if wished is None else wished) or None


def _others(way: Choice) -> tuple[str, ...]:
    return tuple(name for name in dispatch.SENTINELS if name not in way.sentinels)


def _normal(build: Builder, way: Choice) -> str:
    """Returns the path of the image."""
    image, file = _mount_slot_partition(build, way)
    places = build.facts.places
    option = "rw" if build.command.debug_rw and image.fstype.startswith("ext") else "ro"
    build.add("root", do.MountImage(file, places.sysroot, image.fstype, option), build.last("look-slots"))
    build.add("image-view", do.View(places.sysroot, build.image_view), "root")
    tail(build, image.identity, lasting=way.slot in ("active", "passive"), profile=way.slot)
    return image.path


def _mount_slot_partition(build: Builder, way: Choice) -> tuple[SlotImage, str]:
    """Steps that make the slot's image a file at hand. Returns it, and where it will be."""
    facts, command, places = build.facts, build.command, build.facts.places
    repair = way.slot in ("recovery", "autoreset")
    selector = _recovery_selector(facts, command) if repair else "LABEL=COS_STATE"
    target = places.recovery if repair else places.state
    device = build.need(selector)
    build.check(device, "fsck-state")
    option = "rw" if command.debug_rw and not device.read_only else "ro"
    mount = do.Mount(device.path, target, device.fstype, (option,))
    build.add("state", mount, build.last("fsck-state"))
    build.add("look-slots", do.Look("the slots"), "state")
    images = facts.recovery_images if repair else facts.images
    table = slots.SlotTable()
    try:
        table = slots.parse(facts.pointer)
    except BootError as exc:
        build.remarks.append(f"{exc.message}; Kairos's names of the images are taken instead")
    path = table.image("recovery" if repair else way.slot)
    if not facts.pointer and command.image and way == dispatch.wanted(facts, command):
        # a word like kairos.reset may stand beside the image of another slot: somebody typed it in the menu
        typed = repair and command.image in (slots.KAIROS_IMAGES["active"], slots.KAIROS_IMAGES["passive"])
        path = path if typed else command.image
    if images is None:  # not looked yet: assume the best, plan anew at the horizon
        return SlotImage(path, "ext4", ""), target + path
    image = next((image for image in images if image.path == path), None)
    if image is None or not path:
        raise devices.Refused(
            f"there is no image {path or 'for this slot'} on {device.path}",
            hint="install or upgrade this slot anew from recovery",
        )
    if image.fstype not in IMAGE_TYPES:
        raise devices.Refused(
            f"the image {path} on {device.path} holds no file system: its superblock is damaged",
            hint="this slot must be written anew: boot the other one and upgrade",
        )
    if way.slot == "active" and table.trial and way.mode == "normal" and not command.counted:
        build.add("count-try", do.CountTry(places.state), "look-slots")
    return image, target + path


def _recovery_selector(facts: Facts, command: cmd.CommandLine) -> str:
    if command.root_label == "COS_SYSTEM" and devices.find(facts.devices, "LABEL=COS_SYSTEM"):
        return "LABEL=COS_SYSTEM"
    return "LABEL=COS_RECOVERY"


def _live(build: Builder, way: Choice) -> None:
    facts, command, places = build.facts, build.command, build.facts.places
    if not command.live and not command.netboot and way.mode == "live":  # rd.*.disable
        device = devices.need(facts.devices, command.root or "LABEL=COS_LIVE")
        option = "ro" if device.read_only or device.fstype in ("squashfs", "erofs", "iso9660") else "rw"
        build.add("root", do.Mount(device.path, places.sysroot, device.fstype, (option,)))
        return
    if command.netboot or command.live.startswith(("http:", "https:")):
        root = facts.uki_root
        if root is None or not root.file or root.fstype not in IMAGE_TYPES:
            raise devices.Refused(
                "the root image did not come with the initrd"
                if root is None
                else "the root image is damaged",
                hint="the initramfs has no network: let the boot loader load the image too, for iPXE with: "
                f"initrd --name {LIVE_IMAGES} ADDRESS /{LIVE_IMAGES}",
            )
        _over_memory(build, root.file, root.fstype)
        tail(build, root.identity, lasting=False)
        return
    device = devices.need(facts.devices, command.live or "LABEL=COS_LIVE")
    build.add("live", do.Mount(device.path, places.live, device.fstype, ("ro",)))
    _over_memory(build, f"{places.live}/{LIVE_IMAGES}", "squashfs", "live")
    tail(build, "", lasting=False)


def _over_memory(build: Builder, file: str, fstype: str, *needs: str) -> None:
    """A root whose every change is in memory."""
    places = build.facts.places
    build.add("image-view", do.MountImage(file, build.image_view, fstype), *needs)
    build.overlay_base()
    base = f"{places.run}/overlay/root"
    build.add("root", do.Overlay(places.sysroot, base, build.image_view), "image-view", "overlay-base")


def _ram(build: Builder, way: Choice) -> None:
    places, command = build.facts.places, build.command
    assert command.ram is not None
    for asked, name in ((command.ram.create_partitions, "create_partitions"), (command.ram.wipe, "wipe")):
        if asked:
            build.remarks.append(
                f"kairos.ram.{name} is the installer's work; nothing is written to disks here"
            )
    if way.slot == "live":
        device = devices.need(build.facts.devices, "LABEL=COS_LIVE")
        build.add("live", do.Mount(device.path, places.live, device.fstype, ("ro",)))
        file, fstype, identity, before = f"{places.live}/{LIVE_IMAGES}", "squashfs", "", "live"
    else:
        image, file = _mount_slot_partition(build, way)
        fstype, identity, before = image.fstype, image.identity, "look-slots"
    copy = f"{places.memory}/root.img"
    build.add("memory", do.Mount("tmpfs", places.memory, "tmpfs", ("rw", "size=80%"), False))
    build.add("copy", do.CopyToMemory(file, copy), before, "memory")
    _over_memory(build, copy, fstype, "copy")
    tail(build, identity, lasting=False, oem=command.ram.oem, persistent=command.ram.persistent)


def _esp(build: Builder, way: Choice) -> None:
    """What was started must be allowed to; then the partition that it came from."""
    efi, places = build.facts.efi, build.facts.places
    if (efi is None or not efi.secure_boot) and not build.command.secure_boot_disabled:
        raise devices.Refused(
            "this is a unified kernel image and Secure Boot is off",
            hint="switch Secure Boot on in the firmware, or, for a test, add rd.immucore.securebootdisabled",
        )
    if way.slot != "live":
        assert efi is not None, "only a disk has slots"
        esp = devices.need(build.facts.devices, f"PARTUUID={efi.partuuid}")
        build.add("esp", do.Mount(esp.path, places.esp, esp.fstype, ("ro",)))


def _uki(build: Builder, way: Choice) -> None:
    places, root = build.facts.places, build.facts.uki_root
    lasting = way.slot in ("active", "passive")
    if root is None:  # the initrd is the whole system, as Kairos builds it
        size = ("rw", "size=80%", "mode=0755")
        build.add("memory", do.Mount("tmpfs", places.sysroot, "tmpfs", size, False))
        build.add("root", do.CopyToMemory(places.initrd or "/", places.sysroot), "memory")
        build.add("image-view", do.View(places.sysroot, build.image_view), "root")
        tail(build, "", lasting=lasting, profile=way.slot, trusted=True)
        build.remount_root_read_only()
        return
    if root.fstype not in IMAGE_TYPES:
        raise devices.Refused(
            "the root image in the initrd, or the note about it, is damaged",
            hint="build the unified kernel image anew",
        )
    file, before = root.file, ""
    if root.beside:
        if way.slot == "live":
            raise devices.Refused(
                "the root image lies on an EFI system partition, but this was not started from a disk",
                hint="for a medium without partitions, build it without --beside",
            )
        file, before = f"{places.memory}/root.img", "copy"
        build.add("memory", do.Mount("tmpfs", places.memory, "tmpfs", ("rw", "size=80%"), False), "esp")
        copy = do.CopyProved(places.esp + root.beside, file, root.sha256)
        build.add("copy", copy, "esp", "memory")
    build.add("root", do.MountImage(file, places.sysroot, root.fstype), before)
    build.add("image-view", do.View(places.sysroot, build.image_view), "root")
    tail(build, root.identity, lasting=lasting, profile=way.slot, trusted=True)


def describe(steps: Sequence[do.Step]) -> list[str]:
    """The steps as numbered lines."""
    return [f"{n:2}  {step.name:<24} {step.action.describe()}" for n, step in enumerate(steps, start=1)]
