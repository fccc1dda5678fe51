"""What does every part of an agent stand on, and how is it laid?

Identity, durable state, the mesh host, the ledger's replication and who may take part; `node.wiring` builds
the rest upon it.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import trio

from p2p_bootstrap import __version__
from p2p_bootstrap.api.events import EventLog
from p2p_bootstrap.config.loading import Config
from p2p_bootstrap.config.seeds import read_seeds
from p2p_bootstrap.node.admission import Admission
from p2p_bootstrap.node.issuing import Issuing
from p2p_bootstrap.node.key_vault import machine_vault
from p2p_bootstrap.node.policy import ledger_policy
from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.signal import Signal
from p2p_bootstrap.node.tokens import begin
from p2p_bootstrap.node.trio_runtime import TrioRuntime
from p2p_network import wire
from p2p_network.addressing import ipv6_of
from p2p_network.admission.kept import Kept
from p2p_network.core import log
from p2p_network.core.errors import P2PError
from p2p_network.core.ids import PeerId
from p2p_network.host.mesh import MeshHost
from p2p_network.identity import Identity
from p2p_network.ledger.durable import DurableFiles
from p2p_network.ledger.store import LedgerStore
from p2p_network.state import StateDirectory

logger = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Given:
    """What an agent is told when it starts. `userspace`: why it does without a device, or ""."""

    config: Config
    userspace: str
    hostname: str
    state_dir: Path
    socket: Path
    events: EventLog


@dataclass(frozen=True, slots=True)
class Ground:
    """What every other part stands on. `rotated`: raised when the mesh has other keys."""

    self_id: PeerId
    identity: Identity
    kept: Kept
    runtime: TrioRuntime
    durable: DurableFiles
    store: LedgerStore
    host: MeshHost
    replication: Replication
    admission: Admission
    issuing: Issuing
    rotated: Signal


async def lay_ground(given: Given, state: StateDirectory) -> Ground:
    """Read and make what is there before anything runs. Raises P2PError with what can't be."""
    seeds = await trio.to_thread.run_sync(read_seeds, given.config.p2p.seed_file)
    vault = machine_vault(given.config.p2p.seal_identity)
    identity = await trio.to_thread.run_sync(state.identity, vault)
    durable = DurableFiles(state.durable_path)
    kept = await trio.to_thread.run_sync(begin, given.config, durable, identity.peer_id)
    if given.userspace:
        log.event(
            logger,
            "vpn.userspace",
            logging.WARNING,
            reason=f"no VPN device: {given.userspace}",
            hint="reach the mesh through p2p.socks and p2p.forwards, or kairos-p2p socks",
        )
    log.event(logger, "agent.started", version=__version__, peer=identity.peer_id, hostname=given.hostname)
    runtime, rotated = TrioRuntime(), Signal()
    admission = Admission(runtime=runtime, identity=identity, kept=kept, durable=durable, moved=rotated)
    bootstrap = tuple(dict.fromkeys((*given.config.bootstrap, *seeds, *kept.bootstrap)))
    entrances = given.config.p2p.entrances(has_addresses=bool(bootstrap or given.config.p2p.rendezvous))
    host = MeshHost(
        identity=identity,
        psk=kept.keys[0],
        mesh_id=kept.mesh_id,
        rendezvous=kept.rendezvous,
        listen=given.config.p2p.listen,
        bootstrap=bootstrap,
        mdns=kept.mdns,
        dht=kept.dht and given.config.p2p.dht,
        public_dht=entrances if kept.dht else (),
        rendezvous_servers=given.config.p2p.rendezvous,
        remembered=_remembered(durable),
        without_devices=(given.config.p2p.vpn.interface,),
        gate=admission,
        relays=given.config.p2p.relay,
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
        minimum_nodes=given.config.minimum_nodes,
    )
    return Ground(
        self_id=identity.peer_id,
        identity=identity,
        kept=kept,
        runtime=runtime,
        durable=durable,
        store=store,
        host=host,
        replication=replication,
        admission=admission,
        issuing=issuing,
        rotated=rotated,
    )


def _remembered(durable: DurableFiles) -> dict[PeerId, tuple[str, ...]]:
    try:
        raw = durable.get("peers")
        return wire.decode(raw, dict[PeerId, tuple[str, ...]]) if raw else {}
    except (P2PError, ValueError) as exc:  # only a convenience: peers are found in other ways too
        log.event(logger, "agent.peers_forgotten", logging.WARNING, detail=str(exc))
        return {}
