"""What would happen, step by step, if every step went well?

``kairos-p2p plan``: the reconciler's own steps on facts that follow each other as k3s makes them follow.
What has been planned and carried out leaves nothing to plan.
"""

from __future__ import annotations

from dataclasses import replace

from p2p_network.core.ids import short
from p2p_roles.reconcile.model import Assigned, Facts, KubeNode, Member, Step
from p2p_roles.reconcile.steps import next_step


def plan(facts: Facts) -> tuple[Step, ...]:
    """The steps to the declaration; the last is a "wait" if something is in the way for now."""
    steps: list[Step] = []
    for _ in range(16 * (len(facts.nodes) + len(facts.members) + 4)):
        step = next_step(facts)
        if step.action == "none":
            return tuple(steps)
        if step.action == "wait":
            after = settle(facts)
            if step.pending or after == facts:
                return (*steps, step)
            if not steps:  # under way already
                steps.append(step)
            facts = after
            continue
        steps.append(step)
        facts = settle(carried_out(facts, step))
    raise AssertionError("the plan has no end")


def carried_out(facts: Facts, step: Step) -> Facts:
    """The facts right after a step: only what the step itself writes."""
    given = dict(facts.assigned)
    match step.action:
        case "assign" | "promote":
            given[step.peer] = Assigned(step.role, step.reason)
        case "demote":
            given[step.peer] = Assigned("agent", step.reason, leaving=True)
        case "release":
            before = given.get(step.peer)
            given[step.peer] = Assigned("agent", before.reason if before is not None else step.reason)
        case "forget":
            given.pop(step.peer, None)
        case "delete-node":
            kept = tuple(k for k in facts.kube_nodes if k.name != step.node)
            return facts.but(kube_nodes=kept)
        case "wait" | "none":
            pass
    return facts.but(assigned=given)


def settle(facts: Facts) -> Facts:
    """What k3s does with it: members of deleted Nodes go, living assigned servers come."""
    gone = {p for p, a in facts.assigned.items() if a.leaving and facts.kube_of(p) is None}
    members = [m for m in facts.members if m.peer not in gone]
    here = {m.peer for m in members if not m.learner}
    nodes, kube = [], list(facts.kube_nodes)
    for node in facts.nodes:
        role = facts.role_of(node.peer)
        if not node.alive or node.left or role is None or node.peer in gone:
            nodes.append(node)
            continue
        if role == "server" and node.peer not in here:
            members = [m for m in members if m.peer != node.peer]
            members.append(Member(node.name, node.peer))
        given = facts.assigned.get(node.peer)
        if facts.kube_of(node.peer) is None and not (given is not None and given.leaving):
            taken = any(k.name == node.name for k in kube)
            name = f"{node.name}-{short(node.peer)}" if taken else node.name
            kube.append(KubeNode(name, node.peer, True, role == "server"))
        nodes.append(replace(node, ready=True, joining_s=0.0))
    return facts.but(members=tuple(members), nodes=tuple(nodes), kube_nodes=tuple(kube))
