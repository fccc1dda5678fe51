"""How does k3s run on a machine whose cloud-config switches it on by hand, without roles agreed upon?

``k3s.enabled`` (a server of its own) or ``k3s-agent.enabled`` (an agent of the server that its K3S_URL
names): the user's arguments and environment, run and kept running as any k3s of ours, with the stages around
its first start. `LocalK3s` does it beside a mesh (``p2p.auto.enable: false``), `run_local` where there is no
network token at all: the same local API answers ``status``, ``events``, ``kubeconfig``, ``wait`` and
``leave``.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import trio

from p2p_bootstrap import __version__
from p2p_bootstrap.api.events import EventLog
from p2p_bootstrap.api.server import serve_api
from p2p_bootstrap.api.service import (
    AdmissionDoc,
    AgentService,
    EventDoc,
    Goal,
    K3sDoc,
    MeshDoc,
    NamesDoc,
    NodeDoc,
    RoleDoc,
    StatusDoc,
    VpnDoc,
)
from p2p_bootstrap.config.loading import Config
from p2p_bootstrap.node import virtual_ip
from p2p_bootstrap.node.hooks import Hooks, stage_runner
from p2p_bootstrap.node.k3s import labels_of
from p2p_bootstrap.service import notify
from p2p_network.core import log
from p2p_network.core.errors import P2PError, RoleError, TimedOut
from p2p_network.ledger.durable import DurableFiles
from p2p_network.state import StateDirectory
from p2p_roles.assign import Role
from p2p_roles.k3s import spec, supervisor
from p2p_roles.k3s.driver import K3sDriver

logger = log.get(__name__)

RETRY_S = 10.0
POLL_S = 0.25
LOCAL = "k3s runs by itself: the cloud-config enables it, and no roles are agreed upon"


def role_of(config: Config, *, in_mesh: bool) -> Role | None:
    """As what k3s is switched on by hand; None if it isn't, or if the nodes agree on the roles.

    Args:
        in_mesh: asked by a node of a mesh; else by a machine that may belong to none.
    """
    if in_mesh and config.p2p.auto.enable:
        return None
    if not in_mesh and (config.has_token or config.join_token is not None):
        return None
    if config.k3s.enabled:
        return "server"
    return "agent" if config.k3s_agent.enabled else None


class LocalK3s:
    """k3s as the user wrote it. `error`: why it could not be tried, with what to do."""

    def __init__(
        self,
        *,
        config: Config,
        options: spec.K3sOptions,
        role: Role,
        driver: K3sDriver,
        hooks: Hooks,
        region: Callable[[], str],
    ) -> None:
        self.error: P2PError | None = None
        self._config, self._options, self._role = config, options, role
        self._region = region
        self._driver, self._hooks = driver, hooks

    async def run(self) -> None:
        """Start k3s and keep it running until cancelled; k3s goes on then."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._driver.run)
            nursery.start_soon(self._watch)
            while True:
                if await self._try():
                    break  # the driver goes on
                await trio.sleep(RETRY_S)

    async def _try(self) -> bool:
        try:
            paths = spec.paths_of(self._options, self._role, by_hand=True)
            built = spec.by_hand(
                self._role,
                facts=spec.NodeFacts(
                    node_name="",
                    node_ip="",
                    region=self._region(),
                    zone=self._config.p2p.zone or "",
                    names=virtual_ip.names(self._config),
                    labels=labels_of(self._config),
                    taints=self._config.p2p.taints,
                ),
                options=self._options,
                more_files=await virtual_ip.files(self._config, paths) if self._role == "server" else (),
            )
            await self._hooks.run("before", self._role)
        except P2PError as exc:
            if self.error is None or self.error.message != exc.message:
                log.event(logger, "roles.k3s_refused", logging.ERROR, error=exc.message, hint=exc.hint)
            self.error = exc
            return not isinstance(exc, virtual_ip.ManifestMissing)
        self.error = None
        self._driver.start(built)
        return True

    async def _watch(self) -> None:
        after = False
        async for seen in self._driver.changes:
            if seen.state == "ready" and not after:
                after = True
                try:
                    await self._hooks.run("after", self._role)
                except P2PError as exc:
                    log.event(logger, "roles.hook_failed", logging.ERROR, error=exc.message, hint=exc.hint)


def run_local(config: Config, role: Role, *, state_dir: Path, socket: Path, events: EventLog) -> None:
    """Run k3s alone until told to end. Raises P2PError."""
    trio.run(_Local(config, role, state_dir, socket, events).run)


class _Local:
    """One run of an agent without a mesh; also what its local API answers."""

    def __init__(self, config: Config, role: Role, state_dir: Path, socket: Path, events: EventLog) -> None:
        from p2p_bootstrap.node.answers import own_hostname
        from p2p_bootstrap.node.k3s import options_of

        self._config, self._role, self._events, self._socket = config, role, events, socket
        self._state_dir = state_dir
        self._hostname = own_hostname(config)
        self._driver = K3sDriver(state_dir=state_dir, supervisor=supervisor.choose(state_dir))
        self._options = options_of(config)
        self._local: LocalK3s | None = None
        self._hooks: Hooks | None = None
        self._missing: P2PError | None = None  # why there is no k3s
        self._version = ""
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        with StateDirectory.open(self._state_dir) as state:
            self._hooks = Hooks(DurableFiles(state.durable_path), stage_runner(self._config))
            self._local = LocalK3s(
                config=self._config,
                options=self._options,
                role=self._role,
                driver=self._driver,
                hooks=self._hooks,
                region=lambda: self._config.p2p.named_region,
            )
            try:
                self._version = await self._driver.version()
            except P2PError as exc:
                self._missing = exc
                log.event(logger, "roles.k3s_missing", logging.ERROR, error=exc.message, hint=exc.hint)
            log.event(logger, "agent.started", version=__version__, hostname=self._hostname, reason=LOCAL)
            await self._live(self._local)
        log.event(logger, "agent.stopped", reason="it was told to end")

    async def _live(self, local: LocalK3s) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_api, cast(AgentService, self), self._socket)
                nursery.start_soon(self._watch_signals)
                if self._missing is None:
                    nursery.start_soon(local.run)
                notify("READY=1")
                await trio.sleep_forever()

    async def _watch_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                if number == signal.SIGINT:  # a person's Ctrl-C ends k3s too
                    await self._driver.stop()
                self._scope.cancel()
                return

    # ------------------------------------------------------------ AgentService, as far as there is no mesh

    def __getattr__(self, name: str) -> Any:
        """What only a mesh has: peers, roles, regions, whatever else there will be."""
        if name.startswith("_"):
            raise AttributeError(name)

        def nothing(*_: object, **__: object) -> Any:
            raise RoleError(
                f"this machine is in no mesh: {LOCAL}", hint="add p2p.network_token to its cloud-config"
            )

        return nothing

    def status(self) -> StatusDoc:
        """The state of this machine."""
        seen, local = self._driver.observed, self._local
        error = self._missing or (local.error if local is not None else None)
        hook = self._hooks.error if self._hooks is not None else ""
        text = f"{error.message} ({error.hint})" if error else seen.error or hook
        state = "running" if seen.state == "ready" else "failed" if error else seen.state
        return StatusDoc(
            node=NodeDoc(
                peer="",
                hostname=self._hostname,
                region=self._config.p2p.named_region,
                zone=self._config.p2p.zone or "",
                version=__version__,
                pid=os.getpid(),
            ),
            mesh=MeshDoc(mesh_id="", network_id="", state="alone", peers=0, known=0),
            vpn=VpnDoc(state="off", device="", ipv4="", ipv6="", mtu=0, error=""),
            names=NamesDoc(state="off", origin="", error=""),
            admission=AdmissionDoc(
                state="out",
                reason="this machine is in no mesh",
                generation=0,
                issuer=False,
                role="any",
                region="",
                expires_ms=0,
                refused={},
                revoked=0,
            ),
            role=RoleDoc(
                state="LOCAL",
                role=self._role,
                reason=LOCAL,
                epoch=0,
                cluster_id="",
                ready=seen.state == "ready",
            ),
            k3s=K3sDoc(state=state, version=seen.version or self._version, pid=seen.pid, error=text),
            clusters=[],
            phases=[],
        )

    def peers(self) -> Sequence[Any]:
        """Nobody."""
        return []

    def roles(self) -> Sequence[Any]:
        """Nobody agrees on any."""
        return []

    def events_since(self, seq: int) -> Sequence[EventDoc]:
        """The kept events."""
        return self._events.since(seq)

    async def wait_events(self, seq: int) -> None:
        """Until there is another one."""
        await self._events.wait(seq)

    async def kubeconfig(self) -> str:
        """The file that k3s wrote. Raises RoleError."""
        path = Path(spec.K3sPaths().kubeconfig)
        if self._role == "agent":
            raise RoleError(
                "this node is an agent: it has no cluster-admin kubeconfig", hint="ask its server"
            )
        try:
            return await trio.to_thread.run_sync(path.read_text)
        except OSError as exc:
            raise RoleError(
                f"{path} cannot be read: {exc}", hint="k3s writes it when it is up: kairos-p2p wait ready"
            ) from exc

    async def wait_for(self, goal: Goal, timeout_s: float) -> StatusDoc:
        """Until k3s is ready."""
        if goal == "mesh":
            raise RoleError(f"this machine is in no mesh: {LOCAL}", hint="wait for: ready")
        with trio.move_on_after(timeout_s):
            while True:
                if goal == "role" or self._driver.observed.state == "ready":
                    return self.status()
                await trio.sleep(POLL_S)
        raise TimedOut(
            f"after {timeout_s:g} s k3s is not ready: {self.status()['k3s']['error'] or 'it is starting'}",
            hint="see: kairos-p2p events",
        )

    async def leave(self) -> None:
        """Stop k3s; its data stays where it is, it is the user's."""
        await self._driver.stop()

    async def stop(self) -> None:
        """End this process."""
        self._scope.cancel()

    def metrics_text(self) -> str:
        """Only whether k3s is ready."""
        ready = int(self._driver.observed.state == "ready")
        return f"# HELP kairos_p2p_k3s_ready k3s on this machine is ready.\nkairos_p2p_k3s_ready {ready}\n"
