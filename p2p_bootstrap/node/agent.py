"""Where is everything wired, and in what order does a node come up and go down?

One function, `run_agent`: state directory and identity, then the columns (mesh host, `Replication`, `Vpn`,
`Cluster`), each with its own cores, then the local API. Columns talk through the ledger and the `Signal`s
handed to them here; no column knows another's adapters.

Going down: SIGTERM (a service manager) ends this process alone, so packets and k3s go on and the next start
adopts them. SIGINT (a person's Ctrl-C) and ``leave`` stop k3s and the data plane too.
"""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from p2p_bootstrap import __version__
from p2p_bootstrap.api.audit import AuditLog
from p2p_bootstrap.api.events import EventLog
from p2p_bootstrap.api.reach import routes as reach_routes
from p2p_bootstrap.api.server import serve_api
from p2p_bootstrap.api.services import routes as service_routes
from p2p_bootstrap.api.upgrades import routes as upgrade_routes
from p2p_bootstrap.config.fields import split_target
from p2p_bootstrap.config.loading import Config
from p2p_bootstrap.config.model import REGION_AUTO
from p2p_bootstrap.config.seeds import read_seeds
from p2p_bootstrap.node.address import ALONE_S, FIRST_ALONE_S
from p2p_bootstrap.node.admission import Admission
from p2p_bootstrap.node.answers import Answers, own_hostname
from p2p_bootstrap.node.blessing import Blessing
from p2p_bootstrap.node.blobs import Blobs
from p2p_bootstrap.node.cluster import Cluster
from p2p_bootstrap.node.files import Files
from p2p_bootstrap.node.forwarding import Forwarding
from p2p_bootstrap.node.issuing import Issuing
from p2p_bootstrap.node.k3s import K3sUnit
from p2p_bootstrap.node.k3s_programs import K3sPrograms
from p2p_bootstrap.node.key_vault import machine_vault
from p2p_bootstrap.node.local_k3s import LocalK3s, role_of
from p2p_bootstrap.node.names import Names
from p2p_bootstrap.node.outside import Outside
from p2p_bootstrap.node.places import Places
from p2p_bootstrap.node.policy import ledger_policy
from p2p_bootstrap.node.port_mapping import PortMapping
from p2p_bootstrap.node.proxy import Proxy
from p2p_bootstrap.node.reach import ReachAnswers
from p2p_bootstrap.node.recovery import Recovery
from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.resolving import Resolving
from p2p_bootstrap.node.routing import Routing
from p2p_bootstrap.node.scope import options_of
from p2p_bootstrap.node.service_answers import ServiceAnswers
from p2p_bootstrap.node.services import Services
from p2p_bootstrap.node.sharing import Sharing
from p2p_bootstrap.node.signal import Signal
from p2p_bootstrap.node.snapshots import Snapshots
from p2p_bootstrap.node.tokens import begin
from p2p_bootstrap.node.trio_runtime import TrioRuntime
from p2p_bootstrap.node.upgrades import Upgrades
from p2p_bootstrap.node.upgrading import Upgrading
from p2p_bootstrap.node.upkeep import Upkeep
from p2p_bootstrap.node.userspace import settled, why_no_device
from p2p_bootstrap.node.vault import Vault
from p2p_bootstrap.node.vpn import Vpn
from p2p_bootstrap.service import LEFT, notify
from p2p_network import wire
from p2p_network.addressing import ipv6_network_of, ipv6_of
from p2p_network.core import log
from p2p_network.core.errors import P2PError
from p2p_network.core.ids import PeerId
from p2p_network.host.mesh import MeshHost
from p2p_network.ledger.durable import DurableFiles
from p2p_network.ledger.store import LedgerStore
from p2p_network.records import NodeRecord
from p2p_network.state import StateDirectory
from p2p_roles.assign import Role

logger = log.get(__name__)

RECORD_EVERY_S = 15.0
REMEMBER_EVERY_S = 30.0
FAREWELL_S = 3.0
MAX_REMEMBERED = 1000


def run_agent(
    config: Config, *, state_dir: Path, socket: Path, events: EventLog, of_system: bool = False
) -> None:
    """Run the agent until it is told to end.

    Args:
        of_system: whether `config` is what the machine has: leaving is then kept in the state folder.

    Raises P2PError with what it can't start or go on without."""
    try:
        trio.run(_Agent(config, state_dir, socket, events, of_system=of_system).run)
    except BaseExceptionGroup as group:
        raise _the_reason(group) from group


def _the_reason(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error to show: a bug if there is one, since it must not hide, else the first of a person's."""
    leaves: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo:
        exc = todo.pop(0)
        if isinstance(exc, BaseExceptionGroup):
            todo.extend(exc.exceptions)
        else:
            leaves.append(exc)
    bugs = [exc for exc in leaves if not isinstance(exc, P2PError)]
    return bugs[0] if bugs else leaves[0]


@dataclass(slots=True)
class _Columns:
    host: MeshHost
    replication: Replication
    admission: Admission
    routing: Routing
    outside: Outside
    vpn: Vpn
    services: Services
    asked: ServiceAnswers
    proxy: Proxy
    cluster: Cluster
    places: Places
    names: Names
    k3s: K3sUnit
    snapshots: Snapshots
    recovery: Recovery
    upkeep: Upkeep
    upgrading: Upgrading
    upgrades: Upgrades


class _Agent:
    """One run of the agent."""

    def __init__(
        self, config: Config, state_dir: Path, socket: Path, events: EventLog, *, of_system: bool
    ) -> None:
        self._of_system = of_system
        self._config, self._userspace = settled(config, why_no_device())
        self._state_dir = state_dir
        self._socket = socket
        self._events = events
        self._hostname = own_hostname(config)
        self._stopping = trio.CancelScope()
        self._working = trio.CancelScope()  # VPN, roles and our record: ends earlier, when we leave
        self._idle = trio.Event()  # that work has ended, decisions under way carried out
        self._left = False

    async def run(self) -> None:
        with StateDirectory.open(self._state_dir) as state:
            seeds = await trio.to_thread.run_sync(read_seeds, self._config.p2p.seed_file)
            vault = machine_vault(self._config.p2p.seal_identity)
            identity = await trio.to_thread.run_sync(state.identity, vault)
            durable = DurableFiles(state.durable_path)
            kept = await trio.to_thread.run_sync(begin, self._config, durable, identity.peer_id)
            if self._userspace:
                log.event(
                    logger,
                    "vpn.userspace",
                    logging.WARNING,
                    reason=f"no VPN device: {self._userspace}",
                    hint="reach the mesh through p2p.socks and p2p.forwards, or kairos-p2p socks",
                )
            log.event(
                logger, "agent.started", version=__version__, peer=identity.peer_id, hostname=self._hostname
            )
            runtime, rotated = TrioRuntime(), Signal()
            admission = Admission(
                runtime=runtime, identity=identity, kept=kept, durable=durable, moved=rotated
            )
            host = MeshHost(
                identity=identity,
                psk=kept.keys[0],
                mesh_id=kept.mesh_id,
                rendezvous=kept.rendezvous,
                listen=self._config.p2p.listen,
                bootstrap=tuple(dict.fromkeys((*self._config.bootstrap, *seeds, *kept.bootstrap))),
                mdns=kept.mdns,
                dht=kept.dht and self._config.p2p.dht,
                remembered=_remembered(durable),
                without_devices=(self._config.p2p.vpn.interface,),
                gate=admission,
                relays=self._config.p2p.relay,
            )
            store = LedgerStore(state.store_path, kept.mesh_id)
            replication = Replication(
                runtime=runtime,
                identity=identity,
                mesh_id=kept.mesh_id,
                host=host,
                store=store,
                policy_for=lambda ledger: ledger_policy(kept.mesh_id, ledger, admission),
                ipv6_of=lambda peer: str(ipv6_of(kept.mesh_id, peer)),
            )
            admission.attach(host, replication)
            issuing = Issuing(
                runtime=runtime,
                admission=admission,
                identity=identity,
                host=host,
                replication=replication,
                durable=durable,
                entropy=os.urandom,
            )
            vpn_changed, roles_changed = Signal(), Signal()
            routing = Routing(
                runtime=runtime,
                self_id=identity.peer_id,
                options=self._config.p2p.vpn,
                ipv6=ipv6_network_of(kept.mesh_id),
                replication=replication,
                durable=durable,
                forwarding=Forwarding(durable),
                issues=lambda: admission.kept.authority is not None,
            )
            await routing.load()
            outside = Outside(
                runtime=runtime,
                self_id=identity.peer_id,
                host=host,
                replication=replication,
                udp_port=self._config.p2p.vpn.port,
                planes=lambda: vpn.status.peers,
            )
            vpn = Vpn(
                runtime=runtime,
                self_id=identity.peer_id,
                mesh_id=kept.mesh_id,
                options=self._config.p2p.vpn,
                host=host,
                replication=replication,
                socket_path=self._socket.with_name("dataplane.sock"),
                log_path=self._state_dir / "dataplane.log",
                ready=vpn_changed,
                rotated=rotated,
                routing=routing,
                outside=outside,
                alone_s=FIRST_ALONE_S if self._config.minimum_nodes == 1 else ALONE_S,
                userspace=self._userspace,
            )
            places = Places(
                runtime=runtime,
                self_id=identity.peer_id,
                declared=self._config.p2p.named_region,
                auto=self._config.p2p.region == REGION_AUTO,
                host=host,
                replication=replication,
                durable=durable,
            )
            await places.load()
            k3s = K3sUnit(
                self_id=identity.peer_id,
                config=self._config,
                hostname=self._hostname,
                state_dir=self._state_dir,
                durable=durable,
                replication=replication,
                region=lambda: places.region,
            )
            await k3s.look()
            cluster = Cluster(
                runtime=runtime,
                identity=identity,
                mesh_id=kept.mesh_id,
                options=options_of(self._config),
                host=host,
                replication=replication,
                vpn=vpn,
                vpn_changed=vpn_changed,
                k3s=k3s,
                durable=durable,
                places=places,
                changed=roles_changed,
            )
            names = Names(
                is_on=self._config.p2p.dns and self._config.p2p.vpn.create,
                network_id=self._config.p2p.network_id,
                mesh_id=kept.mesh_id,
                device=self._config.p2p.vpn.interface,
                address_range=self._config.p2p.vpn.address_range,
                replication=replication,
                vpn=vpn,
                resolving=Resolving(durable),
            )
            sharing = Sharing(
                runtime=runtime,
                self_id=identity.peer_id,
                scope=cluster.scope,
                is_open=self._config.p2p.share_kubeconfig,
                host=host,
                replication=replication,
                own=lambda: answers.kubeconfig(),  # noqa: PLW0108  (made below)
            )
            blobs = Blobs(runtime=runtime, host=host)
            files = Files(
                runtime=runtime,
                host=host,
                replication=replication,
                routing=routing,
                blobs=blobs,
                self_id=identity.peer_id,
            )
            services = Services(
                runtime=runtime,
                self_id=identity.peer_id,
                declared=self._config.p2p.services,
                host=host,
                replication=replication,
                durable=durable,
                routing=routing,
                vpn=vpn,
                region=lambda: places.region,
            )
            await services.load()
            socks = self._config.p2p.socks
            proxy = Proxy(
                self_id=identity.peer_id,
                socks=split_target(socks) if socks is not None else None,
                forwards=self._config.p2p.forwards,
                host=host,
                replication=replication,
                routing=routing,
                services=services,
                names=names,
            )
            snapshots = Snapshots(
                runtime=runtime,
                self_id=identity.peer_id,
                hostname=self._hostname,
                host=host,
                cluster=cluster,
                k3s=k3s,
                blobs=blobs,
                vault=Vault(self._state_dir / "snapshots"),
                keep=self._config.p2p.snapshots.keep,
                max_bytes=self._config.p2p.snapshots.max_mib << 20,
            )
            recovery = Recovery(
                runtime=runtime,
                self_id=identity.peer_id,
                host=host,
                cluster=cluster,
                facts=snapshots,
                automatic=self._config.p2p.recovery == "automatic",
            )
            upkeep = Upkeep(
                config=self._config,
                self_id=identity.peer_id,
                cluster=cluster,
                k3s=k3s,
                recovery=recovery,
                snapshots=snapshots,
            )
            programs = K3sPrograms(
                self_id=identity.peer_id,
                driver=k3s.driver,
                blobs=blobs,
                folder=self._state_dir / "k3s-programs",
            )
            upgrading = Upgrading(
                runtime=runtime,
                self_id=identity.peer_id,
                replication=replication,
                cluster=cluster,
                k3s=k3s,
                programs=programs,
                durable=durable,
            )
            upgrades = Upgrades(
                hostname=self._hostname, upgrading=upgrading, programs=programs, snapshots=snapshots
            )
            columns = _Columns(
                host,
                replication,
                admission,
                routing,
                outside,
                vpn,
                services,
                ServiceAnswers(services, files, proxy),
                proxy,
                cluster,
                places,
                names,
                k3s,
                snapshots,
                recovery,
                upkeep,
                upgrading,
                upgrades,
            )
            answers = Answers(
                config=self._config,
                hostname=self._hostname,
                mesh_id=kept.mesh_id,
                self_id=identity.peer_id,
                host=host,
                replication=replication,
                admission=admission,
                issuing=issuing,
                outside=outside,
                vpn=vpn,
                names=names,
                cluster=cluster,
                places=places,
                sharing=sharing,
                k3s=k3s,
                events=self._events,
                changed=roles_changed,
                leave=lambda: self._leave(columns, identity.peer_id),
                stop=self._stopping.cancel,
            )
            blessing = Blessing(self._config.p2p.bless, answers.status)
            try:
                await self._live(columns, answers, blessing, durable, identity.peer_id)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(store.close)
        log.event(logger, "agent.stopped", reason="it was told to end")

    async def _live(
        self,
        columns: _Columns,
        answers: Answers,
        blessing: Blessing,
        durable: DurableFiles,
        self_id: PeerId,
    ) -> None:
        await columns.replication.load()
        await columns.admission.start()
        with self._stopping:
            async with trio.open_nursery() as nursery:
                audit = AuditLog(self._state_dir / "audit.log")
                reach = ReachAnswers(columns.routing, columns.vpn)
                parts = (
                    partial(reach_routes, reach),
                    partial(upgrade_routes, columns.upgrades),
                    partial(service_routes, columns.asked),
                )
                serve = partial(serve_api, parts=parts)
                await nursery.start(serve, answers, self._socket, audit, columns.upkeep)
                nursery.start_soon(self._watch_signals, columns)
                await nursery.start(columns.host.run)
                nursery.start_soon(columns.replication.run)
                nursery.start_soon(columns.admission.run)
                nursery.start_soon(answers.run)
                nursery.start_soon(blessing.run)
                nursery.start_soon(self._remember, columns.host, durable)
                nursery.start_soon(self._work, columns, self_id)
                notify("READY=1")
                await trio.sleep_forever()

    async def _work(self, columns: _Columns, self_id: PeerId) -> None:
        columns.routing.look()  # access rules count from the first packet on
        with self._working:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_record, columns, self_id)
                nursery.start_soon(columns.routing.run)
                nursery.start_soon(columns.vpn.run)
                nursery.start_soon(columns.outside.run)
                if self._config.p2p.upnp:
                    vpn = self._config.p2p.vpn
                    nursery.start_soon(PortMapping(columns.outside, vpn.port if vpn.create else 0).run)
                nursery.start_soon(columns.services.run)
                nursery.start_soon(columns.proxy.run)
                nursery.start_soon(columns.cluster.run)
                nursery.start_soon(columns.snapshots.run)
                nursery.start_soon(columns.recovery.run)
                nursery.start_soon(columns.upgrading.run)
                nursery.start_soon(columns.places.run)
                nursery.start_soon(columns.names.run)
                if (role := role_of(self._config, in_mesh=True)) is not None:
                    nursery.start_soon(self._local(columns, role).run)
        self._idle.set()

    def _local(self, columns: _Columns, role: Role) -> LocalK3s:
        """k3s switched on by hand, where the nodes agree on no roles."""
        unit = columns.k3s
        return LocalK3s(
            config=self._config,
            options=unit.options,
            role=role,
            driver=unit.driver,
            hooks=unit.hooks,
            region=lambda: columns.places.region,
        )

    async def _end_work(self) -> None:
        """Nothing is decided, started or written any more after this."""
        self._working.cancel()
        await self._idle.wait()

    async def _watch_signals(self, columns: _Columns) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                name = signal.Signals(number).name
                log.event(logger, "agent.stopping", reason=f"{name} received")
                if number == signal.SIGINT and not self._left:
                    # a person in the foreground expects everything to end with Ctrl-C
                    await self._end_work()
                    await self._stop_everything(columns)
                self._stopping.cancel()
                return

    async def _stop_everything(self, columns: _Columns) -> None:
        try:
            await columns.cluster.stop_k3s()
        except P2PError as exc:
            log.event(logger, "agent.k3s_not_stopped", logging.ERROR, error=exc.message, hint=exc.hint)
        await columns.vpn.stop()

    async def _leave(self, columns: _Columns, self_id: PeerId) -> None:
        """Take this node out: its k3s, its packets, its word in the ledger."""
        self._left = True
        if self._of_system:  # its configuration can't be removed: it would join again when it is started anew
            (self._state_dir / LEFT).touch(mode=0o600)
        await self._end_work()
        await columns.cluster.leave()
        await columns.vpn.stop()
        await columns.replication.delete(f"role/{self_id}")
        await columns.replication.delete(f"place/{self_id}")
        await columns.replication.delete(f"routes/{self_id}")
        await columns.replication.delete(f"k3s/{self_id}")
        await columns.replication.delete(f"services/{self_id}")
        await columns.replication.delete(f"node/{self_id}")
        with trio.move_on_after(FAREWELL_S):
            await columns.replication.spread()
        log.event(logger, "agent.left", peer=self_id, reason="an operator asked for it")

    async def _keep_record(self, columns: _Columns, self_id: PeerId) -> None:
        """Keep what this node says of itself true; writing the same again changes nothing."""
        p2p = self._config.p2p
        while True:
            record = NodeRecord(
                hostname=self._hostname,
                region=columns.admission.region or columns.places.region,
                zone=p2p.zone or "",
                addresses=columns.host.addresses(),
                carriers=columns.vpn.carriers(),
                wish=self._config.wish,
                minimum_nodes=self._config.minimum_nodes,
                servers=self._config.declared_servers,
                program=__version__,
                region_how=columns.places.how,
                region_pending=columns.places.is_pending,
                prefer=p2p.prefer or "",
                memory_mib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
            )
            await columns.replication.write(f"node/{self_id}", wire.encode(record))
            await columns.places.said.wait(RECORD_EVERY_S)

    async def _remember(self, host: MeshHost, durable: DurableFiles) -> None:
        """Keep on disk where peers were, for the next start without any other way to find them."""
        last = b""
        while True:
            await trio.sleep(REMEMBER_EVERY_S)
            known = dict(sorted(host.known().items())[:MAX_REMEMBERED])
            raw = wire.encode(known)
            if raw != last:
                await trio.to_thread.run_sync(durable.set, "peers", raw)
                last = raw


def _remembered(durable: DurableFiles) -> dict[PeerId, tuple[str, ...]]:
    try:
        raw = durable.get("peers")
        return wire.decode(raw, dict[PeerId, tuple[str, ...]]) if raw else {}
    except (P2PError, ValueError) as exc:  # only a convenience: peers are found in other ways too
        log.event(logger, "agent.peers_forgotten", logging.WARNING, detail=str(exc))
        return {}
