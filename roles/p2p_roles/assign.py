"""Who is a server, who is an agent, and why?

Pure rules over a `View`. Before the genesis they rank the candidates and choose the first servers, where
`placement` lets them stand: forced servers first, forced agents never. After it, the cluster's
authority gives every later node its `Assignment`. Each answer is one sentence per node.

The first servers are part of the GENESIS value, so what a quorum certified here is never revised here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from p2p_network import wire
from p2p_network.core.ids import PeerId, stable_hash
from p2p_network.ledger.entry import MAX_FENCE
from p2p_roles import placement
from p2p_roles.genesis.messages import Genesis
from p2p_roles.placement import SPREAD, Choice, Placement
from p2p_roles.view import View, ViewNode

Role = Literal["server", "agent"]
MAX_ASSIGNMENT_BYTES = 4096


class Assignment(msgspec.Struct, frozen=True):
    """Ledger value of ``assign/<scope>/<peer>``: the authority's word on one node.

    Attributes:
        role: what the node is to be.
        reason: one sentence.
        epoch, cluster_id: the genesis it belongs to; one of another cluster is ignored.
        leaving: the node is still a server of the datastore, and becomes what `role` says when it is none.
        fence: version of the datastore when this was said there; the higher wins. 0: said by the initiator
            before the datastore held any.
    """

    role: Role
    reason: str
    epoch: int
    cluster_id: str
    leaving: bool = False
    fence: int = 0


def key_of(scope: str, peer: str) -> str:
    """The ledger key of a node's assignment."""
    return f"assign/{scope}/{peer}"


def encode(assignment: Assignment) -> bytes:
    """Its bytes, for the ledger."""
    return wire.encode(assignment)


def decode(raw: bytes) -> Assignment:
    """An assignment from untrusted bytes. Raises ValueError."""
    if len(raw) > MAX_ASSIGNMENT_BYTES:
        raise ValueError(f"an assignment has at most {MAX_ASSIGNMENT_BYTES} bytes, this has {len(raw)}")
    assignment = wire.decode(raw, Assignment)
    if not 0 <= assignment.fence <= MAX_FENCE:
        raise ValueError("the fence of an assignment is a version of the datastore")
    return assignment


def fence_of(key: str, raw: bytes) -> int:
    """The fence of a ledger value; 0 if it is no assignment. Never raises."""
    try:
        return decode(raw).fence if key.startswith("assign/") else 0
    except ValueError:
        return 0


def role_of(peer: PeerId, genesis: Genesis, given: Mapping[PeerId, Assignment]) -> Role | None:
    """What a node is assigned as: the authority's word, else the genesis's; None without either."""
    word = given.get(peer)
    if word is not None and word.cluster_id == genesis.cluster_id:
        return word.role
    return "server" if peer in genesis.servers else None


def rank(view: View, failed: Sequence[str] = (), rule: Placement = SPREAD) -> tuple[PeerId, ...]:
    """The living candidates for the initiator, best first; the same on all nodes with the same view.

    Those never seen failing as an initiator come first (of the others, the one that failed longest
    ago), then forced servers, then the rest by a stable hash. `failed`: oldest first.
    """
    last_failure = {peer: index + 1 for index, peer in enumerate(failed)}

    def order(node: ViewNode) -> tuple[int, bool, int]:
        return (
            last_failure.get(node.peer, 0),
            node.wish != "server",
            stable_hash("rank", view.scope, node.peer),
        )

    ranked = sorted((n for n in view.nodes if n.alive and n.wish != "agent"), key=order)
    return tuple(node.peer for node in placement.may_initialise(rule, ranked))


def first_servers(
    view: View,
    initiator: PeerId,
    servers: int,
    failed: Sequence[str] = (),
    rule: Placement = SPREAD,
) -> Choice:
    """The first servers, the initiator first; fewer if fewer candidates live or the rule has it so."""
    ranked = [view.by_peer[peer] for peer in rank(view, failed) if peer != initiator]
    return placement.choose(rule, (view.by_peer[initiator],), ranked, servers)


def explain(view: View, genesis: Genesis | None, given: Mapping[PeerId, Assignment]) -> dict[PeerId, str]:
    """One sentence for every node of the view: what it is and why."""
    if genesis is None:
        return {node.peer: "no role yet: no quorum has decided the genesis" for node in view.nodes}
    certified = certified_reasons(view, genesis)
    return {
        node.peer: (given[node.peer].reason if node.peer in given else "")
        or certified.get(node.peer)
        or "no role yet: waits for an assignment by the cluster's servers"
        for node in view.nodes
    }


def certified_reasons(view: View, genesis: Genesis) -> dict[PeerId, str]:
    """The sentences of the servers that the genesis names."""
    reasons: dict[PeerId, str] = {}
    seen: Counter[str] = Counter()
    for index, name in enumerate(genesis.servers):
        peer = PeerId(name)
        node = view.by_peer.get(peer)
        sentence = f"server: {_ordinal(index + 1)} of {len(genesis.servers)}"
        if node is not None and node.region:
            seen[node.region] += 1
            sentence += f", {_ordinal(seen[node.region])} of region {node.region}"
        if peer == genesis.initiator:
            sentence += ", initialised the cluster"
        if node is not None and node.wish == "server":
            sentence += ", forced by its own configuration (p2p.role)"
        if genesis.remark:
            sentence += f" ({genesis.remark})"
        reasons[peer] = sentence
    return reasons


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}" + {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
