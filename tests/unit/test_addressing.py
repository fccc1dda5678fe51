"""Which address a node gets: candidates, waiting, conflicts, exhaustion (defect 7 of the peer)."""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from p2p_network.addressing import (
    DEFAULT_NETWORK,
    Addressing,
    Assign,
    ClaimsChanged,
    LedgerSettled,
    ReportExhausted,
    Tick,
    Withdraw,
    WriteClaim,
    candidate,
    ipv6_network_of,
    ipv6_of,
    is_usable,
    usable_count,
)
from p2p_network.core.ids import PeerId
from p2p_network.identity import Identity
from p2p_network.records import AddressClaim

MESH = "0123456789abcdef"
PEERS = sorted(Identity(hashlib.sha256(str(n).encode()).digest()).peer_id for n in range(20))
ME, YOU = PEERS[0], PEERS[1]
MS = 1_800_000_000_000


def machine(network: IPv4Network = DEFAULT_NETWORK, who: PeerId = ME) -> Addressing:
    return Addressing(who, MESH, network=network, alone_s=5.0, started_at=100.0)


def mine(attempt: int = 0, claimed_ms: int = MS) -> AddressClaim:
    return AddressClaim(str(candidate(ME, MESH, attempt)), attempt, claimed_ms)


@pytest.mark.parametrize(
    "prefix", ["10.144.0.0/16", "192.168.7.0/24", "10.0.0.0/28", "10.1.254.0/23", "10.0.0.0/31"]
)
def test_candidates_are_a_permutation_of_the_usable_addresses(prefix: str) -> None:
    network = IPv4Network(prefix)
    count = usable_count(network)
    assert count == sum(is_usable(address, network) for address in network)
    if count:
        tries = range(count) if count < 1000 else range(500)
        tried = [candidate(ME, MESH, attempt, network) for attempt in tries]
        assert len(set(tried)) == len(tried)
        assert all(is_usable(address, network) for address in tried)


def test_candidates_are_the_same_everywhere_and_differ_between_nodes() -> None:
    assert str(candidate(ME, MESH, 0)) == str(candidate(ME, MESH, 0))
    assert len({candidate(peer, MESH, 0) for peer in PEERS}) == len(PEERS)
    assert candidate(ME, MESH, 0) != candidate(ME, "another mesh", 0)


@pytest.mark.parametrize("last", ["10.144.3.0", "10.144.3.255", "10.144.0.0", "10.144.255.255", "10.145.0.1"])
def test_never_an_edge(last: str) -> None:
    assert not is_usable(IPv4Address(last), DEFAULT_NETWORK)


def test_a_network_without_room_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="no address"):
        machine(IPv4Network("10.0.0.0/31"))


def test_ipv6_is_a_ula_of_the_mesh() -> None:
    network = ipv6_network_of(MESH)
    assert network.prefixlen == 64
    assert network.subnet_of(IPv6Network("fd00::/8"))
    assert str(network).split(":")[3] in ("", "0"), "subnet 0"
    assert len({ipv6_of(MESH, peer) for peer in PEERS}) == len(PEERS)
    assert all(ipv6_of(MESH, peer) in network for peer in PEERS)
    assert ipv6_network_of("another") != network


def test_the_first_start_waits_until_the_ledger_is_known() -> None:
    made = machine()
    assert made.step(100.0, ClaimsChanged({}, MS)).effects == ()
    assert made.wake_at() == 105.0
    decision = made.step(101.0, LedgerSettled(MS))
    claim = mine()
    assert decision.effects == (WriteClaim(claim), Assign(claim.ipv4, str(ipv6_of(MESH, ME))))
    assert decision.reason == f"{claim.ipv4} is ours: nobody else claims it"
    assert made.wake_at() is None
    assert made.step(102.0, ClaimsChanged({ME: claim}, MS + 1)).effects == ()


def test_alone_it_waits_some_seconds_only() -> None:
    made = machine()
    assert made.step(104.9, Tick(MS)).effects == ()
    assert made.step(105.0, Tick(MS)).effects[0] == WriteClaim(mine())


def test_after_a_restart_the_own_claim_is_used_at_once() -> None:
    made = machine()
    (assign,) = made.step(100.0, ClaimsChanged({ME: mine(attempt=3)}, MS)).effects
    assert assign == Assign(mine(attempt=3).ipv4, str(ipv6_of(MESH, ME)))


def test_a_claim_of_before_the_ledger_was_lost_outlasts_the_one_that_was_begun_with_since() -> None:
    """The others bring the former one back while the new one is being written, over it (seed 620000980)."""
    made, former = machine(), mine(attempt=3)
    assert made.step(105.0, LedgerSettled(MS)).effects[0] == WriteClaim(mine())
    assert made.step(105.1, ClaimsChanged({ME: former}, MS)).effects[-1] == Assign(
        former.ipv4, str(ipv6_of(MESH, ME))
    )
    assert made.step(105.2, ClaimsChanged({ME: mine()}, MS)).effects == (WriteClaim(former),)
    assert made.step(105.3, ClaimsChanged({ME: former}, MS)).effects == ()
    assert made.holding == former.ipv4


def test_addresses_of_others_are_passed_by_even_of_the_dead() -> None:
    made = machine()
    made.step(100.0, ClaimsChanged({YOU: mine(attempt=0), PEERS[2]: mine(attempt=1)}, MS))
    assert made.step(101.0, LedgerSettled(MS + 9)).effects[0] == WriteClaim(
        mine(attempt=2, claimed_ms=MS + 9)
    )


def test_the_older_claim_wins_and_the_loser_moves_on() -> None:
    made = machine()
    made.step(100.0, ClaimsChanged({ME: mine()}, MS))
    decision = made.step(110.0, ClaimsChanged({ME: mine(), YOU: mine(claimed_ms=MS - 1)}, MS + 50))
    moved = mine(attempt=1, claimed_ms=MS + 50)
    assert decision.effects == (
        Withdraw(mine().ipv4),
        WriteClaim(moved),
        Assign(moved.ipv4, str(ipv6_of(MESH, ME))),
    )
    assert f"{YOU} claimed {mine().ipv4} before us" in decision.reason
    assert made.holding == moved.ipv4


@pytest.mark.parametrize(("rival", "keeps"), [(PEERS[0], False), (PEERS[2], True)])
def test_equal_age_is_decided_by_the_peer_id(rival: PeerId, keeps: bool) -> None:
    made = machine(who=YOU)
    claim = AddressClaim(str(candidate(YOU, MESH, 0)), 0, MS)
    made.step(100.0, ClaimsChanged({YOU: claim}, MS))
    made.step(101.0, ClaimsChanged({YOU: claim, rival: claim}, MS))
    assert (made.holding == claim.ipv4) is keeps


def test_a_younger_rival_does_not_disturb_us() -> None:
    made = machine()
    made.step(100.0, ClaimsChanged({ME: mine()}, MS))
    assert made.step(101.0, ClaimsChanged({ME: mine(), YOU: mine(claimed_ms=MS + 1)}, MS)).effects == ()


@pytest.mark.parametrize(
    "ipv4", ["", "10.144.1", "10.145.0.1", "10.144.1.255", "010.144.1.1", "::1", "x" * 200]
)
def test_a_claim_that_is_none_reserves_nothing(ipv4: str) -> None:
    made = machine()
    made.step(100.0, ClaimsChanged({YOU: AddressClaim(ipv4, 0, 0)}, MS))
    assert made.step(101.0, LedgerSettled(MS)).effects[0] == WriteClaim(mine())


def test_another_network_needs_another_address() -> None:
    small = IPv4Network("192.168.7.0/24")
    made = machine(small)
    assert made.step(100.0, ClaimsChanged({ME: mine()}, MS)).effects == ()
    (write, assign) = made.step(101.0, LedgerSettled(MS)).effects
    assert isinstance(write, WriteClaim)
    assert isinstance(assign, Assign)
    assert IPv4Address(assign.ipv4) in small


def test_exhaustion_is_said_once_and_ends_when_an_address_is_free() -> None:
    tiny = IPv4Network("10.0.0.0/30")
    made = machine(tiny)
    taken = {PEERS[n]: AddressClaim(f"10.0.0.{n}", 0, MS) for n in (1, 2)}
    made.step(100.0, ClaimsChanged(taken, MS))
    decision = made.step(101.0, LedgerSettled(MS))
    (report,) = decision.effects
    assert isinstance(report, ReportExhausted)
    assert report.message == decision.reason == "all 2 usable addresses of 10.0.0.0/30 are claimed"
    assert "larger network" in report.hint
    assert made.step(102.0, ClaimsChanged(taken, MS)).effects == ()
    del taken[PEERS[1]]
    assert made.step(103.0, ClaimsChanged(taken, MS)).effects[1] == Assign("10.0.0.1", str(ipv6_of(MESH, ME)))


def test_the_last_free_address_is_found() -> None:
    small = IPv4Network("10.0.0.0/24")
    everyone = [Identity(hashlib.sha256(f"s{n}".encode()).digest()).peer_id for n in range(254)]
    claims: dict[PeerId, AddressClaim] = {}
    for peer in everyone:
        made = machine(small, peer)
        made.step(100.0, ClaimsChanged(dict(claims), MS))
        write = made.step(101.0, LedgerSettled(MS)).effects[0]
        assert isinstance(write, WriteClaim)
        claims[peer] = write.claim
    assert len({claim.ipv4 for claim in claims.values()}) == 254
