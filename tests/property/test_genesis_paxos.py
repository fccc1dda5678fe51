"""Is at most one value ever decided, whatever the network and the machines do?

Randomised runs of the production acceptor and proposer: requests and answers are lost, duplicated and
reordered, nodes crash before and after they have persisted and come back from the persisted bytes. The
checker is then shown to find what it must find: broken variants of both (subclasses) make it fail.
"""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorums import certified

from p2p_network import wire
from p2p_network.core.ids import PeerId
from p2p_network.identity import Identity
from p2p_roles.genesis import acceptor as acc
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis import proposer as prop
from p2p_roles.genesis.messages import (
    GENESIS,
    OUTCOME,
    VOTE_PURPOSE,
    Abort,
    Accept,
    Accepted,
    Ballot,
    Certificate,
    Genesis,
    Instance,
    Ready,
    Value,
    Vote,
    decode_answer,
    decode_request,
    encode,
    encode_value,
    quorum,
)

SCOPE, MESH = "kairos", "00112233aabbccdd"


@cache
def identity(number: int) -> Identity:
    return Identity(bytes([number + 1] * 32))


def genesis(number: int) -> Genesis:
    peer = identity(number).peer_id
    return Genesis(f"c{number}", peer, f"10.144.0.{number}", f"{number:064x}", "", "v1", (peer,), "etcd")


def signed(instance: Instance, value: Value, nodes: int) -> Certificate:
    voters = [identity(n) for n in range(quorum(nodes))]
    return certified(MESH, instance, value, nodes, voters, Ballot(1, voters[0].peer_id))


class Node:
    """One machine: a disk that survives, and what runs until the next crash."""

    def __init__(self, number: int, acceptor_type: type[acc.Acceptor]) -> None:
        self.number, self.peer, self.type = number, identity(number).peer_id, acceptor_type
        self.disk = wire.encode(acc.AcceptorState())
        self.attempt: prop.Proposer | None = None
        self.boot()

    def boot(self) -> None:
        self.attempt = None
        self.acceptor = self.type(
            scope=SCOPE,
            mesh_id=MESH,
            sign=lambda m: identity(self.number).sign(VOTE_PURPOSE, m),
            state=wire.decode(self.disk, acc.AcceptorState),
        )


class Run:
    """One run of one instance among N nodes with faults drawn from a seed."""

    def __init__(
        self,
        seed: int,
        nodes: int,
        *,
        instance: Instance | None = None,
        grounds: Certificate | None = None,
        acceptor_type: type[acc.Acceptor] = acc.Acceptor,
        proposer_type: type[prop.Proposer] = prop.Proposer,
        faults: float = 0.15,
    ) -> None:
        self.random, self.n, self.faults = random.Random(seed), nodes, faults
        self.instance = instance or Instance(SCOPE, 1, GENESIS)
        self.grounds, self.proposer_type = grounds, proposer_type
        self.nodes = {identity(i).peer_id: Node(i, acceptor_type) for i in range(nodes)}
        self.flying: list[tuple[str, PeerId, PeerId, bytes, bytes]] = []
        self.certificates: list[Certificate] = []
        self.votes: dict[tuple[Ballot, bytes], set[PeerId]] = {}

    def value(self, node: Node) -> Value:
        if self.instance.decree == GENESIS:
            return genesis(node.number)
        return Ready("uid") if node.number == 0 else Abort(f"because {node.number}")

    def run(self, steps: int) -> None:
        for _ in range(steps):
            roll = self.random.random()
            if roll < 0.04:
                self.begin(self.pick())
            elif roll < 0.04 + self.faults / 10:
                self.pick().boot()
            elif self.flying:
                self.deliver()
        self.settle()

    def settle(self) -> None:
        """Heal: no more faults; one proposer after the other must get it decided."""
        self.faults, self.flying = 0.0, []
        for _ in range(20):
            self.begin(next(iter(self.nodes.values())))
            while self.flying:
                self.deliver()
            if self.certificates:
                return

    def pick(self) -> Node:
        return self.random.choice(list(self.nodes.values()))

    def begin(self, node: Node) -> None:
        promised = node.acceptor.promised(self.instance)
        voters = (node.peer, *(p for p in self.nodes if p != node.peer))
        node.attempt = self.proposer_type(
            mesh_id=MESH,
            instance=self.instance,
            self_id=node.peer,
            voters=voters,
            value=encode_value(self.value(node)),
            nodes=self.n,
            round=(promised.round if promised else 0) + self.random.choice((1, 1, 2)),
            grounds=self.grounds,
        )
        self.drive(node, prop.Begun())

    def drive(self, node: Node, event: prop.Event) -> None:
        assert node.attempt is not None
        for effect in node.attempt.step(0.0, event).effects:
            if isinstance(effect, prop.Ask):
                raw = encode(effect.message)
                if effect.peer == node.peer:  # the owner asks itself on the spot, before it asks others
                    if (answer := self.ask(node, node.peer, raw)) is not None:
                        self.drive(node, prop.Answered(node.peer, effect.message, decode_answer(answer)))
                else:
                    self.flying.append(("ask", node.peer, effect.peer, raw, b""))
            elif isinstance(effect, prop.Won):
                self.certificates.append(effect.certificate)

    def deliver(self) -> None:
        index = self.random.randrange(len(self.flying))
        message = self.flying[index]
        roll = self.random.random()
        if roll >= self.faults / 2:  # else: duplicated, stays in flight
            self.flying.pop(index)
        if self.faults / 2 <= roll < self.faults:
            return  # lost
        kind, source, target, raw, asked = message
        node = self.nodes[target]
        if kind == "ask":
            if (answer := self.ask(node, source, raw)) is not None:
                self.flying.append(("answer", target, source, answer, raw))
        elif node.attempt is not None:
            self.drive(node, prop.Answered(source, decode_request(asked), decode_answer(raw)))

    def ask(self, node: Node, source: PeerId, raw: bytes) -> bytes | None:
        request = decode_request(raw)
        for effect in node.acceptor.step(0.0, acc.Asked(source, request)).effects:
            if self.random.random() < self.faults / 5:  # power fails before this effect
                node.boot()
                return None
            if isinstance(effect, acc.Persist):
                node.disk = effect.state
            elif isinstance(effect, acc.Reply):
                if isinstance(effect.message, Accepted):
                    assert isinstance(request, Accept)
                    self.votes.setdefault((request.ballot, request.value), set()).add(node.peer)
                return encode(effect.message)
        return None

    def problems(self) -> list[str]:
        """What the checker finds wrong with this run."""
        found = [
            "a certificate does not verify" for c in self.certificates if not certificates.verify(c, MESH)
        ]
        values = {c.value for c in self.certificates}
        values |= {value for (_, value), by in self.votes.items() if len(by) >= quorum(self.n)}
        if len(values) > 1:
            found.append(f"{len(values)} values were decided")
        return found


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    nodes=st.integers(1, 5),
    faults=st.sampled_from((0.0, 0.1, 0.3, 0.5)),
)
def test_one_genesis_whatever_happens(seed: int, nodes: int, faults: float) -> None:
    run = Run(seed, nodes, faults=faults)
    run.run(250)
    assert run.problems() == []
    assert run.certificates, "after healing it is decided"


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), nodes=st.integers(2, 5))
def test_ready_or_abort_never_both(seed: int, nodes: int) -> None:
    grounds = signed(Instance(SCOPE, 1, GENESIS), genesis(0), nodes)
    run = Run(seed, nodes, instance=Instance(SCOPE, 1, OUTCOME), grounds=grounds, faults=0.3)
    run.run(250)
    assert run.problems() == []
    assert run.certificates


class ForgetfulAcceptor(acc.Acceptor):
    """Votes without making the vote durable."""

    def _persist(self) -> acc.Effect:
        return acc.Persist(wire.encode(acc.AcceptorState()))


class FaithlessAcceptor(acc.Acceptor):
    """Accepts ballots below the one that it promised."""

    def _accept(self, message: Accept):
        state = self._instances.get(message.instance)
        if state is not None and message.ballot < state.promised:
            del self._instances[message.instance]
        return super()._accept(message)


class HastyProposer(prop.Proposer):
    """One vote fewer is enough for it."""

    @property
    def quorum(self) -> int:
        return max(1, super().quorum - 1)


class StubbornProposer(prop.Proposer):
    """Does not adopt what may have been decided already."""

    def _choose(self) -> bytes:
        return self._value


@pytest.mark.parametrize(
    "broken",
    [
        {"acceptor_type": ForgetfulAcceptor},
        {"acceptor_type": FaithlessAcceptor},
        {"proposer_type": HastyProposer},
        {"proposer_type": StubbornProposer},
    ],
    ids=lambda broken: next(iter(broken.values())).__name__,
)
def test_the_checker_finds_a_broken_protocol(broken: dict) -> None:
    found = []
    for seed in range(400):
        run = Run(seed, 3, faults=0.4, **broken)
        run.run(250)
        found = run.problems()
        if found:
            break
    assert found, "400 runs of a broken protocol must not all look right"


@given(
    nodes=st.integers(1, 7),
    drop=st.integers(0, 3),
    tamper=st.sampled_from(("", "value", "nodes", "ballot", "epoch", "decree", "twice", "mesh", "voter")),
)
@settings(max_examples=120, deadline=None)
def test_a_certificate_verifies_only_unchanged_and_with_a_quorum(nodes: int, drop: int, tamper: str) -> None:
    import msgspec

    good = signed(Instance(SCOPE, 1, GENESIS), genesis(1), nodes)
    assert certificates.verify(good, MESH)
    bad, mesh = good, MESH
    change = msgspec.structs.replace
    if drop:
        bad = change(bad, votes=bad.votes[drop:])
    if tamper == "value":
        bad = change(bad, value=encode_value(genesis(2)))
    elif tamper == "nodes":
        bad = change(bad, nodes=nodes + 2)
    elif tamper == "ballot":
        bad = change(bad, ballot=Ballot(2, good.ballot.peer))
    elif tamper == "epoch":
        bad = change(bad, instance=Instance(SCOPE, 2, GENESIS))
    elif tamper == "decree":
        bad = change(bad, instance=Instance(SCOPE, 1, OUTCOME))
    elif tamper == "twice":
        bad = change(bad, votes=bad.votes[:1] * len(good.votes) + bad.votes[:1])
    elif tamper == "mesh":
        mesh = "another"
    elif tamper == "voter" and bad.votes:
        bad = change(bad, votes=(Vote(identity(9).peer_id, bad.votes[0].signature), *bad.votes[1:]))
    assert certificates.verify(bad, mesh) == (bad == good and mesh == MESH)
    assert certificates.decode(certificates.encode(bad)) == bad


@given(st.binary(max_size=400))
def test_garbage_is_a_value_error(raw: bytes) -> None:
    for decode in (decode_request, decode_answer, certificates.decode):
        with pytest.raises(ValueError, match=r"."):
            decode(raw)
