"""How does a node of a lab get a wrong clock or a slow disk, though all share one kernel?

The clock by libfaketime, for every program that asks libc (a k3s of Go does not): wall time only, durations
stay true. The disk by strace, which holds up every fsync of the agent and of all that it starts.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from p2p_simulations.lab.commands import LabError

_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib")


def require(*, clocks: bool, slow_disks: bool) -> None:
    """Check, before anything is made, that there is what these need. Raises LabError with what to do."""
    if clocks and _library() is None:
        raise LabError("a wrong clock (clocks:) needs libfaketime", hint="apt-get install faketime")
    if slow_disks and shutil.which("strace") is None:
        raise LabError("a slow disk (slow_disks:) needs strace", hint="apt-get install strace")


def _library() -> Path | None:
    found = (p for place in _LIBRARIES for p in sorted(Path(place).glob("**/faketime/libfaketime.so.1")))
    return next(found, None)


def with_clock(env: Mapping[str, str], offset_s: float) -> dict[str, str]:
    """An environment whose programs see another time; unchanged without `offset_s` or libfaketime."""
    library = _library() if offset_s else None
    if library is None:
        return dict(env)
    return {
        **env,
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{offset_s:+.3f}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def with_disk(argv: Sequence[str], delay_s: float) -> list[str]:
    """A command line whose every fsync takes so much longer; unchanged without `delay_s` or strace."""
    strace = shutil.which("strace") if delay_s else None
    if strace is None:
        return list(argv)
    calls = "fsync,fdatasync"
    # -D: the program stays the child of whoever starts it; strace ends by itself after the last traced one
    quiet = ("-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", f"trace={calls}")
    return [strace, *quiet, "-e", f"inject={calls}:delay_exit={int(delay_s * 1e6)}", "--", *argv]
