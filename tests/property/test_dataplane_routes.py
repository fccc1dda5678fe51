"""Routes and queues: against a plain model."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from p2p_network.dataplane.peers import Session
from p2p_network.dataplane.routes import ONE_TO_MANY, RouteTable, broadcast_of, parse_networks
from p2p_network.session import CHACHA, PeerSession

# Addresses in a small space, so that prefixes meet.
values = st.integers(0, 255).map(lambda low: 0x0A900000 + low)
networks = st.builds(
    lambda value, length: ip_network((value, length), strict=False), values, st.integers(24, 32)
)
assignments = st.lists(st.tuples(st.sampled_from("abc"), st.lists(networks, max_size=4)), max_size=8)


@given(assignments, st.lists(values, max_size=10), st.sampled_from("abc"))
def test_longest_prefix_of_the_last_owner_wins(
    made: list[tuple[str, list[object]]], asked: list[int], removed: str
) -> None:
    table: RouteTable[str] = RouteTable()
    model: dict[object, str] = {}

    def check() -> None:
        for value in asked:
            holding = [n for n in model if IPv4Address(value) in n]  # type: ignore[operator]
            best = max(holding, key=lambda n: n.prefixlen, default=None)  # type: ignore[attr-defined]
            assert table.owner_of(value.to_bytes(4, "big")) == (model[best] if best else None)

    for owner, theirs in made:
        table.assign(owner, theirs)  # type: ignore[arg-type]
        model = {n: o for n, o in model.items() if o != owner}
        model |= dict.fromkeys(theirs, owner)
        check()
    table.remove(removed)
    model = {n: o for n, o in model.items() if o != removed}
    check()


def test_barred_addresses_have_no_owner_even_under_a_default_route() -> None:
    table: RouteTable[str] = RouteTable()
    table.bar((*ONE_TO_MANY, *broadcast_of(parse_networks(["10.144.0.0/16"]))))
    table.assign("exit", parse_networks(["0.0.0.0/0", "::/0"]))
    for raw in (bytes([224, 0, 0, 1]), b"\xff" * 4, bytes([10, 144, 255, 255]), b"\xff\x02" + bytes(14)):
        assert table.owner_of(raw) is None
        assert table.is_barred(raw)
    for raw in (bytes([8, 8, 8, 8]), bytes([10, 144, 255, 254]), b"\xfd" + bytes(15)):
        assert table.owner_of(raw) == "exit"


def test_an_ipv4_prefix_says_nothing_about_ipv6() -> None:
    table: RouteTable[str] = RouteTable()
    table.assign("four", parse_networks(["0.0.0.0/0"]))
    assert table.owner_of(bytes(16)) is None


def test_what_is_remembered_is_bounded() -> None:
    table: RouteTable[str] = RouteTable()
    table.assign("a", parse_networks(["10.0.0.0/8"]))
    for value in range(20000):
        assert table.owner_of((0x0A000000 + value).to_bytes(4, "big")) == "a"
    assert len(table._remembered) <= 8192


@given(st.lists(st.integers(0, 20)))
def test_connection_numbers_are_taken_once_and_upwards(numbers: list[int]) -> None:
    session = Session(PeerSession(bytes(16), CHACHA, bytes(32), bytes(32), 0, ("tcp",), 1420))
    taken = [number for number in numbers if session.take_number("tcp", number)]
    assert taken == sorted(set(taken))
    assert all(number > 0 for number in taken)
