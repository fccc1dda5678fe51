"""What does a node know of the others, at one moment?

An immutable snapshot, built by the node from membership and the ledger, and handed to the cores. Cores
decide on one snapshot at a time; they never look anything up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from p2p_network.core.ids import PeerId
from p2p_network.records import Wish

MAX_NODES = 1024
"""More nodes than this in one cluster are not believed, whoever declares them."""


@dataclass(frozen=True, slots=True)
class ViewNode:
    """One node of the scope, as this node sees it.

    Attributes:
        peer, hostname, region, zone, wish, minimum_nodes, servers: from its `NodeRecord`.
        region_pending: its region is being found out and will be built upon.
        alive: heard of within the failure detector's time; this node is always alive to itself.
        vpn_ipv4, vpn_ipv6: its VPN addresses, "" while it has none.
        role, ready, cluster_id, epoch: from its `RoleRecord`; "", False, "", 0 while it has none.
    """

    peer: PeerId
    hostname: str
    region: str = ""
    zone: str = ""
    wish: Wish = "auto"
    alive: bool = True
    vpn_ipv4: str = ""
    vpn_ipv6: str = ""
    minimum_nodes: int = 1
    servers: int = 1
    role: str = ""
    ready: bool = False
    cluster_id: str = ""
    region_pending: bool = False
    epoch: int = 0


@dataclass(frozen=True)
class View:
    """All known nodes of one cluster scope, this one included.

    Attributes:
        self_id: this node.
        scope: the cluster's name: the network id, or ``network id/region``.
        nodes: in any order; one per peer.
        changed_at: monotonic seconds at which this view began to hold.
    """

    self_id: PeerId
    scope: str
    nodes: tuple[ViewNode, ...]
    changed_at: float

    @cached_property
    def by_peer(self) -> dict[PeerId, ViewNode]:
        """The nodes by peer id."""
        return {node.peer: node for node in self.nodes}

    @cached_property
    def alive(self) -> frozenset[PeerId]:
        """The peers that are alive."""
        return frozenset(node.peer for node in self.nodes if node.alive)

    @cached_property
    def declared_nodes(self) -> int:
        """The largest `minimum_nodes` that any known node declares; the larger counts."""
        return min(MAX_NODES, max((node.minimum_nodes for node in self.nodes), default=1))

    def name(self, peer: str) -> str:
        """A peer's host name for sentences, or the end of its id when it is unknown."""
        node = self.by_peer.get(PeerId(peer))
        return node.hostname if node is not None and node.hostname else f"...{peer[-8:]}"
