"""What is the next one step from the cluster as it is to the cluster as it is declared?

Pure: the rules are tried in order, the first that has something to say wins. A change of the datastore's
membership begins only when none is under way, never costs the healthy majority, and every step can be
taken again after a crash in the middle, since what it was for is still in the facts:

- a server is added by its assignment alone; it is under way until it votes;
- one is removed by its assignment first ("leaving": should it return, it finds that before it starts
  k3s), then by its Node, which takes the etcd member with it, and is let go when that is seen to be
  gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from p2p_network.core.ids import PeerId
from p2p_roles.reconcile.choice import candidates, desired, remark, to_replace
from p2p_roles.reconcile.model import Facts, NodeFact, Step


def next_step(facts: Facts) -> Step:
    """What to do now, and why."""
    for rule in _RULES:
        step = rule(facts)
        if step is not None:
            return step
    return Step("none", f"all is as declared: {_servers(len(facts.voters))}")


# ---------------------------------------------------------------- what is no change of membership


def _quorum(facts: Facts) -> Step | None:
    healthy = sum(facts.is_healthy(p) for p in facts.voters)
    if facts.datastore == "etcd" and 2 * healthy <= len(facts.voters):
        return Step(
            "wait",
            f"only {healthy} of {_servers(len(facts.voters))} are healthy: nothing is changed without a "
            "healthy majority",
            pending=True,
        )
    return None


def _stranger(facts: Facts) -> Step | None:
    """Somebody whom no node of the mesh is (it was revoked, say) is being added to the datastore: k3s gives
    that up by itself; until then the membership is not changed."""
    learner = next((m for m in facts.members if m.learner and m.peer not in facts.by_peer), None)
    if learner is None:
        return None
    return Step("wait", f"{learner.name} is being added to the datastore, and no node of the mesh is it")


def _left_behind(facts: Facts) -> Step | None:
    """Nodes of machines that left or were reinstalled, and our words about them."""
    for node in facts.nodes:
        if not facts.is_gone(node) or node.peer in facts.voters or node.peer in facts.learners:
            continue
        why = "left the mesh" if node.left else "was reinstalled: its host name has a new identity"
        kube = facts.kube_of(node.peer)
        if kube is not None:
            return Step("delete-node", f"{node.name} {why}: its Node goes", node.peer, kube.name)
        if node.peer in facts.first:  # the genesis names it for ever: it needs another word
            if facts.role_of(node.peer) == "server":
                return Step("demote", f"{node.name} {why}: it is no server any more", node.peer)
        elif node.peer in facts.assigned:
            return Step("forget", f"{node.name} {why}", node.peer)
    return None


def _newcomers(facts: Facts) -> Step | None:
    """A living node without a role: a server where a place is free for it, else an agent."""
    wanted = desired(facts)
    is_busy = _under_way(facts) is not None or _stranger(facts) is not None
    is_busy = is_busy or any(
        facts.role_of(m.peer) != "server" for m in facts.members if m.peer in facts.by_peer
    )
    for node in sorted(facts.nodes, key=lambda n: (facts.wish_of(n) != "server", n.peer)):
        if not node.alive or node.left or facts.role_of(node.peer) is not None:
            continue
        if node.peer not in wanted or _sick(facts):
            why = _agent_reason(facts, node)
            return Step("assign", f"{node.name} becomes an agent: {why}", node.peer, role="agent")
        if not is_busy:
            why = _server_reason(facts, node, wanted)
            return Step("assign", f"{node.name} becomes a server: {why}", node.peer, role="server")
    return None


# ---------------------------------------------------------------- what is under way


def _finish(facts: Facts) -> Step | None:
    """Carry on with what was begun: first whoever is being added gets in, or is given up."""
    may_go = not facts.learners
    for peer, given in sorted(facts.assigned.items()):
        if not given.leaving:
            continue
        name, kube = facts.name(peer), facts.kube_of(peer)
        if peer not in facts.voters and peer not in facts.learners:
            return Step("release", f"{name} is no server any more, and may be an agent", peer)
        if peer in facts.voters and not may_go:
            continue
        if peer in facts.voters and not facts.may_lose(peer):
            return Step(
                "wait",
                f"{name} is to go, but without it no healthy majority would remain",
                peer,
                pending=True,
            )
        if kube is not None:
            return Step("delete-node", f"{name} is to go: {given.reason}", peer, kube.name)
        return Step("wait", f"{name} is being removed from the datastore", peer)
    for peer in sorted(facts.voters if may_go else facts.learners):
        node = facts.by_peer.get(peer)
        if node is None:
            continue
        if facts.role_of(peer) != "server":
            return Step("demote", f"{node.name} is a server without being assigned as one", peer)
        if facts.is_gone(node) and (not may_go or facts.may_lose(peer)):
            why = "left the mesh" if node.left else "was reinstalled"
            return Step("demote", f"{node.name} {why}: it is given up as a server", peer)
    return _joining(facts)


def _joining(facts: Facts) -> Step | None:
    """Servers that are assigned and don't vote yet."""
    node = _under_way(facts)
    if node is None:
        return None
    if node.drained and not facts.is_gone(node):
        reason = f"{node.name} is becoming a server, and is {node.drained}"
        return Step("wait", reason, node.peer, pending=True)
    if facts.is_gone(node) or node.quiet_s >= facts.silence_s or node.joining_s >= facts.stuck_s:
        silent = not node.alive
        why = "has not been heard of" if silent else f"did not become one in {node.joining_s:.0f} s"
        reason = f"{node.name} was to become a server and {why}"
        return Step("demote", reason, node.peer)
    return Step("wait", f"{node.name} is becoming a server", node.peer)


def _under_way(facts: Facts) -> NodeFact | None:
    found = (n for n in facts.nodes if facts.role_of(n.peer) == "server" and n.peer not in facts.voters)
    return min(found, key=lambda n: n.peer, default=None)


# ---------------------------------------------------------------- changes


def _change(facts: Facts) -> Step | None:
    """One member more or one less, towards the servers to aim at."""
    wanted = desired(facts)
    current = frozenset(facts.voters)
    sick = _sick(facts)
    to_go = sorted(current - wanted, key=lambda p: (facts.is_healthy(p), p == facts.self_id, p))
    for peer in to_go:
        if facts.is_healthy(peer):
            continue  # first the dead: as long as one is a member, another failure costs more
        if peer not in facts.by_peer:
            continue  # whose member it is may only be unknown so far: a person knows
        if facts.may_lose(peer):
            return Step("demote", f"{facts.name(peer)} {_dead_reason(facts, peer, wanted)}", peer)
    if sick:
        return Step("wait", _sick_reason(facts, sick[0]), sick[0], pending=True)
    to_come = sorted(wanted - current)
    if to_come:
        best = to_come[0]
        node = facts.by_peer[best]
        why = _server_reason(facts, node, wanted)
        return Step("promote", f"{node.name} becomes a server: {why}", best, role="server")
    for peer in to_go:
        if facts.may_lose(peer):
            return Step("demote", f"{facts.name(peer)} becomes an agent: {_surplus(facts, peer)}", peer)
        return Step(
            "wait", f"{facts.name(peer)} is one too many, but can't be spared now", peer, pending=True
        )
    return None


def _short(facts: Facts) -> Step | None:
    """Fewer servers than declared, and nothing to be done about it."""
    if facts.datastore == "sqlite" and facts.declaration.servers > 1:
        reason = (
            f"{_servers(facts.declaration.servers)} are declared, but this cluster keeps its state in "
            "SQLite, on one server for ever"
        )
        return Step("wait", reason, pending=True)
    have, declared = len(facts.voters), facts.declaration.servers
    if have < declared:
        free = len(candidates(facts))
        reason = f"{_servers(declared)} are declared, {have} are there"
        if why := remark(facts):
            reason = why
        elif free:
            reason += f"; with {have + free} there would be an even number, which survives no more failures"
        else:
            reason += ", and no other living node may be one"
        return Step("wait", reason, pending=True)
    return None


_RULES: Final[tuple[Callable[[Facts], Step | None], ...]] = (
    _quorum,
    _left_behind,
    _newcomers,
    _stranger,
    _finish,
    _change,
    _short,
)


# ---------------------------------------------------------------- sentences


def _sick(facts: Facts) -> list[PeerId]:
    return sorted(p for p in facts.voters if not facts.is_healthy(p))


def _sick_reason(facts: Facts, peer: PeerId) -> str:
    node = facts.by_peer.get(peer)
    if node is None:
        name = facts.voters[peer].name
        return (
            f"the datastore has a member that no node of the mesh is ({name}): delete its Node if it is to go"
        )
    what = "is not ready" if node.alive else f"has been silent for {node.quiet_s:.0f} s"
    if node.drained and not to_replace(facts, peer):
        return f"{node.name} is {node.drained}; nobody takes its place meanwhile"
    if node.alive and not to_replace(facts, peer):
        return f"{node.name} {what}; the members are not changed meanwhile"
    if node.quiet_s < facts.silence_s and (facts.replaces or peer in facts.declaration.replace):
        return f"{node.name} {what}; it is replaced after {facts.silence_s:.0f} s of silence"
    if to_replace(facts, peer):
        return f"{node.name} {what}; no other living node may take its place"
    return (
        f"{node.name} {what}; it is not replaced by itself (p2p.dynamic_roles is false): "
        f"kairos-p2p apply --replace {node.name}"
    )


def _dead_reason(facts: Facts, peer: PeerId, wanted: frozenset[PeerId]) -> str:
    node = facts.by_peer[peer]
    new = sorted(wanted - set(facts.voters))
    instead = f": {facts.name(new[0])} takes its place" if new else ""
    if len(facts.voters) > len(wanted):
        return f"is silent and one server more than the {len(wanted)} to be"
    if node.left:
        return f"left the mesh{instead}"
    if peer in facts.declaration.replace:
        return f"was given up by an operator{instead}"
    return f"has been silent for {node.quiet_s:.0f} s{instead}"


def _agent_reason(facts: Facts, node: NodeFact) -> str:
    if facts.wish_of(node) == "agent":
        return "forced by " + ("an operator" if node.peer in facts.declaration.roles else "p2p.role")
    if facts.datastore == "sqlite":
        return "the cluster keeps its state on one server for ever"
    declared = facts.declaration.servers
    if len(facts.voters) < declared:
        return f"{_servers(declared)} are declared, but an even number would survive no more failures"
    return f"the {_servers(declared)} declared are there already"


def _server_reason(facts: Facts, node: NodeFact, wanted: frozenset[PeerId]) -> str:
    if facts.wish_of(node) == "server":
        return "forced by " + ("an operator" if node.peer in facts.declaration.roles else "p2p.role")
    place = len(facts.voters) + 1
    reason = f"{_ordinal(place)} of {max(len(wanted), place)}"
    same = [p for p in facts.voters if p in facts.by_peer and facts.by_peer[p].region == node.region]
    return reason + (f", {_ordinal(len(same) + 1)} of region {node.region}" if node.region else "")


def _surplus(facts: Facts, peer: PeerId) -> str:
    node = facts.by_peer.get(peer)
    if node is not None and facts.wish_of(node) == "agent":
        return "forced by " + ("an operator" if peer in facts.declaration.roles else "p2p.role")
    declared = facts.declaration.servers
    forced = sum(facts.wish_of(n) == "server" and n.peer in facts.voters for n in facts.nodes)
    if len(facts.voters) <= declared:
        return f"{_servers(declared)} are declared, and an even number survives no more failures"
    return f"{_servers(declared)} are declared, {len(facts.voters)} are there" + (
        f", {forced} of them forced" if forced else ""
    )


def _servers(count: int) -> str:
    return f"{count} server" + ("" if count == 1 else "s")


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}" + {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
