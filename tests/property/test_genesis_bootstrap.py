"""Does exactly one cluster come out, with whole nodes instead of single votes?

A small world of production `Bootstrap` machines in virtual time: a lossy network for the votes, a
ledger that floods certificates with a delay, partitions, power cuts between any two effects, and a k3s
that sometimes fails. The invariants of the protocol are checked after every step of every node; after
the faults the world heals and everybody must end up in the same cluster.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2p_network.core.ids import PeerId
from p2p_network.identity import Identity
from p2p_roles import events as ev
from p2p_roles.assign import Assignment, rank
from p2p_roles.bootstrap import Bootstrap
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis.acceptor import Asked, Reply
from p2p_roles.genesis.messages import (
    GENESIS,
    OUTCOME,
    VOTE_PURPOSE,
    Instance,
    decode_answer,
    decode_request,
    encode,
)
from p2p_roles.genesis.proposer import Answered, Ask
from p2p_roles.rules import Rules
from p2p_roles.transitions import State
from p2p_roles.view import View, ViewNode

SCOPE, MESH = "kairos", "00112233aabbccdd"


@cache
def identity(number: int) -> Identity:
    return Identity(bytes([number + 1] * 32))


class PowerCut(Exception):
    """The node stops between two effects."""


class Node:
    """A machine: what is on its disks, and the agent while it runs."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.peer, self.ip = identity(number).peer_id, f"10.144.0.{number + 1}"
        self.disk: bytes | None = None
        self.secrets: dict[int, str] = {}
        self.k3s_data: tuple[str, int, str] | None = None  # kind of first start, epoch, CA
        self.cluster_init_on_disk = False
        self.up = True
        self.life = 0
        self.k3s_ok = True
        self.alarms: list[str] = []
        self.boot()

    def boot(self) -> None:
        self.up, self.life, self.tick_at = True, self.life + 1, 0.0
        self.machine = Bootstrap(
            self_id=self.peer,
            scope=SCOPE,
            mesh_id=MESH,
            sign=lambda m: identity(self.number).sign(VOTE_PURPOSE, m),
            rules=self.world.rules,
        )
        self.step(ev.Started(self.disk, tuple(self.world.ledger.values())))
        for known in self.world.assigned.values():
            self.step(known)
        self.step(ev.VpnReady(self.ip))
        self.world.views()

    def step(self, event: ev.Event) -> bytes | None:
        """One event, with its effects; the reply, if it is a request."""
        if not self.up:
            return None
        world, reply = self.world, None
        try:
            for effect in self.machine.step(world.now, event).effects:
                if world.random.random() < world.power_cut:
                    raise PowerCut
                if isinstance(effect, Reply):
                    reply = encode(effect.message)
                else:
                    self.do(effect)
        except PowerCut:
            self.up = False
            life = self.life
            world.at(world.random.uniform(0.1, 30), lambda: self.boot() if life == self.life else None)
            return None
        world.check()
        wake = self.machine.wake_at()
        assert wake is None or wake > world.now, "a tick that is due at once would run in circles"
        if wake is not None and not world.now < self.tick_at <= wake:
            self.tick_at = max(world.now + 0.01, wake)
            self.later(self.tick_at - world.now, ev.Tick())
        return reply

    def later(self, delay: float, event: ev.Event) -> None:
        life = self.life
        self.world.at(delay, lambda: self.step(event) if life == self.life else None)

    def do(self, effect: ev.Effect) -> None:
        world = self.world
        match effect:
            case ev.Persist(state):
                self.disk = state
            case Ask(peer, message):
                world.send(self, peer, message)
            case ev.PublishCertificate(key, raw):
                world.publish(self, key, raw)
            case ev.MakeSecrets(epoch):
                ca = self.secrets.setdefault(epoch, f"ca-{self.number}-{epoch}")
                self.later(0.05, ev.SecretsMade(epoch, ca))
            case ev.StartK3s(kind, epoch, ca_hash, join_ip, _):
                self.start_k3s(kind, epoch, ca_hash, join_ip)
            case ev.ReplaceInitDropIn():
                self.cluster_init_on_disk = False
            case ev.FetchJoinSecret(peer, role):
                self.fetch(world.by_peer[peer], role)
            case ev.HoldK3s() | ev.SetAsideK3s():
                raise AssertionError("nobody changes roles here")
            case ev.StopK3s():
                self.later(0.1, ev.K3sChanged("stopped"))
            case ev.WipeK3s(epoch, certificate):
                assert certificates.verify(certificate, MESH)
                assert self.k3s_data is None or certificate.instance.epoch >= self.k3s_data[1]
                self.k3s_data, self.cluster_init_on_disk = None, False
                self.later(0.5, ev.K3sWiped(epoch))
            case ev.Alarm(message, _):
                self.alarms.append(message)

    def start_k3s(self, kind: str, epoch: int, ca_hash: str, join_ip: str) -> None:
        self.cluster_init_on_disk = kind == "server-init"
        assert kind != "server-join" or join_ip
        if self.k3s_data is None:
            assert kind != "server", "a member's data does not vanish"
            self.k3s_data = (kind, epoch, ca_hash)
        assert self.k3s_data[1:] == (epoch, ca_hash), "one machine never mixes two epochs' data"
        self.run_k3s(self.life, ca_hash)

    def run_k3s(self, life: int, ca_hash: str) -> None:
        """The driver: start, and start again after a pause when k3s fails."""
        if life != self.life or self.k3s_data is None or self.k3s_data[2] != ca_hash:
            return
        if self.k3s_ok:
            self.later(0.1, ev.K3sChanged("running"))
            self.later(self.world.random.uniform(1, 20), ev.K3sChanged("ready", f"uid-{ca_hash}", ca_hash))
        else:
            self.later(0.2, ev.K3sChanged("failed", error="no k3s", permanent=True))
            self.world.at(5.0, lambda: self.run_k3s(life, ca_hash))

    def fetch(self, server: Node, role: str) -> None:
        world = self.world
        reached = server.up and world.linked(self, server)
        granted = server.machine.authorize_join(self.peer, role) if reached else None
        if granted is not None and granted.granted == role:
            assert server.machine.member is not None
            ca = server.machine.member.genesis.ca_hash
            self.later(0.2, ev.JoinSecretReceived(server.peer, role, ca))
        else:
            why = granted.reason if granted else "no answer"
            self.later(1.0, ev.JoinSecretRefused(server.peer, why))


class World:
    """Nodes, network, ledger and time."""

    def __init__(
        self,
        seed: int,
        nodes: int,
        rules: Rules,
        wishes: dict[int, str] | None = None,
        group: dict[int, int] | None = None,
    ) -> None:
        self.random, self.rules = random.Random(seed), rules
        self.now, self.heap, self.count = 0.0, [], itertools.count()
        self.power_cut = self.loss = 0.0
        self.ledger: dict[str, bytes] = {}
        self.assigned: dict[PeerId, ev.AssignmentChanged] = {}
        self.group = group or {}
        self.nodes: list[Node] = []
        self.wishes = wishes or {}
        self.decided: dict[Instance, bytes] = {}
        self.epochs: dict[int, int] = {}
        for number in range(nodes):
            self.nodes.append(Node(self, number))
        self.by_peer = {node.peer: node for node in self.nodes}
        self.refresh()

    def refresh(self) -> None:
        self.views()
        self.assign()
        self.at(2.0, self.refresh)

    def assign(self) -> None:
        """As the cluster's authority: a word on every node that has none, servers one at a time."""
        for server in self.nodes:
            member = server.machine.member
            if not server.up or not server.machine.status.ready or member is None or member.role != "server":
                continue
            genesis = member.genesis
            roles = dict.fromkeys(genesis.servers, "server") | {
                p: e.assignment.role for p, e in self.assigned.items()
            }
            servers = [p for p, role in roles.items() if role == "server"]
            for node in self.nodes:
                if node.peer in roles:
                    continue
                wish = self.wishes.get(node.number, "auto")
                wants = wish == "server" or (wish != "agent" and len(servers) < self.rules.servers)
                if wants and not all(self.by_peer[p].machine.status.ready for p in servers):
                    return
                role = "server" if wants else "agent"
                word = Assignment(role, f"{role}: {wish}, forced", member.epoch, genesis.cluster_id)  # type: ignore[arg-type]
                self.assigned[node.peer] = ev.AssignmentChanged(node.peer, word)
                for other in self.nodes:
                    self.spread(server, other, self.assigned[node.peer])
                return

    def at(self, delay: float, what: Callable[[], object]) -> None:
        heapq.heappush(self.heap, (self.now + delay, next(self.count), what))

    def linked(self, a: Node, b: Node) -> bool:
        return self.group.get(a.number, 0) == self.group.get(b.number, 0)

    def views(self) -> None:
        for node in self.nodes:
            if node.up:
                node.later(self.random.uniform(0, 0.3), ev.ViewChanged(self.view(node)))

    def view(self, viewer: Node) -> View:
        def seen(node: Node) -> ViewNode:
            status = node.machine.status
            return ViewNode(
                node.peer,
                f"n{node.number}",
                region=f"r{node.number % 3}",
                wish=self.wishes.get(node.number, "auto"),  # type: ignore[arg-type]
                alive=node is viewer or (node.up and self.linked(viewer, node)),
                vpn_ipv4=node.ip,
                minimum_nodes=self.rules.minimum_nodes,
                servers=self.rules.servers,
                role=status.role or "",
                ready=status.ready,
                cluster_id=status.cluster_id,
            )

        return View(viewer.peer, SCOPE, tuple(seen(n) for n in self.nodes), self.now)

    def send(self, source: Node, target: PeerId, message) -> None:
        raw, node, life = encode(message), self.by_peer[target], source.life

        def back(answer: bytes | None) -> None:
            if source.life == life:
                decoded = decode_answer(answer) if answer is not None else None
                source.step(Answered(target, message, decoded))

        def there() -> None:
            if not self.linked(source, node) or self.random.random() < self.loss or not node.up:
                self.at(2.0, lambda: back(None))
                return
            answer = node.step(Asked(source.peer, decode_request(raw)))
            lost = answer is None or self.random.random() < self.loss or not self.linked(source, node)
            self.at(2.0 if lost else self.random.uniform(0, 0.2), lambda: back(None if lost else answer))
            if self.random.random() < self.loss:  # duplicated
                self.at(self.random.uniform(0, 5), lambda: node.step(Asked(source.peer, decode_request(raw))))

        self.at(self.random.uniform(0, 0.2), there)

    def publish(self, author: Node, key: str, raw: bytes) -> None:
        assert certificates.verify_entry(key, raw, MESH)
        self.ledger[key] = raw  # what anti-entropy ends in; partitions only delay it
        for node in self.nodes:
            self.spread(author, node, ev.CertificateLearned(raw))

    def spread(self, author: Node, node: Node, event: ev.Event) -> None:
        def arrive() -> None:
            if self.linked(author, node):
                node.step(event)
            else:
                self.at(1.0, arrive)

        self.at(self.random.uniform(0.1, 1.0), arrive)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        end = self.now + seconds
        while self.heap and self.heap[0][0] <= end and not until():
            self.now, _, what = heapq.heappop(self.heap)
            what()

    # ------------------------------------------------------------ invariants

    def check(self) -> None:
        for node in self.nodes:
            acceptor, machine = node.machine.voting.acceptor, node.machine
            for known in acceptor.state.certificates:
                assert self.decided.setdefault(known.instance, known.value) == known.value, (
                    f"{known.instance} was decided twice"
                )
            if node.up:
                assert not node.cluster_init_on_disk or machine.state in (State.INIT, State.FENCED), (
                    "cluster-init only while initialising"
                )
                if machine.state is State.MEMBER and machine.member is not None:
                    e = machine.member.epoch
                    assert acceptor.certificate(e, OUTCOME) is not None
                    assert acceptor.certificate(e, GENESIS) is not None

    def formed(self) -> bool:
        return all(n.up and n.machine.status.ready for n in self.nodes)

    def one_cluster(self) -> None:
        assert self.formed(), [(n.number, n.up, n.machine.state, n.machine.reason) for n in self.nodes]
        assert len({n.machine.status.cluster_id for n in self.nodes}) == 1
        servers = [n for n in self.nodes if n.machine.status.role == "server"]
        assert len(servers) == min(
            self.rules.servers, sum(self.wishes.get(n.number) != "agent" for n in self.nodes)
        )


def rules(nodes: int, servers: int) -> Rules:
    return Rules(servers=servers, minimum_nodes=nodes)


@pytest.mark.parametrize(("nodes", "servers"), [(1, 1), (2, 1), (3, 3), (5, 3)])
def test_a_cluster_forms(nodes: int, servers: int) -> None:
    world = World(1, nodes, rules(nodes, servers))
    world.run(120, world.formed)
    world.one_cluster()
    assert max(n.machine.epoch for n in world.nodes) == 1
    assert not any(n.alarms for n in world.nodes)


@settings(max_examples=25, deadline=None, print_blob=True)
@given(
    seed=st.integers(0, 2**32),
    nodes=st.integers(1, 5),
    loss=st.sampled_from((0.0, 0.1, 0.3)),
    power_cut=st.sampled_from((0.0, 0.01, 0.04)),
)
@example(seed=100109, nodes=2, loss=0.1, power_cut=0.01)  # a tick that rounding made due at once
def test_one_cluster_whatever_happens(seed: int, nodes: int, loss: float, power_cut: float) -> None:
    world = World(seed, nodes, rules(nodes, min(3, nodes)))
    world.loss, world.power_cut = loss, power_cut
    for _ in range(8):
        world.run(world.random.uniform(1, 60))
        roll = world.random.random()
        if roll < 0.4:
            world.group = {n.number: world.random.randrange(2) for n in world.nodes}
        elif roll < 0.6:
            world.group = {}
        world.random.choice(world.nodes).k3s_ok = world.random.random() < 0.7
    world.loss = world.power_cut = 0.0
    world.group = {}
    for node in world.nodes:
        node.k3s_ok = True
    world.run(3000, world.formed)
    world.one_cluster()


def test_the_initiator_dies_before_ready_and_another_epoch_forms_the_cluster() -> None:
    world = World(3, 3, rules(3, 3))
    world.run(60, lambda: any(n.machine.state is State.INIT for n in world.nodes))
    first = next(n for n in world.nodes if n.machine.state is State.INIT)
    first.up, first.life = False, first.life + 1
    world.run(600, lambda: all(n.machine.status.ready for n in world.nodes if n is not first))
    assert {n.machine.member.epoch for n in world.nodes if n is not first and n.machine.member} == {2}
    first.boot()
    world.run(300, world.formed)
    assert first.machine.member is not None
    assert first.machine.member.epoch == 2, "the first initiator was fenced and joined the new cluster"
    assert world.formed()


def test_two_halves_before_the_genesis_become_one_cluster_after_healing() -> None:
    world = World(4, 5, rules(5, 3), group={0: 1, 1: 1})
    world.run(60)
    assert all(n.machine.state is State.DISCOVER for n in world.nodes)
    assert "waiting for" in world.nodes[0].machine.reason
    world.group = {}
    world.run(120, world.formed)
    world.one_cluster()


def test_a_majority_decides_while_a_minority_is_cut_off() -> None:
    world = World(5, 5, rules(5, 3))
    world.run(60, lambda: any(n.machine.state is State.ELECT for n in world.nodes))
    world.group = {0: 1, 1: 1}
    world.run(400)
    assert {n.machine.status.cluster_id for n in world.nodes[:2]} == {""}
    world.group = {}
    world.run(600, world.formed)
    assert world.formed()
    assert len({n.machine.status.cluster_id for n in world.nodes}) == 1


def test_a_whole_site_power_cut_keeps_every_role() -> None:
    world = World(6, 5, rules(5, 3))
    world.run(120, world.formed)
    before = [n.machine.status.role for n in world.nodes]
    for node in world.nodes:
        node.up, node.life = False, node.life + 1
    world.run(60)
    for node in world.nodes:
        node.boot()
        server = node.machine.member is not None and node.machine.member.role == "server"
        looks = server and "asking whether it still is one" in node.machine.reason
        assert looks or node.machine.state is State.MEMBER, "to its old role; a server looks first"
    world.run(60, world.formed)
    assert [n.machine.status.role for n in world.nodes] == before
    assert max(n.machine.epoch for n in world.nodes) == 1


def test_a_node_without_k3s_gives_the_epoch_up_at_once() -> None:
    world = World(7, 3, rules(3, 1))
    first = world.by_peer[rank(world.view(world.nodes[0]))[0]]
    first.k3s_ok = False
    world.run(100, lambda: sum(n.machine.status.ready for n in world.nodes) >= 1)
    ready = [n for n in world.nodes if n.machine.status.ready]
    assert ready, [(n.machine.state, n.machine.reason) for n in world.nodes]
    assert ready[0] is not first
    assert ready[0].machine.member is not None
    assert ready[0].machine.member.epoch == 2


def test_understated_minimum_nodes_is_detected() -> None:
    world = World(8, 5, rules(2, 1))
    world.run(120, world.formed)
    world.one_cluster()
    assert any("minimum_nodes is understated: 5 nodes were seen" in a for n in world.nodes for a in n.alarms)


def test_forced_roles_and_a_late_node() -> None:
    world = World(9, 4, rules(3, 1), wishes={0: "agent", 1: "agent", 2: "server"})
    world.run(120, world.formed)
    world.one_cluster()
    assert world.nodes[2].machine.status.role == "server"
    assert world.nodes[3].machine.status.role == "agent"
    world.nodes.append(Node(world, 4))
    world.by_peer[world.nodes[4].peer] = world.nodes[4]
    world.wishes[4] = "server"
    world.run(120, world.formed)
    assert world.nodes[4].machine.status.role == "server"
    assert "forced" in world.nodes[4].machine.reason
