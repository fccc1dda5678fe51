"""Does our own driver run k3s: start it with our CA, see it ready, stop it, and tell what is wrong?

The agent's parts (`pki`, `spec`, `driver`, `probe`, `causes`) on a machine of its own, with the stand-in and
with a real k3s.
"""

from __future__ import annotations

import ctypes
import datetime
import shlex
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio
from k3s_hosts import CONTROL_PLANE, Host, Hosts

from p2p_roles.k3s import pki
from p2p_roles.k3s.driver import K3sDriver, K3sObserved, Timing, ask_k3s
from p2p_roles.k3s.probe import Readiness
from p2p_roles.k3s.spec import K3sOptions, K3sPaths, K3sSpec, NodeFacts, SectionOptions, build


class Machine:
    """A host with an agent's driver on it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        wrapper = host.folder / "k3s"
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(host.command([]))} "$@"\n')
        wrapper.chmod(0o755)
        timing = Timing(probe_s=0.2, stop_s=30, backoff_s=0.2, max_backoff_s=2)
        state = host.folder / "state"
        self.driver = K3sDriver(state_dir=state, binary=str(wrapper), ask=self.ask, timing=timing)

    def ask(self, spec: K3sSpec) -> Readiness:
        """The real probe, from a thread inside the namespace, as the agent lives in it."""
        result: list[Readiness | Exception] = []

        def inside() -> None:
            try:
                with open(f"/run/netns/{self.host.namespace}") as handle:
                    if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), 0x40000000) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                result.append(ask_k3s(spec))
            except Exception as exc:
                result.append(exc)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if isinstance(result[0], Exception):
            raise result[0]
        return result[0]

    def spec(self, kind: str, secrets: pki.ClusterSecrets, join_ip: str = "", *more: str) -> K3sSpec:
        args = (*(() if self.host.simulated else CONTROL_PLANE), *more)
        return build(
            kind,
            facts=NodeFacts(self.host.name, self.host.address, "eth0", region="west"),
            options=K3sOptions(server=SectionOptions(args=args)),
            datastore="etcd",
            server_token=secrets.server_token,
            agent_token=secrets.agent_token,
            join_ip=join_ip,
            ca_files=secrets.files if kind == "server-init" else (),
            paths=K3sPaths(str(self.host.folder / "etc"), str(self.host.data)),
        )

    async def seen(self, wanted: Callable[[K3sObserved], bool]) -> K3sObserved:
        with trio.fail_after(90 if self.host.simulated else 240):
            while not wanted(self.driver.observed):
                await trio.sleep(0.05)
        return self.driver.observed


@asynccontextmanager
async def supervised(*machines: Machine) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for machine in machines:
            await nursery.start(machine.driver.run)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                for machine in machines:
                    await machine.driver.stop()
            nursery.cancel_scope.cancel()


async def test_a_server_of_ours_and_one_that_joins(hosts: Hosts) -> None:
    secrets, foreign = (pki.make(1, datetime.datetime.now(datetime.UTC)) for _ in range(2))
    one, two = (Machine(hosts.add(name)) for name in ("alpha", "beta"))
    first_ip = one.host.address
    async with supervised(one, two):
        one.driver.start(one.spec("server-init", secrets))
        ready = await one.seen(lambda o: o.state == "ready")
        assert ready.ca_hash == secrets.ca_hash, "the CA that we seeded is the one that is served"
        assert one.host.token == secrets.server_token, "the token that we meant is the one that counts"
        assert ready.version.startswith("v1.")

        # as a member: `cluster-init` is off the disk, and it starts again as it is
        await one.driver.rewrite(one.spec("server", secrets, two.host.address))
        await one.driver.stop()
        one.driver.start(one.spec("server", secrets))
        again = await one.seen(lambda o: o.state == "ready")
        assert (again.uid, again.ca_hash) == (ready.uid, ready.ca_hash)
        assert again.pid != ready.pid

        # what is wrong is told in our words
        two.driver.start(two.spec("server-join", foreign, first_ip))
        await two.seen(lambda o: "belongs to another cluster" in o.error)
        two.driver.start(two.spec("server-join", secrets, first_ip, "--cluster-domain=other.local"))
        differ = await two.seen(lambda o: "must be equal on all servers" in o.error)
        assert differ.permanent
        two.driver.start(two.spec("server-join", secrets, first_ip, "--no-such-option"))
        await two.seen(lambda o: "does not know an option" in o.error)
        two.driver.start(two.spec("server-join", secrets, first_ip))
        joined = await two.seen(lambda o: o.state == "ready")
        assert (joined.uid, joined.ca_hash) == (ready.uid, ready.ca_hash)
