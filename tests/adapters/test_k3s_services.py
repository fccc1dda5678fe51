"""Does the driver keep k3s as a service of systemd and of OpenRC?

No init runs here: `systemctl` and `rc-service` are small programs on PATH that read the unit or script that
the adapter wrote and behave like the real ones, as far as the adapter can see: they start the process with
the unit's environment, start it again when it ends, and know its pid and exit code. (The units themselves are
checked with systemd-analyze and shells in tests/unit/test_k3s_units.py.)
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2p_roles.k3s import services, units
from p2p_roles.k3s.driver import K3sDriver, K3sObserved, Timing
from p2p_roles.k3s.probe import NotReady, Readiness
from p2p_roles.k3s.spec import K3sOptions, K3sPaths, K3sSpec, NodeFacts, SectionOptions, build

K3S = """#!/bin/sh
case "$1" in --version) echo "k3s version v1.36.1+fake (0123abcd)"; exit 0;; esac
echo "$@ FOO=$FOO NOTIFY=$NOTIFY_SOCKET" >> "$FAKE_DIR/starts"
if [ -e "$FAKE_DIR/fail" ]; then cat "$FAKE_DIR/fail"; exit 7; fi
exec sleep 600
"""

MANAGER = '''#!{python}
"""systemctl, journalctl or rc-service, with the state of the one service in a folder."""
import json, os, pathlib, shlex, signal, subprocess, sys, time, uuid

root = pathlib.Path({root!r})
name = pathlib.Path(sys.argv[0]).name
words = [w for w in sys.argv[1:] if not w.startswith("--")]
with open(root / "calls", "a") as calls:
    calls.write(" ".join([name, *sys.argv[1:]]) + "\\n")
state_path, log = root / "service.json", root / "journal"
state = json.loads(state_path.read_text()) if state_path.exists() else {{}}
unit = root / "run/systemd/system/kairos-p2p-k3s.service"
script = root / "etc/init.d/kairos-p2p-k3s"
pid_file = root / "run/kairos-p2p-k3s.pid"


def note(about):
    """At once: others read it meanwhile."""
    fresh = root / f"service.json.{{os.getpid()}}"
    fresh.write_text(json.dumps(about))
    fresh.replace(state_path)


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start():
    """A supervising process of its own that starts k3s again whenever it ends."""
    if state.get("daemon") and alive(state["daemon"]):
        return
    daemon = subprocess.Popen([sys.executable, __file__, "supervise"], start_new_session=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while daemon.poll() is None:  # it tells itself: our word could come after what it tells next
        if state_path.exists() and json.loads(state_path.read_text()).get("daemon") == daemon.pid:
            break
        time.sleep(0.01)


def stop():
    if state.get("daemon"):
        try:
            os.killpg(state["daemon"], signal.SIGTERM)
        except ProcessLookupError:
            pass
        while alive(state["daemon"]):
            time.sleep(0.01)
    note({{}})
    pid_file.unlink(missing_ok=True)


def supervise():
    note({{"daemon": os.getpid()}})
    env = {{"PATH": os.environ["PATH"], "NOTIFY_SOCKET": "/the/managers"}}
    if unit.exists():
        lines = unit.read_text().splitlines()
        argv = shlex.split(next(l for l in lines if l.startswith("ExecStart=")).partition("=")[2])
        env_path = next(l for l in lines if l.startswith("EnvironmentFile=")).partition("=")[2]
        shell = f"set -a; . '{{env_path}}'; exec \\"$@\\""
        output = log
    else:
        shell = f"modprobe() {{{{ :; }}}}; . '{{script}}'; start_pre; eval set -- $command_args; "
        shell += "exec \\"$command\\" \\"$@\\""
        argv = []
        quoted = next(l for l in script.read_text().splitlines() if l.startswith("output_log="))
        output = pathlib.Path(shlex.split(quoted.partition("=")[2])[0])
        pid_file.parent.mkdir(exist_ok=True)
        pid_file.write_text(str(os.getpid()))
    while True:
        invocation = uuid.uuid4().hex
        with open(output, "a") as out:
            if unit.exists():
                out.write(f"== {{invocation}}\\n")
                out.flush()
            child = subprocess.Popen(["sh", "-c", shell, "sh", *argv], env=env, stdout=out, stderr=out)
        about = {{"daemon": os.getpid(), "MainPID": child.pid, "InvocationID": invocation}}
        note(about)
        code = child.wait()
        about |= {{"MainPID": 0, "ExecMainCode": 1 if code >= 0 else 2, "ExecMainStatus": abs(code)}}
        note(about)
        time.sleep(1.0)  # RestartSec, respawn_delay: 5 s of the real ones


match (name, *words):
    case (_, "supervise"):
        supervise()
    case ("systemctl", "show", _):
        for key in ("MainPID", "InvocationID", "ExecMainCode", "ExecMainStatus"):
            print(f"{{key}}={{state.get(key, '')}}")
    case ("systemctl", "start", _):
        start()
    case ("systemctl", "restart", _):
        stop()
        state = {{}}
        start()
    case ("systemctl", "stop", _) | ("rc-service", _, "stop"):
        stop()
    case ("rc-service", _, "start"):
        start()
    case ("systemctl", "daemon-reload") | ("systemctl", "reset-failed", _):
        pass
    case ("journalctl", wanted):
        parts = log.read_text().split("== ")
        print("".join(p.partition("\\n")[2] for p in parts if p.startswith(wanted.partition("=")[2])))
    case other:
        sys.exit(f"unknown: {{other}}")
'''


class Machine:
    """A folder as the root of a machine with a service manager."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root, self.kind = root, kind
        self.paths = K3sPaths(str(root / "etc/rancher"), str(root / "data"))
        self.binary = root / "k3s"
        self._program(self.binary, K3S)
        for name in ("systemctl", "journalctl", "rc-service"):
            (root / "bin").mkdir(exist_ok=True)
            self._program(root / "bin" / name, MANAGER.format(python=sys.executable, root=str(root)))

    def _program(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def driver(self) -> K3sDriver:
        adapter = services.Systemd if self.kind == "systemd" else services.OpenRc
        return K3sDriver(
            state_dir=self.root / "state",
            binary=str(self.binary),
            env={"PATH": os.environ["PATH"], "FAKE_DIR": str(self.root), "NOTIFY_SOCKET": "/the/agents"},
            supervisor=adapter(self.root / "state", root=self.root),
            ask=self.ask,
            timing=Timing(probe_s=0.05, probe_ready_s=0.05, stop_s=5, backoff_s=0.05, max_backoff_s=0.2),
        )

    def ask(self, spec: K3sSpec) -> Readiness:
        raise NotReady("never")

    def spec(self, *args: str) -> K3sSpec:
        return build(
            "server-init",
            facts=NodeFacts("n1", "10.144.0.1", "kp2p0"),
            options=K3sOptions(server=SectionOptions(args=args, env={"FOO": 'a "b" $c'})),
            datastore="etcd",
            server_token="K10" + "0" * 64 + "::server:secret-secret",
            agent_token="K10" + "0" * 64 + "::node:secret-secret",
            paths=self.paths,
        )

    @property
    def unit(self) -> Path:
        systemd = self.root / f"run/systemd/system/{units.NAME}.service"
        return systemd if self.kind == "systemd" else self.root / f"etc/init.d/{units.NAME}"

    def lines(self, name: str) -> list[str]:
        path = self.root / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(params=["systemd", "openrc"])
async def machine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Machine]:
    made = Machine(tmp_path, request.param)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    yield made
    with trio.CancelScope(shield=True):
        await made.driver().stop()


@asynccontextmanager
async def supervised(driver: K3sDriver) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(driver.run)
        yield
        nursery.cancel_scope.cancel()


async def seen(driver: K3sDriver, wanted: Callable[[K3sObserved], bool]) -> K3sObserved:
    with trio.fail_after(120):
        while not wanted(driver.observed):
            await trio.sleep(0.01)
    return driver.observed


def _lives(pid: int) -> bool:
    """Orphans of the pretended manager may wait for process 1 to reap them."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_started_adopted_restarted_and_stopped(machine: Machine) -> None:
    first = machine.driver()
    async with supervised(first):
        first.start(machine.spec())
        running = await seen(first, lambda o: o.state == "running" and o.pid > 0)
        assert running.version == "v1.36.1+fake"
        with trio.fail_after(60):
            while not machine.lines("starts"):
                await trio.sleep(0.01)
        (start,) = machine.lines("starts")
        assert start.startswith('server FOO=a "b" $c'), "the user's environment arrives as it was written"
        assert "/the/agents" not in start, "the agent's own notify socket is not k3s's"
        assert "secret-secret" not in machine.unit.read_text()
    os.kill(running.pid, 0)  # our end is not k3s's end
    second = machine.driver()
    async with supervised(second):
        second.start(machine.spec())
        again = await seen(second, lambda o: o.state == "running")
        assert again.pid == running.pid
        os.kill(running.pid, signal.SIGKILL)  # the manager starts it again, and the driver finds the new one
        newer = await seen(second, lambda o: o.state == "running" and o.pid not in (0, running.pid))
        second.start(machine.spec("--disable=traefik"))
        other = await seen(second, lambda o: o.state == "running" and o.pid not in (0, newer.pid))
        with trio.fail_after(60):
            while not machine.lines("starts")[-1].startswith("server --disable=traefik"):
                await trio.sleep(0.01)
        await second.stop()
        assert second.observed.state == "stopped"
        with trio.fail_after(60):
            while _lives(other.pid):
                await trio.sleep(0.01)
        assert not machine.unit.exists(), "nothing starts it at the next boot"


async def test_why_it_ended_is_told(machine: Machine) -> None:
    driver = machine.driver()
    (machine.root / "fail").write_text("something else\n")
    async with supervised(driver):
        driver.start(machine.spec())
        how = "k3s exited with code 7" if machine.kind == "systemd" else "k3s has ended"
        await seen(driver, lambda o: o.state == "failed" and f'{how}: "something else"' in o.error)
        (machine.root / "fail").write_text('level=fatal msg="Error: flag provided but not defined: -x"\n')
        told = await seen(driver, lambda o: o.state == "failed" and "k3s does not know an option" in o.error)
        assert told.permanent
        (machine.root / "fail").unlink()
        await seen(driver, lambda o: o.state == "running" and o.pid > 0)


async def test_one_that_is_held_is_not_started_again_by_the_manager_either(machine: Machine) -> None:
    """It was removed from etcd and ends: started again, it would join anew."""
    driver = machine.driver()
    async with supervised(driver):
        driver.start(machine.spec())
        running = await seen(driver, lambda o: o.state == "running" and o.pid > 0)
        driver.hold()
        os.kill(running.pid, signal.SIGKILL)
        await seen(driver, lambda o: o.state == "failed")
        with trio.fail_after(60):
            while machine.unit.exists():
                await trio.sleep(0.01)
        driver.start(machine.spec())  # until the owner wants it
        await seen(driver, lambda o: o.state == "running" and o.pid not in (0, running.pid))
