"""Does the driver keep a k3s running, adopt it, stop it, and say what is wrong?

A tiny script stands in for k3s where only its life matters; where there is the stand-in, one test forms
a cluster of one with real files, TLS and readiness.
"""

from __future__ import annotations

import ctypes
import datetime
import importlib.util
import os
import shutil
import signal
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2p_network.core.errors import K3sFailed, RoleError, TimedOut
from p2p_roles import programs
from p2p_roles.k3s import pki
from p2p_roles.k3s.driver import K3sDriver, K3sObserved, Timing, ask_k3s
from p2p_roles.k3s.probe import NotReady, Readiness
from p2p_roles.k3s.spec import K3sOptions, K3sPaths, K3sSpec, NodeFacts, SectionOptions, build

FAKE = """#!/bin/sh
case "$1" in --version) echo "k3s version v1.36.1+fake (0123abcd)"; exit 0;; esac
echo "$@" >> "$FAKE_DIR/starts"
if [ -e "$FAKE_DIR/fail" ]; then cat "$FAKE_DIR/fail" >&2; exit 1; fi
if [ -e "$FAKE_DIR/deaf" ]; then trap "" TERM; while :; do sleep 0.1; done; fi
exec sleep 600
"""

TIMING = Timing(probe_s=0.02, probe_ready_s=0.05, stop_s=5, backoff_s=0.05, max_backoff_s=0.2)


class Machine:
    """A directory as a machine's disk, with a fake k3s."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = K3sPaths(str(root / "etc"), str(root / "data"))
        self.binary = root / "k3s"
        self.binary.write_text(FAKE)
        self.binary.chmod(0o755)

    def driver(self, binary: str | None = None) -> K3sDriver:
        return K3sDriver(
            state_dir=self.root / "state",
            binary=binary or str(self.binary),
            env={"PATH": os.environ["PATH"], "FAKE_DIR": str(self.root)},
            ask=self.ask,
            timing=TIMING,
        )

    def ask(self, spec: K3sSpec) -> Readiness:
        if (self.root / "ready").exists():
            return Readiness("uid-1", "ca-1")
        raise NotReady("no file")

    def spec(self, kind="server-init", *, args: tuple[str, ...] = (), **more) -> K3sSpec:
        return build(
            kind,
            facts=NodeFacts("n1", "10.144.0.1", "kp2p0"),
            options=K3sOptions(server=SectionOptions(args=args)),
            datastore="etcd",
            server_token="K10" + "0" * 64 + "::server:secret-secret",
            agent_token="K10" + "0" * 64 + "::node:secret-secret",
            paths=self.paths,
            **more,
        )

    @property
    def starts(self) -> list[str]:
        file = self.root / "starts"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def machine(tmp_path: Path):
    made = Machine(tmp_path)
    yield made
    process = programs.adopt(tmp_path / "state" / "k3s.process")
    if process is not None:
        process.send(signal.SIGKILL)
        process.close()


@asynccontextmanager
async def supervised(driver: K3sDriver) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(driver.run)
        yield
        nursery.cancel_scope.cancel()


async def seen(driver: K3sDriver, wanted: Callable[[K3sObserved], bool]) -> K3sObserved:
    with trio.fail_after(10):
        while not wanted(driver.observed):
            await trio.sleep(0.01)
    return driver.observed


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.01)


async def test_a_program_says_its_version_once_and_another_one_its_own(machine: Machine) -> None:
    def put(version: str) -> None:
        new = machine.root / "new"
        new.write_text(f'#!/bin/sh\necho >> "$0.asked"\necho "k3s version {version} (0123abcd)"\n')
        new.chmod(0o755)
        new.rename(machine.binary)

    asked = machine.root / "k3s.asked"
    put("v1.36.1+one")
    driver = machine.driver()
    assert [await driver.version() for _ in range(3)] == ["v1.36.1+one"] * 3
    assert len(asked.read_text().splitlines()) == 1
    put("v1.36.2+two")
    assert await driver.version() == "v1.36.2+two", "an upgrade swaps the file"
    machine.binary.unlink()
    with pytest.raises(K3sFailed):
        await driver.version()


async def test_start_ready_survive_adopt_stop(machine: Machine) -> None:
    first = machine.driver()
    async with supervised(first):
        first.start(machine.spec())
        running = await seen(first, lambda o: o.state == "running")
        assert running.version == "v1.36.1+fake"
        (machine.root / "ready").touch()
        ready = await seen(first, lambda o: o.state == "ready")
        assert (ready.uid, ready.ca_hash, ready.event.state) == ("uid-1", "ca-1", "ready")
    os.kill(ready.pid, 0)  # our end is not k3s's end
    second = machine.driver()
    async with supervised(second):
        second.start(machine.spec())
        again = await seen(second, lambda o: o.state == "ready")
        assert again.pid == ready.pid
        assert machine.starts == ["server"]
        await second.stop()
        assert second.observed.state == "stopped"
        await until(lambda: not Path(f"/proc/{ready.pid}").exists())
    assert not (machine.root / "state" / "k3s.process").exists()


async def test_files_are_private_and_a_seed_never_replaces_another_ca(machine: Machine) -> None:
    driver = machine.driver()
    async with supervised(driver):
        driver.start(machine.spec(ca_files=(("server-ca.crt", b"one"),)))
        await seen(driver, lambda o: o.state == "running")
        drop_in = Path(machine.paths.drop_in)
        assert stat.S_IMODE(drop_in.stat().st_mode) == 0o600
        assert "cluster-init: true" in drop_in.read_text()
        seeded = Path(machine.paths.data_dir, "server/tls/server-ca.crt")
        assert stat.S_IMODE(seeded.stat().st_mode) == 0o600
        pid = driver.observed.pid
        await driver.rewrite(machine.spec("server", join_ip="10.144.0.2"))
        assert "cluster-init" not in drop_in.read_text()
        assert 'server: "https://10.144.0.2:6443"' in drop_in.read_text()
        assert driver.observed.pid == pid, "rewriting does not restart"
        await driver.stop()
        driver.start(machine.spec(ca_files=(("server-ca.crt", b"two"),)))
        failed = await seen(driver, lambda o: o.state == "failed")
        assert failed.permanent
        assert "another cluster" in failed.error
        assert seeded.read_bytes() == b"one"
        await driver.set_aside(machine.paths, "epoch-1")
        assert not seeded.exists()
        assert not drop_in.exists()
        assert (Path(machine.paths.data_dir) / "set-aside-epoch-1/server/tls/server-ca.crt").exists()


async def test_what_a_former_owners_k3s_had_is_moved_but_never_deleted(machine: Machine) -> None:
    driver = machine.driver()
    data, drop_in = Path(machine.paths.data_dir), Path(machine.paths.drop_in)
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    theirs, ours = (dict(pki.make(epoch, now).files)["server-ca.crt"] for epoch in (1, 2))
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    for number, ca in enumerate((theirs, ours, ours, ours)):
        (data / "server" / "tls").mkdir(parents=True)
        (data / "server" / "tls" / "server-ca.crt").write_bytes(ca)
        drop_in.write_text(f"token: K10{pki.bundle_hash(ours)}::server:x\n")
        await driver.set_aside(machine.paths, f"epoch-{number}")
    left = sorted(path.name for path in data.glob("set-aside-*"))
    assert left == ["set-aside-epoch-2", "set-aside-epoch-3", "set-aside-kept-epoch-0"]
    assert (data / "set-aside-kept-epoch-0/server/tls/server-ca.crt").read_bytes() == theirs


async def test_it_is_started_again_and_the_cause_is_told(machine: Machine) -> None:
    (machine.root / "fail").write_text(
        'time="x" level=fatal msg="listen tcp :6443: bind: address already in use"\n'
    )
    driver = machine.driver()
    async with supervised(driver):
        driver.start(machine.spec())
        failed = await seen(driver, lambda o: o.state == "failed")
        assert 'k3s says "listen tcp :6443: bind: address already in use"' in failed.error
        assert "ss -ltnp" in failed.hint
        await until(lambda: len(machine.starts) >= 3)
        (machine.root / "fail").unlink()
        running = await seen(driver, lambda o: o.state == "running")
        os.kill(running.pid, signal.SIGKILL)
        await until(lambda: driver.observed.pid not in (0, running.pid))
        await driver.stop()


async def test_other_arguments_mean_another_process(machine: Machine) -> None:
    driver = machine.driver()
    async with supervised(driver):
        driver.start(machine.spec())
        first = await seen(driver, lambda o: o.state == "running")
        driver.start(machine.spec(args=("--disable=traefik",)))
        await seen(driver, lambda o: o.state == "running" and o.pid != first.pid)
        await until(lambda: machine.starts == ["server", "server --disable=traefik"])
        assert not Path(f"/proc/{first.pid}").exists()
        await driver.stop()


async def test_one_that_does_not_listen_is_killed(machine: Machine) -> None:
    (machine.root / "deaf").touch()
    driver = machine.driver()
    driver._timing = Timing(probe_s=0.02, stop_s=0.2)
    async with supervised(driver):
        driver.start(machine.spec())
        await until(lambda: len(machine.starts) == 1)
        pid = (await seen(driver, lambda o: o.state == "running")).pid
        await driver.stop()
        assert not Path(f"/proc/{pid}").exists()


async def test_no_binary_no_data(machine: Machine) -> None:
    absent = machine.driver(binary="no-such-k3s")
    async with supervised(absent):
        absent.start(machine.spec())
        found = await seen(absent, lambda o: o.state == "absent")
        assert found.permanent
        assert "K3S_BIN" in found.hint
        assert found.event.state == "failed"
    with pytest.raises(K3sFailed, match="not installed"):
        await absent.version()
    gone = machine.driver()
    async with supervised(gone):
        gone.start(machine.spec("server"))
        failed = await seen(gone, lambda o: o.state == "failed")
        assert failed.permanent
        assert "data is gone" in failed.error
        assert machine.starts == []


async def test_a_record_of_another_process_is_not_adopted(machine: Machine) -> None:
    record = machine.root / "state" / "k3s.process"
    record.parent.mkdir()
    record.write_text(f'{{"pid": {os.getpid()}, "started_ticks": 1, "boot_id": "x", "digest": ""}}')
    assert programs.adopt(record) is None
    record.write_text("garbage")
    assert programs.adopt(record) is None


async def test_running_a_program() -> None:
    done = await programs.run(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.exit_code, done.stdout, done.stderr) == (3, "out\n", "err\n")
    with pytest.raises(TimedOut):
        await programs.run(["/bin/sleep", "60"], timeout_s=0.1)
    with pytest.raises(RoleError, match="cannot be started"):
        await programs.run(["/no/such/program"])


async def test_a_program_that_is_no_longer_wanted_is_killed(tmp_path: Path) -> None:
    pid_path = tmp_path / "pid"
    script = f"echo $$ > {pid_path}.new; mv {pid_path}.new {pid_path}; exec sleep 600"
    with trio.move_on_after(30) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(programs.run, ["/bin/sh", "-c", script])
            await until(pid_path.exists)
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught
    await until(lambda: not Path(f"/proc/{pid_path.read_text().strip()}").exists())


STAND_IN = importlib.util.find_spec("p2p_simulations.k3s.__main__") is not None


class Namespaces:
    """Two machines with a cable between them, 10.144.0.1 and 10.144.0.2."""

    def __init__(self) -> None:
        self.names = [f"kp2p-roles-{os.getpid()}-{i}" for i in (1, 2)]

    async def ip(self, *words: str) -> None:
        done = await programs.run(["ip", *words])
        assert done.exit_code == 0, done.stderr

    async def up(self) -> None:
        for name in self.names:
            await self.ip("netns", "add", name)
            await self.ip("-n", name, "link", "set", "lo", "up")
        ends = [f"kpr{os.getpid()}{end}" for end in "ab"]
        await self.ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (name, end) in enumerate(zip(self.names, ends, strict=True), start=1):
            await self.ip("link", "set", end, "netns", name, "name", "kp2p0")
            await self.ip("-n", name, "addr", "add", f"10.144.0.{number}/24", "dev", "kp2p0")
            await self.ip("-n", name, "link", "set", "kp2p0", "up")

    async def down(self) -> None:
        for name in self.names:
            await programs.run(["ip", "netns", "del", name])

    def ask(self, index: int) -> Callable[[K3sSpec], Readiness]:
        """The real probe, from a thread inside the namespace, as the agent lives in it."""

        def inside(spec: K3sSpec, result: list[object]) -> None:
            try:
                with open(f"/run/netns/{self.names[index]}") as handle:
                    if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), 0x40000000) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                result.append(ask_k3s(spec))
            except Exception as exc:
                result.append(exc)

        def ask(spec: K3sSpec) -> Readiness:
            result: list[object] = []
            thread = threading.Thread(target=inside, args=(spec, result))
            thread.start()
            thread.join()
            if isinstance(result[0], Readiness):
                return result[0]
            assert isinstance(result[0], Exception)
            raise result[0]

        return ask

    def driver(self, index: int, root: Path) -> K3sDriver:
        root.mkdir()
        wrapper = root / "k3s"
        inside = f"ip netns exec {self.names[index]} {sys.executable} -m p2p_simulations.k3s"
        wrapper.write_text(f'#!/bin/sh\nexec {inside} "$@"\n')
        wrapper.chmod(0o755)
        return K3sDriver(state_dir=root / "state", binary=str(wrapper), ask=self.ask(index), timing=TIMING)


@pytest.fixture
async def namespaces() -> AsyncIterator[Namespaces]:
    made = Namespaces()
    try:
        await made.up()
        yield made
    finally:
        with trio.CancelScope(shield=True):
            await made.down()


@pytest.mark.skipif(not STAND_IN, reason="the stand-in for k3s is not in this tree")
@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace for k3s's ports needs root")
@pytest.mark.skipif(shutil.which("ip") is None, reason="network namespaces need iproute2")
@pytest.mark.parametrize("second", ["agent", "server-join"])
async def test_a_cluster_of_two_with_the_stand_in(
    namespaces: Namespaces, tmp_path: Path, second: str
) -> None:
    secrets = pki.make(1, datetime.datetime.now(datetime.UTC))

    def spec(kind: str, number: int, held: pki.ClusterSecrets | pki.JoinSecret) -> K3sSpec:
        root = tmp_path / f"n{number}"
        return build(
            kind,
            facts=NodeFacts(f"n{number}", f"10.144.0.{number}", "kp2p0", region="west"),
            options=K3sOptions(),
            datastore="etcd",
            server_token=held.server_token,
            agent_token=held.agent_token,
            join_ip="" if kind == "server-init" else "10.144.0.1",
            ca_files=secrets.files if kind == "server-init" else (),
            paths=K3sPaths(str(root / "etc"), str(root / "data")),
        )

    one, two = (namespaces.driver(i, tmp_path / f"n{i + 1}") for i in (0, 1))
    async with supervised(one), supervised(two):
        try:
            one.start(spec("server-init", 1, secrets))
            with trio.fail_after(40):
                while one.observed.state != "ready":
                    await trio.sleep(0.05)
            assert one.observed.ca_hash == secrets.ca_hash, "the seeded CA is the one that is served"
            data = tmp_path / "n1" / "data" / "server"
            assert (data / "token").read_text().strip() == secrets.server_token, "as it was meant"
            handed = secrets.joining("agent" if second == "agent" else "server")
            two.start(spec(second, 2, handed))
            with trio.fail_after(60):
                while two.observed.state != "ready":
                    await trio.sleep(0.05)
            if second == "server-join":
                assert two.observed.ca_hash == secrets.ca_hash
                assert two.observed.uid == one.observed.uid
        finally:
            with trio.CancelScope(shield=True):
                await two.stop()
                await one.stop()


@pytest.mark.skipif(not STAND_IN, reason="the stand-in for k3s is not in this tree")
@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace for k3s's ports needs root")
@pytest.mark.skipif(shutil.which("ip") is None, reason="network namespaces need iproute2")
async def test_a_token_of_another_ca_is_told_as_such(namespaces: Namespaces, tmp_path: Path) -> None:
    right, wrong = (pki.make(1, datetime.datetime.now(datetime.UTC)) for _ in range(2))
    one, two = (namespaces.driver(i, tmp_path / f"n{i + 1}") for i in (0, 1))

    def spec(kind: str, number: int, held: pki.ClusterSecrets) -> K3sSpec:
        root = tmp_path / f"n{number}"
        return build(
            kind,
            facts=NodeFacts(f"n{number}", f"10.144.0.{number}"),
            options=K3sOptions(),
            datastore="etcd",
            server_token=held.server_token,
            agent_token=held.agent_token,
            join_ip="" if kind == "server-init" else "10.144.0.1",
            ca_files=held.files if kind == "server-init" else (),
            paths=K3sPaths(str(root / "etc"), str(root / "data")),
        )

    async with supervised(one), supervised(two):
        try:
            one.start(spec("server-init", 1, right))
            with trio.fail_after(40):
                while one.observed.state != "ready":
                    await trio.sleep(0.05)
            two.start(spec("agent", 2, wrong))
            with trio.fail_after(40):
                while "another cluster" not in two.observed.error:
                    await trio.sleep(0.05)
            assert two.observed.state != "ready"
            assert two.observed.hint
        finally:
            with trio.CancelScope(shield=True):
                await two.stop()
                await one.stop()
