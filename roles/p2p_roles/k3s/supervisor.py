"""Who keeps the k3s process alive: we ourselves, systemd or OpenRC?

`Supervisor` is what the driver needs of any of them. Which one is chosen by what started this agent
(`choose`): under a service manager k3s is a service of its own beside the agent (`services.py`), with its own
cgroup and log; everywhere else (a container, a terminal, the lab) it is a detached child (`Child`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, Protocol

import trio

from p2p_network.core.errors import RoleError
from p2p_roles import programs

Kind = Literal["child", "systemd", "openrc"]

CHOICE: Final = "KAIROS_P2P_K3S_SUPERVISOR"
LOG_FILE: Final = "k3s.log"
_MAX_LOG_BYTES: Final = 16 << 20
_TAIL_BYTES: Final = 64 << 10
# what a service manager told this agent about itself, which is not k3s's business
MANAGERS_OWN: Final = frozenset(
    (
        *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"),
        *(
            "INVOCATION_ID",
            "JOURNAL_STREAM",
            "MAINPID",
            "MANAGERPID",
            "SYSTEMD_EXEC_PID",
            "CREDENTIALS_DIRECTORY",
        ),
        *("CREDENTIALS_DIRECTORY", "RC_SVCNAME", "RC_SERVICE", "RC_OPENRC_PID", "RC_RUNSCRIPT_PID"),
    )
)


class Running(Protocol):
    """A k3s that runs, or has just ended.

    Attributes:
        pid: 0 if it ended before it was seen.
        digest: of what it was started with.
    """

    @property
    def pid(self) -> int: ...

    @property
    def digest(self) -> str: ...

    async def wait_exit(self) -> int | None:
        """Until it has ended; its exit code (negative: signal), None if nobody knows it."""
        ...

    async def tail(self) -> str:
        """The end of its log, of this start only."""
        ...

    def close(self) -> None:
        """Forget it; it goes on running."""
        ...


class Supervisor(Protocol):
    """Starts and stops the one k3s of this machine."""

    @property
    def kind(self) -> Kind: ...

    async def adopt(self) -> Running | None:
        """The k3s that runs already."""
        ...

    async def start(self, argv: Sequence[str], env: Mapping[str, str], digest: str) -> Running:
        """Start one where none runs. Raises RoleError, OSError."""
        ...

    async def stop(self, *, patience_s: float) -> int:
        """End whatever runs and see that it stays so; its pid, 0 if none ran. Raises RoleError."""
        ...


class LogFile:
    """k3s's output in a file, private, set aside when it has grown large."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = 0

    def open_start(self) -> None:
        """A new start begins here. Blocks."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileNotFoundError):
            if self.path.stat().st_size > _MAX_LOG_BYTES:
                self.path.replace(self.path.with_suffix(".log.1"))
        with open(self.path, "ab", opener=lambda p, f: os.open(p, f, 0o600)) as file:
            self._start = file.tell()

    def open_adopted(self) -> None:
        """What an adopted k3s said before is not known to be of this start. Blocks."""
        try:
            self._start = self.path.stat().st_size
        except OSError:
            self._start = 0

    def tail(self) -> str:
        """The end of the log, of this start only. Blocks."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._start if self._start <= size else 0, size - _TAIL_BYTES))
                return file.read(_TAIL_BYTES).decode(errors="replace")
        except OSError:
            return ""


class _ChildRunning:
    def __init__(self, process: programs.Detached, log_file: LogFile) -> None:
        self._process, self._log = process, log_file
        self.pid, self.digest = process.pid, process.record.digest

    async def wait_exit(self) -> int | None:
        return await self._process.wait_exit()

    async def tail(self) -> str:
        return await trio.to_thread.run_sync(self._log.tail)

    def close(self) -> None:
        self._process.close()


class Child:
    """k3s as a detached process that survives this one: a record on disk says which process it is."""

    kind: Final[Kind] = "child"

    def __init__(self, state_dir: Path) -> None:
        self._record_path = state_dir / "k3s.process"
        self._log = LogFile(state_dir / LOG_FILE)
        self._own: programs.Detached | None = None  # of our children only we learn the exit code, and reap it

    async def adopt(self) -> Running | None:
        """The one that the record names, if it still runs."""
        process = programs.adopt(self._record_path)
        if process is None:
            return None
        await trio.to_thread.run_sync(self._log.open_adopted)
        return _ChildRunning(process, self._log)

    async def start(self, argv: Sequence[str], env: Mapping[str, str], digest: str) -> Running:
        """Start it in a session of its own. Raises RoleError, OSError."""

        def blocking() -> programs.Detached:
            self._log.open_start()
            return programs.start_detached(
                argv, env=env, log_path=self._log.path, record_path=self._record_path, digest=digest
            )

        self._own = await trio.to_thread.run_sync(blocking)
        return _ChildRunning(self._own, self._log)

    async def stop(self, *, patience_s: float) -> int:
        """SIGTERM, and SIGKILL after `patience_s`."""
        process, own = programs.adopt(self._record_path), self._own
        # the driver forgets (closes) its process when it ends, before a node that leaves stops k3s
        if process is not None and own is not None and own.is_open and own.pid == process.pid:
            process.close()
            process = own
        if process is not None:
            await process.end(patience_s=patience_s)
            process.close()
        self._record_path.unlink(missing_ok=True)
        return process.pid if process else 0


def detect(env: Mapping[str, str], parent_pid: int, root: Path = Path("/")) -> Kind:
    """Which supervisor suits an agent with this environment and parent.

    systemd only if it is the agent's own parent, OpenRC only if the agent is one of its services: an agent
    that someone runs by hand, in a container or in a lab, must not touch the machine's services.
    `KAIROS_P2P_K3S_SUPERVISOR` (child, systemd or openrc) decides otherwise. Raises RoleError.
    """
    match env.get(CHOICE, ""):
        case "child":
            return "child"
        case "systemd":
            return "systemd"
        case "openrc":
            return "openrc"
        case "":
            if env.get("INVOCATION_ID") and parent_pid == 1 and (root / "run/systemd/system").is_dir():
                return "systemd"
            if env.get("RC_SVCNAME") and (root / "run/openrc").is_dir():
                return "openrc"
            return "child"
        case other:
            raise RoleError(
                f"{CHOICE}={other!r} names no supervisor for k3s", hint="child, systemd, openrc, or unset it"
            )


def choose(state_dir: Path, env: Mapping[str, str] | None = None) -> Supervisor:
    """The supervisor of this machine's k3s. Raises RoleError."""
    from p2p_roles.k3s import services

    match detect(os.environ if env is None else env, os.getppid()):
        case "child":
            return Child(state_dir)
        case "systemd":
            return services.Systemd(state_dir)
        case "openrc":
            return services.OpenRc(state_dir)
