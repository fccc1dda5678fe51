"""How is k3s kept running on this machine?

One `K3sDriver` owns one k3s: it writes the spec's files, has a `Supervisor` start the program (it survives
this process and is adopted again), watches it end, starts it again with a growing pause, asks whether it is
ready, and reads its log for what is wrong. Everything seen comes out of `changes` as `K3sObserved`, one
per change. Files and probes run in threads; nothing blocks the loop.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

from p2p_network.core import log
from p2p_network.core.errors import K3sFailed, RoleError
from p2p_roles import programs
from p2p_roles.events import K3sChanged, K3sState
from p2p_roles.k3s import causes, pki, probe
from p2p_roles.k3s.causes import Cause
from p2p_roles.k3s.probe import NotReady, Readiness
from p2p_roles.k3s.spec import FileSpec, K3sPaths, K3sSpec
from p2p_roles.k3s.supervisor import MANAGERS_OWN, Child, Running, Supervisor

if TYPE_CHECKING:
    from trio_typing import TaskStatus

_logger = log.get(__name__)

_KEPT_FENCED: Final = 2
_BARE_ENV: Final = ("PATH", "HOME")


@dataclass(frozen=True, slots=True)
class K3sObserved:
    """k3s as seen last.

    Attributes:
        state: absent (no binary), stopped, starting, running (not ready), ready, failed.
        pid: 0 when it does not run.
        version: of the binary, "" while unknown.
        uid, ca_hash: of the cluster that a ready server serves.
        error, hint: what is wrong and what to do; may be set while it runs, too.
        permanent: starting again cannot help.
    """

    state: K3sState
    pid: int = 0
    version: str = ""
    uid: str = ""
    ca_hash: str = ""
    error: str = ""
    hint: str = ""
    permanent: bool = False

    @property
    def event(self) -> K3sChanged:
        """What the bootstrap machine needs to know of it."""
        state: K3sState = "failed" if self.state == "absent" else self.state
        return K3sChanged(state, self.uid, self.ca_hash, self.error, self.permanent)


class Probe(Protocol):
    """How readiness is asked; blocking, raises NotReady."""

    def __call__(self, spec: K3sSpec) -> Readiness:
        """Ask once."""
        ...


def ask_k3s(spec: K3sSpec) -> Readiness:
    """The real probe."""
    if spec.role == "server":
        return probe.server_ready(Path(spec.paths.kubeconfig))
    return probe.agent_ready()


@dataclass(frozen=True, slots=True)
class Timing:
    """How often and how long, in seconds."""

    probe_s: float = 0.2
    probe_ready_s: float = 5.0
    stop_s: float = 30.0
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    healthy_s: float = 60.0


class K3sDriver:
    """The k3s of this machine.

    Args:
        state_dir: for the record of the process and its log.
        binary: path or command line of k3s; default ``$K3S_BIN``, else ``k3s`` on PATH.
        env: the environment that k3s gets below the spec's.
        supervisor: who keeps the process alive; default: it is a detached child.
    """

    def __init__(
        self,
        *,
        state_dir: Path,
        binary: str | None = None,
        env: Mapping[str, str] | None = None,
        supervisor: Supervisor | None = None,
        ask: Probe = ask_k3s,
        timing: Timing = Timing(),
    ) -> None:
        self._env = dict(os.environ if env is None else env)
        self._binary = binary or self._env.get("K3S_BIN") or "k3s"
        self._supervisor = supervisor or Child(state_dir)
        self._ask, self._timing = ask, timing
        self._spec: K3sSpec | None = None
        self._generation = 0
        self._changed = trio.Event()
        self._process: Running | None = None
        self._lock = trio.Lock()
        self._is_held = False
        self._asked: tuple[str, int, int, int] | None = None  # which program said `_version`
        self._version = ""
        self.observed = K3sObserved("stopped")
        self._send, self.changes = trio.open_memory_channel[K3sObserved](64)

    # ------------------------------------------------------------ what the owner wants

    async def version(self) -> str:
        """The binary's version, e.g. "v1.36.1+k3s1". Raises K3sFailed if there is no binary.

        A program is asked once: it takes a tenth of a second, when the machine has other things to do.
        """
        program = await trio.to_thread.run_sync(self._identity)
        if program is not None and program == self._asked:
            return self._version
        done = await programs.run([*self._command(), "--version"])
        words = done.stdout.split()
        found = next((w for w in words if w.startswith("v") and w[1:2].isdigit()), "")
        if done.exit_code != 0 or not found:
            raise K3sFailed(
                f"{self._binary} --version does not say a version (exit code {done.exit_code})",
                hint="install k3s for this machine's architecture, or set K3S_BIN to a working one",
            )
        self._asked, self._version = program, found
        return found

    def _identity(self) -> tuple[str, int, int, int] | None:
        """Which program k3s is; None if that can't be told (a command line)."""
        path = self.program()
        if path is None:
            return None
        with suppress(OSError):
            known = path.stat()
            return (str(path), known.st_ino, known.st_mtime_ns, known.st_size)
        return None

    def start(self, spec: K3sSpec) -> None:
        """Have k3s run with `spec`: a living one with the same settings is adopted, not restarted."""
        self._want(spec)

    def hold(self) -> None:
        """Don't start k3s again when it ends, until `start` is called."""
        self._is_held = True

    async def rewrite(self, spec: K3sSpec) -> None:
        """Write the files of `spec` while k3s goes on; they count at its next start."""
        async with self._lock:
            await trio.to_thread.run_sync(_write_files, spec)
            if self._spec is not None:
                self._spec = spec

    async def stop(self) -> None:
        """End k3s and don't start it again; returns when it has ended."""
        self._want(None)
        async with self._lock:
            await self._end()
        self._see(K3sObserved("stopped", version=self.observed.version))

    async def restart(self) -> None:
        """End k3s and start it with the same spec, by the program that is there now. Returns when it has
        ended; nothing if it is not to run."""
        spec = self._spec
        if spec is None:
            return
        self._want(None)
        generation = self._generation
        async with self._lock:
            await self._end()
        self._asked = None
        self._see(K3sObserved("stopped"))  # its version is asked again
        if self._generation == generation:
            self._want(spec)

    def program(self) -> Path | None:
        """The one file that k3s is, where links lead to; None if there is none or it is a command line."""
        path = programs.find(self._binary)
        return Path(path).resolve() if path is not None else None

    async def run_once(self, spec: K3sSpec, *flags: str, timeout_s: float) -> programs.Finished:
        """Write the files of `spec` and run k3s with it and `flags` to its end, for what it does while it is
        stopped; the caller stopped it. Raises RoleError, OSError."""
        async with self._lock:
            await trio.to_thread.run_sync(_write_files, spec)
            argv = [*self._command(), *spec.argv, *flags]
            kept = _BARE_ENV if spec.bare_env else self._env.keys()
            env = {**{name: self._env[name] for name in kept if name in self._env}, **spec.env}
            return await programs.run(argv, timeout_s=timeout_s, env=env)

    async def ask(self, *argv: str, timeout_s: float) -> programs.Finished:
        """Run another command of k3s, beside the k3s that goes on. Raises RoleError."""
        return await programs.run([*self._command(), *argv], timeout_s=timeout_s, env=self._env)

    async def set_aside(self, paths: K3sPaths, label: str, *, keep: bool = False) -> None:
        """Stop, and move k3s's data and our drop-in out of its way; nothing of value is deleted.

        The data stays below ``<data dir>/set-aside-<label>``; the last two are kept, with `keep` for ever,
        and so is what a k3s that was here before us had.
        """
        await self.stop()
        async with self._lock:
            try:
                await trio.to_thread.run_sync(_set_aside, paths, f"kept-{label}" if keep else label)
            except OSError as exc:
                raise K3sFailed(
                    f"k3s's data cannot be set aside: {exc}", hint=f"look at {paths.data_dir}"
                ) from exc

    # ------------------------------------------------------------ the loop

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Supervise until cancelled; k3s goes on when this ends."""
        task_status.started()
        failures = 0
        try:
            while True:
                spec, generation, changed = self._spec, self._generation, self._changed
                if spec is None:
                    await changed.wait()
                    continue
                began = trio.current_time()
                failed = await self._run_once(spec, generation, changed)
                if failed is None:
                    failures = 0
                    continue
                self._see_failure(failed)
                if self._is_held:
                    async with self._lock:
                        if self._generation == generation:  # a service manager would start it in a moment
                            await self._end()
                    await changed.wait()
                    continue
                lasted = trio.current_time() - began
                failures = 1 if lasted >= self._timing.healthy_s else failures + 1
                pause = min(self._timing.max_backoff_s, self._timing.backoff_s * 2.0 ** (failures - 1))
                with trio.move_on_after(pause):
                    await changed.wait()
        finally:
            if self._process is not None:
                self._process.close()
                self._process = None

    async def _run_once(self, spec: K3sSpec, generation: int, changed: trio.Event) -> Cause | None:
        """Start or adopt, and watch. None: the owner wants something else now."""
        try:
            async with self._lock:
                if self._generation != generation:
                    return None
                spec = self._spec or spec  # a `rewrite` may have come since
                process = await self._running(spec)
        except RoleError as exc:
            return Cause(exc.message, exc.hint, isinstance(exc, _NeverStarts))
        except OSError as exc:
            return Cause(
                f"k3s's files cannot be written: {exc}", "check the disk and the rights of that path"
            )
        self._see(K3sObserved("starting", process.pid, self.observed.version))
        ended, exit_code = False, None
        async with trio.open_nursery() as nursery:
            if process.pid:  # else it ended before it was seen: nothing runs that could be asked
                nursery.start_soon(self._probe_for_ever, spec, process)

            async def until_changed() -> None:
                await changed.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_changed)
            exit_code = await process.wait_exit()
            ended = True
            nursery.cancel_scope.cancel()
        if not ended or self._generation != generation:
            return None
        cause = causes.explain(await process.tail(), exit_code)
        async with self._lock:
            self._forget()
        return cause

    async def _running(self, spec: K3sSpec) -> Running:
        """k3s with this spec: adopted if it lives, else started. Raises RoleError."""
        argv = [*self._command(), *spec.argv]
        kept = _BARE_ENV if spec.bare_env else self._env.keys()
        env = {name: self._env[name] for name in kept if name in self._env and name not in MANAGERS_OWN}
        env |= spec.env
        said = (argv, sorted(spec.env.items()), spec.bare_env, spec.settings)
        digest = hashlib.sha256(repr(said).encode()).hexdigest()
        process = self._process or await self._supervisor.adopt()
        if process is not None and process.digest != digest:
            self._process = process
            await self._end()
            process = None
        await trio.to_thread.run_sync(_write_files, spec)
        if process is None:
            process = await self._supervisor.start(argv, env, digest)
            log.event(_logger, "roles.k3s_started", pid=process.pid, role=spec.role)
        elif process is not self._process:
            log.event(_logger, "roles.k3s_adopted", pid=process.pid, role=spec.role)
        self._process = process
        return process

    def _command(self) -> list[str]:
        """The command line of k3s. Raises K3sFailed if there is none."""
        words = [self._binary] if programs.find(self._binary) else shlex.split(self._binary)
        path = programs.find(words[0]) if words else None
        if path is None:
            raise _NeverStarts(
                f"k3s is not installed: there is no executable {self._binary!r}",
                hint="install k3s, or set K3S_BIN to its path",
            )
        return [path, *words[1:]]

    async def _end(self) -> None:
        pid = await self._supervisor.stop(patience_s=self._timing.stop_s)
        if pid:
            log.event(_logger, "roles.k3s_stopped", pid=pid)
        self._forget()

    def _forget(self) -> None:
        if self._process is not None:
            self._process.close()
        self._process = None

    # ------------------------------------------------------------ what is seen

    async def _probe_for_ever(self, spec: K3sSpec, process: Running) -> None:
        pid = process.pid
        if not self.observed.version:
            with suppress(RoleError):
                self._see(K3sObserved("starting", pid, await self.version()))
        version = self.observed.version
        while True:
            try:
                ready = await programs.in_thread(self._ask, spec)
                self._see(K3sObserved("ready", pid, version, ready.uid, ready.ca_hash))
                pause = self._timing.probe_ready_s
            except NotReady:
                trouble = causes.known_cause(await process.tail(), running=True) or Cause("", "")
                self._see(K3sObserved("running", pid, version, error=trouble.error, hint=trouble.hint))
                pause = self._timing.probe_s
                if trouble.again and not self._is_held and self._process is not None:
                    log.event(_logger, "roles.k3s_started_again", pid=pid, reason=trouble.error)
                    await self._supervisor.stop(patience_s=self._timing.stop_s)
            await trio.sleep(pause)

    def _see_failure(self, cause: Cause) -> None:
        absent = cause.permanent and programs.find(shlex.split(self._binary)[0]) is None
        state: K3sState = "absent" if absent else "failed"
        self._see(
            K3sObserved(
                state,
                version=self.observed.version,
                error=cause.error,
                hint=cause.hint,
                permanent=cause.permanent,
            )
        )

    def _see(self, observed: K3sObserved) -> None:
        if observed == self.observed:
            return
        if observed.state != self.observed.state:
            before = self.observed.state
            log.event(_logger, "roles.k3s_changed", from_=before, to=observed.state, error=observed.error)
        self.observed = observed
        with suppress(trio.WouldBlock, trio.BrokenResourceError):  # who reads late reads `observed`
            self._send.send_nowait(observed)

    def _want(self, spec: K3sSpec | None) -> None:
        self._spec = spec
        self._is_held = False
        self._generation += 1
        self._changed.set()
        self._changed = trio.Event()


class _NeverStarts(K3sFailed):
    """Starting again cannot help."""


def _write_files(spec: K3sSpec) -> None:
    """Write each file atomically, durably, mode 0600; first look whether k3s may start at all.

    Raises K3sFailed, OSError.
    """
    if spec.requires and not Path(spec.requires).exists():
        raise _NeverStarts(
            f"this server's data is gone ({spec.requires}); starting k3s now would silently begin "
            "another cluster",
            hint="restore it from a snapshot, or let this node leave and join anew: kairos-p2p leave",
        )
    folders: set[Path] = set()
    for file in spec.files:
        path = Path(file.path)
        if path.exists():
            if file.keep:
                continue
            same = path.read_bytes() == file.content
            if same:
                continue
            if file.seed:
                raise _NeverStarts(
                    f"{path} belongs to another cluster: k3s ran on this machine before",
                    hint="if its data is not needed remove it: k3s-uninstall.sh, or move "
                    f"{spec.paths.data_dir} away",
                )
        _write(file, path)
        folders.add(path.parent)
    for folder in folders:  # once for all files in it: their names are durable then, too
        _sync(folder)


def _write(file: FileSpec, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "wb", opener=lambda p, f: os.open(p, f, 0o600)) as out:
        os.fchmod(out.fileno(), 0o600)
        out.write(file.content)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, path)


def _sync(folder: Path) -> None:
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _is_foreign(data: Path, drop_in: Path) -> bool:
    """Whether a server's data is of a cluster that our drop-in does not name: its owner may want it yet."""
    try:
        ca_hash = pki.bundle_hash((data / "server" / "tls" / "server-ca.crt").read_bytes())
    except (OSError, ValueError):
        return False
    with suppress(OSError):
        return f"K10{ca_hash}::".encode() not in drop_in.read_bytes()
    return True


def _set_aside(paths: K3sPaths, label: str) -> None:
    data = Path(paths.data_dir)
    if not label.startswith("kept-") and _is_foreign(data, Path(paths.drop_in)):
        label = f"kept-{label}"
    Path(paths.drop_in).unlink(missing_ok=True)
    Path(paths.kubeconfig).unlink(missing_ok=True)
    present = [name for name in ("server", "agent") if (data / name).exists()]
    if not present:
        return
    target = data / f"set-aside-{label}"
    number = 1
    while target.exists():
        number += 1
        target = data / f"set-aside-{label}-{number}"
    target.mkdir(mode=0o700)
    for name in present:
        (data / name).rename(target / name)
    ours = (path for path in data.glob("set-aside-*") if not path.name.startswith("set-aside-kept-"))
    old = sorted(ours, key=lambda p: p.stat().st_mtime)[:-_KEPT_FENCED]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)
