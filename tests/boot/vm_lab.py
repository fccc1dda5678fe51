"""Virtual machines for tests: QEMU without KVM, kernel and initramfs directly, the console in a file.

A kernel with its modules is looked for in ``/boot`` and ``/lib/modules``; `BOOT_TEST_KERNEL` names another
root that holds both (say, a package unpacked by ``dpkg -x``). Everything started dies with `stop`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from boot_lab import run

QEMU = "qemu-system-x86_64"
PANICS = ("Kernel panic", "Oops:", "this machine can't boot")
POLL_S = 0.1


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


@dataclass
class Drive:
    """A disk of a machine. `shared`: many machines read it, none writes."""

    path: Path
    shared: bool = False

    def arguments(self) -> list[str]:
        extra = ",readonly=on,file.locking=off" if self.shared else ""
        return ["-drive", f"file={self.path},if=virtio,format=raw,cache=unsafe{extra}"]


@dataclass
class Machine:
    """One virtual machine.

    Attributes:
        net: arguments for a network; none: no network.
        prefix: what QEMU is started by, e.g. ``ip netns exec NAME``.
    """

    name: str
    folder: Path
    kernel: Path
    initrd: Path
    drives: Sequence[Drive]
    memory_mib: int = 512
    net: Sequence[str] = ("-net", "none")
    prefix: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None
    boots: int = 0
    _files: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}-{self.boots}.log"

    def start(self, cmdline: str) -> None:
        self.stop()
        self.boots += 1
        console = self._files.enter_context(self.log.open("wb"))
        append = f"console=ttyS0 quiet panic=-1 rd.immucore.sysrootwait=5 {cmdline}"
        drives = [argument for drive in self.drives for argument in drive.arguments()]
        self.process = subprocess.Popen(
            [*self.prefix, QEMU, "-accel", "tcg", "-cpu", "max,-cx16", "-m", str(self.memory_mib), "-display",
             "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", *self.net,
             "-kernel", str(self.kernel), "-initrd", str(self.initrd), "-append", append, *drives],
            stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
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


def wait_for(machines: Iterable[Machine], until: str, timeout_s: float) -> None:
    """Wait until every console says `until`; fails as soon as one panics or ends."""
    waiting = list(machines)
    deadline = time.monotonic() + timeout_s
    while waiting:
        for machine in list(waiting):
            on, text = machine.is_on, machine.console()
            if until in text:
                waiting.remove(machine)
            elif not on or any(word in text for word in PANICS):
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


def partition(path: Path, label: str, size: str, tree: Path | None = None) -> Path:
    """A file that holds an ext4 file system."""
    source = ["-d", str(tree)] if tree else []
    path.unlink(missing_ok=True)
    run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-L", label, *source, path, size)
    return path
