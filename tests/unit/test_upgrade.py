"""Whose turn is it in an upgrade of k3s, and what does a node do on its own?"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from p2p_network.core.ids import PeerId
from p2p_roles.assign import Role
from p2p_roles.genesis.messages import Continuation, Genesis
from p2p_roles.upgrade import model, own, turns
from p2p_roles.upgrade.model import Order, Program, Progress, UpgradeFacts, UpgradeNode

OLD, NEW = "v1.36.1+k3s1", "v1.36.2+k3s1"
PROGRAM = Program("amd64", "ab" * 32, 7)
ORDER = Order(5, NEW, (PROGRAM,), "c1", patience_s=60.0)


def node(name: str, role: Role, version: str = OLD, phase: model.Phase = "", **more: object) -> UpgradeNode:
    before = OLD if phase in ("done", "returned") else ""
    said = Progress(version, "amd64", ORDER.number if phase else 0, phase, before, str(more.pop("error", "")))
    made = UpgradeNode(PeerId(name), name, role, said)
    return replace(made, **more)  # type: ignore[arg-type]


def facts(
    *nodes: UpgradeNode, order: Order = ORDER, busy: str = "", lost: tuple[str, ...] = ()
) -> UpgradeFacts:
    return UpgradeFacts(PeerId("s1"), order, nodes, busy, lost)


def staged(count: int, agents: int = 0) -> list[UpgradeNode]:
    servers = [node(f"s{i + 1}", "server", phase="staged") for i in range(count)]
    return servers + [node(f"a{i + 1}", "agent", phase="staged") for i in range(agents)]


def test_the_plan_is_servers_one_by_one_who_decides_last_then_one_agent_then_waves() -> None:
    said = turns.plan(facts(*(replace(n, progress=Progress(OLD, "amd64")) for n in staged(3, 9))))
    assert said == (
        f"s2 goes on to {NEW}",
        f"s3 goes on to {NEW}",
        f"s1 goes on to {NEW}",
        f"a1 goes on to {NEW}",
        f"a2, a3, a4 goes on to {NEW}",
        f"a5, a6, a7 goes on to {NEW}",
        f"a8, a9 goes on to {NEW}",
        f"all nodes run {NEW}",
    )


def test_a_member_of_the_datastore_that_no_node_is_counts_as_a_server_that_is_down() -> None:
    """Somebody was revoked, and nobody knows any more whose member it was (seed 590000248)."""
    pair = staged(2)
    turn = turns.next_turn(facts(*pair, lost=("s3-1a2b",)))
    assert (turn.order.turns, turn.pending) == ((), True)
    assert "s3-1a2b counts as a server and is no node of the mesh any more" in turn.order.reason

    back = msgspec.structs.replace(ORDER, state="back", reason="stopped")
    changed = [node(f"s{i}", "server", NEW, "done") for i in (1, 2)]
    turn = turns.next_turn(facts(*changed, order=back, lost=("s3-1a2b",)))
    assert (turn.order.turns, turn.pending) == ((), True)
    assert turns.next_turn(facts(*changed, order=back)).order.turns == ("s2",)


def test_a_plan_from_the_middle_has_an_end() -> None:
    order = msgspec.structs.replace(ORDER, turns=("s2",))
    nodes = [staged(3)[0], node("s2", "server", NEW, "trying", ready=False), staged(3)[2]]
    assert turns.plan(facts(*nodes, order=order)) == (
        f"s3 goes on to {NEW}",
        f"s1 goes on to {NEW}",
        f"all nodes run {NEW}",
    )
    away = replace(nodes[2], alive=False)
    assert turns.plan(facts(nodes[0], nodes[1], away, order=order))[-1].startswith("s3 is not ready")


def test_nobody_changes_before_all_who_live_have_the_program() -> None:
    nodes = staged(3)
    turn = turns.next_turn(facts(nodes[0], node("s2", "server"), node("s3", "server", alive=False)))
    assert turn.order.turns == ()
    assert turn.order.reason == "s2 fetches the program"


@pytest.mark.parametrize("sick", [{"ready": False}, {"alive": False}])
def test_no_server_goes_down_while_another_is_not_well(sick: dict[str, bool]) -> None:
    nodes = staged(3)
    turn = turns.next_turn(facts(nodes[0], nodes[1], replace(nodes[2], **sick)))  # type: ignore[arg-type]
    assert turn.order.turns == ()
    assert turn.pending
    assert "s3 is not ready" in turn.order.reason
    waits = turns.next_turn(facts(*nodes, busy="a4 is becoming a server"))
    assert (waits.order.turns, waits.pending) == ((), True)


def test_a_turn_lasts_until_the_node_is_ready_with_the_new_version() -> None:
    order = msgspec.structs.replace(ORDER, turns=("s2",))
    nodes = staged(3)
    for progress, ready in (("trying", False), ("done", False)):
        now = [nodes[0], node("s2", "server", NEW, progress, ready=ready), nodes[2]]
        assert turns.next_turn(facts(*now, order=order)).order.turns == ("s2",)
    now = [nodes[0], node("s2", "server", NEW, "done"), nodes[2]]
    assert turns.next_turn(facts(*now, order=order)).order.turns == ("s3",)


def test_one_failure_sends_all_back_agents_first_and_then_it_is_over() -> None:
    done = [node(f"s{i}", "server", NEW, "done") for i in (1, 2, 3)] + [node("a1", "agent", NEW, "done")]
    failed = node("a2", "agent", OLD, "failed", error="k3s was not ready")
    turn = turns.next_turn(facts(*done, failed))
    assert turn.order.state == "back"
    assert turn.order.reason == "a2: k3s was not ready; those that changed go back"
    seen = []
    nodes, order = [*done, failed], turn.order
    while order.state == "back":
        order = turns.next_turn(facts(*nodes, order=order)).order
        seen.append(order.turns)
        nodes = [node(n.name, n.role, OLD, "returned") if n.peer in order.turns else n for n in nodes]
    assert seen == [("a1",), ("s2",), ("s3",), ("s1",), ()]
    assert order.reason == "a2: k3s was not ready; those that had changed are back"
    assert turns.next_turn(facts(*nodes, order=order)).order == order, "it stays over"


def test_over_a_minor_version_nobody_goes_back() -> None:
    order = msgspec.structs.replace(ORDER, version="v1.37.0+k3s1")
    done = node("s1", "server", "v1.37.0+k3s1", "done")
    turn = turns.next_turn(facts(done, node("s2", "server", OLD, "failed", error="why"), order=order))
    assert turn.order.state == "stopped"
    assert "s1 stays with v1.37.0+k3s1" in turn.order.reason


def test_a_failure_before_anything_changed_changes_nothing() -> None:
    turn = turns.next_turn(facts(*staged(2), node("s3", "server", phase="failed", error="read-only")))
    assert turn.order.state == "stopped"
    assert turn.order.reason == "s3: read-only; the other nodes were not changed"


def test_an_operator_stops_it_and_a_node_in_the_middle_is_waited_for() -> None:
    order = msgspec.structs.replace(ORDER, turns=("s2",))
    nodes = [node("s1", "server", phase="staged"), node("s2", "server", NEW, "trying", ready=False)]
    stopped = turns.abort(facts(*nodes, order=order), "ann")
    assert (stopped.state, stopped.turns) == ("back", ())
    waits = turns.next_turn(facts(*nodes, order=stopped)).order
    assert waits.reason == "stopped by ann; waits for a node in the middle of its turn"
    late = turns.next_turn(facts(nodes[0], node("s2", "server", NEW, "done"), order=waits)).order
    assert late.turns == ("s2",)


def test_who_comes_later_gets_it_too_and_who_never_returns_is_given_up() -> None:
    done = msgspec.structs.replace(ORDER, state="done")
    newcomer = node("a9", "agent")
    all_have_it = [node("s1", "server", NEW, "done")]
    assert turns.next_turn(facts(*all_have_it, order=done)).order == done
    assert turns.next_turn(facts(*all_have_it, newcomer, order=done)).order.state == "running"
    order = msgspec.structs.replace(ORDER, turns=("s2",))
    lost = node("s2", "server", phase="staged", alive=False, turn_s=200.0)
    assert turns.next_turn(facts(*staged(1), lost, order=order)).order.reason.startswith(
        "s2 did not come back"
    )


@pytest.mark.parametrize(
    ("version", "running", "why"),
    [
        ("v1.37.4+k3s1", [OLD], ""),
        ("v1.36.0+k3s1", [OLD], ""),
        ("v1.38.0+k3s1", [OLD], "more than one minor"),
        ("v1.35.9+k3s1", [OLD], "older than"),
        ("v1.37.0+k3s1", [OLD, "v1.35.0+k3s1"], "more than one minor"),
        ("soon", [OLD], "no version"),
        ("v1.36.3+k3s1", ["v1.36.3+k3s1-simulated", ""], ""),
    ],
)
def test_which_version_may_follow(version: str, running: list[str], why: str) -> None:
    said = model.refusal(version, running)
    assert (why in said) if why else not said


# ---------------------------------------------------------------- one node


def play(mine: Progress, order: Order | None, **seen: object) -> own.Act:
    made = own.Seen(**({"version": mine.version} | seen))  # type: ignore[arg-type]
    return own.next_act(mine, order, made, "me")


def test_a_node_fetches_waits_swaps_and_is_done() -> None:
    mine = Progress(OLD, "amd64")
    act = play(mine, ORDER)
    assert (act.deed, act.progress.order) == ("stage", 5)
    mine = msgspec.structs.replace(act.progress, phase="staged")
    assert play(mine, ORDER).deed == "none"
    act = play(mine, msgspec.structs.replace(ORDER, turns=("me",)))
    assert (act.deed, act.progress.phase, act.progress.before) == ("swap", "trying", OLD)
    assert play(act.progress, ORDER, version=NEW).deed == "swap", "an agent that was killed does it again"
    wait = play(act.progress, ORDER, version=NEW, is_begun=True, ready_s=1.0)
    assert wait.deed == "none"
    done = play(act.progress, ORDER, version=NEW, is_begun=True, ready_s=own.settle_s(ORDER.patience_s))
    assert (done.deed, done.progress.phase, done.progress.version) == ("note", "done", NEW)
    assert play(done.progress, ORDER).deed == "none"


@pytest.mark.parametrize("seen", [{"broken": "exec format error"}, {"phase_s": 60.0, "error": "no leader"}])
def test_a_node_that_is_not_well_goes_back_by_itself(seen: dict[str, object]) -> None:
    trying = Progress(NEW, "amd64", 5, "trying", OLD)
    act = play(trying, ORDER, is_begun=True, **seen)
    assert (act.deed, act.progress.phase) == ("swap-back", "falling")
    assert str(next(iter(seen.values()))) in act.progress.error or "no leader" in act.progress.error
    again = play(act.progress, None, version=OLD)
    assert again.deed == "swap-back", "also when the order is out of sight"
    over = play(act.progress, ORDER, version=OLD, is_begun=True)
    assert over.progress.phase == "failed"
    assert play(over.progress, ORDER).deed == "none"


def test_a_node_returns_when_it_is_told_and_says_if_it_is_not_well() -> None:
    done = Progress(NEW, "amd64", 5, "done", OLD)
    back = msgspec.structs.replace(ORDER, state="back", turns=("me",))
    act = play(done, back)
    assert (act.deed, act.progress.phase) == ("swap-back", "returning")
    assert play(act.progress, back, version=OLD, is_begun=True, ready_s=1.0).progress.phase == "returned"
    sick = play(act.progress, back, version=OLD, is_begun=True, phase_s=60.0, error="no leader")
    assert (sick.progress.phase, sick.progress.error) == ("returned", "no leader")


def test_a_node_without_a_program_for_it_or_that_can_not_fetch_says_so() -> None:
    other = Progress(OLD, "s390x")
    assert "s390x" in play(other, ORDER).progress.error
    mine = Progress(OLD, "amd64", 5)
    assert play(mine, ORDER, fetch_error="no node has it", fetching_s=10.0).deed == "stage"
    assert play(mine, ORDER, fetch_error="no node has it", fetching_s=60.0).progress.phase == "failed"


def test_orders_come_from_others_and_are_checked() -> None:
    assert model.decode(model.encode(ORDER)) == ORDER
    stored = model.to_object(ORDER, "")
    stored["metadata"]["resourceVersion"] = "77"
    assert model.from_object(stored) == msgspec.structs.replace(ORDER, fence=77)
    wrong = (
        {"version": "; rm -rf /"},
        {"turns": tuple("x" for _ in range(65))},
        {"programs": (Program("amd64", "../../etc", 1),)},
        {"patience_s": float("nan")},
        {"number": -1},
    )
    for change in wrong:
        raw = model.encode(msgspec.structs.replace(ORDER, **change))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"."):
            model.decode(raw)
        assert model.fence_of(raw) == 0
    with pytest.raises(ValueError, match="holds no upgrade"):
        model.from_object({"data": {"order": 7}})


def test_an_order_goes_on_where_the_cluster_was_recovered_and_stops_where_it_was_restored() -> None:
    from_c1 = Genesis(
        "c2",
        "p1",
        "10.0.0.1",
        "ca",
        "args",
        NEW,
        ("p1",),
        "etcd",
        continues=Continuation(1, "c1", reset=True),
    )
    assert turns.carried_over(ORDER, from_c1) == msgspec.structs.replace(ORDER, cluster_id="c2")
    assert turns.carried_over(ORDER, msgspec.structs.replace(from_c1, cluster_id="c1")) is ORDER
    later = msgspec.structs.replace(
        from_c1, cluster_id="c3", continues=Continuation(2, "c2", reset=True, lineage=("c1",))
    )
    assert turns.carried_over(ORDER, later).state == "running"

    restored = msgspec.structs.replace(from_c1, continues=Continuation(1, "", reset=True, snapshot="0" * 64))
    stopped = turns.carried_over(ORDER, restored)
    assert (stopped.state, stopped.cluster_id) == ("stopped", "c2")
    done = msgspec.structs.replace(ORDER, state="done")
    assert turns.carried_over(done, restored).state == "done"
