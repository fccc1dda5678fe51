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


def with_clock(env: Mapping[str, str], offset_s: float) -> dict[str, str]:
    """An environment whose programs see another time. Raises LabError if libfaketime is not here."""
    if not offset_s:
        return dict(env)
    found = (p for place in _LIBRARIES for p in sorted(Path(place).glob("**/faketime/libfaketime.so.1")))
    library = next(found, None)
    if library is None:
        raise LabError("a wrong clock needs libfaketime", hint="apt-get install faketime")
    return {
        **env,
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{offset_s:+.3f}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def with_disk(argv: Sequence[str], delay_s: float) -> list[str]:
    """A command line whose every fsync takes so much longer. Raises LabError if strace is not here."""
    if not delay_s:
        return list(argv)
    strace = shutil.which("strace")
    if strace is None:
        raise LabError("a slow disk needs strace", hint="apt-get install strace")
    calls = "fsync,fdatasync"
    # -D: the program stays the child of whoever starts it; strace ends by itself after the last traced one
    quiet = ("-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", f"trace={calls}")
    return [strace, *quiet, "-e", f"inject={calls}:delay_exit={int(delay_s * 1e6)}", "--", *argv]
