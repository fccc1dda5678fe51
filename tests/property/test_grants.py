"""Is a cluster's word believed by somebody who comes late, whoever was its servers meanwhile?"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st
from quorums import certified

from p2p_bootstrap.node.policy import Judge, ledger_policy, speaks_for
from p2p_network.identity import Identity
from p2p_network.ledger.core import Ledger
from p2p_network.ledger.entry import Entry
from p2p_network.ledger.events import EntriesReceived, LocalWrite
from p2p_roles import assign, grants
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis.messages import (
    GENESIS,
    OUTCOME,
    Ballot,
    Certificate,
    Genesis,
    Instance,
    Ready,
    Value,
)

MESH, SCOPE, WALL_S = "00112233aabbccdd", "kairos", 1_800_000_000.0
PEOPLE = [Identity(hashlib.sha256(f"server {n}".encode()).digest()) for n in range(6)]
FIRST, LIAR = PEOPLE[0], Identity(bytes(range(32)))


class Everybody:
    """All are members."""

    @property
    def trust(self) -> Everybody:
        return self

    def owns(self, key: str, value: bytes) -> bool:
        return False

    def admits(self, author: str) -> bool:
        return True

    def spoke(self, author: str, wall_ms: int) -> bool:
        return True


def ledger_of(who: Identity) -> Ledger:
    made: list[Ledger] = []
    made.append(Ledger(who, MESH, ledger_policy(MESH, lambda: made[0], cast(Judge, Everybody()))))
    return made[0]


def alone(decree: int, value: Value) -> Certificate:
    return certified(MESH, Instance(SCOPE, 1, decree), value, 1, [FIRST], Ballot(1, FIRST.peer_id))


def founded() -> list[tuple[str, bytes]]:
    genesis = Genesis("c" * 16, FIRST.peer_id, "10.144.0.1", "ca", "", "", (FIRST.peer_id,), "etcd")
    both = (alone(GENESIS, genesis), alone(OUTCOME, Ready("uid")))
    return [(certificates.key_of(c), certificates.encode(c)) for c in both]


def write(ledger: Ledger, now: float, key: str, value: bytes) -> None:
    ledger.step(now, LocalWrite(key, value, WALL_S + now))


def everything(ledger: Ledger) -> tuple[Entry, ...]:
    return tuple(ledger.items())


def life(ledgers: dict[str, Ledger], history: list[tuple[int, int]]) -> Iterator[float]:
    """Who holds the lease (if it is a server by then) makes somebody a server, and writes all words anew."""
    given: dict[str, int] = {}
    for fence, (holder, newcomer) in enumerate(history, 1):
        by, peer = PEOPLE[holder], PEOPLE[newcomer].peer_id
        own = ledgers[by.peer_id]
        if by is not FIRST and by.peer_id not in given:
            continue
        if peer != FIRST.peer_id:
            given.setdefault(peer, fence)
        for server in given:
            if not speaks_for(SCOPE, server, own):
                write(own, fence, grants.key_of(SCOPE, server, by.peer_id), grants.VALUE)
            word = assign.Assignment("server", f"in the {fence}th year", 1, "c" * 16, fence=fence)
            write(own, fence, assign.key_of(SCOPE, server), assign.encode(word))
        for other in ledgers.values():
            other.step(fence, EntriesReceived(by.peer_id, everything(own), WALL_S + fence))
        yield float(fence)


servers = st.integers(0, len(PEOPLE) - 1)


@settings(max_examples=60)
@given(st.lists(st.tuples(servers, servers), max_size=12), st.randoms(use_true_random=False))
def test_who_comes_late_believes_what_all_others_do(
    history: list[tuple[int, int]], chance: random.Random
) -> None:
    ledgers = {who.peer_id: ledger_of(who) for who in PEOPLE}
    for key, value in founded():
        write(ledgers[FIRST.peer_id], 0.0, key, value)
    for who in PEOPLE[1:]:
        given = everything(ledgers[FIRST.peer_id])
        ledgers[who.peer_id].step(0.0, EntriesReceived(FIRST.peer_id, given, WALL_S))
    now = max(life(ledgers, history), default=0.0)
    told = list(everything(ledgers[FIRST.peer_id]))
    late = ledger_of(LIAR)
    for _ in told:  # in any order, and again, as peers do
        chance.shuffle(told)
        late.step(now, EntriesReceived(FIRST.peer_id, tuple(told), WALL_S + now))
    assert late.digest() == ledgers[FIRST.peer_id].digest()


@given(st.lists(st.tuples(servers, servers), max_size=20))
def test_no_chain_but_one_from_a_certificate_counts(claims: list[tuple[int, int]]) -> None:
    by = {who: [grantor for server, grantor in claims if server == who] for who, _ in claims}
    reached = {0}
    while more := {s for s, g in claims if g in reached} - reached:
        reached |= more
    for who in range(len(PEOPLE)):
        found = grants.speaks(str(who), {"0"}, lambda server: map(str, by.get(int(server), ())))
        assert found == (who in reached)


def test_a_member_that_grants_itself_is_not_believed() -> None:
    ledger, liar = ledger_of(FIRST), ledger_of(LIAR)
    for key, value in founded():
        write(ledger, 0.0, key, value)
    liar.step(0.0, EntriesReceived(FIRST.peer_id, everything(ledger), WALL_S))
    write(liar, 0.0, grants.key_of(SCOPE, LIAR.peer_id, LIAR.peer_id), grants.VALUE)
    assert not speaks_for(SCOPE, LIAR.peer_id, liar)
    ledger.step(0.0, EntriesReceived(LIAR.peer_id, everything(liar), WALL_S))
    assert not speaks_for(SCOPE, LIAR.peer_id, ledger)
    assert speaks_for(SCOPE, FIRST.peer_id, ledger)
