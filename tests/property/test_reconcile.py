"""Does the reconciler reach what is declared from anywhere, without ever costing a quorum by its own action?

A small world of k3s: servers vote or don't, nodes die, come back, leave and are reinstalled; the
reconciler's steps are carried out one at a time, perhaps half. Every step is judged before it is taken;
in the end, when nothing fails any more, the cluster is what is declared, and nothing more is planned.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_network.core.ids import PeerId
from p2p_roles.genesis.messages import MAX_SERVERS
from p2p_roles.reconcile import ahead
from p2p_roles.reconcile.choice import desired
from p2p_roles.reconcile.model import (
    Assigned,
    Declaration,
    Facts,
    KubeNode,
    Member,
    NodeFact,
    Step,
)
from p2p_roles.reconcile.steps import next_step

SILENCE_S = 60.0


def peer(number: int) -> PeerId:
    return PeerId(f"peer-{number}")


def node(number: int, **more) -> NodeFact:
    return NodeFact(peer(number), f"n{number}", **({"ready": True} | more))


def cluster(size: int, servers: int, declared: int, *, dead: tuple[int, ...] = (), **more) -> Facts:
    """A cluster of `size` nodes whose first `servers` are the certified servers."""
    nodes = tuple(
        node(i, alive=i not in dead, ready=i not in dead, quiet_s=999.0 if i in dead else 0.0)
        for i in range(size)
    )
    rest = {peer(i): Assigned("agent", "") for i in range(servers, size)}
    return Facts(
        self_id=peer(next(i for i in range(size) if i not in dead)),
        declaration=Declaration(declared),
        nodes=nodes,
        kube_nodes=tuple(KubeNode(n.name, n.peer, n.alive) for n in nodes),
        members=tuple(Member(f"n{i}-0", peer(i)) for i in range(servers)),
        assigned=rest,
        first=frozenset(peer(i) for i in range(servers)),
        **({"replaces": True, "silence_s": SILENCE_S} | more),
    )


def actions(steps: tuple[Step, ...]) -> list[tuple[str, str]]:
    return [(s.action, s.peer.removeprefix("peer-")) for s in steps]


def end(facts: Facts) -> Facts:
    """After everything planned went well."""
    for _ in range(200):
        step = next_step(facts)
        if step.action == "none":
            return facts
        before = facts
        facts = ahead.settle(ahead.carried_out(facts, step))
        if step.action == "wait" and before == facts:
            return facts
    raise AssertionError("no end")


def test_one_to_three_to_five_to_three() -> None:
    facts = cluster(5, 1, 3)
    assert [a for a, _ in actions(ahead.plan(facts))] == ["promote", "promote"]
    facts = end(facts)
    assert len(facts.voters) == 3
    facts = end(facts.but(declaration=Declaration(5)))
    assert len(facts.voters) == 5
    steps = ahead.plan(facts.but(declaration=Declaration(3)))
    assert [a for a, _ in actions(steps)] == ["demote", "delete-node", "release"] * 2
    assert all(s.peer != facts.self_id for s in steps), "who decides goes last"
    facts = end(facts.but(declaration=Declaration(3)))
    assert len(facts.voters) == 3
    assert ahead.plan(facts) == ()
    facts = end(facts.but(declaration=Declaration(1)))
    assert list(facts.voters) == [facts.self_id]


def test_a_dead_server_is_replaced_after_the_silence_only_if_wanted_and_possible() -> None:
    dead = cluster(4, 3, 3, dead=(1,))
    assert [a for a, _ in actions(ahead.plan(dead))] == ["demote", "delete-node", "release", "promote"]
    assert "silent for 999 s: n3 takes its place" in ahead.plan(dead)[0].reason

    early = dead.but(nodes=tuple(replace(n, quiet_s=n.quiet_s and 10.0) for n in dead.nodes))
    assert "replaced after 60 s" in next_step(early).reason
    off = next_step(dead.but(replaces=False))
    assert (off.action, off.pending) == ("wait", True)
    assert "kairos-p2p apply --replace n1" in off.reason
    given_up = dead.but(replaces=False, declaration=Declaration(3, replace=frozenset({peer(1)})))
    assert next_step(given_up).action == "demote"
    alone = next_step(cluster(3, 3, 3, dead=(1,)))
    assert "no other living node may take its place" in alone.reason
    lost = next_step(cluster(4, 3, 3, dead=(1, 2)))
    assert "nothing is changed without a healthy majority" in lost.reason


def test_never_two_where_three_are_declared() -> None:
    facts = cluster(2, 1, 3)
    assert next_step(facts).action == "wait"
    assert "even number" in next_step(facts).reason
    # the second candidate dies while the first one joins: back to one
    facts = end(cluster(3, 2, 3, dead=(2,)))
    assert len(facts.voters) == 1


def test_a_newcomer_gets_the_free_place_or_becomes_an_agent() -> None:
    facts = cluster(5, 3, 5)
    new = facts.but(assigned={k: v for k, v in facts.assigned.items() if k != peer(4)})
    step = next_step(new)
    assert (step.action, step.role) == ("assign", "server")
    full = new.but(declaration=Declaration(3))
    assert next_step(full).reason == "n4 becomes an agent: the 3 servers declared are there already"


def test_force_preference_and_memory() -> None:
    facts = cluster(6, 1, 3)
    nodes = list(facts.nodes)
    nodes[1] = replace(nodes[1], wish="agent")
    nodes[2] = replace(nodes[2], memory_mib=900)
    nodes[3] = replace(nodes[3], prefer="agent")
    facts = facts.but(nodes=tuple(nodes))
    assert desired(facts) == {peer(0), peer(4), peer(5)}
    forced = facts.but(declaration=Declaration(3, roles={peer(2): "server", peer(4): "agent"}))
    assert desired(forced) == {peer(0), peer(2), peer(5)}
    swapped = end(cluster(4, 3, 3).but(declaration=Declaration(3, roles={peer(0): "agent"})))
    assert set(swapped.voters) == {peer(1), peer(2), peer(3)}
    # one that must be a server takes the place of one that nobody forced, and only then
    force = Declaration(3, roles={peer(3): "server", peer(1): "server"})
    steps = ahead.plan(cluster(4, 3, 3).but(declaration=force))
    assert [a for a, _ in actions(steps)] == ["promote", "demote", "delete-node", "release"]
    assert steps[0].reason == "n3 becomes a server: forced by an operator"
    assert steps[1].reason == "n2 becomes an agent: 3 servers are declared, 4 are there, 2 of them forced"
    assert set(end(cluster(4, 3, 3).but(declaration=force)).voters) == {peer(0), peer(1), peer(3)}
    ailing = cluster(4, 3, 3, dead=(2,), replaces=False).but(declaration=force)
    assert next_step(ailing).action == "wait"
    kept = end(cluster(3, 3, 3).but(declaration=Declaration(3, roles={peer(0): "agent"})))
    assert len(kept.voters) == 3, "as long as nobody else may be one"


def test_new_servers_go_where_fewest_are() -> None:
    facts = cluster(6, 1, 3)
    regions = ("east", "east", "east", "west", "west", "north")
    facts = facts.but(nodes=tuple(replace(n, region=r) for n, r in zip(facts.nodes, regions, strict=True)))
    assert {facts.by_peer[p].region for p in desired(facts)} == {"east", "west", "north"}


def test_those_who_left_and_those_reinstalled_leave_nothing_behind() -> None:
    facts = cluster(5, 3, 3)

    def without(number: int) -> tuple[NodeFact, ...]:
        gone = peer(number)
        return tuple(
            replace(n, left=True, alive=False, ready=False) if n.peer == gone else n for n in facts.nodes
        )

    left = facts.but(nodes=without(4))
    assert actions(ahead.plan(left)) == [("delete-node", "4"), ("forget", "4")]
    gone = facts.but(nodes=without(1), replaces=False)
    assert [a for a, _ in actions(ahead.plan(gone))] == ["demote", "delete-node", "release", "promote"]
    again = NodeFact(PeerId("peer-1b"), "n1", ready=False)
    reinstalled = cluster(4, 3, 3, dead=(1,), replaces=False)
    reinstalled = reinstalled.but(nodes=(*reinstalled.nodes, again))
    after = end(reinstalled)
    assert peer(1) not in after.voters
    assert all(k.peer != peer(1) for k in after.kube_nodes)
    assert after.role_of(again.peer) is not None


@st.composite
def worlds(draw: st.DrawFn) -> Facts:
    size = draw(st.integers(1, 8))
    servers = draw(st.integers(1, min(size, 5)))
    facts = cluster(
        size,
        servers,
        draw(st.integers(1, 5)),
        replaces=draw(st.booleans()),
        datastore=draw(st.sampled_from(["etcd", "etcd", "etcd", "external"])),
    )
    nodes, kube, members = [], [], list(facts.members)
    given: dict[PeerId, Assigned] = dict(facts.assigned)
    for n in facts.nodes:
        alive = draw(st.booleans() | st.just(True))
        left = not alive and draw(st.booleans())
        nodes.append(
            replace(
                n,
                alive=alive,
                left=left,
                ready=alive and draw(st.booleans() | st.just(True)),
                quiet_s=0.0 if alive else draw(st.sampled_from([5.0, 100.0])),
                wish=draw(st.sampled_from(["auto", "auto", "auto", "agent", "server"])),
                prefer=draw(st.sampled_from(["", "", "agent", "server"])),
                region=draw(st.sampled_from("ab")),
                joining_s=draw(st.sampled_from([0.0, 1e6])),
                name=n.name if draw(st.integers(0, 9)) else "n0",
            )
        )
        if draw(st.integers(0, 5)):
            kube.append(KubeNode(n.peer.replace("peer-", "k"), n.peer, alive))
        odd = draw(st.integers(0, 11))
        if odd == 0:
            given.pop(n.peer, None)
        elif odd == 1:
            given[n.peer] = Assigned("server", "")
        elif odd == 2:
            given[n.peer] = Assigned("agent", "", leaving=True)
    if draw(st.integers(0, 4)) == 0 and size > servers:
        members.append(Member("new", peer(size - 1), learner=True))
    return facts.but(nodes=tuple(nodes), kube_nodes=tuple(kube), members=tuple(members), assigned=given)


def judge(facts: Facts, step: Step) -> None:
    """One change at a time, and never a quorum lost by it."""
    voters = facts.voters
    healthy = {p for p in voters if facts.is_healthy(p)}
    pending = [p for p, a in facts.assigned.items() if a.leaving and (p in voters or p in facts.learners)]
    joining = [
        n.peer for n in facts.nodes if facts.role_of(n.peer) == "server" and n.peer not in voters and n.alive
    ]
    if step.action in ("promote",) or (step.action == "assign" and step.role == "server"):
        assert not pending, f"{step} while {pending} go"
        assert not joining, f"{step} while {joining} come"
        assert facts.datastore != "etcd" or healthy == set(voters), f"{step} with sick voters"
    if step.action == "demote" and step.peer in voters:
        assert not pending, f"{step} while {pending} go"
    if step.action == "delete-node":
        owner = next(k.peer for k in facts.kube_nodes if k.name == step.node)
        if owner in voters and facts.datastore == "etcd":
            rest = [p for p in voters if p != owner]
            assert 2 * len(healthy - {owner}) > len(rest), f"{step} costs the quorum"
            assert not facts.learners, f"{step} while {set(facts.learners)} come"


@settings(max_examples=300)
@given(worlds())
def test_every_step_is_safe_and_the_end_is_the_declaration(facts: Facts) -> None:
    for _ in range(300):
        step = next_step(facts)
        assert step.reason
        assert step == next_step(facts)
        judge(facts, step)
        after = ahead.settle(ahead.carried_out(facts, step))
        if step.action == "none" or (step.action == "wait" and after == facts):
            break
        facts = after
    else:
        pytest.fail(f"no end: {step}")
    assert ahead.plan(facts) in ((), (step,)), "what was planned is done: nothing more is planned"
    healed = facts.but(
        nodes=tuple(n if n.left else replace(n, alive=True, ready=True, quiet_s=0.0) for n in facts.nodes)
    )
    healed = end(healed)
    voters = set(healed.voters)
    if 2 * sum(healed.is_healthy(p) for p in voters) <= len(voters):
        return  # those that left took the quorum along: not for this program to decide
    able = [n for n in healed.nodes if n.alive and healed.wish_of(n) != "agent"]
    forced = sum(healed.wish_of(n) == "server" and n.alive for n in healed.nodes)
    declared = max(healed.declaration.servers, forced)
    assert len(voters) <= max(declared, 1) or next_step(healed).pending
    if len(able) >= declared and not next_step(healed).pending:
        assert len(voters) == declared
    if healed.datastore == "etcd" and declared % 2 and not next_step(healed).pending:
        assert len(voters) % 2, f"rests at {len(voters)} of {declared}"
    if forced <= MAX_SERVERS and not next_step(healed).pending:
        must = [n for n in able if healed.wish_of(n) == "server" and not healed.is_gone(n)]
        assert all(n.peer in voters for n in must), f"{must} must be servers"
    for n in healed.nodes:
        if n.left and not next_step(healed).pending:
            assert healed.kube_of(n.peer) is None


def test_a_member_of_the_datastore_that_no_node_is_changes_nothing_and_breaks_nothing() -> None:
    """A revoked server's words are gone, and with them whose its address was."""
    facts = cluster(5, 5, 3)
    stranger = Member("n4-0", PeerId(""))
    facts = facts.but(nodes=facts.nodes[:4], members=(*facts.members[:4], stranger))
    step = next_step(facts)
    assert (step.action, step.pending) == ("wait", True)
    assert "no node of the mesh is (n4-0)" in step.reason

    coming = cluster(4, 3, 3, dead=(1,))
    coming = coming.but(members=(*coming.members, Member("n9-0", PeerId(""), learner=True)))
    step = next_step(coming)
    assert step.action == "wait"
    assert "n9-0 is being added" in step.reason
