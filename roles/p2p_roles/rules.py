"""By which numbers does the bootstrap go, and who gets which secret?

`Rules` are what the configuration decides about the genesis, with the protocol's times; `authorize` is
the one place that says whether a peer may have a join secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from p2p_network.core.ids import PeerId
from p2p_roles.assign import Assignment, Role, role_of
from p2p_roles.genesis.messages import Datastore, Genesis
from p2p_roles.placement import SPREAD, Placement
from p2p_roles.timing import Speed


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says about the genesis; times in seconds.

    Attributes:
        servers: S, how many first servers.
        minimum_nodes: N, how many nodes the genesis waits for and its quorum counts on.
        placement: where servers may stand; certified if this node initialises.
        timing: how the times of etcd are chosen; what comes of it is certified.
        region_patience_s: so long the genesis waits for regions that are being found out.
        datastore: "etcd", "external", or "sqlite" (one server for ever).
        k3s_version, args_hash: of this node; certified if it initialises.
        settle_s: how long the view must be unchanged before an election.
        alone_s: the same for a node that sees nobody: its first connection takes longer than the next one.
        stagger_s: by how much each rank waits longer before it proposes.
        ballot_s: how long one attempt may take.
        init_s, wait_s, join_s: time limits of the states.
        silence_s: a chosen initiator that is not alive for so long is given up early.
        retry_s: pause before asking for a join secret again.
        look_s: how long a server that comes back asks whether it was replaced, before it starts k3s.
    """

    servers: int = 1
    minimum_nodes: int = 1
    placement: Placement = SPREAD
    timing: Speed = "auto"
    datastore: Datastore = "etcd"
    k3s_version: str = ""
    args_hash: str = ""
    settle_s: float = 0.5
    alone_s: float = 2.0
    stagger_s: float = 1.0
    ballot_s: float = 3.0
    init_s: float = 180.0
    wait_s: float = 180.0
    join_s: float = 120.0
    silence_s: float = 20.0
    retry_s: float = 2.0
    region_patience_s: float = 120.0
    look_s: float = 8.0

    def __post_init__(self) -> None:
        assert self.servers >= 1, "the configuration gives at least one server"
        assert self.minimum_nodes >= 1, "the configuration gives at least one node"
        assert self.datastore != "sqlite" or self.servers == 1, "SQLite serves one server only"


@dataclass(frozen=True, slots=True)
class Authorization:
    """May it have the secret? `granted`: which one, None for none; `reason`: one sentence."""

    granted: Role | None
    reason: str


def authorize(
    peer: PeerId,
    role: Role,
    genesis: Genesis | None,
    assignments: Mapping[PeerId, Assignment],
) -> Authorization:
    """Whether `peer` may have the join secret of `role`; only an assigned server gets the server's.

    Args:
        genesis: of a cluster that is READY and that this node serves; None if there is none.
        assignments: the authority's, of later nodes.
    """
    if genesis is None:
        return Authorization(None, "this node is not a server of a cluster that is ready")
    assigned = role_of(peer, genesis, assignments)
    if assigned is None:
        return Authorization(None, "the cluster's authority has not assigned a role to this node yet")
    if role == "server" and assigned != "server":
        return Authorization(None, "this node is assigned as an agent; servers' secrets are for servers only")
    return Authorization(role, f"assigned as {assigned} of cluster {genesis.cluster_id}")
