"""Virtual machines for tests: QEMU without KVM, kernel and initramfs directly, the console in a file.

The clock of machines that talk to each other counts instructions (``-icount``): on a busy machine they are
slow, but nothing times out in them, and one that waits for another idles no longer than on a quiet one. It
costs a third more time, so the others do without.

A kernel with its modules is looked for in ``/boot`` and ``/lib/modules``; `BOOT_TEST_KERNEL` names another
root that holds both (say, a package unpacked by ``dpkg -x``). Everything started dies with `stop`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import struct
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import image_lab
import pytest
from boot_lab import run

from p2p_bootstrap.cli.main import main
from p2p_network.token import NetworkToken, format_token

# what a machine of the tests starts with, all in one image; systemd without what nobody looks at here
INITS = {
    "busybox": "/usr/lib/busybox/init", "openrc": "/usr/sbin/openrc-init",
    "systemd": "/usr/lib/systemd/systemd systemd.mask=systemd-udev-trigger.service systemd.mask=getty.target "
    "systemd.mask=systemd-update-utmp.service systemd.mask=systemd-journal-flush.service",
}  # fmt: skip
ACTIVE = "root=LABEL=COS_ACTIVE cos-img/filename=/cOS/active.img net.ifnames=0"
QEMU = "qemu-system-x86_64"
# a session of its own: the kernel shares its time out among sessions; so Ctrl-C does not reach it
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
PANICS = ("Kernel panic", "Oops:", "this machine can't boot")
POLL_S = 0.1
ZSTD = b"\x28\xb5\x2f\xfd"
# what an emulated machine need not do: it finds translated code again by its address, and forgets more than
# it must where pages are large
SPARING = (
    "mitigations=off nokaslr norandmaps transparent_hugepage=never init_on_alloc=0 cryptomgr.notests audit=0 "
    "apparmor=0 nowatchdog random.trust_cpu=on"
)
# a busy machine misses ticks, which the kernel takes for a broken timer
QUIET = f"console=ttyS0 quiet panic=-1 no_timer_check {SPARING} rd.immucore.sysrootwait=5"
# page tables of five levels cost time; with erms it copies byte by byte
CPU = "max,-cx16,-la57,-erms"
# for machines whose clock counts instructions: a busy machine mistakes the time stamp counter of others, and
# these would never find out; ACPI spends a seventh of a second on each interrupt line
OWN_CLOCK = "tsc=reliable acpi=noirq"


def kernels() -> list[tuple[Path, Path]]:
    """Kernels and their folders of modules, the newest last."""
    root = Path(os.environ.get("BOOT_TEST_KERNEL", "/"))
    found = []
    for kernel in sorted((root / "boot").glob("vmlinuz-*")):
        modules = root / "lib/modules" / kernel.name.removeprefix("vmlinuz-")
        if (modules / "modules.dep").exists() and os.access(kernel, os.R_OK):
            found.append((kernel, modules))
    return found


def why_not() -> str:
    """Why no virtual machine runs here; "" if one can."""
    if not shutil.which(QEMU):
        return f"missing {QEMU} (qemu-system-x86, seabios)"
    return "" if kernels() else "no kernel with its modules below / or $BOOT_TEST_KERNEL"


Controller = Literal["virtio", "ahci", "nvme", "usb", "scsi"]
# each disk behind a controller of its own
CONTROLLERS: dict[Controller, tuple[str, str]] = {
    "virtio": ("", "virtio-blk-pci"),
    "ahci": ("ich9-ahci,id=c{0}", "ide-hd,bus=c{0}.0"),
    "nvme": ("", "nvme,serial=c{0}"),
    "usb": ("qemu-xhci,id=c{0}", "usb-storage,bus=c{0}.0"),
    "scsi": ("virtio-scsi-pci,id=c{0}", "scsi-hd,bus=c{0}.0"),
}


@dataclass
class Drive:
    """A disk of a machine. `shared`: many machines read it, none writes."""

    path: Path
    shared: bool = False
    controller: Controller = "virtio"

    def arguments(self, number: int) -> list[str]:
        extra = ",readonly=on,file.locking=off" if self.shared else ""
        bus, disk = (text.format(number) for text in CONTROLLERS[self.controller])
        return [
            "-drive", f"file={self.path},if=none,id=d{number},format=raw,cache=unsafe{extra}",
            *(["-device", bus] if bus else []), "-device", f"{disk},drive=d{number},bootindex={number + 1}",
        ]  # fmt: skip


@dataclass
class Machine:
    """One virtual machine.

    Attributes:
        kernel: None: the firmware boots from the first drive.
        net: arguments for a network; none: no network.
        prefix: what QEMU is started by, e.g. ``ip netns exec NAME``.
        own_clock: whether its clock counts instructions.
        restarts: whether a restart is one; otherwise it is its end.
    """

    name: str
    folder: Path
    kernel: Path | None
    initrd: Path | None
    drives: Sequence[Drive]
    memory_mib: int = 512
    net: Sequence[str] = ("-net", "none")
    prefix: Sequence[str] = ()
    own_clock: bool = False
    restarts: bool = False
    process: subprocess.Popen[bytes] | None = None
    boots: int = 0
    _files: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}-{self.boots}.log"

    def start(self, cmdline: str = "") -> None:
        self.stop()
        self.boots += 1
        console = self._files.enter_context(self.log.open("wb"))
        sparing = OWN_CLOCK if self.own_clock else ""
        boot = ["-kernel", self.kernel, "-initrd", self.initrd, "-append", f"{QUIET} {sparing} {cmdline}"]
        clock = ["-icount", "shift=0", "-rtc", "clock=vm"] if self.own_clock else []
        drives = [arg for number, drive in enumerate(self.drives) for arg in drive.arguments(number)]
        self.process = subprocess.Popen(
            [*DIES_WITH_US, *self.prefix, QEMU, "-accel", "tcg", *clock, "-cpu", CPU,
             "-m", str(self.memory_mib), "-display", "none", "-serial", "stdio", "-monitor", "none",
             *([] if self.restarts else ["-no-reboot"]), *self.net, *(boot if self.kernel else []), *drives],
            stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self._files.close()

    def console(self) -> str:
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    @property
    def is_on(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def boot(self, cmdline: str, until: str, timeout_s: float = 120) -> str:
        """Start, and give the console once it says `until`; the machine is then switched off."""
        self.start(cmdline)
        try:
            wait_for([self], until, timeout_s)
            return self.console()
        finally:
            self.stop()


def wait_for(machines: Iterable[Machine], until: str, timeout_s: float, *, may_fail: bool = False) -> None:
    """Wait until every console says `until`; fails as soon as one panics (unless it may) or ends."""
    waiting = list(machines)
    deadline = time.monotonic() + timeout_s
    while waiting:
        for machine in list(waiting):
            on, text = machine.is_on, machine.console()
            if until in text:
                waiting.remove(machine)
            elif not on or (not may_fail and any(word in text for word in PANICS)):
                pytest.fail(f"{machine.name} never said {until!r}:\n{text[-6000:]}")
        if time.monotonic() > deadline:
            texts = "\n".join(f"--- {m.name}\n{m.console()[-4000:]}" for m in waiting)
            pytest.fail(f"no {until!r} within {timeout_s:g} s:\n{texts}")
        if waiting:
            time.sleep(POLL_S)


def mark(console: str, name: str) -> str:
    """What a line ``MARK name ...`` of the console says; there must be one."""
    lines = [line for line in console.splitlines() if f"MARK {name} " in line]
    assert len(lines) == 1, f"MARK {name}\n{console[-6000:]}"
    return lines[0].split(f"MARK {name} ")[1].strip()


def new_token() -> str:
    """A network token for machines on one local network."""
    return format_token(NetworkToken(secrets.token_bytes(32), (), False, True))


def partition(path: Path, label: str, size: str, tree: Path | None = None) -> Path:
    """A file that holds an ext4 file system."""
    source = ["-d", str(tree)] if tree else []
    path.unlink(missing_ok=True)
    run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-L", label, *source, path, size)
    return path


@dataclass
class Whole:
    """An image that has everything, once as active and once as passive slot.

    Attributes:
        state: the state partition's file; machines share it, or `copy_state` makes one to be written.
        has_openrc: whether OpenRC could be had.
    """

    folder: Path
    state: Path
    kernel: Path
    initrd: Path
    has_openrc: bool

    def copy_state(self, path: Path, pointer: bytes = b"") -> Path:
        """A state partition of one's own, with a slot pointer if there is one."""
        run("cp", "--sparse=always", self.state, path)
        if pointer:
            file = path.with_suffix(".env")
            file.write_bytes(pointer)
            run("debugfs", "-w", "-R", f"write {file} /cOS/slots.env", path)
        return path

    def disks(self, folder: Path, config: str, state: Path | None = None) -> list[Drive]:
        """A machine's own partitions; `config` is what lies on the OEM partition."""
        oem = folder / "oem"
        oem.mkdir(parents=True)
        (oem / "90_custom.yaml").write_text(config)
        return [
            Drive(state or self.state, shared=state is None),
            Drive(partition(folder / "oem.part", "COS_OEM", "8M", oem)),
            Drive(partition(folder / "persistent.part", "COS_PERSISTENT", "128M")),
        ]


def unpack(initrd: Path) -> None:
    """Take the compression off: here that is quicker done by us than by the machine's kernel."""
    if initrd.read_bytes().startswith(ZSTD):
        plain = subprocess.run(["zstd", "-dqc", initrd], capture_output=True, check=True).stdout
        initrd.write_bytes(plain)


def plain_kernel(kernel: Path, folder: Path) -> Path:
    """The kernel without its compression, as `unpack`; as it is where that can't be done.

    What is in a bzImage, and where, is told by its header (the kernel's Documentation/arch/x86/boot.rst); an
    ELF file with a PVH entry is booted by QEMU as it is.
    """
    image = kernel.read_bytes()
    sectors, (offset, length) = image[0x1F1], struct.unpack_from("<2I", image, 0x248)
    packed = image[(sectors + 1) * 512 + offset :][:length]
    if image[0x202:0x206] != b"HdrS" or not packed.startswith(ZSTD):
        return kernel
    # the last four bytes are not the archive's, and the program complains of them
    found = subprocess.run(["zstd", "-dqc"], input=packed[:-4], capture_output=True, check=False).stdout
    if not found.startswith(b"\x7fELF"):
        return kernel
    plain = folder / "vmlinux"
    plain.write_bytes(found)
    return plain


def make_whole(folder: Path) -> Whole:
    """Make the image, the partition that holds it, and an initramfs."""
    tree = image_lab.make(folder)
    kernel, modules = kernels()[-1]
    inits = [word for init in INITS for word in ("--init", init)]
    assert main(["boot", "build", "units", "--root", str(tree), *inits]) == 0
    slots = folder / "state/cOS"
    slots.mkdir(parents=True)
    run("mksquashfs", tree, slots / "active.img", "-quiet", "-no-progress", "-noappend", "-comp", "lz4")
    os.link(slots / "active.img", slots / "passive.img")
    state = partition(folder / "state.part", "COS_STATE", "320M", folder / "state")
    initrd = folder / "initramfs"
    extra = [argument for name in ("virtio_net", "tun") for argument in ("--module", name)]
    assert main(["boot", "build", "initramfs", "--file", str(initrd), "--modules", str(modules), *extra]) == 0
    unpack(initrd)
    has_openrc = (tree / "usr/sbin/openrc-init").exists()
    shutil.rmtree(tree)
    return Whole(folder, state, plain_kernel(kernel, folder), initrd, has_openrc)
