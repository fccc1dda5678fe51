"""Who is asked for a host and port, what SOCKS clients may say, and when a node does without a device?"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_bootstrap.config.loading import load
from p2p_bootstrap.node.userspace import settled, why_no_device
from p2p_network.core.ids import PeerId
from p2p_network.destinations import Map, NotHere
from p2p_network.names.zone import Exposed, Host, zone_of
from p2p_network.records import ServiceItem
from p2p_network.services import Offer, Standing
from p2p_network.socks import (
    Code,
    Handshake,
    NoSocks,
    Request,
    make_datagram,
    parse_datagram,
    reply,
)

ONE, TWO, LOW = PeerId("peer-one-00000001"), PeerId("peer-two-00000002"), PeerId("peer-low-00000003")


def known() -> Map:
    hosts = [
        Host(ONE, "n1", "east", "10.144.0.1", "fd77::1", 1, True, "server"),
        Host(TWO, "n2", "west", "10.144.0.2", "fd77::2", 2, True, "server"),
        Host(LOW, "low", "west", "", "", 3, True),
    ]
    offers = [
        Offer(LOW, ServiceItem("web", "tcp", 80)),
        Offer(ONE, ServiceItem("web", "tcp", 80)),
        Offer(TWO, ServiceItem("n1", "tcp", 80)),
    ]
    exposed = [Exposed(o.item.name, o.peer, o.item.protocol, o.item.port) for o in offers]
    return Map(
        zone=zone_of("kairos", hosts, exposed),
        owners={ip_address(t): h.peer for h in hosts for t in (h.ipv4, h.ipv6) if t},
        offers=offers,
        standing={h.peer: Standing(h.region, True, 0.1) for h in hosts},
        own_region="west",
        carrier_of=lambda network: TWO if str(network).startswith("10.77.") else None,
    )


def asked(host: str, port: int = 80, protocol: str = "tcp") -> list[tuple[str, str]]:
    ways = known().ways(host, port, protocol)  # type: ignore[arg-type]
    return [(way.peer, way.opening.service or way.opening.host) for way in ways]


def test_names_and_addresses_lead_to_peers() -> None:
    assert asked("10.144.0.2") == [(TWO, "10.144.0.2")]
    assert asked("fd77::1") == [(ONE, "fd77::1")]
    assert asked("10.77.0.5") == [(TWO, "10.77.0.5")]
    assert asked("N2.kairos.p2p.") == asked("n2") == [(TWO, "10.144.0.2")]
    assert asked("web.kairos.p2p") == [(LOW, "web"), (ONE, "web")], "the own region first; no VPN needed"
    assert asked("web.east.kairos.p2p") == [(ONE, "web")]
    assert asked("n1") == [(ONE, "10.144.0.1")], "a host's name beats a service's"
    assert asked("servers") == [(TWO, "10.144.0.2"), (ONE, "10.144.0.1")]


@pytest.mark.parametrize(
    ("host", "said", "foreign"),
    [
        ("192.168.1.1", "neither", True),
        ("example.com", "no name of the mesh", True),
        ("nobody.kairos.p2p", "no name", False),
        ("low", "no VPN address", False),
        ("", "no name", False),
    ],
)
def test_what_the_mesh_does_not_know(host: str, said: str, foreign: bool) -> None:
    with pytest.raises(NotHere, match=said) as caught:
        asked(host)
    assert caught.value.is_foreign is foreign
    with pytest.raises(NotHere, match="answers on port 80"):
        asked("web", 81)


CONNECT = b"\x05\x01\x00" + b"\x05\x01\x00\x03\x02n1\x00\x50" + b"GET /"


@given(st.lists(st.integers(1, 5)))
def test_a_socks_handshake_is_read_however_it_is_cut(cuts: list[int]) -> None:
    handshake, data, answers = Handshake(), CONNECT, b""
    while data:
        size = cuts.pop() if cuts else len(data)
        answer, request = handshake.feed(data[:size])
        answers, data = answers + answer, data[size:]
        if request is not None:
            assert request == Request("connect", "n1", 80)
            assert handshake.rest + data == b"GET /"
            assert answers == b"\x05\x00"
            return
    raise AssertionError("no request came")


@given(st.binary(max_size=700))
def test_garbage_ends_a_handshake_or_waits(data: bytes) -> None:
    handshake = Handshake()
    with contextlib.suppress(NoSocks):
        handshake.feed(data)
    assert len(handshake.rest) <= 700
    with contextlib.suppress(ValueError):
        parse_datagram(data)


def test_socks_says_no_in_its_own_words() -> None:
    for bad, answer in (
        (b"\x04\x01\x00", b""),
        (b"\x05\x01\x02", b"\x05\xff"),
        (b"\x05\x01\x00\x05\x02\x00\x01", reply(Code.COMMAND_UNKNOWN)),
        (b"\x05\x01\x00\x05\x01\x00\x09", reply(Code.ADDRESS_UNKNOWN)),
    ):
        with pytest.raises(NoSocks) as caught:
            Handshake().feed(bad)
        assert caught.value.answer == answer
    assert Handshake().feed(b"\x05\x01\x00\x05\x03\x00\x01\0\0\0\0\0\0")[1] == Request("udp", "0.0.0.0", 0)
    for host in ("10.0.0.1", "fd77::1", "n1.kairos.p2p"):
        assert parse_datagram(make_datagram(host, 53, b"x")) == (host, 53, b"x")
    with pytest.raises(ValueError, match="fragment"):
        parse_datagram(b"\0\0\x01" + make_datagram("10.0.0.1", 1, b"")[3:])


def test_a_node_does_without_a_device_only_where_it_can(tmp_path: Path) -> None:
    def state(text: str, why: str) -> tuple[bool, str]:
        file = tmp_path / "config.yaml"
        file.write_text(f"#cloud-config\np2p: {{{text}}}\n")
        config = load([file])
        config, reason = settled(config, why)
        return config.p2p.vpn.create, reason

    alone = "auto: {enable: false}"
    assert state(alone, "") == (True, "")
    assert state(alone, "no tun") == (False, "no tun")
    assert state("", "no tun") == (True, ""), "a node of a cluster needs it"
    assert state(f"{alone}, vpn: {{mode: tun}}", "no tun") == (True, "")
    assert state(f"{alone}, vpn: {{mode: userspace}}", "") == (False, "p2p.vpn.mode says so")
    assert state("vpn: {use: false}", "no tun") == (False, "no tun")

    assert "there is no" in why_no_device(device_file=tmp_path / "tun")
    (tmp_path / "tun").touch()
    status = tmp_path / "status"
    status.write_text("CapEff:\t0000000000000000\n")
    assert "CAP_NET_ADMIN" in why_no_device(device_file=tmp_path / "tun", status=status)
    status.write_text("CapEff:\t0000000000001000\n")
    assert why_no_device(device_file=tmp_path / "tun", status=status) == ""
    assert replace(known(), own_region="east").ways("web", 80, "tcp")[0].peer == ONE
