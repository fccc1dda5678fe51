"""How do we run other programs?

The one module that knows `sh`. `run` waits for a short program in a thread, with a time limit and
bounded output; `start_detached` starts one that outlives this process: own session, output to a file,
and a record of who it is (`ProcessRecord`) that the child itself writes before it becomes the program,
so that no crash of ours can leave one running unrecorded. A record names a process by id, start time
and boot, so a process id that was used again is never mistaken for ours.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sh
import trio

from p2p_network.core.errors import RoleError, TimedOut

T = TypeVar("T")

_ANY_CODE = tuple(range(256))
_MAX_OUTPUT_CHARS = 64 * 1024
_MAX_RECORD_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that has ended. Output is cut at 64 Ki characters."""

    exit_code: int
    stdout: str
    stderr: str


class ProcessRecord(msgspec.Struct, frozen=True):
    """Which process it is, on disk (JSON).

    Attributes:
        pid, started_ticks, boot_id: name the process for ever.
        digest: of what it was started with; the owner's.
    """

    pid: int
    started_ticks: int
    boot_id: str
    digest: str


def find(name: str) -> str | None:
    """The path of an executable: `name` itself if it is a path, else looked up on PATH."""
    return shutil.which(name)


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """Run a blocking function in a thread; when cancelled, the thread is left to end by itself."""
    run_sync: Any = trio.to_thread.run_sync  # an outdated stub package does not know the argument
    result: T = await run_sync(function, *args, abandon_on_cancel=True)
    return result


async def run(
    argv: Sequence[str], *, timeout_s: float = 30.0, env: Mapping[str, str] | None = None
) -> Finished:
    """Run a program to its end; cancelled, it is killed. Raises RoleError if it can't start, TimedOut."""
    started: list[Any] = []
    abandoned = threading.Event()

    def blocking() -> Finished:
        try:
            done: Any = sh.Command(argv[0])(
                *argv[1:],
                _env=dict(os.environ if env is None else env),
                _timeout=timeout_s,
                _ok_code=_ANY_CODE,
                _bg=True,
                _bg_exc=False,
                _tty_out=False,
                _in="",
            )
            started.append(done)
            if abandoned.is_set():
                done.kill()
            done.wait()
        except sh.TimeoutException as exc:
            raise TimedOut(
                f"{argv[0]} did not end within {timeout_s:.0f} s", hint=f"try it by hand: {' '.join(argv)}"
            ) from exc
        except sh.SignalException as exc:
            return Finished(-1, "", str(exc)[:_MAX_OUTPUT_CHARS])
        except (sh.CommandNotFound, OSError, sh.ForkException) as exc:
            raise _not_started(argv[0], exc) from exc
        return Finished(
            int(done.exit_code),
            str(done.stdout.decode(errors="replace"))[:_MAX_OUTPUT_CHARS],
            str(done.stderr.decode(errors="replace"))[:_MAX_OUTPUT_CHARS],
        )

    try:
        return await in_thread(blocking)
    except trio.Cancelled:
        abandoned.set()
        for command in started:
            with contextlib.suppress(ProcessLookupError):
                command.kill()
        raise


def foreground(argv: Sequence[str]) -> int:
    """Run a program on this terminal to its end; its exit code. Blocks. Raises RoleError."""
    try:
        sh.Command(argv[0])(*argv[1:], _fg=True)
    except sh.ErrorReturnCode as exc:
        return int(exc.exit_code)
    except (sh.CommandNotFound, OSError, sh.ForkException) as exc:
        raise _not_started(argv[0], exc) from exc
    return 0


class Detached:
    """A program that runs on its own, whether this process started it or found it again."""

    def __init__(self, record: ProcessRecord, pidfd: int, command: Any = None) -> None:
        self.record = record
        self._pidfd = pidfd
        self._command = command  # sh's object, if it is our child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.record.pid

    @property
    def is_open(self) -> bool:
        """Whether it can still be signalled and waited for: `close` was not called."""
        return self._pidfd >= 0

    async def wait_exit(self) -> int | None:
        """Until it has ended; its exit code (negative: signal) if it was our child, else None."""
        own = os.dup(self._pidfd)  # several tasks may wait, and one descriptor has one waiter
        try:
            await trio.lowlevel.wait_readable(own)
        finally:
            os.close(own)
        return await trio.to_thread.run_sync(self._reap)

    def _reap(self) -> int | None:
        if self._command is None:
            return None
        with contextlib.suppress(Exception):  # sh raises for every exit code that is not 0
            self._command.wait()
        code = self._command.process.exit_code
        return int(code) if code is not None else None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to exactly this process; nothing if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    async def end(self, *, patience_s: float) -> None:
        """SIGTERM, and SIGKILL after `patience_s`; returns when it has ended. Not interruptible."""
        with trio.CancelScope(shield=True):
            self.send(signal.SIGTERM)
            with trio.move_on_after(patience_s) as patience:
                await self.wait_exit()
            if patience.cancelled_caught:
                self.send(signal.SIGKILL)
                await self.wait_exit()

    def close(self) -> None:
        """Forget it; it goes on running."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def start_detached(
    argv: Sequence[str], *, env: Mapping[str, str], log_path: Path, record_path: Path, digest: str
) -> Detached:
    """Start a program in a session of its own, output appended to `log_path`. Blocks a few milliseconds.

    Raises RoleError if it can't be started.
    """

    def write_record() -> None:  # in the child, between fork and exec
        _write_record(record_path, digest)

    with log_path.open("ab") as log, open(os.devnull, "rb") as nothing:
        try:
            command: Any = sh.Command(argv[0])(
                *argv[1:],
                _bg=True,
                _bg_exc=False,
                _new_session=True,
                _env=dict(env),
                _cwd="/",
                _in=nothing,
                _out=log,
                _err=log,
                _tty_in=False,
                _tty_out=False,
                _close_fds=True,
                _preexec_fn=write_record,
                _ok_code=_ANY_CODE,
            )
        except (sh.CommandNotFound, OSError, sh.ForkException) as exc:
            raise _not_started(argv[0], exc) from exc
    record = read_record(record_path)
    try:
        pidfd = os.pidfd_open(command.pid)
    except ProcessLookupError:  # it has ended already, and sh's thread has reaped it
        pidfd = _ended_pidfd()
    if record is None or record.pid != command.pid:
        record = ProcessRecord(command.pid, 0, "", digest)
    return Detached(record, pidfd, command)


def adopt(record_path: Path) -> Detached | None:
    """The program that a record names, if it still runs."""
    record = read_record(record_path)
    if record is None or record.boot_id != _boot_id():
        return None
    try:
        pidfd = os.pidfd_open(record.pid)
    except (ProcessLookupError, OSError):
        return None
    if _started_ticks(record.pid) != record.started_ticks or record.started_ticks == 0:
        os.close(pidfd)
        return None
    return Detached(record, pidfd)


def read_record(record_path: Path) -> ProcessRecord | None:
    """A record from disk; None if there is none that can be read."""
    try:
        with record_path.open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_RECORD_BYTES), type=ProcessRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def _write_record(record_path: Path, digest: str) -> None:
    pid = os.getpid()
    record = ProcessRecord(pid, _started_ticks(pid), _boot_id(), digest)
    temporary = record_path.with_name(record_path.name + ".new")
    with open(temporary, "wb", opener=lambda p, f: os.open(p, f, 0o600)) as file:
        file.write(msgspec.json.encode(record))
    os.replace(temporary, record_path)


def _started_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()  # the name before may contain anything
    return 0 if fields[0] in "ZX" else int(fields[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _ended_pidfd() -> int:
    """A descriptor that is readable at once, like that of an ended process."""
    read_end, write_end = os.pipe()
    os.close(write_end)
    return read_end


def _not_started(program: str, exc: Exception) -> RoleError:
    why = os.strerror(exc.errno) if isinstance(exc, OSError) and exc.errno else str(exc).splitlines()[0]
    hint = "check that the file exists, is executable and is made for this machine"
    if isinstance(exc, OSError) and exc.errno == errno.ENOMEM:
        hint = "free memory on this machine"
    return RoleError(f"{program} cannot be started: {why}", hint=hint)
