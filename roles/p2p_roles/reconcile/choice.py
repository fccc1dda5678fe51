"""Which nodes should be the servers?

Pure, and the same for the same facts: those that are servers stay, as far as the declaration, forced roles
(who must be a server takes the place of one that nobody forced) and their health allow; places that are free
go to living nodes that may have them, where the certified `placement` lets them stand. An even number is
never aimed at where an odd one is declared: two servers fail more often than one.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2p_network.core.ids import PeerId, stable_hash
from p2p_roles import placement
from p2p_roles.genesis.messages import MAX_SERVERS
from p2p_roles.reconcile.model import SMALL_MIB, Facts, NodeFact
from p2p_roles.view import ViewNode


def candidates(facts: Facts) -> list[NodeFact]:
    """Living nodes that are no servers and may become some, best first."""
    found = (
        node
        for node in facts.nodes
        if node.alive
        and not node.left
        and not node.drained
        and node.peer not in facts.voters
        and facts.role_of(node.peer) != "server"
        and facts.wish_of(node) != "agent"
    )
    return sorted(found, key=lambda node: _order(facts, node))


def to_replace(facts: Facts, peer: PeerId) -> bool:
    """Whether a dead server may be given up for another node."""
    node = facts.by_peer.get(peer)
    if node is None or facts.is_healthy(peer):
        return False
    if facts.is_gone(node):
        return True
    if peer in facts.declaration.replace:
        return not node.alive or not node.ready
    if node.drained:
        return False
    return facts.replaces and node.quiet_s >= facts.silence_s


def desired(facts: Facts) -> frozenset[PeerId]:
    """The servers to aim at."""
    return _aim(facts)[0]


def remark(facts: Facts) -> str:
    """Why there can't be as many as are declared, if the placement is the reason; else ""."""
    return _aim(facts)[1]


def _aim(facts: Facts) -> tuple[frozenset[PeerId], str]:
    current = [peer for peer in facts.voters if facts.role_of(peer) == "server"]
    if facts.datastore == "sqlite":
        return frozenset(current), ""
    free = candidates(facts)
    unwanted = sorted(
        (p for p in current if to_replace(facts, p) or _is_forced(facts, p, "agent")),
        key=lambda p: (facts.is_healthy(p), p),
    )
    declared = _declared(facts)
    for spared in range(min(len(unwanted), len(free)), -1, -1):
        # as many of the unwanted go as others can take their places
        kept = [p for p in current if p not in unwanted[:spared]]
        wanted, why = _chosen(facts, kept, unwanted, free, declared)
        if len(wanted) >= min(len(current), declared):
            break
    return frozenset(wanted), why


def _chosen(
    facts: Facts, kept: list[PeerId], unwanted: Sequence[PeerId], free: Sequence[NodeFact], declared: int
) -> tuple[list[PeerId], str]:
    kept = _making_room(facts, kept, unwanted, free, declared)
    if len(kept) > declared:
        return _without(facts, kept, unwanted, declared), ""
    choice = placement.choose(facts.placement, _views(facts, kept), [_view(facts, n) for n in free], declared)
    wanted, why = [*choice.servers, *(p for p in kept if p not in choice.servers)], choice.remark
    any_number = declared % 2 == 0 or facts.datastore == "external"
    if len(wanted) < declared and len(wanted) % 2 == 0 and not any_number:
        new = [p for p in wanted if p not in kept]
        if new:
            wanted.remove(new[-1])
        elif not any(facts.by_peer[p].drained for p in kept if p in facts.by_peer):
            # (who is drained keeps its place: the number is put right when it is back)
            wanted = _without(facts, kept, unwanted, len(kept) - 1)
    return wanted, why


def _making_room(
    facts: Facts, kept: list[PeerId], unwanted: Sequence[PeerId], free: Sequence[NodeFact], declared: int
) -> list[PeerId]:
    """Without those that nobody forced and whose places forced nodes are to have. A place is not taken
    from anybody while a server is ailing: that one may be about to be replaced, or to come back."""
    coming = sum(facts.wish_of(node) == "server" for node in free)
    if not coming or not all(facts.is_healthy(p) for p in kept):
        return kept
    staying = sum(_is_forced(facts, p, "server") for p in kept)
    places = max(declared - coming, staying)
    return _without(facts, kept, unwanted, places) if places else []


def _declared(facts: Facts) -> int:
    forced = sum(facts.wish_of(n) == "server" and n.alive and not n.left for n in facts.nodes)
    return min(max(facts.declaration.servers, forced, 1), MAX_SERVERS)


def _without(facts: Facts, kept: list[PeerId], unwanted: Sequence[PeerId], count: int) -> list[PeerId]:
    """`count` of them: first the dead go, then the unwanted, then as the placement says."""
    left = list(kept)
    for peer in sorted(left, key=lambda p: (facts.is_healthy(p), p not in unwanted, p)):
        if len(left) > count and (not facts.is_healthy(peer) or peer in unwanted):
            left.remove(peer)
    # what `removals` is given first it lets go last: who decides, then those that would rather be servers
    views = _views(facts, sorted(left, key=lambda p: (p != facts.self_id, _unwilling(facts, p))))
    gone = placement.removals(facts.placement, views, count)
    left = [p for p in left if p not in gone]
    for peer in sorted(left):  # strangers, whom no placement knows
        if len(left) > count and peer not in facts.by_peer:
            left.remove(peer)
    return left


def _unwilling(facts: Facts, peer: PeerId) -> tuple[bool, bool, int]:
    node = facts.by_peer.get(peer)
    prefer = node.prefer if node is not None else ""
    return prefer == "agent", prefer != "server", stable_hash("least", "reconcile", peer)


def _views(facts: Facts, peers: Sequence[PeerId]) -> list[ViewNode]:
    return [_view(facts, facts.by_peer[p]) for p in peers if p in facts.by_peer]


def _view(facts: Facts, node: NodeFact) -> ViewNode:
    return ViewNode(
        node.peer,
        node.name,
        region=node.region,
        zone=node.zone,
        wish=facts.wish_of(node),
        alive=node.alive,
        ready=node.ready,
    )


def _is_forced(facts: Facts, peer: PeerId, role: str) -> bool:
    node = facts.by_peer.get(peer)
    return node is not None and facts.wish_of(node) == role


def _order(facts: Facts, node: NodeFact) -> tuple[bool, bool, bool, bool, bool, int]:
    """Best first: forced, large enough, not unwilling, willing, already at work."""
    return (
        facts.wish_of(node) != "server",
        0 < node.memory_mib < SMALL_MIB,
        node.prefer == "agent",
        node.prefer != "server",
        not node.ready,
        stable_hash("rank", "reconcile", node.peer),
    )
