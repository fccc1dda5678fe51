"""What an operator writes as an address, and what is refused with which words."""

from __future__ import annotations

import pytest

from p2p_network.core.ids import peer_id_of
from p2p_network.host.addresses import Endpoint, endpoints_of, parse_endpoint

PEER = peer_id_of(bytes(32))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.5:4701", Endpoint("10.0.0.5", 4701)),
        ("[fd00::5]:4701", Endpoint("fd00::5", 4701)),
        ("Seed.Example:4701", Endpoint("seed.example", 4701)),
        ("/ip4/10.0.0.5/tcp/4701", Endpoint("10.0.0.5", 4701)),
        ("/ip6/fd00:0::5/tcp/4701", Endpoint("fd00::5", 4701)),
        ("/dns4/seed.example/tcp/4701", Endpoint("seed.example", 4701)),
        (" /dns/seed/tcp/1 ", Endpoint("seed", 1)),
    ],
)
def test_accepted(text: str, expected: Endpoint) -> None:
    assert parse_endpoint(text) == (expected, None)


def test_an_id_at_the_end_is_kept() -> None:
    assert parse_endpoint(f"/ip4/10.0.0.5/tcp/1/p2p/{PEER}") == (Endpoint("10.0.0.5", 1), PEER)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10.0.0.5", "no port"),
        ("fd00::5:4701", "brackets"),
        ("10.0.0.5:0", "port"),
        ("10.0.0.5:65536", "port"),
        ("10.0.0:1", "not an IPv4"),
        ("[10.0.0.5]:1", "not an IPv6"),
        ("a b:1", "neither an address nor a host name"),
        ("-x:1", "neither"),
        ("/ip4/10.0.0.5/udp/1", "is not /ip4"),
        ("/ip4/fd00::1/tcp/1", "not an IPv4"),
        ("/ip4/10.0.0.5/tcp/1/p2p-circuit/x", "/p2p/ID"),
        ("/ip4/10.0.0.5/tcp/1/p2p/Qm", "peer id"),
        ("x" * 400 + ":1", "402 characters"),
        ("", "no port"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=".*" + words.replace("[", r"\[")):
        parse_endpoint(text)


def test_names_and_wildcards_from_peers_are_passed_over() -> None:
    told = [
        "/dns/evil.example/tcp/1",
        "/ip4/0.0.0.0/tcp/1",
        "/ip4/10.0.0.5/tcp/1",
        "/ip4/10.0.0.5/tcp/1",
        "?",
    ]
    assert endpoints_of(told) == (Endpoint("10.0.0.5", 1),)


def test_at_most_sixteen_endpoints_of_one_peer() -> None:
    assert len(endpoints_of(f"/ip4/10.0.0.5/tcp/{port}" for port in range(1, 100))) == 16
