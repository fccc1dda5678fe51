"""Which processes belong to a lab, and how are they ended for certain?

The process list is the truth, not a file of pids: a holder carries lab and place in its command line
(`mark_of`), and every process of a node is in the holder's pid namespace. Signals go through pidfds, after a
second look, so a reused pid is never hit.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2p_simulations.lab.commands import LabError

ROUTER: Final = "@router"
_MARK: Final = "kairos-p2p-lab-holder"


@dataclass(frozen=True, slots=True)
class Holder:
    """PID 1 of one place of a lab; `pid` as the host sees it."""

    pid: int
    folder: Path
    place: str


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a node. `pid` as the host sees it, `resident_bytes` its resident memory."""

    pid: int
    argv: tuple[str, ...]
    resident_bytes: int

    @property
    def kind(self) -> str:
        """agent, dataplane, k3s, or "" for everything else."""
        names = [word.split(" ")[0].rpartition("/")[2] for word in self.argv[:4]]
        if "p2p_network.dataplane" in names:
            return "dataplane"
        if "p2p_simulations.k3s" in names or any(name in ("k3s", "k3s-simulated") for name in names[:3]):
            return "k3s"
        is_ours = "kairos-p2p" in names[:3] or "p2p_bootstrap.cli.main" in names
        return "agent" if is_ours and "agent" in self.argv else ""


def mark_of(folder: Path, place: str) -> str:
    """The word in a holder's command line that names its lab and place."""
    return f"{_MARK}:{folder}:{place}"


def holders(root: Path) -> list[Holder]:
    """The living holders of all labs whose folder lies directly in `root`, or of the one lab at `root`."""
    found = []
    for pid in _pids():
        holder = _holder_of(pid)
        if holder is not None and root in (holder.folder, holder.folder.parent):
            found.append(holder)
    return found


def members(holder_pid: int) -> list[Process]:
    """All living processes in the holder's pid namespace, itself included. [] if it is dead."""
    inside = _namespace(holder_pid)
    if inside is None:
        return []
    found = []
    for pid in _pids():
        if _namespace(pid) == inside and any(argv := _argv(pid)):  # a zombie has none
            found.append(Process(pid, argv, _resident_bytes(pid)))
    return found


def send(holder_pid: int, pid: int, number: signal.Signals) -> bool:
    """Signal a process of a node. False if it is gone."""
    inside = _namespace(holder_pid)
    with contextlib.suppress(ProcessLookupError), _pidfd(pid) as fd:
        if inside is not None and _namespace(pid) == inside:
            signal.pidfd_send_signal(fd, number)
            return True
    return False


def kill_holders(doomed: Iterable[Holder], timeout_s: float = 15.0) -> None:
    """Kill holders, and with each its whole node; return when they are gone. Raises LabError if one stays."""
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        waiting: list[tuple[int, Holder]] = []
        for holder in doomed:
            with contextlib.suppress(ProcessLookupError):
                fd = stack.enter_context(_pidfd(holder.pid))
                if _holder_of(holder.pid) == holder:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                    waiting.append((fd, holder))
        for fd, holder in waiting:
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([fd], [], [], left_s)[0]:
                raise LabError(
                    f"process {holder.pid} ({holder.place} of {holder.folder}) survives SIGKILL",
                    hint="a process of its namespace hangs in the kernel; "
                    f"see: ps -o pid,stat,wchan -p {holder.pid}",
                )


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _argv(pid: int) -> tuple[str, ...]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            raw = file.read(16_384)
    except OSError:
        return ()
    return tuple(word.decode(errors="replace") for word in raw.rstrip(b"\0").split(b"\0"))


def _holder_of(pid: int) -> Holder | None:
    """python -I -S .../holder.py MARK SPEC BOUND, and PID 1 of a namespace (not the launcher)."""
    argv = _argv(pid)
    if len(argv) != 7 or not argv[3].endswith("/holder.py") or not argv[4].startswith(_MARK + ":"):
        return None
    folder, _, place = argv[4].removeprefix(_MARK + ":").rpartition(":")
    return Holder(pid, Path(folder), place)


def _namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
