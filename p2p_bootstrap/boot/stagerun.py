"""How does the boot run a stage on the root that it is putting together?

`StagesOnRoot` is the `StageRunner` of `kernel.LinuxKernel`. The root lacks what the kernel gives (its /proc,
/sys, /dev and /run are empty folders until the switch), so these are shown in it for as long as the stage
runs: a step then reads the real command line, sets real kernel values, and what it writes to /run (the
layout, its own record) is there for the boot and for the running system.

Every error comes back as a remark, which `boot explain` shows; a fatal one ends this slot's attempt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from p2p_bootstrap.boot import files, syscalls
from p2p_bootstrap.stages.engine import Engine
from p2p_bootstrap.stages.run import Report
from p2p_network.core.errors import BootError

SHOWN: Final = ("/proc", "/sys", "/dev", "/run")
MAX_REMARKS: Final = 50
MAX_REMARK_CHARS: Final = 400


class StagesOnRoot:
    """Runs stages of the cloud-config on a root. `say` gets a line for the console now and then."""

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self._say = say

    def __call__(self, name: str, root: str) -> tuple[str, ...]:
        """Run a stage. Returns a remark for each error. Raises BootError if a fatal step failed."""
        with shown(root) as missing:
            # what this root says is set in the kernel too: it is about to be its own
            report = Engine.of(Path(root), network=False, booting=True).run(name)
        remarks = (*missing, *remarks_of(report))
        for remark in remarks:
            self._say(f"kairos-p2p: {remark}")
        if report.stopped:
            raise BootError(
                f"the stage {name} ended early, as a step that is marked fatal failed: "
                f"{next(iter(remarks_of(report)), 'see its record')}",
                hint="mend the step in the cloud-config, or take its fatal out",
            )
        return remarks


@contextmanager
def shown(root: str) -> Iterator[tuple[str, ...]]:
    """The kernel's file systems and /run, visible inside `root` for a while; yields what can't be."""
    done: list[str] = []
    missing: list[str] = []
    try:
        for path in SHOWN:
            inside = root.rstrip("/") + path
            if not os.path.ismount(path) or os.path.ismount(inside):
                continue
            if not os.path.isdir(inside):
                missing.append(f"the image has no folder {path}: steps that need it fail")
                continue
            files.straight(inside)
            syscalls.mount(path, inside, "none", syscalls.MS_BIND | syscalls.MS_REC)
            done.append(inside)
        yield tuple(missing)
    finally:
        for inside in reversed(done):
            syscalls.unmount(inside, syscalls.MNT_DETACH)


def remarks_of(report: Report) -> tuple[str, ...]:
    """A sentence for each thing that went wrong in a stage, bounded in number and length."""
    found: list[str] = []
    for outcome in report.failed:
        for failure in outcome.failures:
            hint = f" ({failure.hint})" if failure.hint else ""
            text = f"{failure.action}: {failure.message}{hint}"
            found.append(f"stage {report.stage}, {outcome.label}: {text}")
    found += report.problems
    short = [text if len(text) <= MAX_REMARK_CHARS else f"{text[:MAX_REMARK_CHARS]} ..." for text in found]
    if len(short) > MAX_REMARKS:
        more = len(short) - MAX_REMARKS
        short[MAX_REMARKS:] = [f"stage {report.stage}: {more} more, see /run/kairos-p2p/stages"]
    return tuple(short)
