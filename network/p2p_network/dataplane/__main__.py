"""How does the data-plane process start and end?

`python -m p2p_network.dataplane --socket PATH [--log PATH] [--from PATH]`. One per socket path (a lock file
beside it). With `--from` it takes over from the data plane that answers there (`succession`).
Ends on SIGTERM, SIGINT or a `Stop` request; its TUN device goes with it. SIGHUP is ignored: it outlives its
starter.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Sequence

from p2p_network.core import log
from p2p_network.core.errors import MeshError
from p2p_network.lean import loading

with loading():
    from p2p_network.dataplane.control import ControlServer
    from p2p_network.dataplane.loop import READ, Loop
    from p2p_network.dataplane.memory import release_code
    from p2p_network.dataplane.messages import ALREADY_RUNNING, Estate
    from p2p_network.dataplane.plane import Plane
    from p2p_network.dataplane.succession import take_over

_USAGE = "usage: python -m p2p_network.dataplane --socket PATH [--log PATH] [--from PATH]"
_SETTLED_S = (3.0, 30.0)
"""By then the device, and the first sessions, are up."""
_BULK_BPS = 10e6
_LOCK_PATIENCE_S = 10.0
_LOCK_POLL_S = 0.002

logger = log.get("p2p_network.dataplane")


class LineFormat(logging.Formatter):
    """One line per event: time, name, fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = " ".join(f"{k}={v}" for k, v in getattr(record, "fields", {}).items())
        line = f"{self.formatTime(record)} {record.levelname} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def main(arguments: Sequence[str]) -> int:
    """Run until told to end; the exit status."""
    options = _options(arguments)
    if options is None:
        sys.stderr.write(f"{_USAGE}\n")
        return 2
    socket_path, log_path, source = options
    handler = logging.FileHandler(log_path) if log_path else logging.StreamHandler()
    handler.setFormatter(LineFormat())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    loop = Loop()
    plane = Plane(loop)
    estate, device = Estate(None, ()), None
    if source:
        try:
            estate, device = take_over(source)
        except (OSError, ValueError) as exc:
            log.event(logger, "network.plane_refused", path=source, reason=f"it hands nothing over: {exc}")
            return 1
    lock = _lock(f"{socket_path}.lock", _LOCK_PATIENCE_S if source else 0.0)
    if lock is None:
        log.event(logger, "network.plane_refused", path=socket_path, reason="another one runs on this socket")
        return ALREADY_RUNNING
    try:
        _run(socket_path, loop, plane, estate, device)
    except OSError as exc:
        log.event(logger, "network.plane_failed", logging.ERROR, path=socket_path, error=str(exc))
        return 1
    except Exception:
        logger.exception("network.plane_crashed")
        return 1
    finally:
        os.close(lock)
    return 0


def _options(arguments: Sequence[str]) -> tuple[str, str, str] | None:
    """(socket, log, from) of the command line. By hand: argparse would cost 1.4 MB for good."""
    given = dict(zip(arguments[::2], arguments[1::2], strict=False))
    if len(arguments) % 2 or not given.get("--socket") or given.keys() - {"--socket", "--log", "--from"}:
        return None
    return given["--socket"], given.get("--log", ""), given.get("--from", "")


def _run(path: str, loop: Loop, plane: Plane, estate: Estate, device: int | None) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))
    _stop_on_signals(loop)
    if len(os.sched_getaffinity(0)) > 1:
        _go_first(loop, plane)
    try:
        plane.inherit(estate, device)
    except MeshError as exc:  # the agent sees it, and configures it anew
        log.event(logger, "network.plane_failed", logging.ERROR, path=path, error=exc.message)
    control = ControlServer(loop, path, plane.answer, plane.carry, lambda: plane.device)
    log.event(logger, "network.plane_started", path=path, pid=os.getpid())
    release_code()
    for later_s in _SETTLED_S:
        loop.call_at(loop.now() + later_s, release_code)
    try:
        loop.run()
    finally:
        plane.close()
        control.close()
        loop.close()
    log.event(logger, "network.plane_stopped", path=path, pid=os.getpid())


def _go_first(loop: Loop, plane: Plane, first: bool | None = None) -> None:
    """A packet must not wait until programs that compute have used up their turn (4 ms and more).

    So the process has the lowest real-time priority, beside a second processor, and while little flows: under
    bulk it would be woken for every packet instead of every few, at twice the cost. Looked at once a second.
    Without the right to it all goes on as before.
    """
    wanted = plane.rate_bps() < _BULK_BPS
    if wanted is not first:
        policy = os.SCHED_RR if wanted else os.SCHED_OTHER
        try:
            os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_param(int(wanted)))
        except OSError:
            return
    loop.call_at(loop.now() + 1.0, lambda: _go_first(loop, plane, wanted))


def _lock(path: str, patience_s: float) -> int | None:
    """A descriptor that holds the lock until the process ends, or None if another process keeps it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(_LOCK_POLL_S)
                continue
            os.close(fd)
            return None
        return fd


def _stop_on_signals(loop: Loop) -> None:
    """Signals wake the loop through a socket pair: a handler alone would not end epoll's wait."""
    waker, woken = socket.socketpair()
    waker.setblocking(False)
    woken.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def stop(_events: int) -> None:
        waker.close()
        woken.recv(64)
        loop.stop()

    loop.watch(woken.fileno(), READ, stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
