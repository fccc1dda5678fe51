"""Does one node do the right thing in every state, whatever happens?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from msgspec.structs import replace
from quorums import certified

from p2p_network import wire
from p2p_network.core.errors import RoleError
from p2p_network.identity import Identity
from p2p_roles import events as ev
from p2p_roles.assign import Assignment, rank
from p2p_roles.bootstrap import Bootstrap
from p2p_roles.durable import Durable, Membership
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis.acceptor import Asked, Reply
from p2p_roles.genesis.messages import (
    GENESIS,
    OUTCOME,
    VOTE_PURPOSE,
    Abort,
    Ballot,
    Continuation,
    Decided,
    Genesis,
    Instance,
    Prepare,
    Promise,
    Ready,
    Value,
)
from p2p_roles.genesis.proposer import Answered, Ask
from p2p_roles.rules import Rules
from p2p_roles.transitions import (
    DIAGRAM_BEGIN,
    DIAGRAM_END,
    TABLE,
    TRANSITIONS,
    Cause,
    State,
    render_diagram,
)
from p2p_roles.view import View, ViewNode

SCOPE, MESH = "kairos", "00112233aabbccdd"
IDS = [Identity(bytes([n + 1] * 32)) for n in range(5)]
PEERS = [i.peer_id for i in IDS]
ME, OTHER, THIRD = PEERS[:3]
CA = "c" * 64


def view(*alive: int, n: int = 3, changed_at: float = 0.0, ready: tuple[int, ...] = (), **changes) -> View:
    nodes = tuple(
        ViewNode(
            PEERS[i],
            f"n{i}",
            alive=i in alive,
            vpn_ipv4=f"10.144.0.{i + 1}",
            minimum_nodes=n,
            role="server" if i in ready else "",
            ready=i in ready,
            cluster_id="c1" if i in ready else "",
            **changes,
        )
        for i in range(max(alive) + 1)
    )
    return View(ME, SCOPE, nodes, changed_at)


def genesis(initiator: str, *servers: str, cluster_id: str = "c1") -> Genesis:
    return Genesis(cluster_id, initiator, "10.144.0.2", CA, "", "v1", (initiator, *servers), "etcd")


def signed(epoch: int, value: Value) -> bytes:
    instance = Instance(SCOPE, epoch, GENESIS if isinstance(value, Genesis) else OUTCOME)
    return certificates.encode(certified(MESH, instance, value, 3, IDS, Ballot(1, OTHER)))


class Machine(Bootstrap):
    """The production machine, with what it wanted last."""

    def __init__(self, rules: Rules) -> None:
        super().__init__(
            self_id=ME,
            scope=SCOPE,
            mesh_id=MESH,
            sign=lambda m: IDS[0].sign(VOTE_PURPOSE, m),
            rules=rules,
        )
        self.all: list[ev.Effect] = []

    def on(self, now: float, *events: ev.Event) -> list[ev.Effect]:
        effects: list[ev.Effect] = []
        for event in events:
            effects += self.step(now, event).effects
        self.all += effects
        return effects

    def disk(self) -> bytes:
        return [e for e in self.all if isinstance(e, ev.Persist)][-1].state


def of(kind: type, effects: list[ev.Effect]) -> list:
    return [e for e in effects if isinstance(e, kind)]


def machine(n: int = 3, servers: int = 1, durable: bytes | None = None, *certs: bytes) -> Machine:
    made = Machine(Rules(servers=servers, minimum_nodes=n))
    made.on(0.0, ev.Started(durable, certs))
    return made


def in_state(state: State) -> Machine:
    """A machine that got to `state` the ordinary way."""
    if state in (State.RECOVER, State.HELD, State.CONTESTED):
        return in_trouble(state)
    m = machine(1 if state in (State.INIT, State.FENCED) else 3)
    match state:
        case State.DISCOVER:
            m.on(1.0, ev.ViewChanged(view(0, 1)))
        case State.ELECT:
            m.on(1.0, ev.ViewChanged(view(0, 1, 2)))
            m.on(4.0, ev.Tick())
        case State.INIT | State.FENCED:
            m.on(1.0, ev.VpnReady("10.144.0.1"), ev.ViewChanged(view(0, n=1)))
            m.on(4.0, ev.Tick(), ev.SecretsMade(1, CA))
            if state is State.FENCED:
                m.on(5.0, ev.CertificateLearned(signed(1, Abort("because", ME))))
        case State.WAIT:
            m.on(1.0, ev.ViewChanged(view(0, 1, 2)), ev.CertificateLearned(signed(1, genesis(OTHER))))
        case State.JOIN | State.MEMBER | State.CHANGE:
            m.on(1.0, ev.VpnReady("10.144.0.1"), ev.ViewChanged(view(0, 1, 2)))
            m.on(1.0, ev.CertificateLearned(signed(1, genesis(OTHER))))
            m.on(1.0, ev.CertificateLearned(signed(1, Ready("uid"))))
            if state is not State.JOIN:
                m.on(2.0, ev.AssignmentChanged(ME, Assignment("agent", "agent: enough", 1, "c1")))
                m.on(2.0, ev.JoinSecretReceived(OTHER, "agent", CA), ev.K3sChanged("ready"))
            if state is State.CHANGE:
                m.on(3.0, ev.AssignmentChanged(ME, Assignment("server", "server: said", 1, "c1", fence=3)))
    assert m.state is state, (m.state, m.reason)
    return m


def in_trouble(state: State) -> Machine:
    """A server of a cluster that is brought back here, or elsewhere, or has a twin."""
    member = Membership(1, "server", False, genesis(OTHER, ME), joined=True)
    known = (signed(1, genesis(OTHER, ME)), signed(1, Ready("uid")))
    m = machine(3, 1, wire.encode(Durable(SCOPE, member=member)), *known)
    m.on(1.0, ev.VpnReady("10.144.0.1"), ev.ViewChanged(view(0, 1, 2)), *map(ev.CertificateLearned, known))
    after = Continuation(1, "c1", reset=True)
    match state:
        case State.RECOVER:
            m.on(
                2.0, ev.CertificateLearned(signed(2, replace(genesis(ME, cluster_id="c2"), continues=after)))
            )
        case State.HELD:
            m.on(2.0, ev.CertificateLearned(signed(2, replace(genesis(THIRD), continues=after))))
        case _:
            m.on(2.0, ev.CertificateLearned(signed(2, genesis(THIRD, cluster_id="c2"))))
            m.on(2.0, ev.CertificateLearned(signed(2, Ready("uid2"))))
    assert m.state is state, (m.state, m.reason)
    return m


EVERY_EVENT: dict[str, ev.Event] = {
    "view-alone": ev.ViewChanged(view(0)),
    "view-all": ev.ViewChanged(view(0, 1, 2)),
    "genesis-other": ev.CertificateLearned(signed(1, genesis(OTHER))),
    "genesis-me": ev.CertificateLearned(signed(1, genesis(ME))),
    "genesis-2": ev.CertificateLearned(signed(2, genesis(THIRD))),
    "ready": ev.CertificateLearned(signed(1, Ready("uid"))),
    "ready-2": ev.CertificateLearned(signed(2, Ready("uid"))),
    "abort": ev.CertificateLearned(signed(1, Abort("x", OTHER))),
    "abort-7": ev.CertificateLearned(signed(7, Abort("x"))),
    "garbage": ev.CertificateLearned(b"garbage"),
    "asked": Asked(OTHER, Prepare(Instance(SCOPE, 1, GENESIS), Ballot(3, OTHER), 5)),
    "asked-nonsense": Asked(OTHER, Prepare(Instance("x", 9, 9), Ballot(-3, ME), 0)),
    "answered-late": Answered(OTHER, Prepare(Instance(SCOPE, 1, GENESIS), Ballot(3, ME), 5), None),
    "answered-decided": Answered(
        OTHER,
        Prepare(Instance(SCOPE, 1, GENESIS), Ballot(3, ME), 5),
        Decided(certificates.decode(signed(1, genesis(OTHER)))),
    ),
    "reset": ev.K3sReset(2),
    "reset-failed": ev.K3sReset(2, "no space left"),
    "workloads": ev.WorkloadsCounted(7),
    "no-workloads": ev.WorkloadsCounted(0),
    "workloads-unknown": ev.WorkloadsCounted(None),
    "order-recovery": ev.RecoveryOrdered(replace(genesis(ME), continues=Continuation(1, "c1", reset=True))),
    "secrets": ev.SecretsMade(1, CA),
    "secrets-old": ev.SecretsMade(9, CA),
    "k3s-ready": ev.K3sChanged("ready", "uid", CA),
    "k3s-other-ca": ev.K3sChanged("ready", "uid", "d" * 64),
    "k3s-failed": ev.K3sChanged("failed", error="it broke", permanent=True),
    "k3s-stopped": ev.K3sChanged("stopped"),
    "secret": ev.JoinSecretReceived(OTHER, "agent", CA),
    "secret-other-ca": ev.JoinSecretReceived(OTHER, "agent", "d" * 64),
    "secret-refused": ev.JoinSecretRefused(OTHER, "no"),
    "assigned": ev.AssignmentChanged(ME, Assignment("agent", "agent: enough", 1, "c1")),
    "assigned-elsewhere": ev.AssignmentChanged(ME, Assignment("server", "x", 1, "other")),
    "vpn": ev.VpnReady("10.144.0.1"),
    "wiped": ev.K3sWiped(1),
    "wiped-old": ev.K3sWiped(9),
    "tick": ev.Tick(),
}


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("name", list(EVERY_EVENT))
def test_every_event_in_every_state(state: State, name: str) -> None:
    m, event = in_state(state), EVERY_EVENT[name]
    for now in (10.0, 1000.0):  # at once, and after every time limit
        effects = m.on(now, event)
        assert len(of(Reply, effects)) == isinstance(event, Asked)
        assert m.reason
        wake = m.wake_at()
        assert wake is None or wake > now
        again = Bootstrap(self_id=ME, scope=SCOPE, mesh_id=MESH, sign=lambda m: m, rules=m.rules)
        again.step(now, ev.Started(wire.encode(m.durable)))
        assert again.epoch == m.epoch, "what is durable leads back to the same epoch"


def test_an_agent_joins_through_the_nearest_server_a_server_through_the_initiator() -> None:
    def asked(role: str, **measured: float) -> str:
        m = machine(3, 1, None, signed(1, genesis(OTHER)), signed(1, Ready("uid")))
        m.on(1.0, ev.RoundTripsMeasured({PEERS[int(n[1:])]: s for n, s in measured.items()}, {}))
        m.on(1.0, ev.VpnReady("10.144.0.1"), ev.ViewChanged(view(0, 1, 2, 3, ready=(1, 2, 3))))
        (fetch,) = of(
            ev.FetchJoinSecret, m.on(2.0, ev.AssignmentChanged(ME, Assignment(role, "because", 1, "c1")))
        )
        return fetch.peer

    assert asked("agent", n1=0.12, n2=0.004, n3=0.08) == THIRD
    assert asked("agent", n1=0.12, n3=0.08) == PEERS[3], "what was not measured comes last"
    assert asked("server", n1=0.12, n2=0.004) == OTHER


def test_the_table_is_sound() -> None:
    assert set(TABLE) == set(State)
    assert {t.cause for t in TRANSITIONS} == set(Cause)
    assert len({(t.source, t.cause) for t in TRANSITIONS}) == len(TRANSITIONS)
    reached, todo = {State.DISCOVER}, [State.DISCOVER]
    while todo:
        for t in TABLE[todo.pop()]:
            if t.target not in reached:
                reached.add(t.target)
                todo.append(t.target)
    assert reached == set(State)


def test_the_door_plate_s_diagram_is_current() -> None:
    readme = (Path(__file__).parents[2] / "roles" / "README.md").read_text()
    between = readme.partition(DIAGRAM_BEGIN)[2].partition(DIAGRAM_END)[0]
    assert between.strip() == render_diagram(), "paste render_diagram() between the markers"


def test_who_is_missing_is_told() -> None:
    m = machine(5)
    m.on(1.0, ev.ViewChanged(view(0, 1, 2, n=5)))
    m.on(100.0, ev.Tick())
    assert m.status.reason == "3 of 5 nodes are here; waiting for 2 more (p2p.minimum_nodes)"
    m = machine(2)
    m.on(1.0, ev.ViewChanged(view(0, 1, n=2, wish="agent")))
    m.on(100.0, ev.Tick())
    assert "all 2 nodes are forced to be agents" in m.reason


def test_a_view_must_hold_still_before_the_election() -> None:
    m = machine(3)
    for now in (2.2, 2.6, 3.0):
        m.on(now, ev.ViewChanged(view(0, 1, 2, *((3,) if now == 2.6 else ()))))
        assert m.state is State.DISCOVER
    assert m.wake_at() == 3.5
    m.on(3.4, ev.ViewChanged(view(0, 1, 2, ready=(1,))))
    assert m.state is State.DISCOVER, "only who is there and what they wish counts"
    m.on(3.5, ev.Tick())
    assert m.state is State.ELECT


def test_the_whole_way_of_a_single_node() -> None:
    m = machine(1)
    m.on(1.0, ev.VpnReady("10.144.0.1"), ev.ViewChanged(view(0, n=1)))
    assert m.wake_at() == 3.0, "who sees nobody waits longer for the first connection"
    made = m.on(3.0, ev.Tick())
    assert of(ev.MakeSecrets, made) == [ev.MakeSecrets(1)]
    started = m.on(3.1, ev.SecretsMade(1, CA))
    assert m.state is State.INIT
    kinds = [type(e).__name__ for e in started]
    assert kinds.index("PublishCertificate") > kinds.index("Persist")
    assert kinds[-2:] == ["Persist", "StartK3s"], "durable before k3s is started"
    assert of(ev.StartK3s, started)[0].kind == "server-init"
    up = m.on(20.0, ev.K3sChanged("ready", "uid-1", CA))
    assert m.state is State.MEMBER
    assert of(ev.ReplaceInitDropIn, up) == [ev.ReplaceInitDropIn(1, CA, "", "etcd")]
    assert m.status.ready
    assert m.status.role == "server"
    assert m.reason == "server: 1st of 1, initialised the cluster"
    back = machine(1, 1, m.disk())
    assert back.state is State.MEMBER
    assert [e.kind for e in of(ev.StartK3s, back.all)] == ["server"]
    assert not of(Ask, back.all), "it asks nobody"


def test_a_restart_while_initialising_initialises_again_with_the_same_ca() -> None:
    m = in_state(State.INIT)
    back = machine(1, 1, m.disk())
    assert back.state is State.INIT
    assert [(e.kind, e.ca_hash) for e in of(ev.StartK3s, back.all)] == [("server-init", CA)]
    assert not of(ev.MakeSecrets, back.all)


def test_the_initiator_restarting_after_ready_is_a_member() -> None:
    m = in_state(State.INIT)
    m.on(20.0, ev.K3sChanged("ready", "uid-1", CA))
    cut = next(  # the power fails right after READY was made durable
        e.state
        for e in m.all
        if isinstance(e, ev.Persist)
        and any(certificates.is_ready(c) for c in wire.decode(e.state, Durable).acceptor.certificates)
    )
    assert wire.decode(cut, Durable).member is not None
    assert not wire.decode(cut, Durable).member.joined  # type: ignore[union-attr]
    back = machine(1, 1, cut)
    assert back.state is State.MEMBER
    assert [e.kind for e in of(ev.StartK3s, back.all)] == ["server"], "no cluster-init any more"


def test_joining() -> None:
    m = in_state(State.JOIN)
    assert m.reason == "the cluster is up; waiting for an assignment by its servers"
    asked = m.on(2.0, ev.AssignmentChanged(ME, Assignment("agent", "agent: enough", 1, "c1")))
    assert of(ev.FetchJoinSecret, asked) == [ev.FetchJoinSecret(OTHER, "agent")]
    m.on(2.1, ev.JoinSecretRefused(OTHER, "not yet"))
    assert "not yet" in m.reason
    again = m.on(4.2, ev.Tick())
    assert of(ev.FetchJoinSecret, again) == [ev.FetchJoinSecret(OTHER, "agent")]
    wrong = m.on(4.3, ev.JoinSecretReceived(OTHER, "agent", "d" * 64))
    assert "another CA" in of(ev.Alarm, wrong)[0].message
    assert not of(ev.StartK3s, wrong), "no join without a matching K10"
    m.on(7.0, ev.Tick())
    started = m.on(7.1, ev.JoinSecretReceived(OTHER, "agent", CA))
    assert [type(e).__name__ for e in started] == ["Persist", "StartK3s"]
    assert of(ev.StartK3s, started)[0] == ev.StartK3s("agent", 1, CA, "10.144.0.2", "etcd")
    restarted = machine(3, 1, m.disk())
    restarted.on(1.0, ev.VpnReady("10.144.0.1"), ev.ViewChanged(view(0, 1, 2)))
    restarted.on(1.0, ev.AssignmentChanged(ME, Assignment("agent", "agent: enough", 1, "c1")))
    assert [e.kind for e in of(ev.StartK3s, restarted.all)] == ["agent"]
    assert not of(ev.FetchJoinSecret, restarted.all)
    late = m.on(7.1 + 121, ev.Tick())
    assert of(ev.StopK3s, late)
    assert of(ev.FetchJoinSecret, late), "another try, perhaps with another server"


def test_a_certified_server_joins_as_a_server_and_only_with_the_certified_ca() -> None:
    m = machine(3)
    m.on(1.0, ev.VpnReady("10.144.0.1"), ev.ViewChanged(view(0, 1, 2)))
    m.on(1.0, ev.CertificateLearned(signed(1, genesis(OTHER, ME))))
    asked = m.on(1.0, ev.CertificateLearned(signed(1, Ready("uid"))))
    assert of(ev.FetchJoinSecret, asked) == [ev.FetchJoinSecret(OTHER, "server")]
    m.on(2.0, ev.JoinSecretReceived(OTHER, "server", CA))
    alarmed = m.on(9.0, ev.K3sChanged("ready", "uid", "d" * 64))
    assert m.state is State.JOIN
    assert of(ev.Alarm, alarmed)
    m.on(10.0, ev.K3sChanged("ready", "uid", CA))
    assert m.state is State.MEMBER
    assert m.authorize_join(OTHER, "server").granted == "server"
    assert m.authorize_join(THIRD, "agent").granted is None


def test_the_initiator_leans_on_another_server_as_soon_as_there_is_one() -> None:
    m = in_state(State.INIT)
    m.on(20.0, ev.K3sChanged("ready", "uid-1", CA))
    cluster = m.status.cluster_id
    v = view(0, 1, ready=(1,), n=1)
    nodes = tuple(dataclasses.replace(n, cluster_id=cluster if n.ready else "") for n in v.nodes)
    effects = m.on(30.0, ev.ViewChanged(View(ME, SCOPE, nodes, 30.0)))
    assert of(ev.ReplaceInitDropIn, effects)[0].join_ip == "10.144.0.2"
    assert of(ev.ReplaceInitDropIn, m.on(31.0, ev.ViewChanged(View(ME, SCOPE, nodes, 31.0)))) == []


def word(role: str, *, leaving: bool = False, fence: int = 9) -> ev.AssignmentChanged:
    return ev.AssignmentChanged(ME, Assignment(role, f"{role}: said", 1, "c1", leaving, fence))


def a_server() -> Machine:
    m = machine(3)
    m.on(1.0, ev.VpnReady("10.144.0.1"), ev.ViewChanged(view(0, 1, 2)))
    m.on(
        1.0,
        ev.CertificateLearned(signed(1, genesis(OTHER, ME))),
        ev.CertificateLearned(signed(1, Ready("u"))),
    )
    m.on(2.0, ev.JoinSecretReceived(OTHER, "server", CA), ev.K3sChanged("ready", "u", CA))
    assert m.state is State.MEMBER
    return m


def test_a_server_that_is_to_go_waits_until_it_is_removed_and_becomes_an_agent() -> None:
    m = a_server()
    assert of(ev.HoldK3s, m.on(30.0, word("agent", leaving=True)))
    assert not of(ev.HoldK3s, m.on(30.5, ev.Tick())), "once"
    assert "until the cluster has removed" in m.status.reason
    m.on(31.0, word("agent"))
    assert m.state is State.MEMBER, "its k3s is ready: it still votes"
    effects = m.on(32.0, ev.K3sChanged("running", error="etcd has no leader"))
    assert m.state is State.CHANGE
    assert [e.was for e in of(ev.SetAsideK3s, effects)] == ["server"]
    m.on(33.0, ev.K3sWiped(1))
    assert m.state is State.JOIN
    assert m.status.role == "agent"
    assert of(ev.FetchJoinSecret, m.all)[-1].role == "agent"


def test_a_server_given_up_while_it_gets_in_keeps_what_may_vote_until_it_is_removed() -> None:
    m = machine(3)
    m.on(1.0, ev.VpnReady("10.144.0.1"), ev.ViewChanged(view(0, 1, 2)))
    m.on(1.0, ev.CertificateLearned(signed(1, genesis(OTHER, ME))))
    m.on(1.0, ev.CertificateLearned(signed(1, Ready("u"))))
    m.on(2.0, ev.JoinSecretReceived(OTHER, "server", CA), ev.K3sChanged("running"))
    given_up = m.on(30.0, word("agent"))
    assert m.state is State.CHANGE
    assert [e.unless_voting for e in of(ev.SetAsideK3s, given_up)] == [True]
    m.on(30.5, ev.K3sChanged("stopped"))
    assert m.state is State.CHANGE, "nobody has looked at the disk yet"
    kept = m.on(31.0, ev.K3sMayVote(1))
    assert m.state is State.JOIN
    assert [e.kind for e in of(ev.StartK3s, kept)] == ["server-join"], "it may be half of the majority"
    assert of(ev.HoldK3s, m.on(32.0, ev.K3sChanged("running"))), "once removed it shall not join anew"
    back = machine(3, 1, m.disk())
    back.on(1.0, ev.VpnReady("10.144.0.1"), ev.ViewChanged(view(0, 1, 2)), word("agent"))
    assert [e.kind for e in of(ev.StartK3s, back.all)] == ["server-join"], "nor does a restart forget it"
    for later in (word("agent", leaving=True, fence=12), ev.Tick()):
        assert not of(ev.StopK3s, m.on(400.0, later)), "it goes on however long that takes"
    assert m.state is State.JOIN
    gone = m.on(401.0, ev.K3sChanged("failed", error="removed"), word("agent", fence=13))
    assert m.state is State.CHANGE
    assert of(ev.SetAsideK3s, gone)
    m.on(402.0, ev.K3sWiped(1))
    assert m.status.role == "agent"


def test_a_server_given_up_before_etcd_knew_it_goes_at_once() -> None:
    m = machine(3)
    m.on(1.0, ev.VpnReady("10.144.0.1"), ev.ViewChanged(view(0, 1, 2)))
    m.on(1.0, ev.CertificateLearned(signed(1, genesis(OTHER, ME))))
    m.on(1.0, ev.CertificateLearned(signed(1, Ready("u"))))
    m.on(2.0, ev.JoinSecretReceived(OTHER, "server", CA), ev.K3sChanged("running"))
    assert of(ev.SetAsideK3s, m.on(30.0, word("agent", leaving=True))), "no need to wait for a removal"
    m.on(31.0, ev.K3sWiped(1))
    assert m.state is State.JOIN
    assert "until the cluster has removed" in m.reason
    m.on(32.0, word("agent", fence=10))
    assert of(ev.FetchJoinSecret, m.all)[-1].role == "agent"


def test_an_agent_becomes_a_server() -> None:
    m = in_state(State.CHANGE)
    assert [e.was for e in of(ev.SetAsideK3s, m.all)] == ["agent"]
    m.on(33.0, ev.K3sWiped(1))
    assert of(ev.FetchJoinSecret, m.all)[-1].role == "server"
    m.on(34.0, ev.JoinSecretReceived(OTHER, "server", CA))
    assert of(ev.StartK3s, m.all)[-1].kind == "server-join"


def test_a_server_that_returns_asks_first_whether_it_is_one() -> None:
    disk = a_server().disk()
    again = machine(3, 1, disk)
    again.on(0.5, ev.VpnReady("10.144.0.1"), ev.ViewChanged(view(0, 1, 2)))
    assert not of(ev.StartK3s, again.all)
    assert "asking whether it still is one" in again.reason
    again.on(1.0, word("agent"), ev.LedgerCompared())
    assert again.state is State.CHANGE
    assert not of(ev.StartK3s, again.all)
    unchanged = machine(3, 1, disk)
    unchanged.on(0.5, ev.VpnReady("10.144.0.1"), ev.LedgerCompared())
    assert [e.kind for e in of(ev.StartK3s, unchanged.all)] == ["server"]
    alone = machine(3, 1, disk)
    alone.on(0.5, ev.VpnReady("10.144.0.1"))
    assert alone.wake_at() == Rules().look_s
    alone.on(Rules().look_s, ev.Tick())
    assert [e.kind for e in of(ev.StartK3s, alone.all)] == ["server"], "nobody answers: as it was"


def test_fenced_wipes_only_with_the_certificate_and_starts_anew() -> None:
    m = in_state(State.FENCED)
    wipe = of(ev.WipeK3s, m.all)
    assert len(wipe) == 1
    assert wipe[0].epoch == 1
    assert certificates.is_abort(wipe[0].certificate)
    restarted = machine(1, 1, m.disk())
    assert restarted.state is State.FENCED
    assert len(of(ev.WipeK3s, restarted.all)) == 1
    m.on(6.0, ev.K3sWiped(1))
    assert m.member is None
    assert m.epoch == 2
    assert m.state is State.ELECT
    m.on(6.1, ev.Tick())
    assert m.failed() == (ME,)
    assert m.wake_at() is not None


def test_what_is_being_set_aside_goes_also_when_the_newer_cluster_is_carried_on_meanwhile() -> None:
    """Whoever was away hears of two recoveries one after the other, the second without its outcome yet."""
    m = in_trouble(State.HELD)
    second = replace(genesis(THIRD, cluster_id="c2"), continues=Continuation(1, "c1", reset=True))
    third = replace(
        genesis(THIRD, cluster_id="c3"), continues=Continuation(2, "c2", reset=True, lineage=("c1",))
    )
    certs = [signed(1, genesis(OTHER, ME)), signed(1, Ready("uid"))]
    m = machine(3, 1, wire.encode(Durable(SCOPE, member=m.member)), *certs)
    for value in (second, Ready("uid")):
        m.on(2.0, ev.CertificateLearned(signed(2, value)))
    assert m.state is State.FENCED
    m.on(2.1, ev.CertificateLearned(signed(3, third)))
    assert m.state is State.FENCED
    m.on(60.0, ev.Tick())
    m.on(61.0, ev.CertificateLearned(signed(3, Abort("another one was ordered", THIRD, 2, True))))
    assert m.state is State.FENCED
    m.on(120.0, ev.Tick())
    wipes = of(ev.WipeK3s, m.all)
    assert len(wipes) >= 3, "it asks again"
    assert all(w.epoch == 1 and w.certificate.instance.epoch >= 2 for w in wipes)
    m.on(121.0, ev.K3sWiped(1))
    assert m.member is None
    assert m.state is not State.FENCED


def test_a_silent_initiator_is_given_up_early_and_a_slow_one_in_time() -> None:
    m = in_state(State.WAIT)
    m.on(10.0, ev.ViewChanged(view(0, 2)))
    quiet = m.on(25.0, ev.Tick())
    assert not of(Ask, quiet)
    asks = of(Ask, m.on(40.0, ev.Tick()))
    assert {a.message.instance for a in asks} == {Instance(SCOPE, 1, OUTCOME)}
    assert "silent for 20 s" in m.reason
    slow = in_state(State.WAIT)
    assert not of(Ask, slow.on(150.0, ev.Tick()))
    assert of(Ask, slow.on(200.0, ev.Tick()))


def test_only_its_turn_makes_a_node_propose() -> None:
    m = machine(3)
    m.on(1.0, ev.VpnReady("10.144.0.1"), ev.ViewChanged(view(0, 1, 2)))
    place = rank(m.view).index(ME)
    m.on(4.0, ev.Tick())
    due = 4.0 + place * m.rules.stagger_s
    if place:
        assert not of(ev.MakeSecrets, m.on(due - 0.1, ev.Tick()))
        m.on(due, ev.Tick())
    assert of(ev.MakeSecrets, m.all)
    asks = of(Ask, m.on(due + 0.1, ev.SecretsMade(1, CA)))
    assert {a.peer for a in asks} == {OTHER, THIRD}, "itself it has asked on the spot"
    kinds = [type(e).__name__ for e in m.all]
    assert kinds.index("Persist") < kinds.index("Ask"), "its own promise is durable before others are asked"


def test_more_nodes_than_declared_raise_n_and_an_alarm() -> None:
    m = machine(2)
    m.on(1.0, ev.ViewChanged(view(0, 1, 2, 3, 4, n=2)))
    effects = m.on(4.0, ev.Tick())
    assert m.state is State.ELECT
    alarm = of(ev.Alarm, effects)[0]
    assert "5 nodes were seen, 2 makes the genesis safe for 3 only" in alarm.message
    assert alarm.hint == "set p2p.minimum_nodes: 5 on every node"
    assert "set p2p.minimum_nodes: 5" in m.reason
    reply = of(Reply, m.on(5.0, Asked(OTHER, Prepare(Instance(SCOPE, 1, GENESIS), Ballot(1, OTHER), 2))))
    assert not isinstance(reply[0].message, Promise)


def test_two_different_decisions_raise_an_alarm_and_change_nothing() -> None:
    m = in_state(State.MEMBER)
    effects = m.on(9.0, ev.CertificateLearned(signed(1, genesis(THIRD, cluster_id="c2"))))
    assert "there are two clusters" in of(ev.Alarm, effects)[0].message
    assert m.state is State.CONTESTED, "k3s goes on, nobody is let in"
    assert m.status.cluster_id == "c1"


def test_no_k3s_and_nobody_else_keeps_trying() -> None:
    m = in_state(State.INIT)
    m.on(5.0, ev.K3sChanged("failed", error="k3s is not installed", permanent=True))
    assert m.state is State.INIT
    assert "k3s is not installed; no other node may be a server" in m.reason


def test_damaged_or_foreign_state_is_an_error_and_no_fresh_start() -> None:
    for raw in (b"garbage", wire.encode(Durable("another"))):
        with pytest.raises(RoleError) as caught:
            machine(3, 1, raw)
        assert "leave" in caught.value.hint
