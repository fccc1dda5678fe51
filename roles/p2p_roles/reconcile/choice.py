"""Which nodes should be the servers?

Pure, and the same for the same facts: those that are servers stay, as far as the declaration, an
operator's force and their health allow; places that are free go to living nodes that may have them,
evenly over the regions and zones. An even number is never aimed at where an odd one is declared: two
servers fail more often than one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from p2p_network.core.ids import PeerId, stable_hash
from p2p_roles.genesis.messages import MAX_SERVERS
from p2p_roles.reconcile.model import SMALL_MIB, Facts, NodeFact


def candidates(facts: Facts) -> list[NodeFact]:
    """Living nodes that are no servers and may become some."""
    return [
        node
        for node in facts.nodes
        if node.alive
        and not node.left
        and node.peer not in facts.voters
        and facts.role_of(node.peer) != "server"
        and facts.wish_of(node) != "agent"
    ]


def to_replace(facts: Facts, peer: PeerId) -> bool:
    """Whether a dead server may be given up for another node."""
    node = facts.by_peer.get(peer)
    if node is None or facts.is_healthy(peer):
        return False
    if facts.is_gone(node):
        return True
    if peer in facts.declaration.replace:
        return not node.alive or not node.ready
    return facts.replaces and node.quiet_s >= facts.silence_s


def desired(facts: Facts) -> frozenset[PeerId]:
    """The servers to aim at."""
    current = [peer for peer in facts.voters if facts.role_of(peer) == "server"]
    if facts.datastore == "sqlite":
        return frozenset(current)
    free = candidates(facts)
    unwanted = sorted(
        (p for p in current if to_replace(facts, p) or _is_forced(facts, p, "agent")),
        key=lambda p: (facts.is_healthy(p), p),
    )
    kept = [p for p in current if p not in unwanted[: len(free)]]
    goal = _goal(facts, len(kept) + len(free))
    while len(kept) > goal:
        kept.remove(_least(facts, kept, unwanted))
    chosen = list(kept)
    while len(chosen) < goal and free:
        best = min(free, key=lambda node: _order(facts, chosen, node))
        free.remove(best)
        chosen.append(best.peer)
    return frozenset(chosen)


def _goal(facts: Facts, available: int) -> int:
    """How many servers there can be: the declared number, or the next odd one below."""
    forced = sum(facts.wish_of(n) == "server" and n.alive for n in facts.nodes)
    declared = min(max(facts.declaration.servers, forced, 1), MAX_SERVERS)
    if available >= declared:
        return declared
    short = (
        available if available % 2 or declared % 2 == 0 or facts.datastore == "external" else available - 1
    )
    return max(1, short)


def _is_forced(facts: Facts, peer: PeerId, role: str) -> bool:
    node = facts.by_peer.get(peer)
    return node is not None and facts.wish_of(node) == role


def _order(
    facts: Facts, chosen: Sequence[PeerId], node: NodeFact
) -> tuple[bool, bool, bool, int, int, bool, bool, int]:
    """Best first: forced, large enough, not unwilling, where fewest servers are, willing, known."""
    others = [facts.by_peer[p] for p in chosen if p in facts.by_peer]
    regions = Counter(o.region for o in others)
    zones = Counter((o.region, o.zone) for o in others)
    return (
        facts.wish_of(node) != "server",
        0 < node.memory_mib < SMALL_MIB,
        node.prefer == "agent",
        regions[node.region],
        zones[node.region, node.zone],
        node.prefer != "server",
        not node.ready,
        stable_hash("rank", "reconcile", node.peer),
    )


def _least(facts: Facts, kept: Sequence[PeerId], unwanted: Sequence[PeerId]) -> PeerId:
    """Whom to give up of too many: the dead, the unwanted, those where most are; who decides comes last."""
    regions = Counter(facts.by_peer[p].region for p in kept if p in facts.by_peer)

    def order(peer: PeerId) -> tuple[bool, bool, bool, bool, int, bool, int]:
        node = facts.by_peer.get(peer)
        return (
            facts.is_healthy(peer),
            peer not in unwanted,
            _is_forced(facts, peer, "server"),
            peer == facts.self_id,
            -regions[node.region] if node is not None else 0,
            node is None or node.prefer != "agent",
            stable_hash("least", "reconcile", peer),
        )

    return min(kept, key=order)
