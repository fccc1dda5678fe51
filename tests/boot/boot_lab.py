"""A disk of files and a machine of one namespace: boots for tests, real down to mount(2), without harm.

A `Disk` is three or four files (state, OEM, persistent, recovery) attached to loop devices. `boot` starts a
child in fresh mount and PID namespaces, with a ``/run`` of its own, whose process 1 is this file as a
program: it runs the boot module and, after the switch, the image's own static busybox. The child dies with
us, and nothing it mounts is seen outside.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

TOOLS = ("mksquashfs", "mke2fs", "unshare", "losetup")
BUSYBOX = Path("/bin/busybox")
CMDLINE = "root=LABEL=COS_ACTIVE cos-img/filename=/cOS/active.img rd.immucore.sysrootwait=1 fsck.mode=skip"
DIRECTORIES = ("bin", "dev", "etc", "home", "oem", "opt", "proc", "root", "run", "sbin", "srv", "sys", "tmp",
               "usr/local", "var/lib/a-b", "var/lib/a/b")  # fmt: skip
TIMEOUT_S = 180  # a boot takes half a second on a quiet machine
MakeDisk = Callable[..., "Disk"]


def why_not() -> str:
    """Why this machine can't run the lane; "" if it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"missing programs: {', '.join(missing)} (squashfs-tools, e2fsprogs, util-linux)"
    if not BUSYBOX.exists() or b"statically linked" not in _file_kind():
        return "missing: a static busybox (busybox-static)"
    if not Path("/dev/loop-control").exists():
        return "this kernel has no loop devices"
    kinds = Path("/proc/filesystems").read_text()
    if lacking := [kind for kind in ("squashfs", "overlay", "ext4") if kind not in kinds]:
        return f"this kernel lacks {', '.join(lacking)}"
    probe = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--kill-child", "true"],
                           capture_output=True, text=True, check=False)  # fmt: skip
    return f"no namespaces: {probe.stderr.strip()}" if probe.returncode else ""


def _file_kind() -> bytes:
    """A dynamic program names its interpreter; a static one does not."""
    head = BUSYBOX.read_bytes()[:4096]
    return b"" if b"ld-linux" in head or b"ld-musl" in head else b"statically linked"


def run(*argv: str | Path) -> str:
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"$ {' '.join(map(str, argv))}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def root_tree(folder: Path, version: str, files: dict[str, str] | None = None) -> Path:
    """A root file system with a busybox and a probe as its init."""
    for name in DIRECTORIES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(BUSYBOX, folder / "bin/busybox")
    (folder / "bin/sh").symlink_to("busybox")
    init = folder / "sbin/init"
    init.write_text("#!/bin/sh\n[ -f /run/probe.sh ] && . /run/probe.sh\nexit 0\n")
    init.chmod(0o755)
    (folder / "etc/version").write_text(f"{version}\n")
    for name, text in (files or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def make_image(tree: Path, image: Path, kind: str = "squashfs") -> Path:
    image.unlink(missing_ok=True)
    if kind == "squashfs":
        run(
            "mksquashfs",
            tree,
            image,
            "-quiet",
            "-no-progress",
            "-noappend",
            "-comp",
            "gzip",
            "-Xcompression-level",
            "1",
        )
    elif kind == "erofs":
        run("mkfs.erofs", "--quiet", image, tree)
    else:
        run("mke2fs", "-q", "-t", "ext4", "-d", tree, image, "16M")
    return image


@dataclass
class Boot:
    """What one boot did."""

    code: int
    output: str  # of the probe that ran inside the new root, and of the boot module
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def why(self) -> str:
        return f"exit {self.code}\n{self.output}\n{json.dumps(self.record.get('failures'), indent=1)}"


class Disk:
    """Partitions as files, on loop devices as long as the disk is plugged in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: dict[str, Path] = {}
        self.loops: dict[str, str] = {}

    def add(self, name: str, label: str, size: str, tree: Path | None = None) -> None:
        path = self.folder / f"{name}.part"
        source = ["-d", str(tree)] if tree else []
        run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-L", label, *source, path, size)
        self.parts[name] = path

    def plug(self) -> None:
        for name, path in self.parts.items():
            if name not in self.loops:
                self.loops[name] = run("losetup", "--find", "--show", path)

    def unplug(self) -> None:
        for device in self.loops.values():
            run("losetup", "--detach", device)
        self.loops.clear()

    def boot(
        self, probe: str = "", *, cmdline: str = CMDLINE, kill_at: str = "", kill_call: int = 0,
        layout: str | None = None, initrd: Path | None = None, efi: dict[str, Any] | None = None,
        grace_s: float = 60.0,
    ) -> Boot:  # fmt: skip
        """Boot this disk. `probe`: shell lines that the new root's init runs.

        `initrd`: folder that stands for the initramfs; `efi`: the EFI variables, as `facts.Efi` has them.
        `grace_s`: what an init is given to end, when the guard of a slot on trial wants a restart.
        `kill_at`: kill -9 before a step; `kill_call`: before that many calls that make something last.
        """
        self.plug()
        sysroot = self.folder / "sysroot"
        sysroot.mkdir(exist_ok=True)
        orders = self.folder / "orders.json"
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        orders.write_text(json.dumps({
            "sysroot": str(sysroot), "cmdline": cmdline, "probe": probe, "kill_at": kill_at,
            "only": [Path(d).name for d in self.loops.values()], "layout": layout, "report": str(report),
            "kill_call": kill_call, "initrd": str(initrd or self.folder / "no-initrd"), "efi": efi,
            "grace_s": grace_s,
        }))  # fmt: skip
        ear, mouth = os.pipe()
        child = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "--pid", "--uts", "--fork", "--kill-child",
             sys.executable, __file__, str(orders), str(mouth)],
            pass_fds=(mouth,), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        os.close(mouth)
        with open(ear, "rb") as listening:
            if (kill_at or kill_call) and listening.read(1):
                child.kill()  # unshare's --kill-child sends SIGKILL to the namespace's process 1
                listening.read()  # until that is dead too
        try:
            output, _ = child.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            output, _ = child.communicate()
            raise AssertionError(f"the boot hangs:\n{output}") from None
        record = json.loads(report.read_text() or "{}") if report.exists() else {}
        return Boot(child.returncode, output, record)

    def files(self, name: str, path: str) -> str:
        """A file on an unmounted partition, by debugfs; "" if it isn't there."""
        done = subprocess.run(["debugfs", "-R", f"cat {path}", self.parts[name]],
                              capture_output=True, text=True, check=False)  # fmt: skip
        return done.stdout


def child(orders_path: str, mouth: int) -> None:
    """Process 1 of the namespace: boot, and become the image's init."""
    from p2p_bootstrap.boot import guard, syscalls
    from p2p_bootstrap.boot.facts import BlockDevice, Efi, Places
    from p2p_bootstrap.boot.kernel import LinuxKernel
    from p2p_bootstrap.boot.observe import Observer
    from p2p_bootstrap.boot.record import to_json
    from p2p_bootstrap.boot.run import Runner
    from p2p_bootstrap.boot.stagerun import StagesOnRoot

    orders = json.loads(Path(orders_path).read_text())
    os.set_inheritable(mouth, False)
    assert os.getpid() == 1, "only in a PID namespace of its own"
    syscalls.mount("none", "/", "none", syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("proc", "/proc", "proc", 0)
    syscalls.mount("tmpfs", "/run", "tmpfs", 0)
    Path("/run/cos").mkdir()
    Path("/run/probe.sh").write_text(orders["probe"])
    Path("/run/cmdline").write_text(orders["cmdline"])
    syscalls.mount("/run/cmdline", "/proc/cmdline", "none", syscalls.MS_BIND)
    if orders["layout"] is not None:
        Path("/run/cos/cos-layout.env").write_text(orders["layout"])
    report = os.open(orders["report"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)

    def die() -> None:
        os.write(mouth, b"x")
        signal.pause()

    guard.GRACE_S = orders["grace_s"]
    calls = itertools.count(1)

    def mortal(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == orders["kill_call"]:
                die()
            return call(*args, **kwargs)

        return wrapped

    if orders["kill_call"]:
        os.replace, os.rename = mortal(os.replace), mortal(os.rename)
        syscalls.syncfs = mortal(syscalls.syncfs)

    def before(name: str) -> None:
        if name == orders["kill_at"]:
            die()
        if name == "switch-root":
            os.write(report, Path("/run/cos/boot.json").read_bytes())

    places = Places(sysroot=orders["sysroot"], initrd=orders["initrd"])

    class Firmware(Observer):
        """A machine with the firmware that the test wants; a disk's label stands for its PARTUUID."""

        def efi(self) -> Efi | None:
            return Efi(**orders["efi"]) if orders["efi"] else None

        def devices(self) -> tuple[BlockDevice, ...]:
            return tuple(replace(one, partuuid=one.label.lower()) for one in super().devices())

    observer = Firmware(places, cmdline=orders["cmdline"], only=orders["only"])
    runner = Runner(
        LinuxKernel(StagesOnRoot()), observer, clock=time.monotonic, sleep=time.sleep, before=before
    )
    made = runner.run()
    os.ftruncate(report, 0)
    os.pwrite(report, to_json(made).encode(), 0)
    sys.exit(3)


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]))
