"""Does a real kernel boot from our initramfs? QEMU (TCG), direct kernel boot, Python as process 1.

A kernel with its modules is looked for in ``/boot`` and ``/lib/modules``; `BOOT_TEST_KERNEL` names another
root that holds both (say, a package unpacked by ``dpkg -x``).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from boot_lab import Disk, make_image, root_tree, run, why_not

from p2p_bootstrap.cli.main import main

QEMU = "qemu-system-x86_64"
TIMEOUT_S = 60
INIT = """#!/bin/sh
export PATH=/bin
busybox echo "MARK version $(busybox cat /etc/version)"
busybox echo "MARK kept $(busybox cat /var/lib/rancher/state 2>/dev/null)"
busybox echo "MARK root $(busybox grep ' / ' /proc/mounts)"
busybox echo "MARK modes $(busybox echo $(busybox ls /run/cos))"
busybox echo "MARK memory $(busybox grep MemAvailable /proc/meminfo)"
busybox echo x >>/var/lib/rancher/state
busybox sync
busybox poweroff -f
"""


def kernels() -> list[tuple[Path, Path]]:
    """Kernels and their folders of modules, the newest last."""
    root = Path(os.environ.get("BOOT_TEST_KERNEL", "/"))
    found = []
    for kernel in sorted((root / "boot").glob("vmlinuz-*")):
        modules = root / "lib/modules" / kernel.name.removeprefix("vmlinuz-")
        if (modules / "modules.dep").exists() and os.access(kernel, os.R_OK):
            found.append((kernel, modules))
    return found


@dataclass
class Computer:
    """A virtual machine with the parts of a disk as its drives."""

    kernel: Path
    initrd: Path

    def start(self, disk: Disk, cmdline: str, until: str) -> str:
        """The console's output until a line with `until`, or the end."""
        drives = [a for p in disk.parts.values() for a in ("-drive", f"file={p},if=virtio,format=raw")]
        append = f"console=ttyS0 quiet panic=-1 rd.immucore.sysrootwait=3 {cmdline}"
        machine = subprocess.Popen(
            [QEMU, "-accel", "tcg", "-cpu", "max,-cx16", "-m", "256", "-display", "none", "-serial", "stdio",
             "-monitor", "none", "-no-reboot", "-net", "none", "-kernel", str(self.kernel),
             "-initrd", str(self.initrd), "-append", append, *drives],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        )  # fmt: skip
        assert machine.stdout is not None
        lines: list[str] = []
        deadline = time.monotonic() + TIMEOUT_S
        try:
            os.set_blocking(machine.stdout.fileno(), False)
            while time.monotonic() < deadline:
                line = machine.stdout.readline()
                if line:
                    lines.append(line)
                    if any(word in line for word in (until, "Kernel panic", "it waits here")):
                        break
                elif machine.poll() is not None:
                    break
                else:
                    time.sleep(0.02)
            else:
                pytest.fail(f"no {until!r} within {TIMEOUT_S} s:\n{''.join(lines)}")
        finally:
            machine.kill()
            machine.wait()
        return "".join(lines)


@pytest.fixture(scope="module")
def computer(tmp_path_factory: pytest.TempPathFactory) -> Computer:
    if not shutil.which(QEMU):
        pytest.skip(f"no virtual machine: missing {QEMU} (qemu-system-x86, seabios)")
    if reason := why_not():
        pytest.skip(f"no disks for a virtual machine: {reason}")
    if not (found := kernels()):
        pytest.skip("no virtual machine: no kernel with its modules below / or $BOOT_TEST_KERNEL")
    kernel, modules = found[-1]
    initrd = tmp_path_factory.mktemp("initrd") / "initramfs"
    assert main(["boot", "build", "initramfs", "--file", str(initrd), "--modules", str(modules)]) == 0
    assert initrd.stat().st_size < 8_000_000
    return Computer(kernel, initrd)


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


def mark(console: str, name: str) -> str:
    lines = [line for line in console.splitlines() if f"MARK {name} " in line]
    assert len(lines) == 1, console
    return lines[0].split(f"MARK {name} ")[1].strip()


def test_a_kernel_boots_keeps_state_falls_back_and_never_gives_a_shell(
    computer: Computer, disk: Disk
) -> None:
    active = "root=LABEL=COS_ACTIVE"
    first = computer.start(disk, active, "Power down")
    assert mark(first, "version") == "v1"
    assert "squashfs ro" in mark(first, "root")
    assert mark(first, "modes") == "active_mode boot.json"
    second = computer.start(disk, active, "Power down")
    assert mark(second, "kept") == "x"
    # the active image loses its superblock
    broken = disk.folder / "broken.img"
    broken.write_bytes(bytes(8192))
    run("debugfs", "-w", "-R", "rm /cOS/active.img", disk.parts["state"])
    run("debugfs", "-w", "-R", f"write {broken} /cOS/active.img", disk.parts["state"])
    third = computer.start(disk, active, "Power down")
    assert mark(third, "version") == "v2"
    # without the persistent partition nothing is booted: a screen, and no shell
    del disk.parts["persistent"]
    fourth = computer.start(disk, active, "it waits here")
    assert "this machine can't boot" in fourth
    assert "no partition answers to LABEL=COS_PERSISTENT" in fourth
    assert "MARK" not in fourth
