"""Has the control plane still a majority, and if not, why?

Pure: from what this server's etcd says of itself and from the view. k3s and etcd refuse writes without a
majority by themselves; what is decided here is only what a person is told, and whether this node still
speaks for the cluster (assigns, hands out secrets). An agent judges by what it sees of the servers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from p2p_network.core.ids import PeerId
from p2p_roles.view import View, ViewNode

Health = Literal["none", "healthy", "minority", "lost"]
"""none: not in a cluster, or one server without etcd. minority: too few servers in sight from here.
lost: enough servers in sight, and yet they decide nothing."""

GRACE_S = 10.0
"""An election of etcd takes up to twice its election timeout (5 s in k3s); before that nothing is wrong."""


@dataclass(frozen=True, slots=True)
class Quorum:
    """The verdict. `servers`: known, `here`: of these alive as seen from here, `needed`: a majority."""

    health: Health
    servers: int = 0
    here: int = 0
    reason: str = ""

    @property
    def needed(self) -> int:
        """How many servers decide."""
        return self.servers // 2 + 1


NO_CLUSTER: Final = Quorum("none")


def servers_of(view: View, cluster_id: str, certified: tuple[str, ...] = ()) -> tuple[ViewNode, ...]:
    """The known servers of a cluster: who says so, and whom the genesis named and who says nothing else."""
    return tuple(
        node
        for node in view.nodes
        if (node.role == "server" and node.cluster_id == cluster_id)
        or (node.peer in certified and node.role in ("", "server") and node.cluster_id in ("", cluster_id))
    )


def judge(
    view: View,
    cluster_id: str,
    certified: tuple[str, ...],
    *,
    is_server: bool,
    is_ready: bool,
    silent_s: float,
) -> Quorum:
    """What holds now.

    Args:
        certified: the servers that the genesis names.
        is_server, is_ready: this node's k3s; a server is ready only while etcd decides.
        silent_s: since when it is not.
    """
    servers = servers_of(view, cluster_id, certified)
    count, here = len(servers), sum(node.alive for node in servers)
    if not count:
        return Quorum("none")
    seen = f"{here} of {count} servers {'is' if here == 1 else 'are'} in sight"
    missing = ", ".join(sorted(node.hostname for node in servers if not node.alive))
    if is_server and is_ready:
        return Quorum("healthy", count, here, seen)
    if here < count // 2 + 1:
        return Quorum(
            "minority",
            count,
            here,
            f"{seen}, {count // 2 + 1} must agree: k3s takes no writes here; missing: {missing}. If they "
            "are lost for ever: kairos-p2p cluster recover",
        )
    decides = any(node.ready for node in servers if node.alive and node.peer != view.self_id)
    if is_server and silent_s >= GRACE_S and not decides:
        return Quorum(
            "lost",
            count,
            here,
            f"{seen}, but etcd has not decided anything for {silent_s:.0f} s: look at k3s's log on the "
            "servers; as the last resort: kairos-p2p cluster recover",
        )
    return Quorum("healthy", count, here, seen)


def could_be_elsewhere(servers: tuple[ViewNode, ...], lost: frozenset[PeerId]) -> tuple[ViewNode, ...]:
    """The silent servers that nobody declared lost, if they are enough to keep the cluster going unseen."""
    silent = tuple(node for node in servers if not node.alive and node.peer not in lost)
    return silent if len(silent) >= len(servers) // 2 + 1 else ()
