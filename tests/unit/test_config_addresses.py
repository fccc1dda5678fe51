"""Which texts are addresses of a mesh?"""

from __future__ import annotations

import pytest

from p2p_bootstrap.config.addresses import check_bootstrap, check_listen, port_of
from p2p_network.core.ids import peer_id_of

PEER = peer_id_of(bytes(32))


@pytest.mark.parametrize(
    "text",
    [
        "192.0.2.1:4701",
        "[2001:db8::1]:4701",
        "node-1.example.org:4701",
        "localhost:1",
        "/ip4/192.0.2.1/tcp/4701",
        "/ip6/2001:db8::1/tcp/4701",
        "/dns/node.example/tcp/4701",
        "/dns4/node.example/tcp/4701",
        f"/ip4/192.0.2.1/tcp/4701/p2p/{PEER}",
    ],
)
def test_good_bootstrap(text: str) -> None:
    assert check_bootstrap(text) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.1", "has no port"),
        ("2001:db8::1:4701", "needs brackets"),
        ("[192.0.2.1]:4701", "not an IPv6"),
        ("[::zz]:4701", "not an IPv6"),
        ("192.0.2.256:4701", "not an IPv4"),
        ("host:0", "not a port"),
        ("host:65536", "not a port"),
        ("host:x", "not a port"),
        (":4701", "host is missing"),
        ("-bad-.example:1", "neither an IP address nor a host name"),
        ("https://host:1", "URL"),
        ("h" * 500 + ":1", "at most"),
        ("/ip4/192.0.2.1/udp/4701", "by /tcp"),
        ("/ip4/::1/tcp/4701", "not an IPv4"),
        ("/ip6/1.2.3.4/tcp/4701", "not an IPv6"),
        ("/foo/1.2.3.4/tcp/4701", "not known"),
        ("/ip4/1.2.3.4/tcp", "is not /"),
        ("/ip4/1.2.3.4/tcp/1/quic/x", "only /p2p"),
        ("/ip4/1.2.3.4/tcp/1/p2p/12D3KooWshort", "not a peer id"),
        ("/" + "x" * 500, "at most"),
        ("", "has no port"),
    ],
)
def test_bad_bootstrap(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_bootstrap(text)


def test_listen_takes_addresses_only() -> None:
    assert port_of(check_listen("[::]:4701")) == 4701
    with pytest.raises(ValueError, match="no IP address"):
        check_listen("localhost:4701")
