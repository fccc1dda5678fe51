"""How does the initramfs start us? ``python -m p2p_bootstrap.boot``: argparse, no click, few imports.

Without arguments it boots the machine it runs on, as process 1. ``--plan`` prints what it would do.
When nothing can be booted a screen says why and what to do (`emergency`). There is no shell.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Final

from p2p_network.lean import loading

with loading():  # half of the time from process 1 to the first look at the machine
    from p2p_bootstrap.boot import cmdline, coldplug, emergency, modules, plan, record, syscalls
    from p2p_bootstrap.boot.facts import Places
    from p2p_bootstrap.boot.kernel import LinuxKernel
    from p2p_bootstrap.boot.observe import Observer
    from p2p_bootstrap.boot.run import Runner
    from p2p_bootstrap.boot.stagerun import StagesOnRoot

_BASE_MOUNTS: Final = (
    ("proc", "/proc", "proc"), ("sysfs", "/sys", "sysfs"), ("devtmpfs", "/dev", "devtmpfs"),
    ("tmpfs", "/run", "tmpfs"),
)  # fmt: skip
_EFI_VARIABLES: Final = "/sys/firmware/efi/efivars"


def base_mounts() -> None:
    """The kernel's own file systems, where they are missing."""
    for source, target, fstype in _BASE_MOUNTS:
        Path(target).mkdir(parents=True, exist_ok=True)
        if not os.path.ismount(target):
            syscalls.mount(source, target, fstype, 0)


def efi_variables() -> str:
    """Mount the EFI variables, once their module is there. Returns a remark, "" without EFI too."""
    if not os.path.isdir(_EFI_VARIABLES) or os.path.ismount(_EFI_VARIABLES):
        return ""
    modules.demand("efivarfs")
    try:
        syscalls.mount("efivarfs", _EFI_VARIABLES, "efivarfs", 0)
    except OSError as exc:
        # real-time kernels leave EFI's services alone unless they are told otherwise
        hint = "; add efi=runtime to the command line" if exc.errno == errno.EOPNOTSUPP else ""
        return f"the EFI variables can't be read: {exc.strerror}{hint}"
    return ""


def say(line: str) -> None:
    """A line on the console."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - the console is all there is


def step_said(name: str) -> None:
    """What ``rd.immucore.debug`` wants: each step on the console before it is done."""
    say(f"kairos-p2p: {time.clock_gettime(time.CLOCK_BOOTTIME):.2f} s: {name}")


def main(argv: list[str] | None = None) -> int:
    """Boot, or print the plan. Returns an exit code only if it did not boot."""
    parser = argparse.ArgumentParser(prog="p2p_bootstrap.boot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plan", action="store_true", help="print what would be done, and do nothing")
    parser.add_argument("--sysroot", default=Places().sysroot, help="where the new root is put together")
    parser.add_argument("--cmdline", help="instead of the kernel's")
    parser.add_argument("--only", action="append", metavar="NAME", help="look only at these block devices")
    parser.add_argument("--no-base-mounts", action="store_true", help="/proc, /sys, /dev and /run are there")
    options = parser.parse_args(argv)
    plug = coldplug.Coldplug(Path("/", modules.FOLDER))

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        for remark in plug():  # what the boot waits for may be behind a driver
            say(remark)

    if not options.plan and not options.no_base_mounts:
        base_mounts()
        for remark in (*modules.load(Path("/", modules.FOLDER)), *plug(), efi_variables()):
            if remark:
                print(remark, file=sys.stderr)  # noqa: T201
    observer = Observer(Places(sysroot=options.sysroot), cmdline=options.cmdline, only=options.only)
    if options.plan:
        made = plan.plan(observer.facts())
        print("\n".join([f"{made.mode} {made.slot}: {made.reason}", *plan.describe(made.steps)]))  # noqa: T201
        return 0
    first = observer.facts()
    command = cmdline.parse(first.cmdline)
    counted = first.efi is not None and bool(first.efi.counted)
    logging.getLogger("p2p_bootstrap").addHandler(logging.NullHandler())  # remarks say it better
    kernel = LinuxKernel(StagesOnRoot(say))
    before = step_said if command.debug else (lambda name: None)
    runner = Runner(kernel, observer, clock=time.monotonic, sleep=sleep, before=before)
    try:
        stopped = runner.run()
    except Exception as exc:
        # a bug, or a kernel that does what it never should: the screen, not a panic without a word
        traceback.print_exc()
        stopped = record.Record(time.time(), "stopped", "stop", "none", repr(exc), "please report this")
    emergency.fail(stopped, command, counted=counted)
    return 1


if __name__ == "__main__":
    sys.exit(main())
