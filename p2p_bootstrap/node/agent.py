"""In what order does a node come up and go down?

One function, `run_agent`: state directory and identity, then the columns (mesh host, `Replication`, `Vpn`,
`Cluster`; wired in `node.wiring`), each with its own cores, then the local API. Columns talk through the
ledger and the `Signal`s handed to them there; no column knows another's adapters.

Going down: SIGTERM (a service manager) ends this process alone, so packets and k3s go on and the next start
adopts them. SIGINT (a person's Ctrl-C) and ``leave`` stop k3s and the data plane too.
"""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from pathlib import Path

import trio

from p2p_bootstrap import __version__
from p2p_bootstrap.api.audit import AuditLog
from p2p_bootstrap.api.drains import routes as drain_routes
from p2p_bootstrap.api.events import EventLog
from p2p_bootstrap.api.reach import routes as reach_routes
from p2p_bootstrap.api.server import serve_api
from p2p_bootstrap.api.services import routes as service_routes
from p2p_bootstrap.api.upgrades import routes as upgrade_routes
from p2p_bootstrap.config.loading import Config
from p2p_bootstrap.node.answers import own_hostname
from p2p_bootstrap.node.ground import Given
from p2p_bootstrap.node.local_k3s import LocalK3s, role_of
from p2p_bootstrap.node.port_mapping import PortMapping
from p2p_bootstrap.node.reach import ReachAnswers
from p2p_bootstrap.node.userspace import settled, why_no_device
from p2p_bootstrap.node.wiring import Columns, assemble
from p2p_bootstrap.service import LEFT, notify
from p2p_network import drains, wire
from p2p_network.core import log
from p2p_network.core.errors import P2PError
from p2p_network.host.mesh import MeshHost
from p2p_network.ledger.durable import DurableFiles
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
            given = Given(
                self._config, self._userspace, self._hostname, self._state_dir, self._socket, self._events
            )
            columns = await assemble(given, state, leave=self._leave, stop=self._stopping.cancel)
            try:
                await self._live(columns)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(columns.store.close)
        log.event(logger, "agent.stopped", reason="it was told to end")

    async def _live(self, columns: Columns) -> None:
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
                    partial(drain_routes, columns.draining),
                )
                serve = partial(serve_api, parts=parts)
                await nursery.start(serve, columns.answers, self._socket, audit, columns.upkeep)
                nursery.start_soon(self._watch_signals, columns)
                await nursery.start(columns.host.run)
                nursery.start_soon(columns.replication.run)
                nursery.start_soon(columns.admission.run)
                nursery.start_soon(columns.founding.run)
                nursery.start_soon(columns.answers.run)
                nursery.start_soon(columns.blessing.run)
                nursery.start_soon(self._remember, columns.host, columns.durable)
                nursery.start_soon(self._work, columns)
                notify("READY=1")
                await trio.sleep_forever()

    async def _work(self, columns: Columns) -> None:
        columns.routing.look()  # access rules count from the first packet on
        with self._working:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_record, columns)
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

    def _local(self, columns: Columns, role: Role) -> LocalK3s:
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

    async def _watch_signals(self, columns: Columns) -> None:
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

    async def _stop_everything(self, columns: Columns) -> None:
        try:
            await columns.cluster.stop_k3s()
        except P2PError as exc:
            log.event(logger, "agent.k3s_not_stopped", logging.ERROR, error=exc.message, hint=exc.hint)
        await columns.vpn.stop()

    async def _leave(self, columns: Columns) -> None:
        """Take this node out: its k3s, its packets, its word in the ledger."""
        self._left = True
        if self._of_system:  # its configuration can't be removed: it would join again when it is started anew
            (self._state_dir / LEFT).touch(mode=0o600)
        await self._end_work()
        await columns.cluster.leave()
        await columns.vpn.stop()
        await columns.replication.delete(f"role/{columns.self_id}")
        await columns.replication.delete(f"place/{columns.self_id}")
        await columns.replication.delete(f"routes/{columns.self_id}")
        await columns.replication.delete(f"k3s/{columns.self_id}")
        await columns.replication.delete(f"services/{columns.self_id}")
        if columns.self_id in columns.replication.drained:
            await columns.replication.delete(drains.key_of(columns.self_id))
        await columns.replication.delete(f"node/{columns.self_id}")
        with trio.move_on_after(FAREWELL_S):
            await columns.replication.spread()
        log.event(logger, "agent.left", peer=columns.self_id, reason="an operator asked for it")

    async def _keep_record(self, columns: Columns) -> None:
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
            await columns.replication.write(f"node/{columns.self_id}", wire.encode(record))
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
