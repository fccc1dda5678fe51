"""Does a cluster that lost its quorum, or has a twin, come back as one, whatever happens meanwhile?

Several production machines on a network without time: what one asks is answered at once, or never where a
partition lies in between. k3s is a set of names: ready while a majority of its members runs in one part.
"""

from __future__ import annotations

from collections import deque

import msgspec
import pytest

from p2p_network.core.ids import PeerId
from p2p_network.identity import Identity
from p2p_roles import events as ev
from p2p_roles.assign import Assignment, role_of
from p2p_roles.bootstrap import Bootstrap
from p2p_roles.genesis.acceptor import Asked, NodesRaised, Reply
from p2p_roles.genesis.messages import VOTE_PURPOSE, Continuation, Genesis
from p2p_roles.genesis.proposer import Answered, Ask
from p2p_roles.quorum import judge
from p2p_roles.reconcile import objects
from p2p_roles.reconcile.model import Assigned
from p2p_roles.recovery import ClusterFacts, SnapshotFacts, plan_recovery, plan_resolution
from p2p_roles.rules import Rules
from p2p_roles.transitions import State
from p2p_roles.view import View, ViewNode

SCOPE, MESH = "kairos", "00112233aabbccdd"
SNAPSHOT = SnapshotFacts("on-demand-n0-1", "a" * 64, 4096, 1.0, "n0")


class Host:
    """One machine: what survives its agent (disk, k3s), and the agent."""

    def __init__(self, net: Net, index: int, servers: int, nodes: int) -> None:
        self.net, self.name = net, f"n{index}"
        self.identity = Identity(bytes([index + 1] * 32))
        self.peer = self.identity.peer_id
        self.rules = Rules(servers=servers, minimum_nodes=nodes)
        self.durable: bytes | None = None
        self.ledger: set[bytes] = set()
        self.given: dict[PeerId, Assignment] = {}
        self.running: ev.StartK3s | None = None
        self.etcd: str | None = None  # which datastore is on its disk
        self.is_on = True
        self.is_stuck = False  # its etcd can't be reset
        self.is_slow = False  # it takes until a test says that it is done
        self.met: set[PeerId] = set()
        self.did: list[ev.Effect] = []
        self.boot()

    def boot(self) -> None:
        self.machine = Bootstrap(
            self_id=self.peer,
            scope=SCOPE,
            mesh_id=MESH,
            sign=lambda m: self.identity.sign(VOTE_PURPOSE, m),
            rules=self.rules,
        )
        self.net.step(self, ev.Started(self.durable, tuple(self.ledger)))
        self.net.put(self, ev.VpnReady(f"10.0.0.{self.name[1:]}"))


class Net:
    """All hosts, a clock, and who reaches whom."""

    def __init__(self, nodes: int, servers: int, *, declared: int = 0) -> None:
        self.now = 0.0
        self.queue: deque[tuple[Host, ev.Event]] = deque()
        self.hosts: list[Host] = []
        self.groups: dict[str, int] = {}
        self.etcds: dict[str, set[str]] = {}  # datastore -> names of its members
        self.workloads: dict[str, int] = {}  # CA -> objects
        for index in range(nodes):
            self.hosts.append(Host(self, index, servers, declared or nodes))
        self.run(15)

    def put(self, host: Host, *events: ev.Event) -> None:
        self.queue.extend((host, event) for event in events)

    def linked(self, a: Host, b: Host) -> bool:
        return a.is_on and b.is_on and self.groups.get(a.name, 0) == self.groups.get(b.name, 0)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += 1.0
            for host in self.hosts:
                if host.is_on:
                    self.put(host, ev.ViewChanged(self.view_of(host)), self.k3s_of(host), ev.Tick())
                    for raw in host.ledger:
                        for other in self.hosts:
                            if self.linked(host, other) and raw not in other.ledger:
                                other.ledger.add(raw)
                                self.put(other, ev.CertificateLearned(raw))
                    self.assign(host)
                    for other in self.hosts:
                        if self.linked(host, other):
                            for peer, assignment in host.given.items():
                                self.put(other, ev.AssignmentChanged(peer, assignment))
            while self.queue:
                host, event = self.queue.popleft()
                if host.is_on:
                    self.step(host, event)

    def assign(self, host: Host) -> None:
        """As the cluster's authority: a word on every node that has none, servers one at a time."""
        machine = host.machine
        member = machine.member
        if member is None or member.role != "server" or not machine.status.ready:
            return
        genesis, ready = member.genesis, {n.peer for n in machine.view.nodes if n.ready}
        roles = {p: role_of(PeerId(p), genesis, machine.assignments) for p in machine.view.by_peer}
        for node in machine.view.nodes:
            servers = {p for p, role in roles.items() if role == "server"}
            if roles[node.peer] is not None or not node.alive:
                continue
            wants = len(servers) < host.rules.servers and not (node.role == "agent" and node.ready)
            if wants and not servers <= ready:
                continue
            role = roles[node.peer] = "server" if wants else "agent"
            host.given[node.peer] = Assignment(role, f"{role}: said", member.epoch, genesis.cluster_id)

    def step(self, host: Host, event: ev.Event) -> list[ev.Effect]:
        effects = list(host.machine.step(self.now, event).effects)
        for effect in effects:
            self.carry_out(host, effect)
        return effects

    def carry_out(self, host: Host, effect: ev.Effect) -> None:
        host.did.append(effect)
        match effect:
            case ev.Persist(state):
                host.durable = state
            case Ask(peer, message):
                other = next(h for h in self.hosts if h.peer == peer)
                answer = None
                if self.linked(host, other):
                    replies = self.step(other, Asked(host.peer, message))
                    (answer,) = (e.message for e in replies if isinstance(e, Reply))
                self.put(host, Answered(peer, message, answer))
            case ev.PublishCertificate(_, raw):
                host.ledger.add(raw)
            case ev.MakeSecrets(epoch):
                self.put(host, ev.SecretsMade(epoch, (host.name + str(epoch)).ljust(64, "0")))
            case ev.FetchJoinSecret(peer, role):
                other = next(h for h in self.hosts if h.peer == peer)
                granted = self.linked(host, other) and other.machine.authorize_join(host.peer, role).granted
                member = other.machine.member
                self.put(
                    host,
                    ev.JoinSecretReceived(peer, role, member.genesis.ca_hash)
                    if granted and member is not None
                    else ev.JoinSecretRefused(peer, "no"),
                )
            case ev.StartK3s():
                host.running = effect
            case ev.StopK3s():
                host.running = None
            case ev.WipeK3s(epoch):
                host.running = host.etcd = None
                self.put(host, ev.K3sWiped(epoch))
            case ev.ResetK3s(epoch, ca_hash, _, _):
                host.running = None
                host.etcd = f"{ca_hash}/{epoch}"
                self.etcds[host.etcd] = {host.name}
                if not host.is_slow:
                    self.put(host, ev.K3sReset(epoch, "no space left" if host.is_stuck else ""))
            case ev.CountWorkloads():
                ca = host.running.ca_hash if host.running is not None else ""
                self.put(host, ev.WorkloadsCounted(self.workloads.get(ca, 0) if ca else None))

    def k3s_of(self, host: Host) -> ev.K3sChanged:
        start = host.running
        if start is None:
            return ev.K3sChanged("stopped")
        if start.kind == "agent":
            return ev.K3sChanged("ready")
        if host.etcd is None:
            leader = next(
                (h for h in self.hosts if start.join_ip == f"10.0.0.{h.name[1:]}" and self.linked(h, host)),
                None,
            )
            if start.kind == "server-init":
                host.etcd = f"{start.ca_hash}/1"
                self.etcds[host.etcd] = {host.name}
            elif leader is not None and leader.etcd is not None and self.has_quorum(leader):
                host.etcd = leader.etcd
                self.etcds[host.etcd].add(host.name)
        ready = host.etcd is not None and self.has_quorum(host)
        return (
            ev.K3sChanged("ready", f"uid-{start.ca_hash[:4]}", start.ca_hash)
            if ready
            else ev.K3sChanged("running")
        )

    def has_quorum(self, host: Host) -> bool:
        members = self.etcds[host.etcd or ""]
        alive = [
            h
            for h in self.hosts
            if h.name in members and h.etcd == host.etcd and self.linked(h, host) and h.running
        ]
        return host.name in members and len(alive) > len(members) // 2

    def view_of(self, host: Host) -> View:
        nodes = []
        host.met |= {other.peer for other in self.hosts if self.linked(host, other)}
        for other in self.hosts:
            if other.peer not in host.met:
                continue
            status = other.machine.status
            nodes.append(
                ViewNode(
                    other.peer,
                    other.name,
                    alive=self.linked(host, other),
                    vpn_ipv4=f"10.0.0.{other.name[1:]}",
                    minimum_nodes=other.rules.minimum_nodes,
                    servers=other.rules.servers,
                    role=status.role or "",
                    ready=status.ready,
                    cluster_id=status.cluster_id,
                    epoch=status.epoch,
                )
            )
        return View(host.peer, SCOPE, tuple(nodes), 0.0)

    # ---- what a person does

    def facts(self, asker: Host) -> dict[PeerId, ClusterFacts]:
        found = {}
        for host in self.hosts:
            member = host.machine.member
            if self.linked(asker, host):
                found[host.peer] = ClusterFacts(
                    state=host.machine.state,
                    role=member.role if member else "",
                    k3s=host.machine.k3s.state,
                    genesis=member.genesis if member else None,
                    epoch=member.epoch if member else 0,
                    has_data=host.etcd is not None,
                    is_ready=member is not None
                    and member.role == "server"
                    and host.machine.k3s.state == "ready",
                    index=10 + int(host.name[1:]),
                )
        return found

    def recover(self, asker: Host, *lost: Host, snapshot: SnapshotFacts | None = None) -> tuple[str, ...]:
        member = asker.machine.member
        assert member is not None
        plan = plan_recovery(
            self.view_of(asker),
            self.facts(asker),
            member.genesis,
            asker.machine.up_epoch(),
            nodes=asker.machine.voting.acceptor.nodes,
            lost=[h.peer for h in lost],
            snapshot=snapshot,
            holders=[asker.peer] if snapshot else (),
        )
        if plan.forbidden:
            return plan.forbidden
        assert plan.genesis is not None
        return self.order(asker, plan.genesis)

    def resolve(self, asker: Host, keep: str) -> tuple[str, ...]:
        machine = asker.machine
        plan = plan_resolution(
            self.view_of(asker),
            self.facts(asker),
            keep,
            machine.up_epoch(),
            nodes=machine.voting.acceptor.nodes,
        )
        if plan.forbidden:
            return plan.forbidden
        assert plan.genesis is not None
        return self.order(asker, plan.genesis)

    def order(self, asker: Host, genesis: Genesis) -> tuple[str, ...]:
        self.put(asker, ev.RecoveryOrdered(genesis))
        self.run(45)
        (ended,) = (e for e in asker.did if isinstance(e, ev.RecoveryEnded) and e.genesis == genesis)
        return (ended.refusal,) if ended.refusal else ()

    def states(self) -> list[str]:
        return [h.machine.state.value if h.is_on else "off" for h in self.hosts]

    def clusters(self) -> set[str]:
        return {h.machine.status.cluster_id for h in self.hosts if h.is_on}

    def all_ready(self) -> bool:
        return all(h.machine.status.ready for h in self.hosts if h.is_on)

    def server(self, index: int) -> Host:
        """The servers, in the order in which the genesis names them."""
        member = next(h.machine.member for h in self.hosts if h.machine.member is not None)
        return next(h for h in self.hosts if h.peer == member.genesis.servers[index])

    def off(self, *hosts: Host, disks: bool = True) -> None:
        for host in hosts:
            host.is_on, host.running = False, None
            if not disks:
                host.etcd = None

    def on(self, *hosts: Host) -> None:
        for host in hosts:
            host.is_on = True
            host.boot()


def formed(nodes: int = 5, servers: int = 3) -> Net:
    net = Net(nodes, servers)
    assert net.all_ready(), net.states()
    assert len(net.clusters()) == 1
    return net


def test_a_living_cluster_is_not_recovered_and_a_silent_majority_not_overlooked() -> None:
    net = formed()
    assert "nothing to recover" in net.recover(net.hosts[0])[0]
    a, b = net.server(1), net.server(2)
    net.off(a, b)
    net.run(30)
    assert not net.server(0).machine.status.ready
    assert net.server(0).machine.quorum.health == "minority"
    problems = net.recover(net.server(0))
    assert any("could keep the cluster going without us" in p for p in problems)
    net.on(a, b)
    net.run(30)
    assert net.server(0).machine.quorum.health == "healthy"
    assert "but it is here" in net.recover(net.server(0), a)[0]


def test_two_of_three_servers_lost_for_ever() -> None:
    net = formed()
    survivor, a, b = net.server(0), net.server(1), net.server(2)
    net.off(a, b)
    net.run(30)
    before = survivor.etcd
    assert net.recover(survivor, a, b) == ()
    assert net.all_ready(), net.states()
    assert survivor.machine.status.epoch == 2
    assert len(net.clusters()) == 1
    assert survivor.etcd != before
    ca = {h.machine.member.genesis.ca_hash for h in net.hosts if h.is_on and h.machine.member}
    assert len(ca) == 1, "tokens and kubeconfigs stay valid"
    # they come back with the old cluster's data after all: fenced, set aside, joined anew
    net.on(a, b)
    net.run(60)
    assert net.all_ready(), net.states()
    assert len(net.clusters()) == 1
    assert len(net.etcds[survivor.etcd or ""]) == 3
    wipes = [e for h in (a, b) for e in h.did if isinstance(e, ev.WipeK3s)]
    assert wipes
    assert all(w.keep and w.only_datastore for w in wipes)


def test_an_order_from_before_the_last_recovery_was_certified_is_refused() -> None:
    """Who asked the others before, and reads the epoch afterwards, would carry on what is gone."""
    net = formed()
    survivor, a, b = net.server(0), net.server(1), net.server(2)
    before = survivor.machine.member
    assert before is not None
    net.off(a, b)
    net.run(30)
    assert net.recover(survivor, a, b) == ()
    assert survivor.machine.status.epoch == 2
    stale = plan_recovery(
        net.view_of(survivor), net.facts(survivor), before.genesis, 2, nodes=5, lost=[a.peer, b.peer]
    )
    assert stale.genesis is None, "nobody is of that cluster any more"
    after = Continuation(2, before.genesis.cluster_id, reset=True, lost=(a.peer, b.peer))
    order = msgspec.structs.replace(before.genesis, cluster_id="stale", continues=after)
    (refusal,) = net.order(survivor, order)
    assert "look again" in refusal
    assert survivor.machine.certified_genesis(2) == survivor.machine.ready_genesis()[1]


def test_an_order_that_another_one_replaces_ends_with_a_word() -> None:
    """Both who ordered are waiting: for ever, if one of them were never told (seed 560000191)."""
    net = formed()
    survivor, a, b = net.server(0), net.server(1), net.server(2)
    net.off(a, b)
    net.run(30)
    member = survivor.machine.member
    assert member is not None
    plans = [
        plan_recovery(
            net.view_of(survivor), net.facts(survivor), member.genesis, 1, nodes=5, lost=[a.peer, b.peer][:n]
        )
        for n in (1, 2)
    ]
    first, second = (plan.genesis for plan in plans)
    assert first is not None
    assert second is not None
    net.put(survivor, ev.RecoveryOrdered(first), ev.RecoveryOrdered(second))
    assert net.order(survivor, second) == ()
    ended = [e for e in survivor.did if isinstance(e, ev.RecoveryEnded)]
    assert [e.genesis for e in ended] == [first, second]
    assert "another recovery was ordered" in ended[0].refusal


def test_who_is_only_getting_in_brings_no_cluster_back() -> None:
    """It sets what it has aside once a newer epoch begins, so nobody would bring it back (seed 560000191)."""
    net = formed()
    survivor, a = net.server(0), net.server(1)
    member = survivor.machine.member
    assert member is not None
    facts = net.facts(survivor)
    facts[a.peer] = msgspec.structs.replace(facts[a.peer], state=State.JOIN, term=99)
    plan = plan_recovery(net.view_of(survivor), facts, member.genesis, 1, nodes=5)
    assert a.peer not in [c.peer for c in plan.candidates]


def test_agents_are_carried_over_without_losing_anything() -> None:
    net = formed()
    agents = [h for h in net.hosts if h.machine.status.role == "agent"]
    net.off(net.server(1), net.server(2))
    net.run(30)
    net.recover(net.server(0), *(h for h in net.hosts if not h.is_on))
    for agent in agents:
        assert agent.machine.state is State.MEMBER
        assert agent.machine.status.epoch == 2
        assert not [e for e in agent.did if isinstance(e, ev.WipeK3s)]


def test_two_operators_on_two_sides_cannot_both_recover() -> None:
    """The side that could be a majority of etcd's is asked for by name; who hears a node does not lose it."""
    net = formed()
    lone, pair = net.server(0), [net.server(1), net.server(2)]
    agents = [h for h in net.hosts if h.machine.status.role == "agent"]
    net.groups = {h.name: 1 for h in (lone, *agents)}
    net.run(30)
    assert pair[0].machine.status.ready, "etcd goes on with two of three"
    assert any("could keep the cluster going" in p for p in net.recover(lone)), (
        "a majority of the mesh is not enough"
    )
    # the operator errs and declares them lost: the pair is fenced when it comes back
    assert net.recover(lone, *pair) == ()
    assert net.recover(pair[0]), "the other side has no majority of the nodes"
    net.groups = {}
    net.run(90)
    assert net.all_ready(), net.states()
    assert net.clusters() == {lone.machine.status.cluster_id}


def test_a_restart_at_any_moment_of_a_recovery_changes_nothing() -> None:
    for victim in ("survivor", "agent"):
        for moment in (1, 2, 3):
            net = formed()
            survivor = net.server(0)
            net.off(net.server(1), net.server(2))
            net.run(30)
            plan_ok = survivor.machine.member
            assert plan_ok is not None
            lost = [h for h in net.hosts if not h.is_on]
            plan = plan_recovery(
                net.view_of(survivor),
                net.facts(survivor),
                plan_ok.genesis,
                1,
                nodes=5,
                lost=[h.peer for h in lost],
            )
            assert plan.genesis is not None
            net.put(survivor, ev.RecoveryOrdered(plan.genesis))
            net.run(moment)
            agents = [h for h in net.hosts if h.machine.status.role == "agent"]
            host = survivor if victim == "survivor" else agents[0]
            if host.is_on:
                host.boot()
            net.run(90)
            if survivor.machine.epoch == 1:  # the order died with the agent that had it
                assert net.recover(survivor, *lost) == ()
                net.run(30)
            assert net.all_ready(), (victim, moment, net.states())
            assert len(net.clusters()) == 1


@pytest.mark.parametrize("told", [True, False])
def test_a_recovery_that_fails_is_followed_by_another_and_by_nothing_else(told: bool) -> None:
    """Whether or not anyone else learnt of the decision before its survivor died."""
    net = formed()
    first, second, third = net.server(0), net.server(1), net.server(2)
    net.off(third, first)
    net.run(30)
    # the survivor dies at once after the decision
    assert second.machine.member is not None
    plan = plan_recovery(
        net.view_of(second),
        net.facts(second),
        second.machine.member.genesis,
        1,
        nodes=5,
        lost=[third.peer, first.peer],
    )
    assert plan.genesis is not None
    second.is_stuck = True
    net.put(second, ev.RecoveryOrdered(plan.genesis))
    net.run(3 if told else 1)
    assert second.machine.open_genesis() == plan.genesis
    net.off(second)
    net.on(first)
    net.run(60)
    if told:
        assert first.machine.state is State.HELD, first.machine.reason
        assert first.running is None
    assert net.recover(first, second, third) == ()
    net.run(30)
    assert net.all_ready(), net.states()
    second.is_stuck = False
    net.on(second, third)
    net.run(90)
    assert net.all_ready(), net.states()
    assert len(net.clusters()) == 1


def test_one_reset_is_asked_for_however_long_it_and_an_older_one_take() -> None:
    net = formed()
    # whoever has the newest data, by `Net.facts` the last by name, brings the cluster back
    first, third, second = sorted((net.server(i) for i in range(3)), key=lambda host: host.name)
    net.off(first, third)
    net.run(30)
    second.is_slow = True
    assert net.recover(second, first, third) == ()
    net.run(1000)
    before = second.machine.epoch
    net.on(first)
    net.run(30)
    assert net.recover(second, third) == ()  # the first is given up for it
    epoch = second.machine.epoch
    assert epoch > before
    net.put(second, ev.K3sReset(before, "it was given up meanwhile"))
    net.run(1000)
    asked = [effect.epoch for effect in second.did if isinstance(effect, ev.ResetK3s)]
    assert asked == [before, epoch]
    net.put(second, ev.K3sReset(epoch, "no space left"))
    net.run(30)
    assert "no space left" in second.machine.reason
    net.put(second, ev.K3sReset(epoch, ""))
    net.run(30)
    assert second.machine.status.ready, second.machine.reason


def test_people_are_told_what_to_do_where_a_recovery_gets_nowhere() -> None:
    net = formed()
    first, third, second = sorted((net.server(i) for i in range(3)), key=lambda host: host.name)
    net.off(first, third)
    net.run(30)
    second.is_slow = True
    assert net.recover(second, first, third) == ()
    net.on(first)
    assert second.etcd is not None
    net.etcds[second.etcd] = {second.name, "n9"}  # who joined it at once, and is gone
    net.put(second, ev.K3sReset(second.machine.epoch, ""))
    net.run(120)
    assert "order it" not in second.machine.reason
    net.run(120)
    assert second.machine.reason.endswith("order it again: kairos-p2p cluster recover")
    net.off(second)
    net.run(10)
    assert first.machine.state is State.HELD
    assert "order it" not in first.machine.reason
    net.run(60)
    assert "order it for another one: kairos-p2p cluster recover" in first.machine.reason


def twins(workloads: bool = True) -> tuple[Net, list[Host], list[Host]]:
    """N understated, a partition from the first moment on: two clusters of epoch 1."""
    net = Net.__new__(Net)
    net.now, net.queue, net.hosts, net.etcds, net.workloads = 0.0, deque(), [], {}, {}
    net.groups = {"n0": 0, "n1": 0, "n2": 1, "n3": 1}
    for index in range(4):
        net.hosts.append(Host(net, index, 1, 1))
    net.run(60)
    assert net.all_ready(), net.states()
    left, right = net.hosts[:2], net.hosts[2:]
    assert len(net.clusters()) == 2
    if workloads:
        for host in net.hosts:
            assert host.machine.member is not None
            net.workloads[host.machine.member.genesis.ca_hash] = 3
    return net, left, right


@pytest.mark.parametrize("keep_left", [True, False])
def test_two_clusters_of_one_epoch_wait_for_a_person_and_become_one(keep_left: bool) -> None:
    net, left, right = twins()
    net.groups = {}
    net.run(60)
    assert {h.machine.state for h in net.hosts} == {State.CONTESTED}, net.states()
    assert not [e for h in net.hosts for e in h.did if isinstance(e, ev.WipeK3s)], "nothing is wiped"
    kept = (left if keep_left else right)[0].machine.status.cluster_id
    assert net.resolve(net.hosts[0], kept) == ()
    net.run(90)
    assert net.all_ready(), [(h.name, h.machine.state, h.machine.reason) for h in net.hosts]
    assert len(net.clusters()) == 1
    wiped = {h.name for h in net.hosts if any(isinstance(e, ev.WipeK3s) for e in h.did)}
    assert wiped == {h.name for h in (right if keep_left else left)}


@pytest.mark.parametrize(
    ("alive", "is_ready", "silent_s", "health"),
    [
        ((0, 1, 2), True, 0.0, "healthy"),
        ((0, 1), True, 0.0, "healthy"),
        ((0,), False, 30.0, "minority"),
        ((0, 1), False, 3.0, "healthy"),
        ((0, 1), False, 30.0, "lost"),
    ],
)
def test_the_verdict_on_the_control_plane(
    alive: tuple[int, ...], is_ready: bool, silent_s: float, health: str
) -> None:
    peers = [Identity(bytes([n + 1] * 32)).peer_id for n in range(3)]
    nodes = tuple(
        ViewNode(peers[i], f"n{i}", alive=i in alive, role="server", ready=is_ready, cluster_id="c")
        for i in range(3)
    )
    verdict = judge(
        View(peers[0], SCOPE, nodes, 0.0), "c", (), is_server=True, is_ready=is_ready, silent_s=silent_s
    )
    assert verdict.health == health
    assert verdict.here == len(alive)
    assert ("recover" in verdict.reason) == (health in ("minority", "lost"))


def test_a_restored_datastore_does_not_overrule_the_genesis_that_restored_it() -> None:
    """Its assignments are those of the snapshot: a node that was an agent then, and is named a server now."""
    then = {PeerId("a"): Assigned("agent", "then"), PeerId("b"): Assigned("agent", "then")}
    stored = objects.assignments_map(then, "", 1)
    assert objects.of_epoch(stored, 1, {PeerId("a")}) == then
    assert objects.of_epoch(stored, 3, {PeerId("a")}) == {PeerId("b"): then[PeerId("b")]}
    untold = {"data": {"assignments": stored["data"]["assignments"]}}
    assert objects.of_epoch(untold, 3, {PeerId("a")}) == then


def test_who_declares_more_nodes_than_there_are_is_named() -> None:
    net = formed()
    first, second = net.server(0), net.server(1)
    net.off(first, second)
    slip = next(host for host in net.hosts if host.is_on and host is not net.server(2))
    slip.rules = Rules(servers=3, minimum_nodes=50)
    net.run(30)
    (problem,) = net.recover(net.server(2), first, second)
    assert "3 of 48 nodes are in reach, 25 must agree" in problem
    assert f"p2p.minimum_nodes declares more ({slip.name} 50)" in problem
    slip.rules = Rules(servers=3, minimum_nodes=5)
    net.run(30)
    assert net.recover(net.server(2), first, second) == ()
    net.run(60)
    assert net.all_ready(), net.states()


def test_a_recovery_is_certified_although_others_saw_more_nodes_since_it_began() -> None:
    net = formed()
    first, second, third = net.server(0), net.server(1), net.server(2)
    net.off(first, second)
    net.run(30)
    third.is_slow = True
    assert net.recover(third, first, second) == ()
    epoch = third.machine.epoch
    for host in net.hosts:
        if host.is_on and host is not third:  # as many were seen there, and went
            host.machine.voting.acceptor.step(net.now, NodesRaised(6))
    net.put(third, ev.K3sReset(epoch, ""))
    net.run(60)
    assert net.all_ready(), net.states()
