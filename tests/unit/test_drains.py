"""What is announced by a drain, what follows at Kubernetes, and when would the control plane stop?"""

from __future__ import annotations

from p2p_network.core.ids import PeerId
from p2p_network.drains import Drain, ends_in_s, in_force, sentence
from p2p_roles.reconcile import cordon
from p2p_roles.reconcile.choice import candidates, to_replace
from p2p_roles.reconcile.model import Assigned, Declaration, Facts, Member, NodeFact
from p2p_roles.reconcile.steps import next_step
from p2p_roles.view import ViewNode

A, B, C, D = (PeerId(f"peer-{letter}") for letter in "abcd")
WORDS = "drained until 2027-01-15 08:06:00Z by n1: a new disk"


def test_a_drain_holds_until_its_window_ends() -> None:
    said = {A: Drain(2_000, "a new disk", "n1"), B: Drain(5_000)}
    assert in_force(said, 1_999) == said
    assert in_force(said, 2_000) == {B: said[B]}
    assert ends_in_s(said, 1_000) == 1.0
    assert ends_in_s(said, 2_000) == 3.0
    assert ends_in_s(said, 5_000) is None
    assert sentence(Drain(1_800_000_360_000, "a new disk", "n1")) == WORDS
    assert sentence(Drain(1_800_000_360_000)) == "drained until 2027-01-15 08:06:00Z"


def node(name: str, *, shut: bool = False, marked: bool = False) -> cordon.Json:
    marks = {cordon.ANNOTATION: "before"} if marked else {}
    spec = {"unschedulable": True} if shut else {}
    return {"metadata": {"name": name, "annotations": marks}, "spec": spec}


def test_only_what_we_cordoned_is_opened_again() -> None:
    peers = {"n1": A, "n2": B, "n3": C, "n4": D}
    items = [
        node("n1"),
        node("n2", shut=True),  # by a person
        node("n3", shut=True, marked=True),
        node("n4", shut=True),
        node("n5", shut=True, marked=True),  # nobody's that we know
        "nonsense",
        {"metadata": {"name": 7}},
    ]
    shut, opened = cordon.changes(items, peers, {A: WORDS, B: WORDS})
    assert (shut.node, shut.patch["spec"]) == ("n1", {"unschedulable": True})
    assert shut.patch["metadata"]["annotations"] == {cordon.ANNOTATION: WORDS}
    assert (opened.node, opened.patch["spec"]) == ("n3", {"unschedulable": None})
    assert cordon.changes([node("n1", shut=True, marked=True)], peers, {A: WORDS}) == ()


def pod(name: str, *, at: str = "n1", owner: str = "ReplicaSet", **more: object) -> cordon.Json:
    metadata = {"name": name, "namespace": "default", "ownerReferences": [{"kind": owner}]}
    return {"metadata": metadata | more, "spec": {"nodeName": at}, "status": {"phase": "Running"}}


def test_pods_that_belong_to_the_node_stay() -> None:
    ended = pod("ended") | {"status": {"phase": "Succeeded"}}
    static = pod("static", annotations={"kubernetes.io/config.mirror": "1"})
    going = pod("going", deletionTimestamp="2027-01-15T08:06:00Z")
    items = [pod("one"), pod("far", at="n2"), pod("agent", owner="DaemonSet"), ended, static, going, None, {}]
    (found,) = cordon.to_evict(items, "n1")
    assert found == cordon.Pod("default", "one")
    assert cordon.eviction(found)["metadata"] == {"name": "one", "namespace": "default"}
    assert cordon.to_evict("nonsense", "n1") == ()


def server(peer: PeerId, *, ready: bool = True) -> ViewNode:
    return ViewNode(peer, f"host-{peer[-1]}", alive=ready, ready=ready)


def test_a_drain_that_would_stop_the_control_plane_is_told() -> None:
    three = [server(A), server(B), server(C)]
    assert cordon.danger(A, three, ()) == ""
    assert cordon.danger(D, three, (A, B)) == "", "an agent may always go"
    second = cordon.danger(A, three, (B,))
    assert "one of 3 servers, of which 2 must work" in second
    assert "host-c (host-b: drained, away or not ready)" in second
    assert "of which 2 must work" in cordon.danger(A, [server(A), server(B), server(C, ready=False)], ())
    assert "none" in cordon.danger(A, [server(A)], ())
    assert "of which 2 must work" in cordon.danger(A, [server(A), server(B)], ())
    assert cordon.danger(A, [server(A), server(B)], (), any_server_does=True) == ""


def facts(**of_a: object) -> Facts:
    """Three servers, the first of which is silent for longer than one is waited for, and an agent."""
    nodes = (
        NodeFact(A, "n1", alive=False, quiet_s=900.0, **of_a),  # type: ignore[arg-type]
        NodeFact(B, "n2", ready=True),
        NodeFact(C, "n3", ready=True),
        NodeFact(D, "n4", ready=True),
    )
    return Facts(
        self_id=B,
        declaration=Declaration(3, configured=3),
        nodes=nodes,
        kube_nodes=(),
        members=(Member("n1", A), Member("n2", B), Member("n3", C)),
        assigned={},
        first=frozenset((A, B, C)),
        replaces=True,
        silence_s=60.0,
    )


ASSIGNED = {D: Assigned("agent", "agent: the 3 servers declared are there already")}


def test_nobody_takes_the_place_of_a_drained_server() -> None:
    assert to_replace(facts(), A)
    assert not to_replace(facts(drained=WORDS), A)
    assert next_step(facts().but(assigned=ASSIGNED)).action == "demote"
    waiting = next_step(facts(drained=WORDS).but(assigned=ASSIGNED))
    assert (waiting.action, waiting.reason) == ("wait", f"n1 is {WORDS}; nobody takes its place meanwhile")
    given_up = Declaration(3, replace=frozenset((A,)), configured=3)
    assert to_replace(facts(drained=WORDS).but(declaration=given_up), A), "unless a person says so"


def test_who_is_drained_becomes_no_server() -> None:
    nodes = tuple(n if n.peer != D else NodeFact(D, "n4", ready=True, drained=WORDS) for n in facts().nodes)
    assert candidates(facts()) != []
    assert candidates(facts().but(nodes=nodes)) == []
