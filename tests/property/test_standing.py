"""However claims, questions and answers interleave in a mesh: what stands is unique, and for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_network.addressing import Addressing, Assign, ClaimsChanged, LedgerSettled, Withdraw, WriteClaim
from p2p_network.core.ids import PeerId
from p2p_network.identity import Identity
from p2p_network.records import AddressClaim
from p2p_network.standing import Ack, Answered, Ask, Build, Held, MembersSeen, Standing, acknowledge

PEERS = [Identity(hashlib.sha256(str(n).encode()).digest()).peer_id for n in range(3)]
SMALL = IPv4Network("10.9.9.0/30")  # 2 usable addresses for 3 nodes: conflicts galore
Acknowledge = Callable[[Mapping[PeerId, AddressClaim], PeerId, AddressClaim, frozenset[PeerId]], Ack]


class Node:
    """The two machines of one node, and what it knows of the others' claims."""

    def __init__(self, peer: PeerId, sees: frozenset[PeerId]) -> None:
        self.peer, self.sees = peer, sees
        self.addressing = Addressing(peer, "mesh", network=SMALL, alone_s=1e9, started_at=0.0)
        self.standing = Standing(peer)
        self.claims: dict[PeerId, AddressClaim] = {}
        self.asks: list[Ask] = []
        self.built: AddressClaim | None = None

    def look(self, mesh_ms: int) -> None:
        self._carry_out(self.addressing.step(0.0, ClaimsChanged(dict(self.claims), mesh_ms)).effects)

    def settle(self, mesh_ms: int) -> None:
        self._carry_out(self.addressing.step(0.0, LedgerSettled(mesh_ms)).effects)

    def told(self, event: Held | MembersSeen | Answered) -> None:
        for effect in self.standing.step(0.0, event).effects:
            match effect:
                case Ask():
                    self.asks.append(effect)
                case Build(claim):
                    self.built = claim

    def _carry_out(self, effects: object) -> None:
        for effect in effects:  # type: ignore[attr-defined]
            match effect:
                case WriteClaim(claim):
                    self.claims[self.peer] = claim
                case Assign():
                    self.told(Held(self.claims[self.peer]))
                case Withdraw(ipv4):
                    assert self.built is None or self.built.ipv4 != ipv4, "what stood was given up"
                    self.told(Held(None))


class Mesh:
    """Nodes that see some of each other; the whole hangs together. Time stands still: only answers count."""

    def __init__(self, edges: frozenset[tuple[int, int]], answer: Acknowledge) -> None:
        self.answer = answer
        sees: dict[int, set[PeerId]] = {n: {PEERS[n]} for n in range(len(PEERS))}
        for one, other in edges:
            sees[one].add(PEERS[other])
            sees[other].add(PEERS[one])
        self.nodes = {peer: Node(peer, frozenset(sees[n])) for n, peer in enumerate(PEERS)}
        for node in self.nodes.values():
            node.told(MembersSeen(node.sees))

    def play(self, action: str, one: PeerId, other: PeerId, mesh_ms: int) -> None:
        node, peer = self.nodes[one], self.nodes[other]
        match action:
            case "settle":
                node.settle(mesh_ms)
            case "hear" if other in node.sees:
                for author, claim in peer.claims.items():
                    known = node.claims.get(author)
                    if author != one and (known is None or known.attempt < claim.attempt):
                        node.claims[author] = claim
                node.look(mesh_ms)
            case "ask" if node.asks:
                ask = node.asks.pop(0)
                asked = self.nodes[ask.peer]
                asked.look(mesh_ms)
                ack = self.answer(asked.claims, one, ask.claim, asked.sees)
                node.told(Answered(ask.peer, ask.claim, ack))
                if not ack.holds:
                    node.standing.step(1.0, MembersSeen(node.sees))  # asks again, not yet by age
                    node.asks.append(ask)

    def check(self) -> None:
        built = [node.built.ipv4 for node in self.nodes.values() if node.built is not None]
        assert len(set(built)) == len(built), "one address stands for two nodes"


ALL = frozenset({(0, 1), (1, 2), (0, 2)})
GRAPHS = [ALL, *(ALL - {edge} for edge in sorted(ALL))]
ACTIONS = ["settle", "hear", "hear", "ask", "ask"]
actions = st.lists(
    st.tuples(
        st.sampled_from(ACTIONS),
        st.sampled_from(PEERS),
        st.sampled_from(PEERS),
        st.integers(1, 9),
    ),
    min_size=10,
    max_size=40,
)
Script = list[tuple[str, PeerId, PeerId, int]]


def run(edges: frozenset[tuple[int, int]], script: Script, answer: Acknowledge = acknowledge) -> Mesh:
    mesh = Mesh(edges, answer)
    for action in script:
        mesh.play(*action)
        mesh.check()
    return mesh


@settings(max_examples=500)
@given(st.sampled_from(GRAPHS), actions)
def test_what_stands_is_unique_and_for_ever(edges: frozenset[tuple[int, int]], script: Script) -> None:
    run(edges, script)


@given(st.permutations(PEERS), st.integers(1, 9))
def test_where_all_see_each_other_every_claim_comes_to_stand(order: list[PeerId], mesh_ms: int) -> None:
    """It is not only safe: it ends."""
    settled: Script = [("settle", peer, peer, mesh_ms) for peer in order]
    heard: Script = [("hear", one, other, mesh_ms) for one in order for other in order] * 8
    asked: Script = [("ask", peer, peer, mesh_ms) for peer in order] * 12
    mesh = run(ALL, settled + heard + asked)
    holding = [node for node in mesh.nodes.values() if node.addressing.holding]
    assert len(holding) == 2, "there are two addresses"
    assert all(node.built is not None for node in holding)


def gullible(
    claims: Mapping[PeerId, AddressClaim], peer: PeerId, claim: AddressClaim, sees: frozenset[PeerId]
) -> Ack:
    """Holds a claim though it knows a better one."""
    return Ack(claims.get(peer) == claim, tuple(sees))


def ignorant(
    claims: Mapping[PeerId, AddressClaim], peer: PeerId, claim: AddressClaim, sees: frozenset[PeerId]
) -> Ack:
    """Says so before it holds the claim."""
    known = acknowledge({**claims, peer: claim}, peer, claim, sees)
    return Ack(known.holds, tuple(sees))


def narrow(
    claims: Mapping[PeerId, AddressClaim], peer: PeerId, claim: AddressClaim, sees: frozenset[PeerId]
) -> Ack:
    """Doesn't say whom else it sees."""
    return Ack(acknowledge(claims, peer, claim, sees).holds, ())


@pytest.mark.parametrize("broken", [gullible, ignorant, narrow])
def test_broken_answers_are_caught(broken: Acknowledge) -> None:
    chance = Random(1)
    for _ in range(20_000):
        script = [
            (chance.choice(ACTIONS), chance.choice(PEERS), chance.choice(PEERS), chance.randint(1, 9))
            for _ in range(40)
        ]
        try:
            run(chance.choice(GRAPHS), script, broken)
        except AssertionError:
            return
    pytest.fail("nobody noticed")
