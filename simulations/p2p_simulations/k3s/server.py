"""In which order does a k3s server start, and when is it READY?

As k3s: prepare (`bootstrap.py`), listen on 6443, start the embedded agent, start or join the datastore, and
when the local member votes and the API answers: READY. Then the controllers.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from p2p_simulations.k3s import (
    VERSION,
    bootstrap,
    controllers,
    https,
    log,
    objects,
    process,
    raft,
    snapshots,
    timing,
    tokens,
)
from p2p_simulations.k3s.access import Access
from p2p_simulations.k3s.agent import Agent, check_labels
from p2p_simulations.k3s.datastore import Datastore, Sqlite
from p2p_simulations.k3s.errors import HttpError, K3sError, Unavailable
from p2p_simulations.k3s.etcd import Etcd, Files
from p2p_simulations.k3s.flags import Settings
from p2p_simulations.k3s.https import Request, Response, json_response
from p2p_simulations.k3s.join import Rejected, join
from p2p_simulations.k3s.kubeapi import KubeApi
from p2p_simulations.k3s.layout import Layout, Machine, critical, machine
from p2p_simulations.k3s.supervisor import Supervisor
from p2p_simulations.k3s.wal import Wal


class Server:
    """One `k3s server`."""

    def __init__(self, settings: Settings, where: Layout, own: Machine, notify_socket: str | None) -> None:
        self._settings = settings
        self._where = where
        self._machine = own
        self._notify_socket = notify_socket
        self._token = bootstrap.token_of(settings)
        self._supervisor: Supervisor | None = None
        self._store: Datastore | None = None
        self._etcd: Etcd | None = None
        self._agent: Agent | None = None
        self._listeners: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def failed(self) -> asyncio.Future[str]:
        """Done when k3s would ask itself to shut down; the result is why."""
        return self._failed

    async def start(self) -> None:
        """Up to the point where k3s waits for its datastore. Raises K3sError."""
        settings, where = self._settings, self._where
        if settings.text("cluster-reset-restore-path") and not settings.on("cluster-reset"):
            raise K3sError("invalid flag use; --cluster-reset required with --cluster-reset-restore-path")
        if settings.on("disable-etcd") and not settings.text("server"):
            raise K3sError("invalid flag use; --server is required with --disable-etcd")
        check_labels(settings)
        log.info(f"Starting k3s {VERSION} (kairos-p2p stand-in)")
        agreed = critical(settings)
        try:
            access = await bootstrap.prepare(settings, where, self._machine, self._token, agreed)
        except K3sError as exc:
            raise exc.within("preparing server") from exc
        if settings.on("cluster-reset"):
            snapshots.cluster_reset(settings, where, self._machine)
            return
        is_etcd = bootstrap.uses_etcd(settings, where, self._token)
        await self._listen(agreed, is_etcd)
        loop = asyncio.get_running_loop()
        if not settings.on("disable-agent"):
            await self._start_agent(is_etcd)
        if is_etcd:
            self._tasks.append(loop.create_task(self._watch(self._run_etcd(access))))
        else:
            store = Sqlite(where.sqlite)
            if self._token:
                try:
                    bootstrap.check_token(store.state, self._token)
                except K3sError as exc:
                    raise exc.within("preparing server: failed to bootstrap cluster data") from exc
            self._tasks.append(loop.create_task(self._watch(self._serve(store))))
        bootstrap.write_tokens(settings, where)
        bootstrap.write_kubeconfig(settings, where)

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._agent:
            self._agent.close()
        for listener in self._listeners:
            listener.close()
        if self._etcd:
            log.info("Stopping etcd server...")
            self._etcd.stop()
        if isinstance(self._store, Sqlite):
            self._store.close()

    async def _watch(self, work: Any) -> None:
        """A bug or a failure in a part ends the process, it does not leave it half alive."""
        try:
            await work
        except (K3sError, Rejected) as exc:
            if not self._failed.done():
                self._failed.set_result(str(exc))
        except Exception as exc:
            if not self._failed.done():
                self._failed.set_exception(exc)

    # ---- port 6443

    async def _listen(self, agreed: dict[str, Any], is_etcd: bool) -> None:
        settings, tls = self._settings, self._where.tls
        port = settings.number("https-listen-port")
        config = {
            **agreed,
            "HTTPSPort": port,
            "SupervisorPort": port,
            "ClusterInit": settings.on("cluster-init"),
        }
        self._supervisor = Supervisor(
            layout=self._where, node_name=self._machine.name, config=config, servers=self._servers
        )
        self._supervisor.is_etcd = is_etcd
        pair = (str(tls / "serving-kube-apiserver.crt"), str(tls / "serving-kube-apiserver.key"))
        context = https.server_context(*pair, str(tls / "client-ca.crt"), required=False)
        bind = settings.text("bind-address")
        try:
            self._listeners.append(
                await https.serve(
                    self._supervisor.handle, [bind, "127.0.0.1"] if bind else None, port, context
                )
            )
            if is_etcd:
                self._listeners.append(await https.serve(self._etcd_health, ["127.0.0.1"], 2381, None))
        except OSError as exc:
            raise K3sError(
                f"preparing server: failed to start supervisor listener: listen tcp :{port}: bind: "
                f"{(exc.strerror or str(exc)).lower()}"
            ) from exc

    def _servers(self) -> list[str]:
        port = self._settings.number("https-listen-port")
        members = self._store.members() if self._store else ()
        hosts = [m.client_url.removeprefix("https://").rpartition(":")[0] for m in members if not m.learner]
        own = self._settings.text("advertise-address") or self._machine.addresses[0]
        return [f"{host}:{port}" for host in (sorted(h for h in hosts if h) or [own])]

    async def _etcd_health(self, request: Request) -> Response:
        fault = self._etcd.test() if self._etcd else "etcd not started"
        answer = {"health": "false", "reason": fault} if fault else {"health": "true", "reason": ""}
        return json_response(503 if fault else 200, answer) if request.path == "/health" else Response(404)

    # ---- the agent inside

    async def _start_agent(self, is_etcd: bool) -> None:
        accounts_token = (self._where.tls / "server-ca.crt").read_bytes()
        password = tokens.read_passwd(self._where.passwd.read_text())["node"].password
        self._agent = Agent(
            settings=self._settings,
            layout=self._where,
            machine=self._machine,
            url=f"https://127.0.0.1:{self._settings.number('https-listen-port')}",
            token=tokens.render(accounts_token, "node", password),
            balancer=None,
            extra=lambda: (
                objects.server_labels(etcd=is_etcd),
                objects.etcd_annotations(self._etcd.name, self._etcd.address) if self._etcd else {},
            ),
        )
        await self._agent.join()

    # ---- the datastore

    async def _run_etcd(self, access: Access | None) -> None:
        settings, where = self._settings, self._where
        heartbeat_ms = timing.milliseconds(settings, "heartbeat-interval", timing.HEARTBEAT_MS)
        election_ms = timing.milliseconds(settings, "election-timeout", timing.ELECTION_MS)
        if heartbeat_ms * 5 > election_ms:
            raise K3sError(
                "starting kubernetes: failed to start cluster: start managed database: "
                f"--election-timeout[{election_ms}ms] should be at least as 5 times as "
                f"--heartbeat-interval[{heartbeat_ms}ms]"
            )
        name = bootstrap.member_name(where, self._machine)
        address = self._machine.addresses[0]
        if where.is_etcd():
            log.info("Starting etcd for existing cluster member")
            wal = Wal.open(where.wal)
        elif access is None:
            log.info("Starting etcd for new cluster, cluster-reset=false")
            wal = _new_cluster(where, name, address)
        else:
            wal = await join(access, where, name, self._machine.name, address, Files(where.tls))
        process.crash_point("after-wal")
        self._etcd = Etcd(
            wal=wal,
            name=name,
            address=address,
            files=Files(where.tls),
            heartbeat_s=heartbeat_ms / 1000,
            election_s=election_ms / 1000,
            removed=self._removed,
        )
        self._store = self._etcd
        assert self._supervisor is not None
        self._supervisor.store = self._etcd
        await self._etcd.start()
        await self._until_voter(self._etcd)
        log.info("Connection to etcd is ready")
        await self._serve(self._etcd)

    async def _until_voter(self, etcd: Etcd) -> None:
        said, said_at = "", 0.0
        loop = asyncio.get_running_loop()
        while True:
            fault = etcd.test()
            if not fault:
                try:
                    await etcd.barrier()
                    return
                except Unavailable as exc:
                    fault = str(exc)
            if fault != said or loop.time() - said_at > 5:
                said, said_at = fault, loop.time()
                log.info(f"Failed to test etcd connection: {fault}")
            await asyncio.sleep(timing.TEST_ETCD_S)

    def _removed(self) -> None:
        process.write_file(self._where.etcd / "tombstone", b"")
        log.info("This node has been removed from the cluster - please restart k3s to rejoin the cluster")

    async def _serve(self, store: Datastore) -> None:
        """From a working datastore to READY, and on."""
        settings, supervisor = self._settings, self._supervisor
        assert supervisor is not None
        self._store = supervisor.store = store
        own = f"{self._machine.addresses[0]}:{settings.number('https-listen-port')}"
        api = KubeApi(store, own)
        await asyncio.sleep(process.delay_ready_s())
        await self._seed(store)
        api.up = True
        supervisor.api = api
        if self._etcd:
            folder = snapshots.folder(settings, self._where)
            supervisor.snapshot = lambda order: snapshots.carry_out(
                order, folder, store.state, self._machine.name
            )
            log.info("ETCD server is now running")
        log.info("Kube API server is now running")
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._watch(controllers.run(store, settings))))
        if self._agent:
            self._tasks.append(loop.create_task(self._watch(self._agent.run())))
            self._tasks.append(loop.create_task(self._watch(self._check_own_password())))
        if self._agent:  # k3s: once it has seen its own Node
            self._where.reset_flag.unlink(missing_ok=True)
        process.crash_point("before-ready")
        log.info("k3s is up and running")
        process.notify_ready(self._notify_socket)
        process.crash_point("after-ready")

    async def _seed(self, store: Datastore) -> None:
        """What a new cluster has: its namespaces (so the stable uid of kube-system), and its token's key."""
        while True:
            try:
                await controllers.ensure_namespaces(store)
                password = tokens.read_passwd(self._where.passwd.read_text())["server"].password
                key = bootstrap.stored_token_key(password)
                if store.state.get(key) is None:
                    await store.propose({"op": "put", "key": key, "object": {"metadata": {}}, "expect": 0})
                return
            except Unavailable as exc:
                log.info(f"Waiting for API server to become available: {exc}")
                await asyncio.sleep(timing.TEST_ETCD_S)

    async def _check_own_password(self) -> None:
        """k3s verifies its own node's password once there is an API; only informational."""
        assert self._supervisor is not None
        while True:
            try:
                await self._supervisor.ensure_password(
                    self._machine.name, self._where.node_password.read_text().strip()
                )
                return
            except HttpError as exc:
                log.warning(f"Deferred node password secret validation failed: {exc}")
                return
            except Unavailable:
                await asyncio.sleep(1.0)


def _new_cluster(where: Layout, name: str, address: str) -> Wal:
    """A log of a cluster with this one member; what SQLite held moves into it."""
    host = f"[{address}]" if ":" in address else address
    member = raft.Member(
        int.from_bytes(os.urandom(6), "big") or 1, name, f"https://{host}:2380", f"https://{host}:2379", False
    )
    snapshot = raft.Snapshot(config=raft.Config((member,)))
    if where.sqlite.exists():
        log.info("Migrating content from sqlite to etcd")
        old = Sqlite(where.sqlite)
        snapshot = raft.Snapshot(old.state.revision, 0, snapshot.config, old.state.dump())
        old.close()
        where.sqlite.rename(where.sqlite.with_name("state.db.migrated"))
    return Wal.create(where.wal, member.id, raft.Saved(snapshot=snapshot))


def build(settings: Settings, where: Layout, notify_socket: str | None) -> Server:
    """Raises K3sError if this machine has no usable address."""
    return Server(settings, where, machine(settings), notify_socket)
