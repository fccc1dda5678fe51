"""Which numbers does a node show to Prometheus?

Rendered from the same snapshots as `status`, on request; nothing is counted twice. prometheus-client writes
the text format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2p_bootstrap.api.service import PeerDoc, StatusDoc
from p2p_bootstrap.node.vpn import VpnStatus
from p2p_network.ledger.policy import Refusal


def render(
    *,
    status: StatusDoc,
    peers: Sequence[PeerDoc],
    plane: VpnStatus,
    ledger_entries: int,
    ledger_refused: Mapping[Refusal, int],
    strangers: int,
    refused: Mapping[str, int],
    violations: int,
    circuits: int,
) -> str:
    """All metrics as Prometheus text, version 0.0.4."""
    # imported late: 5 MB that a node without Prometheus never needs
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()

    def gauge(name: str, help_text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"kairos_p2p_{name}", help_text, labels, registry=registry)

    node, role = status["node"], status["role"]
    info = gauge("node_info", "This node; always 1.", ["peer", "hostname", "region", "role", "version"])
    info.labels(node["peer"], node["hostname"], node["region"], role["role"], node["version"]).set(1)
    gauge("mesh_peers", "Peers with a live channel.").set(status["mesh"]["peers"])
    gauge("mesh_known_peers", "Peers ever heard of and not gone.").set(status["mesh"]["known"])
    gauge("mesh_strangers_rejected", "Connections without the mesh's key.").set(strangers)
    causes = gauge("admission_refused", "Connections that ended at the gate, by cause.", ["cause"])
    for cause, count in refused.items():
        causes.labels(cause).set(count)
    gauge("admission_generation", "Generation of the mesh's keys.").set(status["admission"]["generation"])
    gauge("admission_revoked", "Nodes that were revoked.").set(status["admission"]["revoked"])
    gauge("mesh_violations", "Protocol violations by members.").set(violations)
    gauge("mesh_circuits_carried", "Connections between other members that run through here.").set(circuits)
    gauge("mesh_relayed_peers", "Peers that are reached through another member.").set(
        sum(1 for peer in peers if peer["relay"])
    )
    gauge("vpn_up", "1 if the VPN device is up.").set(status["vpn"]["state"] == "up")
    gauge("cluster_ready", "1 if k3s on this node is ready.").set(status["role"]["ready"])
    gauge("cluster_epoch", "Genesis epoch this node belongs to.").set(status["role"]["epoch"])
    health = role.get("quorum", "none")
    gauge("cluster_quorum", "1 if the control plane has its majority, as seen from here.").set(
        health == "healthy"
    )
    gauge("cluster_servers", "Servers known.").set(role.get("servers", 0))
    gauge("cluster_servers_in_sight", "Servers alive, as seen from here.").set(
        role.get("servers_in_sight", 0)
    )
    gauge("ledger_entries", "Entries in the ledger, tombstones included.").set(ledger_entries)
    gauge("dataplane_resident_bytes", "Resident memory of the data plane.").set(plane.rss_bytes)
    entries = gauge("ledger_refused", "Entries refused, by reason.", ["reason"])
    for reason, count in ledger_refused.items():
        entries.labels(reason.name.lower()).set(count)
    rtt = gauge("peer_rtt_seconds", "Round trip of the last heartbeat.", ["hostname"])
    carried = gauge("peer_carried_bytes", "VPN bytes, by direction.", ["hostname", "direction"])
    dropped = gauge("peer_dropped_packets", "VPN packets dropped, by reason.", ["hostname", "reason"])
    for peer in peers:
        stats = plane.peers.get(peer["peer"])
        for why, count in (stats.drops if stats is not None else {}).items():
            dropped.labels(peer["hostname"], why).set(count)
        if peer["rtt_ms"] is not None:
            rtt.labels(peer["hostname"]).set(peer["rtt_ms"] / 1000)
        carried.labels(peer["hostname"], "received").set(peer["rx_bytes"])
        carried.labels(peer["hostname"], "sent").set(peer["tx_bytes"])
    return generate_latest(registry).decode()
