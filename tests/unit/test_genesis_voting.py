"""Does the acceptor refuse what it must, and is everything durable before it is said?"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
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
    Answer,
    Ballot,
    Certificate,
    Continuation,
    Decided,
    Genesis,
    Instance,
    Nack,
    Prepare,
    Promise,
    Ready,
    Request,
    Value,
    covered,
    decode_value,
    encode_value,
    quorum,
    vote_payload,
)
from p2p_roles.view import MAX_NODES

SCOPE, MESH = "kairos", "00112233aabbccdd"
IDS = [Identity(bytes([n + 1] * 32)) for n in range(6)]
A, B, C = (i.peer_id for i in IDS[:3])
D1 = Instance(SCOPE, 1, GENESIS)


def genesis(peer: str = A, ip: str = "10.144.0.1") -> Genesis:
    return Genesis("c1", peer, ip, "0" * 64, "", "v1", (peer,), "etcd")


def signed(instance: Instance, value: Value, nodes: int = 3) -> Certificate:
    return certified(MESH, instance, value, nodes, IDS, Ballot(1, A))


def acceptor(state: acc.AcceptorState | None = None) -> acc.Acceptor:
    return acc.Acceptor(scope=SCOPE, mesh_id=MESH, sign=lambda m: IDS[0].sign(VOTE_PURPOSE, m), state=state)


def ask(of: acc.Acceptor, peer: PeerId, message: Request) -> tuple[Answer, bytes | None]:
    """The answer, and what was made durable before it."""
    effects = of.step(0.0, acc.Asked(peer, message)).effects
    assert isinstance(effects[-1], acc.Reply)
    states = [e.state for e in effects[:-1] if isinstance(e, acc.Persist)]
    assert len(states) == len(effects) - 1 <= 1
    return effects[-1].message, states[0] if states else None


def test_quorums_meet() -> None:
    for n in range(1, 40):
        assert 2 * quorum(n) > covered(n) >= n


def test_promises_and_votes_are_durable_before_they_are_given() -> None:
    a = acceptor()
    promise, state = ask(a, B, Prepare(D1, Ballot(1, B), 3))
    assert isinstance(promise, Promise)
    assert state is not None
    restarted = acceptor(wire.decode(state, acc.AcceptorState))
    refused, _ = ask(restarted, A, Prepare(D1, Ballot(1, A), 3) if B > A else Prepare(D1, Ballot(0, A), 3))
    assert isinstance(refused, Nack)
    voted, state = ask(a, B, Accept(D1, Ballot(1, B), 3, encode_value(genesis(B))))
    assert isinstance(voted, Accepted)
    assert state is not None
    restarted = acceptor(wire.decode(state, acc.AcceptorState))
    promise, _ = ask(restarted, C, Prepare(D1, Ballot(2, C), 3))
    assert isinstance(promise, Promise)
    assert promise.accepted == (Ballot(1, B), encode_value(genesis(B)))
    late, state = ask(restarted, B, Accept(D1, Ballot(1, B), 3, encode_value(genesis(B))))
    assert isinstance(late, Nack)
    assert late.promised == Ballot(2, C)
    assert state is None


def test_a_quorum_based_on_fewer_nodes_is_refused_and_n_is_never_lowered() -> None:
    a = acceptor()
    a.step(0.0, acc.NodesRaised(5))
    refused, state = ask(a, B, Prepare(D1, Ballot(1, B), 3))
    assert isinstance(refused, Nack)
    assert refused.nodes == 5
    assert state is None
    assert "counts on 3 nodes, I know of 5" in refused.reason
    taken, state = ask(a, B, Prepare(D1, Ballot(1, B), 7))
    assert isinstance(taken, Promise)
    assert state is not None
    again = acceptor(wire.decode(state, acc.AcceptorState))
    assert again.nodes == 7, "the larger counts, also after a restart"
    again.step(0.0, acc.NodesRaised(2))
    again.step(0.0, acc.NodesDeclared(2))
    assert again.nodes == 7
    again.step(0.0, acc.NodesDeclared(9))
    assert again.nodes == 9
    again.step(0.0, acc.NodesDeclared(2))
    assert again.nodes == 7, "what is only declared may go down again"


def test_the_next_epoch_needs_the_abort_certificate() -> None:
    a = acceptor()
    second = Instance(SCOPE, 2, GENESIS)
    refused, _ = ask(a, B, Prepare(second, Ballot(1, B), 3))
    assert isinstance(refused, Nack)
    assert "certificate of OUTCOME(1) is missing" in refused.reason
    forged = signed(Instance(SCOPE, 1, OUTCOME), Abort("x"))
    forged = Certificate(forged.instance, forged.ballot, 3, forged.value, forged.votes[:1] * 2)
    refused, _ = ask(a, B, Prepare(second, Ballot(1, B), 3, forged))
    assert isinstance(refused, Nack), "nor does the same voter twice"
    assert a.epoch == 1
    abort = signed(Instance(SCOPE, 1, OUTCOME), Abort("x"))
    taken, _ = ask(a, B, Prepare(second, Ballot(1, B), 3, abort))
    assert isinstance(taken, Promise)
    assert a.epoch == 2
    late, _ = ask(a, C, Prepare(D1, Ballot(9, C), 3))
    assert late == Decided(abort), "who asks about an old epoch is told that it is over"


def test_ready_opens_a_recovery_and_nothing_else() -> None:
    a = acceptor()
    second, ready = Instance(SCOPE, 2, GENESIS), signed(Instance(SCOPE, 1, OUTCOME), Ready("uid"))
    taken, _ = ask(a, B, Prepare(second, Ballot(1, B), 3, ready))
    assert isinstance(taken, Promise)
    fresh = Accept(second, Ballot(1, B), 3, encode_value(genesis()), ready)
    refused, _ = ask(a, B, fresh)
    assert isinstance(refused, Nack)
    assert "only its recovery may follow" in refused.reason
    recovery = msgspec.structs.replace(genesis(), continues=Continuation(1, "c1", reset=True))
    taken, _ = ask(a, B, Accept(second, Ballot(1, B), 3, encode_value(recovery), ready))
    assert isinstance(taken, Accepted)


def test_who_was_declared_lost_does_not_count_and_nobody_else_is_left_out() -> None:
    a = acceptor()
    a.step(0.0, acc.NodesRaised(3))
    ready = signed(Instance(SCOPE, 1, OUTCOME), Ready("uid"))
    second = Instance(SCOPE, 2, GENESIS)
    refused, _ = ask(a, B, Prepare(second, Ballot(1, B), 1, ready))
    assert isinstance(refused, Nack)
    taken, _ = ask(a, B, Prepare(second, Ballot(1, B), 1, ready, lost=("x", "y")))
    assert isinstance(taken, Promise)
    after = Continuation(1, "c1", reset=True, lost=("x",))
    value = encode_value(msgspec.structs.replace(genesis(), continues=after))
    refused, _ = ask(a, B, Accept(second, Ballot(1, B), 1, value, ready))
    assert isinstance(refused, Nack), "the value names fewer than the promise was asked for"


def test_the_outcome_needs_the_genesis_certificate() -> None:
    a, outcome = acceptor(), Instance(SCOPE, 1, OUTCOME)
    refused, _ = ask(a, B, Prepare(outcome, Ballot(1, B), 3))
    assert isinstance(refused, Nack)
    taken, _ = ask(a, B, Prepare(outcome, Ballot(1, B), 3, signed(D1, genesis())))
    assert isinstance(taken, Promise)


def test_what_is_decided_is_answered_with_the_certificate() -> None:
    a, decided = acceptor(), signed(D1, genesis())
    assert any(isinstance(e, acc.Persist) for e in a.step(0.0, acc.CertificateLearned(decided)).effects)
    answer, _ = ask(a, B, Accept(D1, Ballot(5, B), 3, encode_value(genesis(B))))
    assert answer == Decided(decided)
    other = signed(D1, genesis(B, "10.144.0.2"))
    found = a.step(0.0, acc.CertificateLearned(other)).effects
    assert found == (acc.Conflict(decided, other),), "two decisions are told, not hidden"


def test_malformed_requests_are_refused() -> None:
    a, value = acceptor(), encode_value(genesis(B))
    for message in (
        Prepare(Instance("other", 1, GENESIS), Ballot(1, B), 3),
        Prepare(Instance(SCOPE, 0, GENESIS), Ballot(1, B), 3),
        Prepare(Instance(SCOPE, 1, 3), Ballot(1, B), 3),
        Prepare(D1, Ballot(1, C), 3),
        Prepare(D1, Ballot(0, B), 3),
        Prepare(D1, Ballot(1 << 40, B), 3),
        Prepare(D1, Ballot(1, B), 0),
        Prepare(D1, Ballot(1, B), MAX_NODES + 1),
        Accept(D1, Ballot(1, B), 3, b"garbage"),
        Accept(D1, Ballot(1, B), 3, encode_value(Ready("uid"))),
        Accept(D1, Ballot(1, B), 3, encode_value(Abort("x" * 9000))),
    ):
        answer, state = ask(a, B, message)
        assert isinstance(answer, Nack), message
        assert state is None
    voted, _ = ask(a, B, Accept(D1, Ballot(1, B), 3, value))
    assert isinstance(voted, Accepted)
    twice, _ = ask(a, B, Accept(D1, Ballot(1, B), 3, encode_value(genesis(B, "10.144.9.9"))))
    assert isinstance(twice, Nack), "one ballot has one value"


def test_the_first_servers_are_distinct_and_begin_with_the_initiator() -> None:
    for servers in ((), (B,), (A, A), (A,) * 2, tuple(f"{A}{n}" for n in range(99))):
        raw = encode_value(Genesis("c", A, "", "", "", "", servers, "etcd"))
        with pytest.raises(ValueError, match="first servers"):
            decode_value(raw, GENESIS)


def proposer(nodes: int = 3, voters: tuple[PeerId, ...] = (A, B, C)) -> prop.Proposer:
    return prop.Proposer(
        mesh_id=MESH,
        instance=D1,
        self_id=A,
        voters=voters,
        value=encode_value(genesis()),
        nodes=nodes,
        round=1,
        grounds=None,
    )


def test_a_proposer_counts_only_true_votes_of_distinct_voters() -> None:
    p = proposer()
    asks = [e for e in p.step(0.0, prop.Begun()).effects if isinstance(e, prop.Ask)]
    assert [a.peer for a in asks] == [A, B, C], "itself first"
    prepare = asks[0].message
    promise = Promise(D1, p.ballot, 3)
    assert p.step(0.0, prop.Answered(A, prepare, promise)).effects == ()
    assert p.step(0.0, prop.Answered(A, prepare, promise)).effects == (), "the same voter again"
    accept = next(
        e.message for e in p.step(0.0, prop.Answered(B, prepare, promise)).effects if isinstance(e, prop.Ask)
    )
    payload = vote_payload(MESH, D1, p.ballot, 3, encode_value(genesis()))
    mine = Accepted(D1, p.ballot, 3, IDS[0].sign(VOTE_PURPOSE, payload))
    assert p.step(0.0, prop.Answered(A, accept, mine)).effects == ()
    assert p.step(0.0, prop.Answered(B, accept, mine)).effects == (), "A's signature is no vote of B"
    stranger = Accepted(D1, p.ballot, 3, IDS[4].sign(VOTE_PURPOSE, payload))
    assert p.step(0.0, prop.Answered(IDS[4].peer_id, accept, stranger)).effects == ()
    theirs = Accepted(D1, p.ballot, 3, IDS[2].sign(VOTE_PURPOSE, payload))
    won = p.step(0.0, prop.Answered(C, accept, theirs)).effects
    assert isinstance(won[0], prop.Won)
    assert certificates.verify(won[0].certificate, MESH)
    assert p.step(0.0, prop.Expired()).effects == ()


def test_a_proposer_gives_up_when_a_quorum_is_impossible() -> None:
    p = proposer()
    prepare = next(e.message for e in p.step(0.0, prop.Begun()).effects if isinstance(e, prop.Ask))
    assert p.step(0.0, prop.Answered(B, prepare, None)).effects == ()
    nack = Nack(D1, p.ballot, 5, Ballot(7, C), "a higher ballot was promised")
    lost = p.step(0.0, prop.Answered(C, prepare, nack)).effects
    assert lost == (prop.Lost(7, 5, "a higher ballot was promised"),)
    lonely = proposer(nodes=7).step(0.0, prop.Begun()).effects
    assert lonely == (prop.Lost(1, 7, "3 voters are here, 4 must agree"),)


@given(st.binary(max_size=200))
def test_verifying_entries_never_raises(raw: bytes) -> None:
    assert certificates.verify_entry("genesis/kairos/1/1", raw, MESH) is False


def test_an_entry_is_verified_under_its_own_key_only() -> None:
    good = signed(D1, genesis())
    raw = certificates.encode(good)
    assert certificates.key_of(good) == "genesis/kairos/1/1"
    assert certificates.verify_entry("genesis/kairos/1/1", raw, MESH)
    assert not certificates.verify_entry("genesis/kairos/2/1", raw, MESH)
    assert not certificates.verify_entry("genesis/kairos/1/1", raw, "other-mesh")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_proposer_adopts_the_value_of_the_highest_ballot(order: tuple[int, ...]) -> None:
    """The heart of Paxos: of the values accepted before, only the highest ballot's may have been decided."""
    voters = tuple(i.peer_id for i in IDS[:5])
    own, low, high = (encode_value(genesis(peer)) for peer in (A, B, C))
    proposer = prop.Proposer(
        mesh_id=MESH, instance=D1, self_id=A, voters=voters, value=own, nodes=5, round=9, grounds=None
    )
    (first, *_) = proposer.step(0.0, prop.Begun()).effects
    assert isinstance(first, prop.Ask)
    accepted = [None, (Ballot(3, B), low), (Ballot(7, C), high)]
    effects: tuple[object, ...] = ()
    for voter, which in zip(voters, order, strict=False):
        promise = Promise(D1, proposer.ballot, 5, accepted[which])
        effects = proposer.step(0.0, prop.Answered(voter, first.message, promise)).effects
    asked = [effect.message for effect in effects if isinstance(effect, prop.Ask)]
    assert len(asked) == 5
    assert all(isinstance(message, Accept) and message.value == high for message in asked)


def test_n_once_raised_is_durable_and_never_goes_down() -> None:
    mine = acceptor()
    raised = mine.step(0.0, acc.NodesRaised(5))
    (kept,) = raised.effects
    assert isinstance(kept, acc.Persist)
    assert wire.decode(kept.state, acc.AcceptorState).nodes == 5 == mine.nodes
    assert raised.reason == "N raised from 1 to 5: so many nodes were seen"
    for fewer in (5, 4, 1):
        again = mine.step(1.0, acc.NodesRaised(fewer))
        assert (again.effects, again.reason, mine.nodes) == ((), "", 5)
    assert mine.step(2.0, acc.NodesDeclared(9)).effects == (), "what is declared may go down again"
    assert mine.nodes == 9
    mine.step(3.0, acc.NodesRaised(7))
    mine.step(4.0, acc.NodesDeclared(1))
    assert mine.nodes == 7
    assert acceptor(mine.state).nodes == 7, "nor does a restart forget it"
    mine.step(5.0, acc.NodesRaised(MAX_NODES + 1))
    assert mine.nodes == MAX_NODES
