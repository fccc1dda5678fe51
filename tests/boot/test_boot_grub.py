"""Does GRUB boot the slots, count the tries, and fall back from one that never proves healthy? In QEMU.

One machine with BIOS, without a network and without a person: a disk behind AHCI with GRUB in its first
sectors, OEM on NVMe, what must last on a USB disk; the drivers are loaded as the devices ask for them. Its
active slot is on trial, and nobody blesses it: the guard restarts the machine, GRUB finds the try spent, and
passive comes up.
"""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from boot_lab import Disk, make_image, root_tree, run, why_not
from vm_lab import QUIET, Drive, Machine, kernels, mark, wait_for
from vm_lab import why_not as why_no_machine

from p2p_bootstrap.boot import slots
from p2p_bootstrap.cli.main import main

LIMIT_S = 900  # some 40 s on a quiet machine
MODULES = Path("/usr/lib/grub/i386-pc")
NEEDED = (
    "biosdisk", "part_msdos", "ext2", "squash4", "loopback", "search", "search_label", "linux", "normal",
    "configfile", "loadenv", "echo", "test", "serial", "terminal",
)  # fmt: skip
EARLY = """serial --unit=0 --speed=115200
terminal_output serial
search --no-floppy --label COS_STATE --set=root
configfile ($root)/grub2/grub.cfg
"""
SECTOR = 512
FIRST_SECTOR = 2048  # of the partition
SLOT = """#!/bin/sh
export PATH=/bin asked=
trap 'asked=1' INT
busybox echo "MARK slot $(busybox ls /run/cos | busybox grep _mode) $(busybox cat /etc/version)"
busybox echo "MARK line $(busybox cat /proc/cmdline)"
for place in /run/initramfs/cos-state /oem /usr/local; do
  devices="$devices $(busybox grep " $place " /proc/mounts | busybox cut -d' ' -f1)"
done
busybox echo "MARK devices $devices"
busybox echo "MARK kept $(busybox cat /var/lib/rancher/state 2>/dev/null)"
busybox echo x >>/var/lib/rancher/state
busybox sync
"""
NEVER_WELL = 'until [ "$asked" ]; do busybox sleep 1; done; busybox reboot -f\n'
ENDS = "busybox poweroff -f\n"


def boot_disk(path: Path, partition: Path) -> None:
    """A disk with GRUB in front of one partition, as grub-install would leave it."""
    core = path.with_name("core.img")
    early = path.with_name("early.cfg")
    early.write_text(EARLY)
    run("grub-mkimage", "-O", "i386-pc", "-o", core, "-c", early, "-p", "/grub2", *NEEDED)
    assert core.stat().st_size < (FIRST_SECTOR - 1) * SECTOR
    with path.open("wb") as disk:
        disk.write((MODULES / "boot.img").read_bytes()[:440])
        disk.seek(SECTOR)
        disk.write(core.read_bytes())
        disk.seek(FIRST_SECTOR * SECTOR)
        disk.write(partition.read_bytes())
    size = partition.stat().st_size // SECTOR
    with path.open("r+b") as disk:  # the table of partitions
        disk.seek(446)
        disk.write(struct.pack("<B3sB3sII", 0x80, b"\0\2\0", 0x83, b"\xff\xff\xff", FIRST_SECTOR, size))
        disk.seek(510)
        disk.write(b"\x55\xaa")


@pytest.mark.timeout(1500)
def test_grub_leaves_a_slot_that_never_gets_blessed(tmp_path: Path) -> None:
    if reason := why_no_machine() or why_not():
        pytest.skip(f"no virtual machine: {reason}")
    if not shutil.which("grub-mkimage") or not (MODULES / "boot.img").exists():
        pytest.skip("no GRUB for a BIOS (grub-pc-bin, grub-common)")
    kernel, modules = kernels()[-1]
    initrd = tmp_path / "initramfs"
    build = ["boot", "build", "initramfs", "--hardware", "--modules", str(modules), "--file", str(initrd)]
    assert main(build) == 0
    state = tmp_path / "state/cOS"
    state.mkdir(parents=True)
    for name, version, end in (("slot-1-x", "new", NEVER_WELL), ("active", "old", ENDS)):
        tree = root_tree(tmp_path / version, version)
        (tree / "sbin/init").write_text(SLOT + end)
        (tree / "boot").mkdir()
        shutil.copy(kernel, tree / "boot/vmlinuz")
        shutil.copy(initrd, tree / "boot/initrd")
        make_image(tree, state / f"{name}.img")
    trial = slots.SlotTable("/cOS/slot-1-x.img", "/cOS/active.img", True, 1, 1)
    (state / "slots.env").write_bytes(slots.render(trial))
    (tmp_path / "state/grub2").mkdir()
    config = tmp_path / "state/grub2/grub.cfg"
    assert (
        main(["boot", "build", "grub-cfg", "--file", str(config), "--timeout", "0", "--cmdline", QUIET]) == 0
    )
    oem = tmp_path / "oem"
    oem.mkdir()
    (oem / "90_custom.yaml").write_text("#cloud-config\np2p: {bless: {within_s: 1}}\n")
    parts = Disk(tmp_path)
    parts.add("state", "COS_STATE", "80M", tmp_path / "state")
    parts.add("oem", "COS_OEM", "4M", oem)
    parts.add("persistent", "COS_PERSISTENT", "16M")
    boot_disk(tmp_path / "disk.img", parts.parts["state"])
    drives = [
        Drive(tmp_path / "disk.img", controller="ahci"), Drive(parts.parts["oem"], controller="nvme"),
        Drive(parts.parts["persistent"], controller="usb"),
    ]  # fmt: skip
    machine = Machine("grub", tmp_path, None, None, drives, memory_mib=384, restarts=True)
    machine.start()
    try:
        wait_for([machine], "MARK slot passive_mode", LIMIT_S)
        wait_for([machine], "MARK kept x", LIMIT_S)
    finally:
        machine.stop()
    first, fallback, second = machine.console().partition("MARK slot passive_mode")
    assert "nobody blessed this slot within 1 s" in first
    assert mark(first, "slot") == "active_mode new"
    assert "kairos.counted" in mark(first, "line")  # GRUB wrote the pointer before it started the kernel
    assert mark(fallback + second, "slot") == "passive_mode old"
    assert "cos-img/filename=/cOS/active.img" in mark(second, "line")
    assert mark(second, "devices").split() == ["/dev/sda1", "/dev/nvme0n1", "/dev/sdb"]
    with (tmp_path / "disk.img").open("rb") as disk, (tmp_path / "after.part").open("wb") as after:
        disk.seek(FIRST_SECTOR * SECTOR)
        shutil.copyfileobj(disk, after)
    pointer = run("debugfs", "-R", "cat /cOS/slots.env", tmp_path / "after.part").partition("debugfs ")[0]
    assert slots.parse(pointer).spent
