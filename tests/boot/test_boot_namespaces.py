"""Does a machine boot? Real loop devices, squashfs, overlays, binds and pivot_root, in a namespace."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from boot_lab import CMDLINE, Boot, MakeDisk, make_image, root_tree, run

from p2p_bootstrap.boot import slots
from p2p_bootstrap.boot.facts import BlockDevice, Facts, SlotImage, TextFile
from p2p_bootstrap.boot.plan import plan

PATH = "export PATH=/bin\n"
PROOF = """
export PATH=/bin
echo "version $(busybox cat /etc/version)"
echo "files $(busybox ls -x /)"
echo "host $(busybox ls /tmp/.. | busybox grep -c boot_lab)"
"""
LAYOUT = """
RW_PATHS="/var /etc /srv"
PERSISTENT_STATE_PATHS="/etc/ssh /var/lib/a-b /var/lib/a/b"
PERSISTENT_STATE_BIND=true
"""


def booted(boot: Boot, slot: str = "active") -> Boot:
    assert boot.code == 0, boot.why
    assert boot.record["outcome"] == "booted", boot.why
    assert boot.record["slot"] == slot, boot.why
    return boot


def stopped(boot: Boot) -> Boot:
    assert boot.code == 3, boot.why
    assert boot.record["outcome"] == "stopped", boot.why
    return boot


def value(boot: Boot, name: str) -> str:
    lines = [line for line in boot.output.splitlines() if line.startswith(f"{name} ")]
    assert len(lines) == 1, f"{name}: {boot.why}"
    return lines[0].removeprefix(f"{name} ")


def test_a_node_boots_into_its_image_and_keeps_what_must_last(make_disk: MakeDisk) -> None:
    disk = make_disk()
    write = "echo kept >/var/lib/rancher/state; echo gone >/var/ephemeral\n"
    first = booted(disk.boot(PROOF + write + "echo id $(busybox cat /etc/machine-id)\n"))
    assert value(first, "version") == "v1"
    assert value(first, "host") == "0"
    ask = (
        "echo kept $(busybox cat /var/lib/rancher/state); [ -e /var/ephemeral ] || echo ephemeral gone;"
        "echo id $(busybox cat /etc/machine-id); echo modes $(busybox ls /run/cos)\n"
        "busybox touch /sbin/x 2>/dev/null || echo root read-only\n"
    )
    second = booted(disk.boot(PROOF + ask))
    assert value(second, "kept") == "kept"
    assert value(second, "ephemeral") == "gone"
    assert value(second, "root") == "read-only"
    assert len(value(second, "id")) == 32
    assert value(second, "id") == value(first, "id")
    assert value(second, "modes").split() == ["active_mode", "boot.json"]
    done = [entry for entry in second.record["entries"] if entry["outcome"] == "done"]
    assert len(done) == len(second.record["entries"]) > 20
    assert 1000 < second.record["peak_kib"] < 200_000


def test_paths_with_and_without_a_hyphen_never_share_a_place(make_disk: MakeDisk) -> None:
    disk = make_disk()
    probe = "echo one $(busybox cat /var/lib/a-b/name); echo other $(busybox cat /var/lib/a/b/name)\n"
    boot = booted(disk.boot(PROOF + probe, layout=LAYOUT))
    assert (value(boot, "one"), value(boot, "other")) == ("a-b", "a/b")


def test_mounts_of_the_cloud_config_are_honoured(make_disk: MakeDisk) -> None:
    config = "#cloud-config\ninstall:\n  bind_mounts: [/srv/data]\n  ephemeral_mounts: [/home]\n"
    disk = make_disk(config=config)
    booted(disk.boot("echo bound >/srv/data/f; echo scratch >/home/f\n", layout=LAYOUT))
    ask = "echo data $(busybox cat /srv/data/f); [ -e /home/f ] || echo home empty\n"
    again = booted(disk.boot(PROOF + ask, layout=LAYOUT))
    assert value(again, "data") == "bound"
    assert value(again, "home") == "empty"


def test_a_new_image_brings_its_files_and_keeps_the_nodes_own(make_disk: MakeDisk, images: Path) -> None:
    disk = make_disk(passive=images / "v2.squashfs")
    edit = "echo mine >/etc/rancher/image.conf; echo new >/etc/ssh/own.conf\n"
    booted(disk.boot(edit, layout=LAYOUT))
    ask = (
        "echo sshd $(busybox cat /etc/ssh/sshd_config); echo own $(busybox cat /etc/ssh/own.conf)\n"
        "echo rancher $(busybox cat /etc/rancher/image.conf)\n"
    )
    passive = CMDLINE.replace("COS_ACTIVE", "COS_PASSIVE").replace("active.img", "passive.img")
    after = booted(disk.boot(PROOF + ask, cmdline=passive, layout=LAYOUT), "passive")
    assert value(after, "version") == "v2"
    assert value(after, "sshd") == "two"  # changed by the image alone
    assert value(after, "own") == "new"  # the node's own
    assert value(after, "rancher") == "mine"  # changed by both: policy "local"
    assert any("/etc/rancher/image.conf" in remark for remark in after.record["remarks"])
    back = booted(disk.boot(PROOF + ask, layout=LAYOUT))
    assert value(back, "sshd") == "one"
    assert value(back, "rancher") == "mine"


def test_a_damaged_active_image_falls_back_to_passive(
    make_disk: MakeDisk, images: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.img"
    broken.write_bytes(b"\0" * 4096 + (images / "v1.squashfs").read_bytes()[4096:])
    boot = booted(make_disk(broken, images / "v2.squashfs").boot(PROOF), "passive")
    assert value(boot, "version") == "v2"
    assert "superblock is damaged" in boot.record["reason"]


def test_a_slot_on_trial_that_nobody_blesses_restarts_the_machine_by_itself(
    make_disk: MakeDisk, images: Path, tmp_path: Path
) -> None:
    """Whatever its init does: one that hangs; one that ends when it is asked to. A blessed one is let be."""
    trial = tmp_path / "slots.env"
    trial.write_bytes(slots.render(slots.SlotTable(trial=True, tries_left=3, generation=1)))
    config = "#cloud-config\np2p: {bless: {within_s: 1}}\n"
    disk = make_disk(passive=images / "v2.squashfs", config=config)
    run("debugfs", "-w", "-R", f"write {trial} /cOS/slots.env", disk.parts["state"])
    forever = "while :; do busybox sleep 1; done\n"
    hangs, polite = f"trap '' INT\n{forever}", f"trap 'echo asked; exit 0' INT\n{forever}"
    blessed = "busybox touch /run/cos/blessed; busybox sleep 2\n"
    left = disk.boot(PATH + hangs, grace_s=0.1)
    assert left.code == -signal.SIGHUP, left.why  # what a restart is in a namespace
    assert left.record["within_s"] == 1
    assert "nobody blessed this slot within 1 s" in left.output
    asked = booted(disk.boot(PATH + polite))
    assert "asked" in asked.output
    let_be = booted(disk.boot(PATH + blessed, grace_s=0.1))
    assert "nobody blessed" not in let_be.output
    # the tries are spent
    after = booted(disk.boot(PROOF), "passive")
    assert value(after, "version") == "v2"
    assert after.record["within_s"] is None
    assert (after.record["image"], let_be.record["image"]) == ("/cOS/passive.img", "/cOS/active.img")


def test_an_image_that_can_be_probed_but_not_mounted_falls_back(
    make_disk: MakeDisk, images: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.img"
    short.write_bytes((images / "v1.squashfs").read_bytes()[:4096])  # a good superblock and nothing behind it
    boot = booted(make_disk(short, images / "v2.squashfs").boot(PROOF), "passive")
    assert value(boot, "version") == "v2"
    assert [failure["slot"] for failure in boot.record["failures"]] == ["active"]


def test_both_images_damaged_boots_recovery_without_touching_what_lasts(
    make_disk: MakeDisk, images: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.img"
    broken.write_bytes(b"\0" * 8192)
    disk = make_disk(broken, broken, images / "v2.squashfs")
    boot = booted(disk.boot(PROOF + "echo modes $(busybox ls /run/cos)\n"), "recovery")
    assert value(boot, "modes").split() == ["boot.json", "recovery_mode"]
    assert disk.files("persistent", "/.kairos-p2p/canary") == ""


def test_a_missing_persistent_partition_fails_closed(make_disk: MakeDisk, images: Path) -> None:
    disk = make_disk(passive=images / "v2.squashfs", persistent="")
    boot = stopped(disk.boot(PROOF))
    assert "no partition answers to LABEL=COS_PERSISTENT" in boot.record["reason"]
    assert "version" not in boot.output
    # kept where it survives: the OEM partition
    disk.unplug()
    assert "COS_PERSISTENT" in disk.files("oem", "/.kairos-p2p/boots/1.json")


def test_an_emptied_persistent_partition_is_not_taken_for_a_new_one(make_disk: MakeDisk) -> None:
    disk = make_disk()
    booted(disk.boot("echo kept >/var/lib/rancher/state\n"))
    disk.unplug()
    run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "COS_PERSISTENT", disk.parts["persistent"])
    boot = stopped(disk.boot(PROOF))
    assert "lacks its canary" in boot.record["reason"]
    assert "version" not in boot.output


@pytest.mark.parametrize("name", ["persistent", "oem", "state"])
def test_a_partition_with_a_damaged_superblock_stops_the_boot_and_is_left_alone(
    make_disk: MakeDisk, name: str
) -> None:
    """It is neither mounted, nor repaired away, nor taken for a missing one that may be done without."""
    disk = make_disk()
    booted(disk.boot("echo kept >/var/lib/rancher/state\n"))
    disk.unplug()
    part = disk.parts[name]
    good = part.read_bytes()
    bad = bytearray(good)
    bad[1024 + 120] ^= 1  # in the label: the checksum no longer fits
    part.write_bytes(bad)
    boot = stopped(disk.boot(PROOF))
    assert f"no partition answers to LABEL=COS_{name.upper()}" in boot.record["reason"]
    assert "version" not in boot.output
    disk.unplug()
    assert part.read_bytes()[:4096] == bytes(bad)[:4096]
    part.write_bytes(good)  # mended: everything is there
    again = booted(disk.boot(PATH + "echo kept $(busybox cat /var/lib/rancher/state)\n"))
    assert value(again, "kept") == "kept"


def test_a_lost_bind_folder_is_not_taken_for_an_empty_one(make_disk: MakeDisk) -> None:
    disk = make_disk()
    booted(disk.boot("echo kept >/var/lib/rancher/state\n"))
    disk.unplug()
    commands = "cd /.state\nrm var-lib-rancher.bind/state\nrmdir var-lib-rancher.bind\n"
    subprocess.run(["debugfs", "-w", "-f", "-", disk.parts["persistent"]], input=commands, text=True,
                   capture_output=True, check=True)  # fmt: skip
    boot = stopped(disk.boot(PROOF))
    assert "/var/lib/rancher kept is gone" in boot.record["reason"]


def test_two_partitions_with_one_label_are_refused_with_the_reason(make_disk: MakeDisk) -> None:
    disk = make_disk()
    disk.add("other", "COS_PERSISTENT", "4M")
    boot = stopped(disk.boot(PROOF))
    assert "2 partitions answer to LABEL=COS_PERSISTENT" in boot.record["reason"]
    assert "unplug the disk" in boot.record["hint"]


def test_a_full_disk_stops_an_image_change_but_not_the_old_image(make_disk: MakeDisk, tmp_path: Path) -> None:
    big = tmp_path / "big"
    root_tree(big, "big", {"etc/rancher/image.conf": "x"})
    (big / "etc/rancher/large").write_bytes(b"x" * 12_000_000)
    disk = make_disk(persistent="8M")
    booted(disk.boot("echo kept >/var/lib/rancher/state\n"))
    shutil.copy(make_image(big, tmp_path / "big.img"), disk.folder / "state/cOS/passive.img")
    disk.unplug()
    run("debugfs", "-w", "-R", f"write {tmp_path}/big.img /cOS/passive.img", disk.parts["state"])
    passive = CMDLINE.replace("COS_ACTIVE", "COS_PASSIVE").replace("active.img", "passive.img")
    boot = booted(disk.boot(PROOF + "echo kept $(busybox cat /var/lib/rancher/state)\n", cmdline=passive))
    assert "No space left" in boot.record["failures"][0]["reason"]
    assert value(boot, "version") == "v1"
    assert value(boot, "kept") == "kept"


def test_a_slot_on_trial_that_nobody_blesses_is_left(
    make_disk: MakeDisk, images: Path, tmp_path: Path
) -> None:
    """The new image boots once; nobody blesses it, so the next boot is the old one; no loader helps."""
    disk = make_disk(passive=images / "v2.squashfs")
    on_trial = slots.SlotTable("/cOS/passive.img", "/cOS/active.img", True, 1, 1)
    (tmp_path / "slots.env").write_bytes(slots.render(on_trial))
    run("debugfs", "-w", "-R", f"write {tmp_path}/slots.env /cOS/slots.env", disk.parts["state"])
    assert value(booted(disk.boot(PROOF)), "version") == "v2"
    fallen = booted(disk.boot(PROOF), "passive")
    assert value(fallen, "version") == "v1"
    assert "never blessed" in fallen.record["reason"]


def test_a_slot_that_is_blessed_stays(make_disk: MakeDisk, images: Path, tmp_path: Path) -> None:
    disk = make_disk(passive=images / "v2.squashfs")
    on_trial = slots.SlotTable("/cOS/passive.img", "/cOS/active.img", True, 1, 1)
    (tmp_path / "slots.env").write_bytes(slots.render(on_trial))
    run("debugfs", "-w", "-R", f"write {tmp_path}/slots.env /cOS/slots.env", disk.parts["state"])
    boot = booted(disk.boot(PROOF))
    assert any("on trial" in remark for remark in boot.record["remarks"])
    disk.unplug()
    blessed, _ = slots.bless(slots.parse(disk.files("state", "/cOS/slots.env")), "active")
    (tmp_path / "blessed.env").write_bytes(slots.render(blessed))
    run("debugfs", "-w", "-R", "rm /cOS/slots.env", disk.parts["state"])
    run("debugfs", "-w", "-R", f"write {tmp_path}/blessed.env /cOS/slots.env", disk.parts["state"])
    for _ in range(2):
        assert value(booted(disk.boot(PROOF)), "version") == "v2"


def test_kill_9_before_every_step_then_boot_again(make_disk: MakeDisk) -> None:
    """One disk, killed at each step of its first boots; what was kept survives every one of them."""
    disk = make_disk()
    names = [step.name for step in plan(EXAMPLE).steps]
    for name in names:
        killed = disk.boot(PROOF, kill_at=name, layout=LAYOUT)
        assert killed.code != 0, f"never came to {name}: {killed.why}"
        assert "version" not in killed.output
    booted(disk.boot("echo kept >/var/lib/rancher/state\n", layout=LAYOUT))
    for name in names[-12:]:
        disk.boot(kill_at=name, layout=LAYOUT)
    boot = booted(disk.boot(PROOF + "echo kept $(busybox cat /var/lib/rancher/state)\n", layout=LAYOUT))
    assert value(boot, "kept") == "kept"


def test_kill_9_inside_the_filling_and_the_merging(make_disk: MakeDisk, images: Path) -> None:
    """Killed before each rename and each flush that makes something last: each is then done again."""
    disk = make_disk(passive=images / "v2.squashfs")
    passive = CMDLINE.replace("COS_ACTIVE", "COS_PASSIVE").replace("active.img", "passive.img")
    for cmdline, sshd in ((CMDLINE, "one"), (passive, "two"), (CMDLINE, "one")):
        calls = 0
        while True:
            boot = disk.boot(kill_call=(calls := calls + 1), cmdline=cmdline, layout=LAYOUT)
            if boot.code == 0:
                break
            assert calls < 60, boot.why
        ask = "echo sshd $(busybox cat /etc/ssh/sshd_config); echo files $(busybox ls /etc/ssh)\n"
        boot = disk.boot(PATH + ask, cmdline=cmdline, layout=LAYOUT)
        assert value(boot, "sshd") == sshd
        assert value(boot, "files") == "banner sshd_config"
        assert calls > 1


EXAMPLE = Facts(
    cmdline=CMDLINE,
    devices=tuple(
        BlockDevice(f"/dev/{name}", "ext4", f"COS_{name}") for name in ("STATE", "OEM", "PERSISTENT")
    ),
    images=(SlotImage("/cOS/active.img", "squashfs", "x"),),
    layout=(TextFile("cos-layout.env", LAYOUT),),
)


@pytest.mark.parametrize("kind", ["erofs", "ext4"])
def test_other_kinds_of_images_boot_too(make_disk: MakeDisk, tmp_path: Path, kind: str) -> None:
    if kind == "erofs" and not shutil.which("mkfs.erofs"):
        pytest.skip("missing: mkfs.erofs (erofs-utils)")
    image = make_image(root_tree(tmp_path / "tree", kind), tmp_path / "image", kind)
    assert value(booted(make_disk(image).boot(PROOF)), "version") == kind


def test_from_memory_nothing_lasts_but_what_is_named(make_disk: MakeDisk) -> None:
    disk = make_disk()
    probe = "echo x >/etc/new && echo root writable; echo modes $(busybox ls /run/cos)\n"
    boot = booted(disk.boot(PROOF + probe, cmdline=f"{CMDLINE} kairos.ram"))
    assert boot.record["mode"] == "ram"
    assert value(boot, "root") == "writable"
    assert value(boot, "modes") == "active_mode boot.json in_ram_mode"
    assert disk.files("persistent", "/.kairos-p2p/canary") == ""


def test_live_changes_are_in_memory(make_disk: MakeDisk, images: Path, tmp_path: Path) -> None:
    medium = tmp_path / "medium"
    medium.mkdir()
    shutil.copy(images / "v2.squashfs", medium / "rootfs.squashfs")
    disk = make_disk()
    disk.add("live", "COS_LIVE", "16M", medium)
    boot = booted(
        disk.boot(PROOF + "echo x >/bin/new && echo root writable\n", cmdline="root=live:LABEL=COS_LIVE"),
        "live",
    )
    assert value(boot, "version") == "v2"
    assert value(boot, "root") == "writable"
