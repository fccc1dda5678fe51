"""What does the stand-in owe its surroundings: readiness, faults on order, and durable files?

Faults for tests, by environment variables:

- `K3S_SIMULATED_DELAY_READY_S=5`: a server takes that much longer to become ready.
- `K3S_SIMULATED_CRASH_AT=point[,point]`: the process kills itself with SIGKILL there (`CRASH_POINTS`).
- `K3S_SIMULATED_PROMOTION_TICK_S=15`: how often a leader looks for learners to promote.
- `K3S_SIMULATED_ETC=/dir`: stands for `/etc/rancher`, where several hosts share one file system.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import traceback
from pathlib import Path
from typing import Any

CRASH_POINTS = {
    "start": "before anything was read or written",
    "after-bootstrap": "the cluster's CA is on the disk, nothing listens yet",
    "before-member-add": "a joining server is about to ask for membership",
    "after-member-add": "the cluster counts a member that has no log yet",
    "after-wal": "the log exists, the member never voted",
    "before-ready": "everything works, READY was not said",
    "after-ready": "READY was said",
}


def crash_point(point: str) -> None:
    """Die here if `K3S_SIMULATED_CRASH_AT` says so."""
    assert point in CRASH_POINTS, f"unknown crash point {point}"
    if point in os.environ.get("K3S_SIMULATED_CRASH_AT", "").split(","):
        os.kill(os.getpid(), signal.SIGKILL)


def delay_ready_s() -> float:
    return float(os.environ.get("K3S_SIMULATED_DELAY_READY_S", "0"))


def etc_dir() -> Path:
    """`/etc/rancher`, or what stands for it."""
    return Path(os.environ.get("K3S_SIMULATED_ETC", "/etc/rancher"))


def notify_ready(address: str | None) -> None:
    """Tell systemd (sd_notify) at `address` that the service is up; nothing if there is no address."""
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.send(b"READY=1\n")


def die_of_bug(task: asyncio.Task[None]) -> None:
    """Done callback of a task that may only be cancelled: end the process with what went wrong."""
    if not task.cancelled() and (bug := task.exception()) is not None:
        traceback.print_exception(bug)
        os._exit(2)


def die_of_broken_invariant(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Exception handler of the loop: a member that contradicts itself must not go on."""
    loop.default_exception_handler(context)
    if isinstance(context.get("exception"), AssertionError):
        os._exit(2)


def write_file(path: Path, data: bytes | str, mode: int = 0o600) -> None:
    """Replace `path` by `data` so that after a crash there is the old or the new file, whole."""
    raw = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.write(descriptor, raw)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    sync_dir(path.parent)


def sync_dir(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
