"""Does a real kernel boot from our initramfs? QEMU (TCG), direct kernel boot, Python as process 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from boot_lab import Disk, make_image, root_tree, run, why_not
from vm_lab import Drive, Machine, kernels, mark, wait_for
from vm_lab import why_not as why_no_machine

from p2p_bootstrap.cli.main import main

LIMIT_S = 900  # some 6 s on a quiet machine
pytestmark = pytest.mark.timeout(1500)
INIT = """#!/bin/sh
export PATH=/bin
busybox echo "MARK version $(busybox cat /etc/version)"
busybox echo "MARK kept $(busybox cat /var/lib/rancher/state 2>/dev/null)"
busybox echo "MARK root $(busybox grep ' / ' /proc/mounts)"
busybox echo "MARK modes $(busybox echo $(busybox ls /run/cos))"
busybox echo "MARK unevictable $(busybox sleep 1; busybox grep Unevictable /proc/meminfo)"
busybox echo "MARK memory $(busybox grep -E 'MemTotal|MemAvailable' /proc/meminfo | busybox tr -d '\\n')"
busybox echo "MARK record $(busybox tr -d '\\n' </run/cos/boot.json)"
busybox echo x >>/var/lib/rancher/state
busybox sync
busybox poweroff -f
"""


@pytest.fixture
def machine(disk: Disk, tmp_path: Path) -> Machine:
    """A virtual machine with the parts of the disk as its drives."""
    if reason := why_no_machine() or why_not():
        pytest.skip(f"no virtual machine: {reason}")
    kernel, modules = kernels()[-1]
    initrd = tmp_path / "initramfs"
    assert main(["boot", "build", "initramfs", "--file", str(initrd), "--modules", str(modules)]) == 0
    assert initrd.stat().st_size < 8_000_000
    drives = [Drive(path) for path in disk.parts.values()]
    return Machine("machine", tmp_path, kernel, initrd, drives, memory_mib=256)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A disk whose active and passive images say who they are and power off."""
    state = tmp_path / "state/cOS"
    state.mkdir(parents=True)
    for slot, version in (("active", "v1"), ("passive", "v2")):
        tree = root_tree(tmp_path / version, version)
        (tree / "sbin/init").write_text(INIT)
        make_image(tree, state / f"{slot}.img")
    disk = Disk(tmp_path)
    disk.add("state", "COS_STATE", "32M", tmp_path / "state")
    disk.add("oem", "COS_OEM", "4M")
    disk.add("persistent", "COS_PERSISTENT", "16M")
    return disk


def test_a_kernel_boots_keeps_state_falls_back_and_never_gives_a_shell(disk: Disk, machine: Machine) -> None:
    active = "root=LABEL=COS_ACTIVE"
    state, oem, _ = machine.drives
    (disk.folder / "oem2.part").write_bytes(oem.path.read_bytes())
    # without the persistent partition nothing is booted: a screen, and no shell; then what was asked for
    drives = [Drive(state.path, shared=True), Drive(disk.folder / "oem2.part")]
    poor = Machine("poor", disk.folder, machine.kernel, machine.initrd, drives, memory_mib=256)
    try:
        poor.start(f"{active} rd.emergency=poweroff panic=1")
        first = machine.boot(active, "Power down", LIMIT_S)
        wait_for([poor], "Power down", LIMIT_S, may_fail=True)
    finally:
        poor.stop()
    assert mark(first, "version") == "v1"
    assert "squashfs ro" in mark(first, "root")
    assert mark(first, "modes") == "active_mode boot.json"
    made = json.loads(mark(first, "record"))
    assert made["peak_kib"] < 64 * 1024
    assert 0 < made["planning_s"] < made["total_s"]
    # what the initramfs took (30 MB) was given back: those pages can't be swapped out, so they'd be seen here
    assert int(mark(first, "unevictable").split()[1]) < 10_000
    screen = poor.console()
    assert "this machine can't boot" in screen
    assert "no partition answers to LABEL=COS_PERSISTENT" in screen
    assert "It switches itself off in 1 s." in screen
    assert "MARK" not in screen
    # the active image loses its superblock
    broken = disk.folder / "broken.img"
    broken.write_bytes(bytes(8192))
    run("debugfs", "-w", "-R", "rm /cOS/active.img", disk.parts["state"])
    run("debugfs", "-w", "-R", f"write {broken} /cOS/active.img", disk.parts["state"])
    second = machine.boot(active, "Power down", LIMIT_S)
    assert mark(second, "kept") == "x"
    assert mark(second, "version") == "v2"
