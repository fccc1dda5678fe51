"""Of which parts is an agent made, and which part is handed which?

Built from the ground up: what all stand on (`node.ground`), what carries packets (`Packets`), what gives
roles and drives k3s (`Roles`), and what looks after them or answers for them (`Columns`: all of it). Nothing
runs yet when `assemble` returns; `node.agent` runs it, in order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from p2p_bootstrap.config.fields import split_target
from p2p_bootstrap.config.model import REGION_AUTO
from p2p_bootstrap.node.address import ALONE_S, FIRST_ALONE_S
from p2p_bootstrap.node.admission import Admission
from p2p_bootstrap.node.answers import Answers
from p2p_bootstrap.node.blessing import Blessing
from p2p_bootstrap.node.blobs import Blobs
from p2p_bootstrap.node.cluster import Cluster
from p2p_bootstrap.node.draining import Draining
from p2p_bootstrap.node.files import Files
from p2p_bootstrap.node.forwarding import Forwarding
from p2p_bootstrap.node.founding import Founding
from p2p_bootstrap.node.ground import Given, Ground, lay_ground
from p2p_bootstrap.node.k3s import K3sUnit
from p2p_bootstrap.node.k3s_programs import K3sPrograms
from p2p_bootstrap.node.names import Names
from p2p_bootstrap.node.outside import Outside
from p2p_bootstrap.node.places import Places
from p2p_bootstrap.node.proxy import Proxy
from p2p_bootstrap.node.recovery import Recovery
from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.resolving import Resolving
from p2p_bootstrap.node.restoring import Restoring
from p2p_bootstrap.node.routing import Routing
from p2p_bootstrap.node.scope import options_of
from p2p_bootstrap.node.service_answers import ServiceAnswers
from p2p_bootstrap.node.services import Services
from p2p_bootstrap.node.sharing import Sharing
from p2p_bootstrap.node.signal import Signal
from p2p_bootstrap.node.snapshots import Snapshots
from p2p_bootstrap.node.upgrades import Upgrades
from p2p_bootstrap.node.upgrading import Upgrading
from p2p_bootstrap.node.upkeep import Upkeep
from p2p_bootstrap.node.vault import Vault
from p2p_bootstrap.node.vpn import Vpn
from p2p_network.addressing import ipv6_network_of
from p2p_network.core import log
from p2p_network.core.ids import PeerId
from p2p_network.host.mesh import MeshHost
from p2p_network.ledger.durable import DurableFiles
from p2p_network.ledger.store import LedgerStore
from p2p_network.state import StateDirectory

logger = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Packets:
    """What carries packets. `changed`: raised when the VPN's state or address is another."""

    routing: Routing
    outside: Outside
    vpn: Vpn
    changed: Signal


@dataclass(frozen=True, slots=True)
class Roles:
    """What gives this node its role and its k3s. `changed`: raised when a role, its reason or k3s did."""

    places: Places
    k3s: K3sUnit
    cluster: Cluster
    changed: Signal


@dataclass(frozen=True, slots=True)
class Columns:
    """All parts of one agent."""

    self_id: PeerId
    durable: DurableFiles
    store: LedgerStore
    host: MeshHost
    replication: Replication
    admission: Admission
    founding: Founding
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
    answers: Answers
    draining: Draining
    blessing: Blessing


async def assemble(
    given: Given,
    state: StateDirectory,
    *,
    leave: Callable[[Columns], Awaitable[None]],
    stop: Callable[[], None],
) -> Columns:
    """All parts of an agent, handed to each other.

    Args:
        leave, stop: what these two requests of the local API do.

    Raises P2PError with what it can't start without."""
    ground = await lay_ground(given, state)
    packets = await _carry_packets(given, ground)
    roles = await _give_roles(given, ground, packets)
    names = Names(
        is_on=given.config.p2p.dns and given.config.p2p.vpn.create,
        network_id=given.config.p2p.network_id,
        mesh_id=ground.kept.mesh_id,
        device=given.config.p2p.vpn.interface,
        address_range=given.config.p2p.vpn.address_range,
        replication=ground.replication,
        vpn=packets.vpn,
        resolving=Resolving(ground.durable),
    )
    blobs = Blobs(runtime=ground.runtime, host=ground.host)
    files = Files(
        runtime=ground.runtime,
        host=ground.host,
        replication=ground.replication,
        routing=packets.routing,
        blobs=blobs,
        self_id=ground.self_id,
    )
    services = Services(
        runtime=ground.runtime,
        self_id=ground.self_id,
        declared=given.config.p2p.services,
        host=ground.host,
        replication=ground.replication,
        durable=ground.durable,
        routing=packets.routing,
        vpn=packets.vpn,
        region=lambda: roles.places.region,
    )
    await services.load()
    socks = given.config.p2p.socks
    proxy = Proxy(
        self_id=ground.self_id,
        socks=split_target(socks) if socks is not None else None,
        forwards=given.config.p2p.forwards,
        host=ground.host,
        replication=ground.replication,
        routing=packets.routing,
        services=services,
        names=names,
    )
    snapshots = Snapshots(
        runtime=ground.runtime,
        self_id=ground.self_id,
        hostname=given.hostname,
        host=ground.host,
        cluster=roles.cluster,
        k3s=roles.k3s,
        blobs=blobs,
        vault=Vault(given.state_dir / "snapshots"),
        keep=given.config.p2p.snapshots.keep,
        max_bytes=given.config.p2p.snapshots.max_mib << 20,
    )
    recovery = Recovery(
        runtime=ground.runtime,
        self_id=ground.self_id,
        host=ground.host,
        cluster=roles.cluster,
        facts=snapshots,
        automatic=given.config.p2p.recovery == "automatic",
    )
    restoring = Restoring(
        runtime=ground.runtime,
        self_id=ground.self_id,
        servers=given.config.declared_servers,
        may_serve=given.config.wish != "agent",
        cluster=roles.cluster,
        k3s=roles.k3s,
        recovery=recovery,
        snapshots=snapshots,
    )
    upkeep = Upkeep(
        config=given.config,
        self_id=ground.self_id,
        cluster=roles.cluster,
        k3s=roles.k3s,
        recovery=recovery,
        snapshots=snapshots,
        restoring=restoring,
    )
    programs = K3sPrograms(
        self_id=ground.self_id,
        driver=roles.k3s.driver,
        blobs=blobs,
        folder=given.state_dir / "k3s-programs",
    )
    upgrading = Upgrading(
        runtime=ground.runtime,
        self_id=ground.self_id,
        replication=ground.replication,
        cluster=roles.cluster,
        k3s=roles.k3s,
        programs=programs,
        durable=ground.durable,
    )
    upgrades = Upgrades(hostname=given.hostname, upgrading=upgrading, programs=programs, snapshots=snapshots)
    sharing = Sharing(
        runtime=ground.runtime,
        self_id=ground.self_id,
        scope=roles.cluster.scope,
        is_open=given.config.p2p.share_kubeconfig,
        host=ground.host,
        replication=ground.replication,
        own=lambda: answers.kubeconfig(),  # noqa: PLW0108  (made below)
    )
    answers = Answers(
        config=given.config,
        hostname=given.hostname,
        mesh_id=ground.kept.mesh_id,
        self_id=ground.self_id,
        host=ground.host,
        replication=ground.replication,
        admission=ground.admission,
        issuing=ground.issuing,
        outside=packets.outside,
        vpn=packets.vpn,
        names=names,
        cluster=roles.cluster,
        places=roles.places,
        sharing=sharing,
        k3s=roles.k3s,
        events=given.events,
        changed=roles.changed,
        leave=lambda: leave(columns),
        stop=stop,
    )
    draining = Draining(
        self_id=ground.self_id,
        hostname=given.hostname,
        replication=ground.replication,
        rows=answers.roles,
        issues=lambda: ground.admission.kept.authority is not None,
        any_server_does=lambda: (found := roles.cluster.genesis) is not None and found.datastore != "etcd",
    )
    columns = Columns(
        self_id=ground.self_id,
        durable=ground.durable,
        store=ground.store,
        host=ground.host,
        replication=ground.replication,
        admission=ground.admission,
        founding=ground.issuing.founding,
        routing=packets.routing,
        outside=packets.outside,
        vpn=packets.vpn,
        services=services,
        asked=ServiceAnswers(services, files, proxy),
        proxy=proxy,
        cluster=roles.cluster,
        places=roles.places,
        names=names,
        k3s=roles.k3s,
        snapshots=snapshots,
        recovery=recovery,
        upkeep=upkeep,
        upgrading=upgrading,
        upgrades=upgrades,
        answers=answers,
        draining=draining,
        blessing=Blessing(given.config.p2p.bless, answers.status),
    )
    return columns


async def _carry_packets(given: Given, ground: Ground) -> Packets:
    changed = Signal()
    routing = Routing(
        runtime=ground.runtime,
        self_id=ground.self_id,
        options=given.config.p2p.vpn,
        ipv6=ipv6_network_of(ground.kept.mesh_id),
        replication=ground.replication,
        durable=ground.durable,
        forwarding=Forwarding(ground.durable),
        issues=lambda: ground.admission.kept.authority is not None,
    )
    await routing.load()
    outside = Outside(
        runtime=ground.runtime,
        self_id=ground.self_id,
        host=ground.host,
        replication=ground.replication,
        udp_port=given.config.p2p.vpn.port,
        planes=lambda: vpn.status.peers,
    )
    vpn = Vpn(
        runtime=ground.runtime,
        self_id=ground.self_id,
        mesh_id=ground.kept.mesh_id,
        options=given.config.p2p.vpn,
        host=ground.host,
        replication=ground.replication,
        socket_path=given.socket.with_name("dataplane.sock"),
        log_path=given.state_dir / "dataplane.log",
        ready=changed,
        rotated=ground.rotated,
        routing=routing,
        outside=outside,
        alone_s=FIRST_ALONE_S if given.config.minimum_nodes == 1 else ALONE_S,
        userspace=given.userspace,
    )
    return Packets(routing, outside, vpn, changed)


async def _give_roles(given: Given, ground: Ground, packets: Packets) -> Roles:
    changed = Signal()
    places = Places(
        runtime=ground.runtime,
        self_id=ground.self_id,
        declared=given.config.p2p.named_region,
        auto=given.config.p2p.region == REGION_AUTO,
        host=ground.host,
        replication=ground.replication,
        durable=ground.durable,
    )
    await places.load()
    k3s = K3sUnit(
        self_id=ground.self_id,
        config=given.config,
        hostname=given.hostname,
        state_dir=given.state_dir,
        durable=ground.durable,
        replication=ground.replication,
        region=lambda: places.region,
    )
    cluster = Cluster(
        runtime=ground.runtime,
        identity=ground.identity,
        mesh_id=ground.kept.mesh_id,
        options=options_of(given.config),
        host=ground.host,
        replication=ground.replication,
        vpn=packets.vpn,
        vpn_changed=packets.changed,
        k3s=k3s,
        durable=ground.durable,
        places=places,
        changed=changed,
    )
    return Roles(places, k3s, cluster, changed)
