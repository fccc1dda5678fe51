"""Which nodes form one cluster with this one, and what is known of each?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2p_network import membership
from p2p_network.admission.trust import limit_of
from p2p_network.ledger.core import Ledger
from p2p_network.ledger.reading import read_by_peer
from p2p_network.membership import MemberState
from p2p_network.records import RoleRecord
from p2p_roles.genesis.messages import Datastore
from p2p_roles.placement import SPREAD, Placement
from p2p_roles.timing import Speed
from p2p_roles.view import ViewNode

if TYPE_CHECKING:
    from p2p_bootstrap.config.loading import Config


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """What the configuration says about this node's cluster.

    Attributes:
        scope: the cluster's name: the network id, or network id and region where each region is a cluster.
        region: whose nodes form the cluster; None: those of all regions.
        servers, minimum_nodes: see `Rules`.
        auto: whether roles are assigned at all.
        placement: where servers may stand.
        timing: how the times of etcd are chosen.
        datastore: where a cluster that this node initialises keeps its state.
        replaces, silence_s: whether a dead server is replaced by itself, and after how long a silence.
    """

    scope: str
    region: str | None
    servers: int
    minimum_nodes: int
    auto: bool = True
    placement: Placement = SPREAD
    timing: Speed = "auto"
    datastore: Datastore = "etcd"
    replaces: bool = False
    silence_s: float = 300.0


def options_of(config: Config) -> ClusterOptions:
    """The part of a configuration that matters here."""
    p2p = config.p2p
    by_region = p2p.cluster == "region"
    return ClusterOptions(
        scope=f"{p2p.network_id}/{p2p.named_region}" if by_region else p2p.network_id,
        region=p2p.named_region if by_region else None,
        servers=config.declared_servers,
        minimum_nodes=config.minimum_nodes,
        auto=p2p.auto.enable,
        timing=p2p.timing,
        datastore=_datastore(config),
        replaces=p2p.dynamic_roles,
        silence_s=p2p.replace_after,
        # one cluster per region stands in one region, whatever the rule says
        placement=SPREAD if by_region else Placement(p2p.placement, p2p.home_region or ""),
    )


def _datastore(config: Config) -> Datastore:
    """External where one is named; SQLite where the operator says "no HA"; else etcd, which can grow."""
    ha = config.p2p.auto.ha
    if ha.external_db is not None and ha.external_db.get_secret_value():
        return "external"
    return "sqlite" if ha.enable is False and config.declared_servers == 1 else "etcd"


def first_ipv4(addresses: Sequence[str]) -> str:
    """Where k3s does not use the VPN: a machine's first own address; "" if it has none."""
    return next((a.split("/")[2] for a in addresses if a.startswith("/ip4/")), "")


def cluster_nodes(
    view: membership.View, ledger: Ledger, options: ClusterOptions, *, uses_vpn: bool
) -> tuple[ViewNode, ...]:
    """The nodes of this cluster: those of the region, where each region is a cluster."""
    said = read_by_peer(ledger, "role/", RoleRecord)
    nodes = []
    for member in view.members:
        record = member.record
        if record is None or member.state is MemberState.LEFT:
            continue
        certificate = limit_of(ledger, member.peer)
        region = (certificate.region if certificate else "") or record.region
        if options.region is not None and region != options.region:
            continue
        role = said.get(member.peer)
        nodes.append(
            ViewNode(
                peer=member.peer,
                hostname=record.hostname,
                region=region,
                zone=record.zone,
                region_pending=record.region_pending,
                # what a certificate confines a node to, counts more than what it says of itself
                wish=certificate.limit if certificate and certificate.limit != "any" else record.wish,
                alive=member.state is MemberState.ALIVE,
                vpn_ipv4=member.ipv4 if uses_vpn else first_ipv4(record.addresses),
                vpn_ipv6=member.ipv6,
                minimum_nodes=record.minimum_nodes,
                servers=record.servers,
                role=role.role if role else "",
                ready=role.ready if role else False,
                cluster_id=role.cluster_id if role else "",
                epoch=role.epoch if role else 0,
            )
        )
    return tuple(nodes)
