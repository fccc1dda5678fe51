"""How do steps act on what is no file: programs, the kernel's host name, the network?

`System` is what steps are given; tests give them a recorder. `LinuxSystem` runs programs, in a chroot when
the root is not the machine's own; they are killed with all their children when they take too long.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from p2p_bootstrap.stages.root import Root
from p2p_network.core.errors import BootError

MAX_OUTPUT_CHARS: Final = 16 * 1024
DEFAULT_TIMEOUT_S: Final = 30 * 60.0
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Ended:
    """A program that ended: its code and what it said (the last part)."""

    code: int
    output: str = field(default="", repr=False)


class System(Protocol):
    """What steps may ask of the machine."""

    def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str = "") -> Ended:
        """Run a program in the root. Raises BootError if it can't be started or takes too long."""
        ...

    def has(self, program: str) -> bool:
        """Whether the root has that program."""
        ...

    def set_hostname(self, name: str) -> None:
        """Tell the kernel. Raises BootError."""
        ...

    def fetch(self, address: str, limit_bytes: int, timeout_s: float) -> bytes:
        """Get an http(s) address, TLS verified. Raises P2PError."""
        ...


class LinuxSystem:
    """The machine.

    Args:
        timeout_s: after how long a program is ended.
        own_kernel: whether the running kernel is the root's own although ``/`` is another (a boot).
        network: whether there may be one yet.
    """

    def __init__(
        self,
        root: Root,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        own_kernel: bool = False,
        network: bool = True,
    ) -> None:
        self._root = root
        self._timeout_s = timeout_s
        self._own_kernel = own_kernel or root.is_machine
        self._network = network

    def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str = "") -> Ended:
        """See `System.run`."""
        enter: Callable[[], None] | None = None
        if not self._root.is_machine:
            folder = str(self._root.folder)

            def enter() -> None:
                os.chroot(folder)
                os.chdir("/")

        try:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": PATH, **(env or {})},
                cwd="/",
                start_new_session=True,
                preexec_fn=enter,  # noqa: PLW1509 - a system call only; nobody forks beside us
                text=True,
                errors="replace",
            )
        except FileNotFoundError as exc:
            raise BootError(f"{argv[0]}: there is no such program", hint="add it to the image") from exc
        except (OSError, subprocess.SubprocessError, ValueError) as exc:
            hint = "run as root: commands of another root need a chroot" if enter else "is it executable?"
            raise BootError(f"{argv[0]}: can't be started: {exc}", hint=hint) from exc
        try:
            output, _ = process.communicate(stdin, timeout=self._timeout_s)
        except subprocess.TimeoutExpired as exc:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            what = f"{argv[0]}: still ran after {self._timeout_s:.0f} s and was ended"
            raise BootError(what, hint="run what never ends as a service") from exc
        return Ended(process.returncode, output[-MAX_OUTPUT_CHARS:])

    def has(self, program: str) -> bool:
        """See `System.has`."""
        if self._root.is_machine:
            return shutil.which(program, path=PATH) is not None
        return any(self._root.exists(f"{folder}/{program}") for folder in PATH.split(":"))

    def set_hostname(self, name: str) -> None:
        """See `System.set_hostname`."""
        if not self._own_kernel or socket.gethostname() == name:
            return  # the tree of a machine that doesn't run has a file only
        try:
            socket.sethostname(name)
        except OSError as exc:
            raise BootError(f"the host name can't be set: {exc.strerror or exc}", hint="run as root") from exc

    def fetch(self, address: str, limit_bytes: int, timeout_s: float) -> bytes:
        """See `System.fetch`."""
        if not self._network:
            what = f"{address}: there is no network yet"
            raise BootError(what, hint="let the stage network do this, or one after it")
        from p2p_bootstrap.cloudconfig.fetching import fetch_http  # late: an initramfs does not carry it

        return fetch_http(address, limit_bytes, timeout_s=timeout_s)


def check(ended: Ended, what: str) -> str:
    """The output of a program that succeeded. Raises BootError with the last words of one that failed."""
    if ended.code == 0:
        return ended.output
    words = "; ".join(line.strip() for line in ended.output.strip().splitlines()[-3:])
    how = f"ended with {ended.code}" if ended.code > 0 else f"was ended by signal {-ended.code}"
    raise BootError(f"{what} {how}{f': {words}' if words else ''}", hint="run it by hand to see more")


def fetch_through(system: System, timeout_s: float = 30.0) -> Callable[[str, int], bytes]:
    """`System.fetch` in the form that collection wants."""
    return lambda address, limit: system.fetch(address, limit, timeout_s)
