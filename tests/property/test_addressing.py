"""However claims interleave, after convergence addresses are unique, and settled ones are for ever."""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Network

from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_network.addressing import Addressing, ClaimsChanged, LedgerSettled, Withdraw, WriteClaim
from p2p_network.core.ids import PeerId
from p2p_network.identity import Identity
from p2p_network.records import AddressClaim

MESH = "mesh"
PEERS = [Identity(hashlib.sha256(str(n).encode()).digest()).peer_id for n in range(10)]
SMALL = IPv4Network("10.9.9.0/28")  # 14 to 15 usable addresses for 10 nodes: conflicts galore


class World:
    """Nodes with a replica each of the last-writer-wins claims; versions stand in for stamps."""

    def __init__(self) -> None:
        self.clock_ms = 1000
        self.machines = {p: Addressing(p, MESH, network=SMALL, alone_s=1.0, started_at=0.0) for p in PEERS}
        self.replicas: dict[PeerId, dict[PeerId, tuple[int, AddressClaim]]] = {p: {} for p in PEERS}
        self.withdrawn: list[PeerId] = []

    def step(self, peer: PeerId, event: LedgerSettled | ClaimsChanged) -> None:
        for effect in self.machines[peer].step(0.0, event).effects:
            match effect:
                case WriteClaim(claim):
                    self.clock_ms += 1
                    self.replicas[peer][peer] = (self.clock_ms, claim)
                case Withdraw():
                    self.withdrawn.append(peer)

    def settle(self, peer: PeerId) -> None:
        self.step(peer, LedgerSettled(self.clock_ms))

    def look(self, peer: PeerId) -> None:
        claims = {author: claim for author, (_, claim) in self.replicas[peer].items()}
        self.step(peer, ClaimsChanged(claims, self.clock_ms))

    def meet(self, one: PeerId, other: PeerId) -> None:
        both = dict(self.replicas[one])
        for author, versioned in self.replicas[other].items():
            if author not in both or both[author][0] < versioned[0]:
                both[author] = versioned
        for peer in (one, other):
            self.replicas[peer] = dict(both)
            self.look(peer)

    def restart(self, peer: PeerId) -> None:
        self.machines[peer] = Addressing(peer, MESH, network=SMALL, alone_s=1.0, started_at=0.0)
        self.look(peer)

    def converge(self) -> None:
        for _ in range(3 * len(PEERS)):
            for one, other in zip(PEERS, PEERS[1:] + PEERS[:1], strict=True):
                self.meet(one, other)

    def held(self) -> dict[PeerId, str]:
        return {peer: made.holding for peer, made in self.machines.items() if made.holding}


actions = st.lists(
    st.tuples(st.sampled_from(["settle", "meet", "restart"]), st.sampled_from(PEERS), st.sampled_from(PEERS)),
    max_size=60,
)


@settings(max_examples=100)
@given(actions, actions)
def test_unique_after_convergence_and_permanent_ever_after(
    before: list[tuple[str, PeerId, PeerId]], after: list[tuple[str, PeerId, PeerId]]
) -> None:
    world = World()

    def play(script: list[tuple[str, PeerId, PeerId]]) -> None:
        for action, one, other in script:
            match action:
                case "settle":
                    world.settle(one)
                case "meet" if one != other:
                    world.meet(one, other)
                case "restart":
                    world.restart(one)

    play(before)
    world.converge()
    settled = world.held()
    assert len(set(settled.values())) == len(settled), "unique"
    assert {world.replicas[PEERS[0]][peer][1].ipv4 for peer in settled} == set(settled.values())

    world.withdrawn.clear()
    play(after)  # newcomers claim, nodes restart: whoever has settled keeps its address
    world.converge()
    assert {peer: world.held()[peer] for peer in settled} == settled
    assert not set(world.withdrawn) & settled.keys()
    assert len(set(world.held().values())) == len(world.held())
