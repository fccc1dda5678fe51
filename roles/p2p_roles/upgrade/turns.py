"""Whose turn is it?

Pure: the rules on facts of one moment give the order as it is to be now; writing the same again changes
nothing, so a decision can be taken again after a crash anywhere. First every living node fetches and checks
the program. Then the servers, one by one, each only while all of them are well; who decides goes last. Then
the agents: one, then waves. A node that is not well with the new program puts the old one back by itself;
that stops the upgrade, and where the versions allow it the others go back too, agents first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from msgspec.structs import replace as change

from p2p_network.core.ids import PeerId
from p2p_roles.genesis.messages import Genesis
from p2p_roles.upgrade.model import (
    MAX_REASON_CHARS,
    MAX_TURNS,
    UNDER_WAY,
    Order,
    Progress,
    UpgradeFacts,
    UpgradeNode,
    may_return,
)

LOST_AFTER: Final = 2.0
"""A node whose turn lasts this many times its patience (and a minute) is given up."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The order as it is to be. `pending`: something is in the way that may not pass by itself."""

    order: Order
    pending: bool = False


def next_turn(facts: UpgradeFacts) -> Turn:
    """What the order is to be now."""
    order = facts.order
    match order.state:
        case "running":
            return _forward(facts)
        case "back":
            return _back(facts)
        case "done" if any(_wants(order, n) and n.ready for n in _alive(facts)):
            return _says(order, "a node came that runs another version", state="running")
        case _:
            return Turn(order)


def plan(facts: UpgradeFacts) -> tuple[str, ...]:
    """What would happen, in sentences, if all went well."""
    found: list[str] = []
    nodes = tuple(_staged(facts.order, node) for node in facts.nodes)
    facts = replace(facts, nodes=nodes, busy="")
    for _ in range(len(nodes) + 2):
        well = tuple(_well(facts.order, n) if n.peer in facts.order.turns else n for n in facts.nodes)
        turn = next_turn(replace(facts, nodes=well))
        found.append(turn.order.reason)
        if turn.order.state != "running" or turn.pending or not turn.order.turns:
            break
        facts = replace(facts, order=turn.order, nodes=well)
    return tuple(found)


# ---------------------------------------------------------------- forward


def _forward(facts: UpgradeFacts) -> Turn:
    order = facts.order
    failed = [n for n in facts.nodes if n.progress is not None and n.progress.of(order) == "failed"]
    if failed:
        assert failed[0].progress is not None, "it says that it failed"
        return _give_up(facts, f"{failed[0].name}: {failed[0].progress.error or 'it failed'}")
    for node in _in_turn(facts):
        if _is_over(order, node, "done"):
            continue
        if node.turn_s > LOST_AFTER * order.patience_s + 60:
            return _give_up(facts, f"{node.name} did not come back in {node.turn_s:.0f} s")
        return _says(order, f"{_turns_said(facts)} on to {order.version}", turns=order.turns)
    waiting = [n for n in _alive(facts) if _wants(order, n)]
    unstaged = sorted(n.name for n in waiting if n.progress is None or n.progress.of(order) != "staged")
    if unstaged:
        return _says(order, f"{_some(unstaged)} fetches the program")
    if waiting and facts.busy:
        return _says(order, f"waits for another change: {facts.busy}", pending=True)
    servers = sorted(
        (n for n in waiting if n.role == "server"), key=lambda n: (n.peer == facts.self_id, n.name, n.peer)
    )
    if servers:
        sick = sorted(n.name for n in facts.nodes if n.role == "server" and not (n.alive and n.ready))
        if sick:
            reason = f"{_some(sick)} is not ready, and no server is taken down before it is"
            return _says(order, reason, pending=True)
        if facts.lost:
            reason = (
                f"{_some(sorted(facts.lost))} counts as a server and is no node of the mesh any more: no "
                "other is taken down before its Node is deleted"
            )
            return _says(order, reason, pending=True)
        return _says(order, f"{servers[0].name} goes on to {order.version}", turns=(servers[0].peer,))
    agents = sorted((n for n in waiting if n.ready), key=lambda n: (n.name, n.peer))
    if agents:
        wave = agents[: _wave(facts, agents, "done")]
        turns = tuple(n.peer for n in wave)
        return _says(order, f"{_some([n.name for n in wave])} goes on to {order.version}", turns=turns)
    missing = sorted(n.name for n in facts.nodes if not _has(order, n) and n.progress is not None)
    reason = f"all nodes run {order.version}"
    if missing:
        reason += f", but for {_some(missing)}, which gets it when it is ready again"
    return _says(order, reason, state="done")


def _give_up(facts: UpgradeFacts, why: str) -> Turn:
    """The upgrade ends here. Those who changed go back, if the versions allow it."""
    order = facts.order
    changed = [n for n in facts.nodes if _changed(order, n) or _is_trying(order, n)]
    if not changed:
        return _says(order, f"{why}; the other nodes were not changed", state="stopped")
    before = [n.progress.before for n in changed if n.progress is not None]
    if not may_return(order.version, before):
        names = _some(sorted(n.name for n in changed))
        reason = f"{why}; {names} stays with {order.version}, since {before[0]} can't read all that it wrote"
        return _says(order, reason, state="stopped")
    return _says(order, f"{why}; those that changed go back", state="back")


def abort(facts: UpgradeFacts, by: str) -> Order:
    """The order after an operator said stop."""
    return _give_up(facts, f"stopped by {by}").order


# ---------------------------------------------------------------- back


def carried_over(order: Order, genesis: Genesis) -> Order:
    """The order of a cluster that was recovered since: under its new name it goes on, where it was. In one
    that was begun from a backup it is stopped: nobody knows whether it is still wanted."""
    if order.cluster_id == genesis.cluster_id:
        return order
    named = change(order, cluster_id=genesis.cluster_id)
    after = genesis.continues
    is_kin = after is not None and order.cluster_id in (after.cluster_id, *after.lineage)
    if is_kin or order.state not in ("running", "back"):
        return named
    return change(
        named, state="stopped", reason="the cluster was restored from a backup since it was ordered"
    )


def _back(facts: UpgradeFacts) -> Turn:
    order, why = facts.order, facts.order.reason.partition("; ")[0]
    for node in _in_turn(facts):
        if _is_over(order, node, "returned") or _is_over(order, node, "failed"):
            continue
        if node.turn_s > LOST_AFTER * order.patience_s + 60:
            return _says(order, f"{why}; {node.name} did not come back", state="stopped")
        return _says(order, f"{why}; {_turns_said(facts)} back", turns=order.turns)
    for node in facts.nodes:
        if node.progress is not None and node.progress.of(order) == "returned" and node.progress.error:
            reason = f"{why}; {node.name} is not well with its old program: {node.progress.error}"
            return _says(order, reason, state="stopped")
    if any(n.progress and n.progress.of(order) in UNDER_WAY for n in _alive(facts)):
        return _says(order, f"{why}; waits for a node in the middle of its turn")
    left = sorted((n for n in _alive(facts) if _changed(order, n)), key=lambda n: (n.name, n.peer))
    agents = [n for n in left if n.role == "agent"]
    if agents:
        wave = agents[: _wave(facts, agents, "returned")]
        turns = tuple(n.peer for n in wave)
        return _says(order, f"{why}; {_some([n.name for n in wave])} goes back", turns=turns)
    if left:
        left.sort(key=lambda n: n.peer == facts.self_id)
        others = [n for n in facts.nodes if n.role == "server" and n.peer != left[0].peer]
        well = sum(n.alive and n.ready for n in others)
        count = len(others) + len(facts.lost)
        if well < count and 2 * well <= count + 1:
            return _says(order, f"{why}; {left[0].name} can't be spared now", pending=True)
        return _says(order, f"{why}; {left[0].name} goes back", turns=(left[0].peer,))
    away = sorted(n.name for n in facts.nodes if _changed(order, n))
    reason = f"{why}; those that had changed are back"
    if away:
        reason += f", but for {_some(away)}, which is away"
    return _says(order, reason, state="stopped")


# ---------------------------------------------------------------- parts


def _alive(facts: UpgradeFacts) -> list[UpgradeNode]:
    return [node for node in facts.nodes if node.alive]


def _in_turn(facts: UpgradeFacts) -> list[UpgradeNode]:
    return [node for node in facts.nodes if node.peer in facts.order.turns]


def _has(order: Order, node: UpgradeNode) -> bool:
    """It runs the version, or needs none."""
    progress = node.progress
    return progress is not None and progress.version in (order.version, "")


def _wants(order: Order, node: UpgradeNode) -> bool:
    """It is to get the version, and has not had it yet. A node that says nothing is not waited for."""
    progress = node.progress
    return progress is not None and not _has(order, node) and progress.of(order) in ("", "staged")


def _changed(order: Order, node: UpgradeNode) -> bool:
    """It has the version by this order."""
    progress = node.progress
    return progress is not None and progress.of(order) == "done" and progress.version == order.version


def _is_trying(order: Order, node: UpgradeNode) -> bool:
    return node.progress is not None and node.progress.of(order) == "trying"


def _is_over(order: Order, node: UpgradeNode, phase: str) -> bool:
    progress = node.progress
    said = progress is not None and progress.of(order) == phase
    # one that is back but not well is no reason to wait: the rules after this look at it
    well = node.alive and node.ready
    return said and (well or phase != "done")


def _wave(facts: UpgradeFacts, agents: list[UpgradeNode], phase: str) -> int:
    """How many agents now: first one, to see what happens."""
    order = facts.order
    every = [n for n in facts.nodes if n.role == "agent"]
    if phase == "done" and not any(_changed(order, n) for n in every):
        return 1
    return min(MAX_TURNS, order.wave or max(1, (len(every) + 3) // 4))


def _says(
    order: Order, reason: str, *, pending: bool = False, turns: tuple[str, ...] = (), state: str = ""
) -> Turn:
    said = reason[:MAX_REASON_CHARS]
    return Turn(change(order, reason=said, turns=turns, state=state or order.state), pending)


def _turns_said(facts: UpgradeFacts) -> str:
    names = [node.name for node in _in_turn(facts)]
    return f"{_some(sorted(names))} goes"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _staged(order: Order, node: UpgradeNode) -> UpgradeNode:
    if not _wants(order, node) or not node.alive or node.progress is None:
        return node
    return replace(node, progress=change(node.progress, order=order.number, phase="staged"))


def _well(order: Order, node: UpgradeNode) -> UpgradeNode:
    """The node after a turn that went well."""
    before = node.progress if node.progress is not None else Progress("", "")
    new = change(before, version=order.version, order=order.number, phase="done", before=before.version)
    return replace(node, progress=new, ready=True)


def peers_of(order: Order) -> frozenset[PeerId]:
    """Whose turn it is."""
    return frozenset(map(PeerId, order.turns))
