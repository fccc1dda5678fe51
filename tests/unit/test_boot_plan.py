"""Which slot is booted, why, and what is then done?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2p_bootstrap.boot import slots
from p2p_bootstrap.boot import steps as do
from p2p_bootstrap.boot.facts import (
    BlockDevice,
    Efi,
    Facts,
    SlotFailure,
    SlotImage,
    TextFile,
    UkiRoot,
    Unlocking,
    Wishes,
    from_json,
)
from p2p_bootstrap.boot.plan import Plan, plan
from p2p_network.core.errors import BootError

PARTITIONS = tuple(
    BlockDevice(f"/dev/vda{n}", "ext4", label)
    for n, label in enumerate(("COS_STATE", "COS_OEM", "COS_PERSISTENT", "COS_RECOVERY"), start=1)
)
IMAGES = (SlotImage("/cOS/active.img", "squashfs", "a"), SlotImage("/cOS/passive.img", "ext4", "p"))
NODE = Facts(
    cmdline="root=LABEL=COS_ACTIVE", devices=PARTITIONS, images=IMAGES,
    recovery_images=(SlotImage("/cOS/recovery.img", "squashfs", "r"),),
)  # fmt: skip


ESP = BlockDevice("/dev/vda9", "vfat", "", partuuid="some-uuid")
UKI = replace(NODE, cmdline="rd.immucore.uki", devices=(*PARTITIONS, ESP))


def names(made: Plan) -> list[str]:
    return [step.name for step in made.steps]


@pytest.mark.parametrize(
    ("cmdline", "mode", "slot"),
    [
        ("root=LABEL=COS_ACTIVE", "normal", "active"),
        ("root=LABEL=COS_PASSIVE", "normal", "passive"),
        ("root=LABEL=COS_RECOVERY", "normal", "recovery"),
        ("root=LABEL=COS_SYSTEM", "normal", "recovery"),
        ("root=LABEL=COS_ACTIVE recovery-mode", "normal", "recovery"),
        ("root=LABEL=COS_ACTIVE kairos.reset", "normal", "autoreset"),
        ("root=LABEL=COS_ACTIVE kairos.ram", "ram", "active"),
        ("rd.immucore.uki kairos.ram", "ram", "live"),
        ("rd.cos.disable root=/dev/vda1", "live", "live"),
        ("root=live:LABEL=COS_LIVE rd.immucore.uki", "live", "live"),
        ("rd.immucore.uki rd.immucore.securebootdisabled", "uki", "live"),
    ],
)
def test_dispatch_in_the_references_order(cmdline: str, mode: str, slot: str) -> None:
    live = BlockDevice("/dev/sr0", "iso9660", "COS_LIVE", read_only=True)
    made = plan(replace(NODE, cmdline=cmdline, devices=(*PARTITIONS, live)))
    assert (made.mode, made.slot) == (mode, slot), made.reason


@pytest.mark.parametrize(
    ("entry", "slot"),
    [("active.conf", "active"), ("passive+1-2.conf", "passive"), ("recovery.efi", "recovery"),
     ("statereset.conf", "autoreset")],
)  # fmt: skip
def test_a_unified_kernel_image_boots_the_entry_that_was_selected(entry: str, slot: str) -> None:
    facts = replace(UKI, efi=Efi(True, entry, "some-uuid"))
    made = plan(facts)
    assert (made.mode, made.slot) == ("uki", slot)
    assert names(made)[1:4] == ["esp", "memory", "root"]
    assert names(made)[-2:] == ["root-read-only", "switch-root"]


def test_a_unified_kernel_image_without_secure_boot_is_refused() -> None:
    made = plan(replace(NODE, cmdline="rd.immucore.uki", efi=Efi(False, "active.conf", "u")))
    assert made.mode == "stop"
    assert "Secure Boot is off" in made.reason
    assert "securebootdisabled" in made.hint


def test_a_root_image_inside_is_mounted_where_it_is_and_one_beside_is_compared_first() -> None:
    efi, digest = Efi(True, "active.efi", "some-uuid"), "a" * 64
    inside = plan(replace(UKI, efi=efi, uki_root=UkiRoot("/usr/lib/r.img", "", digest, "squashfs")))
    root = next(step.action for step in inside.steps if step.name == "root")
    assert root == do.MountImage("/usr/lib/r.img", "/sysroot", "squashfs")
    assert "root-read-only" not in names(inside)  # it is so by itself
    there = replace(UKI, efi=efi, uki_root=UkiRoot("", "/EFI/kairos-p2p/x.img", digest, "erofs"))
    beside = plan(there)
    assert [n for n in names(beside) if n in ("esp", "copy", "root")] == ["esp", "copy", "root"]
    copy = next(step.action for step in beside.steps if step.name == "copy")
    assert copy == do.CopyProved(
        "/run/initramfs/esp/EFI/kairos-p2p/x.img", "/run/initramfs/memory/root.img", digest
    )
    assert "not started from a disk" in plan(replace(there, efi=Efi(True))).reason
    damaged = plan(replace(UKI, efi=efi, uki_root=UkiRoot("", "", "", "")))
    assert (damaged.mode, "is damaged" in damaged.reason) == ("stop", True)
    lost = plan(replace(there, devices=PARTITIONS))
    assert lost.awaits == ("PARTUUID=some-uuid",)


def test_netboot_takes_the_image_that_came_with_the_initrd() -> None:
    loaded = replace(NODE, cmdline="netboot", uki_root=UkiRoot("/rootfs.squashfs", "", "", "squashfs", "i"))
    made = plan(loaded)
    assert (made.mode, made.slot) == ("live", "live")
    assert "live" not in names(made)  # no medium is looked for
    for cmdline in ("netboot", "root=live:http://boot.example/rootfs.squashfs"):
        without = plan(replace(loaded, cmdline=cmdline, uki_root=None))
        assert without.mode == "stop"
        assert "initrd --name rootfs.squashfs" in without.hint
        assert plan(replace(loaded, cmdline=cmdline)).slot == "live"


def test_the_order_of_a_normal_boot() -> None:
    found = names(plan(replace(NODE, layout=(TextFile("f", "RW_PATHS=/etc\nPERSISTENT_STATE_BIND=1"),))))
    order = [
        "sentinel", "state", "look-slots", "root", "oem", "stage-rootfs", "look-layout", "overlay-base",
        "overlay-etc", "volume-usr-local", "canary", "bind-etc-rancher", "extensions", "fstab",
        "stage-initramfs", "prove", "switch-root",
    ]  # fmt: skip
    assert [name for name in found if name in order] == order


def test_the_slot_pointer_names_the_image_and_a_trial_costs_a_try() -> None:
    table = slots.SlotTable("/cOS/slot-1-x.img", "/cOS/active.img", True, 1, 1)
    images = (*IMAGES, SlotImage("/cOS/slot-1-x.img", "erofs", "n"))
    made = plan(replace(NODE, images=images, pointer=slots.render(table).decode()))
    root = next(step.action for step in made.steps if step.name == "root")
    assert isinstance(root, do.MountImage)
    assert root.file.endswith("/cOS/slot-1-x.img")
    assert "count-try" in names(made)
    spent = slots.render(slots.count_try(table)).decode()
    made = plan(replace(NODE, images=images, pointer=spent))
    assert made.slot == "passive"
    assert "never blessed" in made.reason


def test_a_slot_on_trial_has_to_be_blessed_in_time_if_another_one_stands_behind_it() -> None:
    trial = replace(NODE, pointer=slots.render(slots.SlotTable(trial=True, tries_left=1)).decode())
    alone = replace(trial, images=IMAGES[:1], devices=PARTITIONS[:3])
    counted = Efi(True, "active+2-1.conf", "some-uuid", "/loader/entries/active+2-1.conf")
    for facts, within_s in (
        (NODE, None), (trial, 1800), (alone, None), (replace(trial, images=IMAGES[:1]), 1800),
        (replace(trial, cmdline="root=LABEL=COS_PASSIVE"), None),
        (replace(trial, wishes=Wishes(bless_within_s=60)), 60),
        (replace(trial, wishes=Wishes(bless_within_s=0)), None),
        (replace(trial, pointer="rubbish"), None),
        (replace(UKI, efi=counted), 1800), (replace(UKI, efi=replace(counted, counted="")), None),
    ):  # fmt: skip
        made = plan(facts)
        assert (made.mode, made.within_s) in {("normal", within_s), ("uki", within_s)}
        switch = made.steps[-1].action
        assert isinstance(switch, do.SwitchRoot)
        assert switch.within_s == within_s
        assert ("restart if nobody" in switch.describe()) == (within_s is not None)


def test_a_damaged_pointer_is_told_and_kairos_names_are_taken() -> None:
    made = plan(replace(NODE, pointer="rubbish"))
    assert made.slot == "active"
    assert any("pointer is damaged" in remark for remark in made.remarks)


def test_failures_lead_to_the_next_slot_and_then_stop() -> None:
    failures: tuple[SlotFailure, ...] = ()
    for slot in ("active", "passive", "recovery"):
        made = plan(replace(NODE, failures=failures))
        assert made.slot == slot
        failures = (*failures, SlotFailure(slot, "root", "because", "mend it"))
    made = plan(replace(NODE, failures=failures))
    assert (made.mode, made.hint) == ("stop", "mend it")
    for slot in ("active", "passive", "recovery"):
        assert f"{slot} failed at root: because" in made.reason


def test_an_encrypted_partition_that_is_locked_is_told() -> None:
    locked = tuple(replace(d, fstype="crypto_LUKS") if d.label == "COS_PERSISTENT" else d for d in PARTITIONS)
    before = plan(replace(NODE, devices=locked))
    assert before.slot == "active"  # it may be in there: planned anew once it is open
    assert names(before)[1:3] == ["unlock", "look-unlocked"]
    assert "look-unlocked" in next(step.needs for step in before.steps if step.name == "state")
    tried = (Unlocking("/dev/vda3", "default.key: No key available with this passphrase."),)
    made = plan(replace(NODE, devices=locked, unlocked=tried))
    assert made.slot == "recovery"
    assert "is encrypted and was not unlocked: default.key: No key" in made.reason
    # opened: the volume inside is meant, although the one around it has the same label
    inside = BlockDevice("/dev/dm-0", "ext4", "COS_PERSISTENT")
    held = tuple(replace(d, held=d.fstype == "crypto_LUKS") for d in locked)
    made = plan(replace(NODE, devices=(*held, inside), unlocked=(Unlocking("/dev/vda3", ""),)))
    assert made.slot == "active"
    volume_step = next(step.action for step in made.steps if step.name == "volume-usr-local")
    assert volume_step == do.Mount("/dev/dm-0", "/sysroot/usr/local", "ext4", ("rw",))
    # recovery asks for no secrets; groups of volumes it activates
    grouped = (*PARTITIONS, BlockDevice("/dev/vdb", "LVM2_member"))
    made = plan(replace(NODE, cmdline="root=LABEL=COS_RECOVERY", devices=grouped))
    found = next(step.action for step in made.steps if step.name == "unlock")
    assert found == do.Unlock("/run/cos/unlocked.json", "/run/initramfs/esp", False)


def test_partuuid_is_not_uuid() -> None:
    volumes = TextFile("cos-layout.env", 'VOLUMES="PARTUUID=aa:/usr/local"')
    devices = tuple(replace(d, uuid="aa") if d.label == "COS_STATE" else d for d in PARTITIONS)
    assert plan(replace(NODE, devices=devices, layout=(volumes,))).slot == "recovery"
    devices = tuple(replace(d, partuuid="AA") if d.label == "COS_PERSISTENT" else d for d in devices)
    made = plan(replace(NODE, devices=devices, layout=(volumes,)))
    assert made.slot == "active"


def test_steps_that_do_not_need_each_other_may_run_side_by_side() -> None:
    steps = {step.name: step for step in plan(replace(NODE, layout=())).steps}
    assert "bind-etc-rancher" not in steps["bind-var-lib-rancher"].needs
    assert "overlay-etc" in steps["bind-etc-rancher"].needs
    assert "overlay-etc" not in steps["overlay-var"].needs


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "no JSON"),
        ("[]", "must be a map"),
        ('{"cmdlin": ""}', "did you mean 'cmdline'"),
        ('{"devices": [{"label": "x"}]}', "facts.devices[0] lacks the field 'path'"),
        ('{"images": 3}', "facts.images must be a list"),
        ('{"now_s": "x"}', "facts.now_s must be of type float"),
    ],
)
def test_facts_from_a_file_are_checked(text: str, what: str) -> None:
    with pytest.raises(BootError) as caught:
        from_json(text)
    assert what in str(caught.value)
