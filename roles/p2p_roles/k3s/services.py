"""How is k3s a service of systemd or OpenRC?

Both write a unit (`units.py`) and call the service manager's own commands through `programs`; the manager
starts k3s again when it ends, also while the agent is away. What runs is watched through a pidfd, so an end
is seen at once; why it ended is asked of systemd, which knows the exit code, and read from the journal of
exactly this start (its invocation id). OpenRC knows neither: its log is a file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from p2p_network.core.errors import RoleError
from p2p_roles import programs
from p2p_roles.k3s import units
from p2p_roles.k3s.supervisor import LOG_FILE, Kind, LogFile, Running

_APPEAR_S: Final = 15.0
_LOOK_S: Final = 0.1
_REAP_S: Final = 5.0
_JOURNAL_LINES: Final = "500"
_EXITED: Final = "1"  # CLD_EXITED, in ExecMainCode; else a signal


class Service:
    """One start of k3s as a service.

    Attributes:
        pid: 0 if it had ended before it was seen.
        digest: of what it was started with.
    """

    def __init__(self, manager: Systemd | OpenRc, pid: int, digest: str, invocation: str = "") -> None:
        self.pid, self.digest, self.invocation = pid, digest, invocation
        self._manager = manager
        self._pidfd = -1
        if pid:
            with suppress(ProcessLookupError):
                self._pidfd = os.pidfd_open(pid)

    async def wait_exit(self) -> int | None:
        """Until this start has ended; its exit code where the service manager knows it."""
        if self._pidfd >= 0:
            own = os.dup(self._pidfd)  # several tasks may wait, and one descriptor has one waiter
            try:
                await trio.lowlevel.wait_readable(own)
            finally:
                os.close(own)
        return await self._manager.exit_code(self)

    async def tail(self) -> str:
        """The end of its log, of this start only."""
        return await self._manager.tail(self)

    def close(self) -> None:
        """Forget it; it goes on running."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class Systemd:
    """k3s as a transient unit: in /run, so a reboot forgets it, and nothing starts it but the agent."""

    kind: Final[Kind] = "systemd"

    def __init__(self, state_dir: Path, *, root: Path = Path("/")) -> None:
        self._unit = f"{units.NAME}.service"
        self.unit_path = root / "run/systemd/system" / self._unit
        self._env_path = state_dir / "k3s.env"

    async def adopt(self) -> Running | None:
        """The service's main process, if it has one."""
        digest = await trio.to_thread.run_sync(_digest_at, self.unit_path)
        if not digest:
            return None
        shown = await self._show()
        pid = int(shown.get("MainPID") or 0)
        return Service(self, pid, digest, shown.get("InvocationID", "")) if pid else None

    async def start(self, argv: Sequence[str], env: Mapping[str, str], digest: str) -> Running:
        """Write the unit and start it; returns when its process is seen. Raises RoleError, OSError."""
        text = units.systemd_unit(argv, self._env_path, digest)
        changed = await trio.to_thread.run_sync(
            _write, {self._env_path: (units.env_file(env), 0o600), self.unit_path: (text, 0o644)}
        )
        if changed:
            await _call("systemctl", "daemon-reload")
        before = (await self._show()).get("InvocationID", "")
        # one that waits for its next try is started at once; READY=1 comes later, and is ours to watch
        await _call("systemctl", "restart" if changed else "start", "--no-block", self._unit)
        found: Running | None = None
        with trio.move_on_after(_APPEAR_S):
            while found is None:
                shown = await self._show()
                pid, invocation = int(shown.get("MainPID") or 0), shown.get("InvocationID", "")
                if pid or (invocation and invocation != before and shown.get("SubState") != "start-pre"):
                    found = Service(self, pid, digest, invocation)
                else:
                    await trio.sleep(_LOOK_S)
        if found is not None:
            return found
        raise RoleError(
            f"systemd has not started {self._unit} within {_APPEAR_S:.0f} s",
            hint=f"ask it why: systemctl status {self._unit}",
        )

    async def stop(self, *, patience_s: float) -> int:
        """Stop the service and remove its unit."""
        if not await trio.to_thread.run_sync(self.unit_path.exists):
            return 0
        pid = int((await self._show()).get("MainPID") or 0)
        # systemd kills it after TimeoutStopSec; patience is ours for systemd itself
        with trio.CancelScope(shield=True):
            await _call("systemctl", "stop", self._unit, timeout_s=max(patience_s, units.STOP_S) + 30)
            await trio.to_thread.run_sync(_remove, self.unit_path, self._env_path)
            await _call("systemctl", "daemon-reload")
            with suppress(
                RoleError
            ):  # a unit that failed is remembered; one that did not is no error of ours
                await _call("systemctl", "reset-failed", self._unit)
        return pid

    async def exit_code(self, service: Service) -> int | None:
        """How this start ended, if systemd has not begun the next one yet."""
        with suppress(RoleError):
            shown = await self._show()
            with trio.move_on_after(_REAP_S):
                while service.pid and shown.get("MainPID") == str(service.pid):
                    await trio.sleep(_LOOK_S)  # it has ended, but systemd has not reaped it yet
                    shown = await self._show()
            status = shown.get("ExecMainStatus", "")
            if shown.get("InvocationID") == service.invocation and status.isdigit():
                return int(status) if shown.get("ExecMainCode") == _EXITED else -int(status)
        return None

    async def tail(self, service: Service) -> str:
        """From the journal; "" where there is none."""
        with suppress(RoleError):
            done = await programs.run(
                ["journalctl", "--no-pager", "--output=cat", f"--lines={_JOURNAL_LINES}",
                 f"_SYSTEMD_INVOCATION_ID={service.invocation}"]
            )  # fmt: skip
            return done.stdout
        return ""

    async def _show(self) -> dict[str, str]:
        names = "MainPID,ActiveState,SubState,InvocationID,ExecMainCode,ExecMainStatus"
        done = await _call("systemctl", "show", f"--property={names}", self._unit)
        return dict(line.split("=", 1) for line in done.splitlines() if "=" in line)


class OpenRc:
    """k3s as an OpenRC service that is in no runlevel; supervise-daemon starts it again."""

    kind: Final[Kind] = "openrc"

    def __init__(self, state_dir: Path, *, root: Path = Path("/")) -> None:
        self.script_path = root / "etc/init.d" / units.NAME
        self._pid_path = root / f"run/{units.NAME}.pid"
        self._env_path = state_dir / "k3s.env"
        self._log = LogFile(state_dir / LOG_FILE)

    async def adopt(self) -> Running | None:
        """The process below the supervising daemon, if there is one."""
        digest = await trio.to_thread.run_sync(_digest_at, self.script_path)
        pid = await trio.to_thread.run_sync(self._child_pid) if digest else 0
        if not pid:
            return None
        await trio.to_thread.run_sync(self._log.open_adopted)
        return Service(self, pid, digest)

    async def start(self, argv: Sequence[str], env: Mapping[str, str], digest: str) -> Running:
        """Write the script and start it; returns when its process is seen. Raises RoleError, OSError."""
        text = units.openrc_script(argv, self._env_path, self._log.path, digest)
        changed = await trio.to_thread.run_sync(
            _write, {self._env_path: (units.env_file(env), 0o600), self.script_path: (text, 0o755)}
        )
        await trio.to_thread.run_sync(self._log.open_start)
        if changed and await trio.to_thread.run_sync(self._pid_path.exists):
            await _call("rc-service", "--ifstarted", units.NAME, "stop", timeout_s=units.STOP_S + 30)
        await _call("rc-service", "--ifstopped", units.NAME, "start")
        pid, words = 0, ""
        with trio.move_on_after(_APPEAR_S):
            while not pid and not words:
                await trio.sleep(_LOOK_S)
                words = await trio.to_thread.run_sync(self._log.tail)  # first: who spoke may have ended since
                pid = await trio.to_thread.run_sync(self._child_pid)
        return Service(self, pid, digest)  # 0: it ends faster than it can be seen; the log says why

    async def stop(self, *, patience_s: float) -> int:
        """Stop the service and remove its script."""
        if not await trio.to_thread.run_sync(self.script_path.exists):
            return 0
        pid = await trio.to_thread.run_sync(self._child_pid)
        with trio.CancelScope(shield=True):
            await _call(
                "rc-service", "--ifstarted", units.NAME, "stop", timeout_s=max(patience_s, units.STOP_S) + 30
            )
            await trio.to_thread.run_sync(_remove, self.script_path, self._env_path)
        return pid

    async def exit_code(self, service: Service) -> int | None:
        """supervise-daemon keeps it to itself."""
        return None

    async def tail(self, service: Service) -> str:
        """From the log file."""
        return await trio.to_thread.run_sync(self._log.tail)

    def _child_pid(self) -> int:
        """k3s's pid: the child of the supervising daemon whose pid the pid file holds; 0 if there is none."""
        try:
            daemon = int(self._pid_path.read_text())
            children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
        except (OSError, ValueError):
            return 0
        return int(children[0]) if children else 0


async def _call(*argv: str, timeout_s: float = 30.0) -> str:
    """One command of the service manager; its output. Raises RoleError that quotes its words."""
    done = await programs.run(argv, timeout_s=timeout_s)
    if done.exit_code != 0:
        line = " ".join(argv)
        words = (done.stderr or done.stdout).strip()[-400:] or f"exit code {done.exit_code}"
        raise RoleError(f"{line} failed: {words}", hint=f"run it by hand: {line}")
    return done.stdout


def _digest_at(path: Path) -> str:
    try:
        return units.digest_of(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return ""


def _write(files: Mapping[Path, tuple[str, int]]) -> bool:
    """Write text and mode of each, atomically; True if that changed anything. Raises OSError."""
    changed = False
    for path, (text, mode) in files.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        with open(fresh, "w", encoding="utf-8", opener=lambda p, f: os.open(p, f, 0o600)) as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)  # not what the umask leaves of it
        fresh.replace(path)
        changed = True
    return changed


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
