"""Where exactly are the edges of the genesis: bounds, reasons, what is kept and what is forgotten?

Written against mutants (`.ci/mutation`): each of these lines had one that lived.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from quorums import certified

from p2p_network import wire
from p2p_network.core.ids import PeerId
from p2p_network.identity import Identity
from p2p_roles.genesis import acceptor as acc
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis import messages
from p2p_roles.genesis import proposer as prop
from p2p_roles.genesis.messages import (
    GENESIS,
    MAX_EPOCH,
    MAX_REMARK_CHARS,
    MAX_ROUND,
    MAX_TIME,
    MAX_VALUE_BYTES,
    OUTCOME,
    VOTE_PURPOSE,
    Abort,
    Accept,
    Accepted,
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
    Timing,
    Value,
    decode_value,
    encode_value,
    quorum,
    vote_payload,
)
from p2p_roles.genesis.voting import Learnt, Voting
from p2p_roles.view import MAX_NODES

SCOPE, MESH = "kairos", "00112233aabbccdd"
IDS = [Identity(bytes([n + 1] * 32)) for n in range(7)]
A, B, C, D = (i.peer_id for i in IDS[:4])
D1, D2, OTHER = Instance(SCOPE, 1, GENESIS), Instance(SCOPE, 1, OUTCOME), Instance("other", 1, GENESIS)


def genesis(peer: str = A, continues: Continuation | None = None) -> Genesis:
    return Genesis("c1", peer, "10.144.0.1", "0" * 64, "", "v1", (peer,), "etcd", continues=continues)


def signed(instance: Instance, value: Value, nodes: int = 3, round: int = 1) -> Certificate:
    return certified(MESH, instance, value, nodes, IDS, Ballot(round, A))


def acceptor(*certificates: Certificate, raised: int = 1) -> acc.Acceptor:
    state = acc.AcceptorState(raised, (), certificates)
    return acc.Acceptor(scope=SCOPE, mesh_id=MESH, sign=lambda m: IDS[0].sign(VOTE_PURPOSE, m), state=state)


def refusal(of: acc.Acceptor, peer: PeerId, message: Request) -> str:
    """The reason of a Nack, "" for any other answer; the decision says the same."""
    decision = of.step(0.0, acc.Asked(peer, message))
    (*before, reply) = decision.effects
    assert isinstance(reply, acc.Reply)
    if not isinstance(reply.message, Nack):
        assert len(before) == 1
        return ""
    assert before == []
    assert reply.message.instance == message.instance
    assert reply.message.ballot == message.ballot
    whom, why = message.ballot.peer[-8:], reply.message.reason
    assert decision.reason == f"refused {message.instance} to {whom}: {why}"
    return why


# ---------------------------------------------------------------- what an acceptor refuses


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Prepare(OTHER, Ballot(1, B), 3), "this node belongs to the cluster scope 'kairos'"),
        (Prepare(Instance(SCOPE, 1, 3), Ballot(1, B), 3), "there is no such decree"),
        (Prepare(Instance(SCOPE, 0, GENESIS), Ballot(1, B), 3), "there is no such decree"),
        (Prepare(Instance(SCOPE, MAX_EPOCH + 1, GENESIS), Ballot(1, B), 3), "there is no such decree"),
        (Prepare(D1, Ballot(0, B), 3), "the ballot is not the asking peer's"),
        (Prepare(D1, Ballot(MAX_ROUND + 1, B), 3), "the ballot is not the asking peer's"),
        (Prepare(D1, Ballot(1, C), 3), "the ballot is not the asking peer's"),
        (Prepare(D1, Ballot(1, B), 0), f"N is 1 to {MAX_NODES}"),
        (Prepare(D1, Ballot(1, B), MAX_NODES + 1), f"N is 1 to {MAX_NODES}"),
        (Accept(D1, Ballot(1, B), 3, encode_value(Ready("u"))), "decree 1 cannot be Ready"),
        (Prepare(D2, Ballot(1, B), 3), "OUTCOME(1) is not open: the certificate of GENESIS(1) is missing"),
        (
            Prepare(Instance(SCOPE, MAX_EPOCH, GENESIS), Ballot(1, B), 3),
            f"GENESIS({MAX_EPOCH}) is not open: the certificate of OUTCOME({MAX_EPOCH - 1}) is missing",
        ),
        (Prepare(D1, Ballot(1, B), 1), ""),
        (Prepare(D1, Ballot(1, B), MAX_NODES), ""),
        (Prepare(D1, Ballot(MAX_ROUND, B), 3), ""),
        (Accept(D1, Ballot(1, B), 3, encode_value(genesis(B))), ""),
    ],
)  # fmt: skip
def test_what_is_malformed_or_not_open_is_refused_with_its_reason(message: Request, why: str) -> None:
    assert refusal(acceptor(), B, message) == why


def test_grounds_that_do_not_hold_open_nothing() -> None:
    abort, ready = signed(D2, Abort("x")), signed(D2, Ready("u"))
    second = Instance(SCOPE, 2, GENESIS)
    forged = msgspec.structs.replace(abort, votes=abort.votes[:1])
    begin = encode_value(genesis(B))
    assert refusal(acceptor(), B, Prepare(second, Ballot(1, B), 3, forged)) == (
        "GENESIS(2) is not open: the certificate of OUTCOME(1) does not verify"
    )
    why = refusal(acceptor(ready), B, Accept(second, Ballot(1, B), 3, begin, abort))
    assert why == "the cluster of epoch 1 was up: only its recovery may follow"
    assert refusal(acceptor(abort), B, Accept(second, Ballot(1, B), 3, begin, None)) == ""
    carried = encode_value(genesis(B, Continuation(1)))
    assert refusal(acceptor(abort), B, Accept(second, Ballot(1, B), 3, carried)) == (
        "there is no cluster that could be carried on"
    )
    assert refusal(acceptor(ready), B, Accept(second, Ballot(1, B), 3, carried)) == ""


def test_a_promise_stands_against_lower_ballots_and_for_its_own() -> None:
    a, low, high = acceptor(), *sorted([B, C])
    decision = a.step(0.0, acc.Asked(high, Prepare(D1, Ballot(2, high), 3)))
    assert decision.reason == f"promised GENESIS(1) to {high[-8:]}"
    assert decision.effects[-1] == acc.Reply(Promise(D1, Ballot(2, high), 3, None))
    assert a.promised(D1) == Ballot(2, high)
    assert a.accepted(D1) is None
    assert refusal(a, low, Prepare(D1, Ballot(2, low), 3)) == "a higher ballot was promised"
    assert refusal(a, low, Accept(D1, Ballot(2, low), 3, encode_value(genesis(low)))) == (
        "a higher ballot was promised"
    )
    assert refusal(a, high, Prepare(D1, Ballot(2, high), 3)) == "", "the same again"
    value = encode_value(genesis(high))
    decision = a.step(0.0, acc.Asked(high, Accept(D1, Ballot(2, high), 3, value)))
    assert decision.reason == f"voted in GENESIS(1) for the proposal of {high[-8:]}"
    reply = decision.effects[-1]
    assert isinstance(reply, acc.Reply)
    assert isinstance(reply.message, Accepted)
    assert (reply.message.instance, reply.message.ballot, reply.message.nodes) == (D1, Ballot(2, high), 3)
    assert a.accepted(D1) == value
    assert a.accepted(D2) is None
    other = encode_value(genesis(low))
    assert refusal(a, high, Accept(D1, Ballot(2, high), 3, other)) == "this ballot had another value"
    assert refusal(a, high, Accept(D1, Ballot(2, high), 3, value)) == ""
    assert refusal(a, high, Accept(D1, Ballot(3, high), 3, other)) == ""
    answer = a.step(0.0, acc.Asked(low, Prepare(D1, Ballot(4, low), 3))).effects[-1]
    assert answer == acc.Reply(Promise(D1, Ballot(4, low), 3, (Ballot(3, high), other)))


def test_n_is_raised_by_what_was_promised_or_voted_and_counts_without_the_lost() -> None:
    a = acceptor()
    a.step(0.0, acc.NodesDeclared(MAX_NODES + 5))
    assert a.nodes == MAX_NODES
    a.step(0.0, acc.NodesDeclared(1))
    decision = a.step(0.0, acc.NodesRaised(5))
    assert decision.reason == "N raised from 1 to 5: so many nodes were seen"
    assert a.step(0.0, acc.NodesRaised(5)) == acc.Decision()
    assert refusal(a, B, Accept(D1, Ballot(1, B), 4, encode_value(genesis(B)))) == (
        "the proposal counts on 4 nodes, I know of 5"
    )
    recovery = genesis(B, Continuation(1, lost=(C, D)))
    b = acceptor(signed(D2, Ready("u")), raised=5)
    second = Instance(SCOPE, 2, GENESIS)
    assert refusal(b, B, Prepare(second, Ballot(1, B), 2, lost=(C, D))) == (
        "the proposal counts on 2 nodes, I know of 3"
    )
    assert refusal(b, B, Accept(second, Ballot(1, B), 2, encode_value(recovery))) == (
        "the proposal counts on 2 nodes, I know of 3"
    )
    assert refusal(b, B, Accept(second, Ballot(1, B), 3, encode_value(recovery))) == ""
    assert b.nodes == 5
    assert refusal(b, B, Accept(second, Ballot(2, B), 9, encode_value(recovery))) == ""
    assert b.nodes == 9


def test_the_end_of_a_recovery_counts_as_its_begin_did() -> None:
    recovery = genesis(A, Continuation(1, lost=(C, D)))
    chosen = signed(Instance(SCOPE, 2, GENESIS), recovery, nodes=3)
    assert acceptor(signed(D1, genesis()), raised=5).outcome_nodes(1) == 5
    assert acceptor(raised=5).outcome_nodes(1) == 5
    assert acceptor(chosen, raised=5).outcome_nodes(2) == 3
    assert acceptor(chosen, raised=9).outcome_nodes(2) == 7
    assert acceptor(chosen, raised=2).outcome_nodes(2) == 3
    assert acceptor(chosen, raised=2).outcome_nodes(2, 9) == 7
    assert acceptor(raised=2).outcome_nodes(1, 9) == 9


# ---------------------------------------------------------------- certificates, learnt and kept


def test_what_was_decided_is_learnt_once_and_answered_with() -> None:
    a, chosen = acceptor(), signed(D1, genesis())
    decision = a.step(0.0, acc.CertificateLearned(chosen))
    assert decision.reason == "learnt what a quorum decided: GENESIS(1)"
    assert decision.effects == (acc.Persist(wire.encode(a.state)),)
    assert a.step(0.0, acc.CertificateLearned(chosen)) == acc.Decision()
    decision = a.step(0.0, acc.Asked(B, Prepare(D1, Ballot(1, B), 3)))
    assert decision == acc.Decision((acc.Reply(Decided(chosen)),), "GENESIS(1) is decided already")
    other = signed(D1, genesis(B))
    decision = a.step(0.0, acc.CertificateLearned(other))
    assert decision.effects == (acc.Conflict(chosen, other),)
    assert decision.reason == "GENESIS(1) was decided twice: N is understated"
    unsigned = msgspec.structs.replace(other, votes=other.votes[:1])
    assert a.step(0.0, acc.CertificateLearned(unsigned)) == acc.Decision()
    elsewhere = signed(Instance("other", 1, OUTCOME), Ready("u"))
    assert a.step(0.0, acc.CertificateLearned(elsewhere)) == acc.Decision()
    bad = msgspec.structs.replace(signed(D2, Ready("u")), nodes=5)
    assert a.step(0.0, acc.CertificateLearned(bad)) == acc.Decision()
    assert a.certificate(1, OUTCOME) is None


def test_the_last_two_epochs_are_kept_and_votes_of_the_open_one_alone() -> None:
    a = acceptor()
    assert a.epoch == 1
    a.step(0.0, acc.Asked(B, Prepare(D1, Ballot(1, B), 3)))
    a.step(0.0, acc.CertificateLearned(signed(D1, genesis())))
    assert a.state.instances == (), "what is decided is not voted on again"
    a.step(0.0, acc.Asked(B, Prepare(D2, Ballot(1, B), 3)))
    assert [s.instance for s in a.state.instances] == [D2]
    for epoch in (1, 2, 3):
        a.step(0.0, acc.CertificateLearned(signed(Instance(SCOPE, epoch, OUTCOME), Abort("x"))))
        assert a.epoch == epoch + 1
    assert a.state.instances == ()
    assert [(c.instance.epoch, c.instance.decree) for c in a.state.certificates] == [(3, OUTCOME)]
    assert a.step(0.0, acc.CertificateLearned(signed(D2, Abort("x")))) == acc.Decision(), "long over"
    late = a.step(0.0, acc.CertificateLearned(signed(Instance(SCOPE, 3, GENESIS), genesis())))
    assert late.effects, "of the epoch before the open one"
    third = Instance(SCOPE, 4, GENESIS)
    a.step(0.0, acc.Asked(B, Prepare(third, Ballot(1, B), 3)))
    a.step(0.0, acc.CertificateLearned(signed(Instance(SCOPE, 3, GENESIS), genesis())))
    assert [s.instance for s in a.state.instances] == [third]
    again = acc.Acceptor(scope=SCOPE, mesh_id=MESH, sign=bytes, state=a.state)
    assert again.state == a.state
    decided = a.step(0.0, acc.Asked(C, Prepare(D1, Ballot(5, C), 3))).effects
    assert decided == (acc.Reply(Decided(signed(Instance(SCOPE, 3, OUTCOME), Abort("x")))),)
    assert a.wake_at() is None


def test_a_certificate_is_verified_to_the_last_number() -> None:
    good = signed(D1, genesis())
    assert certificates.verify(good, MESH)
    changes = (
        {"nodes": 0}, {"nodes": MAX_NODES + 1}, {"instance": Instance(SCOPE, 0, GENESIS)}, {"value": b"x"},
        {"instance": Instance(SCOPE, MAX_EPOCH + 1, GENESIS)}, {"instance": Instance(SCOPE, 1, 3)},
        {"ballot": Ballot(0, A)}, {"ballot": Ballot(MAX_ROUND + 1, A)}, {"votes": good.votes[:1]},
        {"votes": good.votes[:1] * 2}, {"votes": (*good.votes, good.votes[0])},
    )  # fmt: skip
    for change in changes:
        assert not certificates.verify(msgspec.structs.replace(good, **change), MESH), change
    assert not certificates.verify(good, "another mesh")
    assert certificates.verify(signed(Instance(SCOPE, MAX_EPOCH, GENESIS), genesis()), MESH)
    assert certificates.verify(signed(D1, genesis(), round=MAX_ROUND), MESH)
    assert certificates.verify(signed(D1, genesis(), nodes=1), MESH)
    raw = certificates.encode(good)
    assert certificates.decode(raw) == good
    assert certificates.verify_entry("genesis/kairos/1/1", raw, MESH)
    assert not certificates.verify_entry("genesis/kairos/1/2", raw, MESH)
    assert not certificates.verify_entry("genesis/kairos/1/1", b"junk", MESH)
    with pytest.raises(ValueError, match=r"a certificate has at most 131072 bytes, this has 131073"):
        certificates.decode(bytes(certificates.MAX_CERTIFICATE_BYTES + 1))
    with pytest.raises(ValueError, match=r"^(?!a certificate has)"):
        certificates.decode(bytes(certificates.MAX_CERTIFICATE_BYTES))


def test_which_certificate_opens_what_and_admits_whom() -> None:
    chosen, abort, ready = signed(D1, genesis()), signed(D2, Abort("x")), signed(D2, Ready("u"))
    second, first_of_two = Instance(SCOPE, 2, GENESIS), Instance(SCOPE, 2, OUTCOME)
    opens = certificates.opens
    assert [opens(i, None) for i in (D1, D2, second)] == [True, False, False]
    assert [opens(i, chosen) for i in (D1, D2, second, first_of_two)] == [False, True, False, False]
    assert [opens(i, abort) for i in (D1, D2, second, first_of_two)] == [False, False, True, False]
    assert not opens(Instance("other", 2, GENESIS), abort)
    assert certificates.is_abort(abort)
    assert not certificates.is_abort(ready)
    assert not certificates.is_abort(chosen)
    assert certificates.is_ready(ready)
    assert not certificates.is_ready(abort)
    assert not certificates.is_ready(chosen)
    assert certificates.genesis_of(chosen) == genesis()
    assert certificates.key_of(ready) == "genesis/kairos/1/2"
    recovery = genesis(A, Continuation(1))
    given_up = signed(Instance(SCOPE, 2, OUTCOME), Abort("x", continues=1))
    admits = certificates.admits
    assert admits(None, genesis()) == ""
    assert admits(None, recovery) == "there is no cluster that could be carried on"
    assert admits(ready, recovery) == ""
    assert admits(ready, genesis()) == "the cluster of epoch 1 was up: only its recovery may follow"
    assert admits(given_up, recovery) == ""
    assert admits(given_up, genesis()) == "the cluster of epoch 1 was up: only its recovery may follow"
    carried = signed(second, recovery)
    assert admits(carried, Abort("x")) == "ABORT must say which cluster's recovery it gives up"
    assert admits(carried, Abort("x", continues=1)) == ""
    assert admits(carried, Ready("u")) == ""
    assert messages.carries_on(Ready("u")) == 0
    assert messages.lost_in(Ready("u")) == ()


# ---------------------------------------------------------------- values and messages


def test_values_have_bounds() -> None:
    def fails(value: Genesis, why: str = "a placement, times and a remark within bounds") -> None:
        with pytest.raises(ValueError, match=why):
            decode_value(encode_value(value), GENESIS)

    good = genesis()
    assert decode_value(encode_value(good), GENESIS) == good
    change = msgspec.structs.replace
    for field in ("home_region", "remark"):
        edge = change(good, **{field: "x" * MAX_REMARK_CHARS})
        assert decode_value(encode_value(edge), GENESIS) == edge
        fails(change(good, **{field: "x" * (MAX_REMARK_CHARS + 1)}))
    for number in range(4):
        times = [0, 0, 0, 0]
        times[number] = MAX_TIME
        edge = change(good, timing=Timing(*times))
        assert decode_value(encode_value(edge), GENESIS) == edge
        for bad in (MAX_TIME + 1, -1):
            times[number] = bad
            fails(change(good, timing=Timing(*times)))
    fails(change(good, placement="scatter"))
    assert decode_value(encode_value(change(good, placement="pack")), GENESIS).placement == "pack"  # type: ignore[union-attr]
    distinct = "a genesis names distinct first servers, its initiator first"
    fails(change(good, servers=()), distinct)
    fails(change(good, servers=(B, A)), distinct)
    fails(change(good, servers=(A, B, B)), distinct)
    most = tuple(f"p{n}" for n in range(messages.MAX_SERVERS))
    edge = change(good, initiator="p0", servers=most)
    assert decode_value(encode_value(edge), GENESIS) == edge
    fails(change(edge, servers=(*most, "one more")), distinct)
    with pytest.raises(ValueError, match="decree 2 cannot be Genesis"):
        decode_value(encode_value(good), OUTCOME)
    with pytest.raises(ValueError, match=f"at most {MAX_VALUE_BYTES} bytes, this has {MAX_VALUE_BYTES + 1}"):
        decode_value(bytes(MAX_VALUE_BYTES + 1), GENESIS)
    with pytest.raises(ValueError, match=r"^(?!a genesis value has)"):
        decode_value(bytes(MAX_VALUE_BYTES), GENESIS)
    assert (str(D1), str(D2)) == ("GENESIS(1)", "OUTCOME(1)")


def test_messages_survive_the_wire_and_have_bounds() -> None:
    request = Prepare(D1, Ballot(1, B), 3)
    answer = Promise(D1, Ballot(1, B), 3)
    assert messages.decode_request(messages.encode(request)) == request
    assert messages.decode_answer(messages.encode(answer)) == answer
    limit = messages.MAX_MESSAGE_BYTES
    for decode in (messages.decode_request, messages.decode_answer):
        with pytest.raises(
            ValueError, match=f"a genesis message has at most {limit} bytes, this has {limit + 1}"
        ):
            decode(bytes(limit + 1))
        with pytest.raises(ValueError, match=r"^(?!a genesis message has)"):
            decode(bytes(limit))
    assert [quorum(n) for n in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]
    assert [messages.covered(n) for n in (1, 2, 3, 4, 5)] == [1, 3, 3, 5, 5]


# ---------------------------------------------------------------- one attempt


def proposer(nodes: int = 3, voters: tuple[PeerId, ...] = (A, B, C), round: int = 2) -> prop.Proposer:
    return prop.Proposer(
        mesh_id=MESH, instance=D1, self_id=A, voters=voters, value=encode_value(genesis()), nodes=nodes,
        round=round, grounds=None, lost=(D,),
    )  # fmt: skip


def vote(identity: Identity, value: bytes, nodes: int = 3, round: int = 2) -> Accepted:
    payload = vote_payload(MESH, D1, Ballot(round, A), nodes, value)
    return Accepted(D1, Ballot(round, A), nodes, identity.sign(VOTE_PURPOSE, payload))


def test_an_attempt_asks_all_and_wins_with_the_votes_of_a_quorum() -> None:
    p = proposer()
    assert (p.phase, p.done, p.quorum, p.wake_at()) == (1, False, 2, None)
    first = Prepare(D1, Ballot(2, A), 3, None, (D,))
    assert p.step(0.0, prop.Begun()) == acc.Decision(tuple(prop.Ask(peer, first) for peer in (A, B, C)))
    assert p.step(0.0, prop.Answered(A, first, Promise(D1, Ballot(2, A), 3))) == acc.Decision()
    before = encode_value(genesis(B))
    lower = encode_value(genesis(C))
    decision = p.step(0.0, prop.Answered(B, first, Promise(D1, Ballot(2, A), 3, (Ballot(1, B), before))))
    second = Accept(D1, Ballot(2, A), 3, before, None, (D,))
    assert decision.effects == tuple(prop.Ask(peer, second) for peer in (A, B, C))
    assert decision.reason == "2 of 3 nodes promised GENESIS(1)"
    assert p.phase == 2
    stale = Promise(D1, Ballot(2, A), 3, (Ballot(1, A), lower))
    assert p.step(0.0, prop.Answered(C, first, stale)) == acc.Decision(), "it comes too late"
    assert p.step(0.0, prop.Answered(A, second, vote(IDS[0], before))) == acc.Decision()
    assert p.step(0.0, prop.Answered(A, second, vote(IDS[0], before))) == acc.Decision(), "the same again"
    assert p.step(0.0, prop.Answered(D, second, vote(IDS[3], before))) == acc.Decision(), "nobody asked it"
    decision = p.step(0.0, prop.Answered(C, second, vote(IDS[2], before)))
    (won,) = decision.effects
    assert isinstance(won, prop.Won)
    assert certificates.verify(won.certificate, MESH)
    assert [v.peer for v in won.certificate.votes] == sorted([A, C])
    assert (won.certificate.instance, won.certificate.nodes, won.certificate.value) == (D1, 3, before)
    assert decision.reason == "2 of 3 nodes decided GENESIS(1)"
    assert p.done
    assert p.step(0.0, prop.Expired()) == acc.Decision()


def test_an_attempt_gives_up_when_a_quorum_has_become_impossible() -> None:
    p, first = proposer(), Prepare(D1, Ballot(2, A), 3, None, (D,))
    p.step(0.0, prop.Begun())
    nack = Nack(D1, Ballot(2, A), 7, Ballot(9, B), "because" + "x" * 300)
    assert p.step(0.0, prop.Answered(B, first, nack)) == acc.Decision()
    assert p.step(0.0, prop.Answered(B, first, None)) == acc.Decision(), "it had failed already"
    decision = p.step(0.0, prop.Answered(C, first, None))
    assert decision.effects == (prop.Lost(9, 7, nack.reason[:200]),)
    assert decision.reason == nack.reason[:200]
    assert p.done
    p = proposer()
    huge = Nack(D1, Ballot(2, A), MAX_NODES + 9, Ballot(MAX_ROUND + 9, B), "")
    p.step(0.0, prop.Answered(B, first, huge))
    assert p.step(0.0, prop.Answered(C, first, None)).effects == (
        prop.Lost(MAX_ROUND - 1, MAX_NODES, "too few voters answered"),
    )
    p = proposer()
    assert p.step(0.0, prop.Expired()) == acc.Decision(
        (prop.Lost(2, 3, "too few voters answered in time"),), "too few voters answered in time"
    )
    few = proposer(nodes=5)
    why = "3 voters are here, 3 must agree"
    assert few.step(0.0, prop.Begun()).effects != (), why
    fewer = proposer(nodes=6)
    assert fewer.step(0.0, prop.Begun()).effects == (prop.Lost(2, 6, "3 voters are here, 4 must agree"),)


def test_answers_that_are_not_ours_or_not_true_do_not_count() -> None:
    p, first = proposer(), Prepare(D1, Ballot(2, A), 3, None, (D,))
    for wrong in (
        Promise(D2, Ballot(2, A), 3), Promise(D1, Ballot(3, A), 3), vote(IDS[1], b""),
        Promise(D1, Ballot(2, A), 3, (Ballot(2, A), encode_value(genesis()))),
        Promise(D1, Ballot(2, A), 3, (Ballot(1, A), b"junk")),
    ):  # fmt: skip
        p = proposer()
        p.step(0.0, prop.Begun())
        assert p.step(0.0, prop.Answered(B, first, wrong)) == acc.Decision(), "one may fail"
        assert p.step(0.0, prop.Answered(A, first, Promise(D1, Ballot(2, A), 3))) == acc.Decision()
        assert p.step(0.0, prop.Answered(C, first, None)).effects != (), "and with it a second one"
        assert p.done
    p = proposer()
    for asked in (
        Prepare(D2, Ballot(2, A), 3),
        Prepare(D1, Ballot(1, A), 3),
        Accept(D1, Ballot(2, A), 3, b""),
    ):
        for peer in (B, C):
            assert p.step(0.0, prop.Answered(peer, asked, None)) == acc.Decision(), "not this question"
    assert not p.done
    p.step(0.0, prop.Answered(A, first, Promise(D1, Ballot(2, A), 3)))
    p.step(0.0, prop.Answered(B, first, Promise(D1, Ballot(2, A), 3)))
    value = encode_value(genesis())
    second = Accept(D1, Ballot(2, A), 3, value, None, (D,))
    assert p.step(0.0, prop.Answered(B, second, vote(IDS[2], value))) == acc.Decision(), "another's signature"
    assert p.step(0.0, prop.Answered(C, second, vote(IDS[2], b"else"))).effects != ()


def test_a_proof_is_good_whenever_and_from_whomever_it_comes() -> None:
    first = Prepare(D1, Ballot(2, A), 3, None, (D,))
    for proof in (signed(D1, genesis(B)), signed(D2, Abort("x"))):
        p = proposer()
        decision = p.step(0.0, prop.Answered(D, Prepare(D2, Ballot(1, D), 3), Decided(proof)))
        assert decision == acc.Decision((prop.Won(proof),), f"{proof.instance} was decided before")
        assert p.done
    unsigned = msgspec.structs.replace(signed(D1, genesis(B)), nodes=5)
    for bad in (unsigned, signed(Instance("other", 1, GENESIS), genesis())):
        p = proposer()
        assert p.step(0.0, prop.Answered(D, first, Decided(bad))) == acc.Decision()
        assert p.step(0.0, prop.Answered(B, first, Decided(bad))) == acc.Decision()
        assert not p.done
        assert p.step(0.0, prop.Answered(C, first, Decided(bad))).effects != (), "as if two had failed"


# ---------------------------------------------------------------- attempt after attempt


def voting() -> Voting:
    return Voting(
        scope=SCOPE, mesh_id=MESH, self_id=A, sign=lambda m: IDS[0].sign(VOTE_PURPOSE, m), ballot_s=10.0,
        state=acc.AcceptorState(),
    )  # fmt: skip


def asks(effects: list[object]) -> list[prop.Ask]:
    return [effect for effect in effects if isinstance(effect, prop.Ask)]


def test_a_node_alone_decides_at_once_and_publishes_what_came_of_votes() -> None:
    v = voting()
    assert (v.wake_at(), v.goal, v.nodes(0.0), v.last_refusal) == (None, None, 1, "")
    effects = v.propose(5.0, GENESIS, genesis(), (A,))
    assert [type(effect) for effect in effects] == [acc.Persist, acc.Persist, acc.Persist, Learnt]
    assert v.goal is None
    assert v.wake_at() is None
    assert v.acceptor.certificate(1, GENESIS) is not None
    assert v.tick(99.0) == []
    assert v.learn(6.0, signed(D2, Ready("u")))[0] == acc.Persist(wire.encode(v.acceptor.state))


def test_attempts_expire_and_pauses_grow_with_what_was_heard() -> None:
    v = voting()
    v.declare(0.0, 3, 0)
    effects = v.propose(100.0, GENESIS, genesis(), (B, A, C))
    assert [ask.peer for ask in asks(effects)] == [B, C], "itself it asks directly"
    assert v.goal == D1
    assert v.wake_at() == 110.0
    assert v.propose(101.0, GENESIS, genesis(), (A, B, C)) == [], "one at a time"
    assert v.tick(109.9) == []
    assert v.tick(110.0) == []
    assert v.last_refusal == "too few voters answered in time"
    first_s = v.wake_at()
    assert first_s is not None
    assert 112.0 <= first_s <= 122.0
    assert v.propose(first_s - 0.1, GENESIS, genesis(), (A, B, C)) == []
    (ask, _) = asks(v.propose(first_s, GENESIS, genesis(), (A, B, C)))
    assert ask.message.ballot == Ballot(2, A)
    nack = Nack(D1, Ballot(2, A), 5, Ballot(40, B), "a higher ballot was promised")
    v.answered(first_s, prop.Answered(B, ask.message, nack))
    v.answered(first_s, prop.Answered(C, ask.message, None))
    assert v.last_refusal == "a higher ballot was promised"
    assert v.nodes(first_s + 29.9) == 5
    assert v.nodes(first_s + 30.0) == 3
    second_s = v.wake_at()
    assert second_s is not None
    assert first_s + 4.0 <= second_s <= first_s + 24.0, "twice as long, once more jittered"
    (ask, *_) = asks(v.propose(second_s, GENESIS, genesis(), (A, B, C, D)))
    assert ask.message.ballot == Ballot(41, A)
    assert ask.message.nodes == 5
    v.give_way()
    assert (v.goal, v.wake_at()) == (None, None)


def test_pauses_are_bounded_and_another_goal_begins_afresh() -> None:
    v, now = voting(), 0.0
    v.declare(0.0, 3, 0)
    for _ in range(12):
        v.propose(now, GENESIS, genesis(), (A, B, C))
        v.tick(now + 10.0)
        after = v.wake_at()
        assert after is not None
        assert after - now - 10.0 <= 8 * 12.0
        now = after
    v.learn(now, signed(D1, genesis()))
    assert v.goal is None
    assert asks(v.propose(now, OUTCOME, Abort("x"), (A, B, C))), "no pause for another decision"
    v.learn(now, signed(D2, Ready("u")))
    assert v.goal is None
    effects = v.propose(now, GENESIS, genesis(A, Continuation(1, lost=(C,))), (A, B), epoch=2, nodes=2)
    (ask,) = asks(effects)
    assert ask.message.nodes == 2
    assert ask.message.instance == Instance(SCOPE, 2, GENESIS)
    assert ask.message.lost == (C,)
    assert ask.message.grounds == signed(D2, Ready("u"))


def test_n_is_declared_and_seen() -> None:
    v = voting()
    assert v.declare(0.0, 4, 0) == []
    assert v.nodes(0.0) == 4
    (persist,) = v.declare(0.0, 2, 6)
    assert persist == acc.Persist(wire.encode(v.acceptor.state))
    assert v.nodes(0.0) == 6
    reply = v.asked(0.0, acc.Asked(B, Prepare(D1, Ballot(1, B), 3)))
    assert isinstance(reply[0], acc.Reply)
    assert replace(reply[0], message=reply[0].message) == reply[0]


# ---------------------------------------------------------------- what a ledger keeps of it


def test_a_certificate_s_ledger_key_says_its_scope() -> None:
    for scope in ("kairos", "kairos/west"):
        key = certificates.key_of(signed(Instance(scope, 12, OUTCOME), Abort("gone", A)))
        assert key == f"genesis/{scope}/12/2"
        assert key.startswith(certificates.prefix_of(scope))
        assert certificates.scope_of(key) == scope
    assert certificates.scope_of("member/kairos/12/2") == ""


def test_epochs_without_a_cluster_are_forgotten_and_those_with_one_are_not() -> None:
    last = 60
    begun = [signed(Instance(SCOPE, epoch, GENESIS), genesis()) for epoch in range(1, last + 1)]
    given_up = [signed(Instance(SCOPE, epoch, OUTCOME), Abort("gone", A)) for epoch in range(2, last)]
    elsewhere = [signed(Instance(f"{SCOPE}/west", epoch, OUTCOME), Abort("gone", A)) for epoch in (1, 99)]
    held = [*begun, signed(D2, Ready("uid")), *given_up, *elsewhere]

    def void(scope: str, of: list[Certificate]) -> set[str]:
        return set(
            certificates.outlived(scope, ((certificates.key_of(c), certificates.encode(c)) for c in of))
        )

    oldest = last - certificates.EPOCHS_REMEMBERED  # counted from the last outcome: the open epoch has none
    gone = {(epoch, decree) for epoch in range(2, oldest) for decree in (GENESIS, OUTCOME)}
    assert void(SCOPE, held) == {f"genesis/{SCOPE}/{epoch}/{decree}" for epoch, decree in gone}
    assert void(f"{SCOPE}/west", held) == {f"genesis/{SCOPE}/west/1/2"}
    assert void(SCOPE, begun) == void(SCOPE, []) == void("other", held) == set()
