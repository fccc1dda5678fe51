"""Which programs of the operating system does the lab need, and how are they called?

The error of a failed call quotes it, ready to paste; a missing program names its Debian package.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import Final

from p2p_network.core.errors import NotPermitted, P2PError

PACKAGES: Final = {
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "ping": "iputils-ping",
}


class LabError(P2PError):
    """The lab cannot do what was asked."""


def require(programs: Sequence[str] = tuple(PACKAGES)) -> None:
    """Check that a lab can run here. Raises NotPermitted or LabError with what to do."""
    if platform.system() != "Linux":
        raise LabError("the lab needs Linux: it is made of network namespaces")
    if os.geteuid() != 0:
        raise NotPermitted("the lab makes namespaces and devices, which needs root", hint="run it with sudo")
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        packages = " ".join(dict.fromkeys(PACKAGES[program] for program in missing))
        raise LabError(
            f"not found on PATH: {', '.join(missing)}", hint=f"install with: apt-get install {packages}"
        )


def run(argv: Sequence[str], *, script: str = "", timeout_s: float = 30.0) -> str:
    """Run a program to its end; its standard output. `script` is its standard input.

    Raises LabError that quotes the command and what it said.
    """
    try:
        done = subprocess.run(
            argv, input=script, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except OSError as exc:
        raise LabError(f"cannot run {argv[0]}: {exc.strerror}") from exc
    except subprocess.TimeoutExpired as exc:
        raise LabError(f"no answer within {timeout_s:g} s: {shlex.join(argv)}") from exc
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        fed = f"\n{script}" if script else ""
        raise LabError(f"{shlex.join(argv)} failed with status {done.returncode}: {said}{fed}")
    return done.stdout
