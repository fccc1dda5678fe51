"""Who carries which network, who may reach whom, and which packets are answers?"""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network

import pytest

from p2p_network import subnets
from p2p_network.access import Subject, judge, parse_rules
from p2p_network.core.ids import PeerId
from p2p_network.dataplane.guard import MAX_FLOWS, OTHER_S, Guard
from p2p_network.records import AcceptedRecord, RoutesRecord
from p2p_network.subnets import INTERNET, installable, parse_subnet, plan

MESH = (ip_network("10.144.0.0/16"), ip_network("fd77::/64"))
A, B, C = (PeerId(name) for name in ("peer-a", "peer-b", "peer-c"))
LAN = ip_network("10.20.0.0/16")


def test_a_network_is_carried_once_it_is_offered_and_accepted() -> None:
    offers = {
        B: RoutesRecord((str(LAN), "10.144.7.0/24", "nonsense")),
        A: RoutesRecord((str(LAN),), exit=True),
    }
    assert not plan(offers, {}, {A, B}, MESH).carriers
    words = {B: AcceptedRecord((str(LAN), "10.144.7.0/24")), A: AcceptedRecord((), exit=True)}
    alone = plan(offers, words, {A, B}, MESH)
    assert alone.carriers == {LAN: B}, "the VPN's own network can't be taken, nor what was not accepted"
    assert alone.exits == {A}
    both = {**words, A: AcceptedRecord((str(LAN),))}
    assert plan(offers, both, {A, B}, MESH).carriers == {LAN: A}
    failed_over = plan(offers, both, {B}, MESH)
    assert failed_over.carriers == {LAN: B}
    assert failed_over.standby == {(LAN, A)}


def test_an_exit_carries_what_is_public_and_nothing_else() -> None:
    def is_inside(text: str) -> bool:
        address = ip_address(text)
        return any(n.version == address.version and address in n for n in INTERNET)

    for public in ("1.1.1.1", "9.255.255.255", "11.0.0.0", "172.15.0.1", "198.51.100.7", "2606:4700::1"):
        assert is_inside(public), public
    for private in (
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.1.1",
        "172.31.0.1",
        "192.168.1.1",
        "224.0.0.1",
    ):
        assert not is_inside(private), private
    assert not is_inside("fd77::1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10.20.0.1/16", "did you mean 10.20.0.0/16"),
        ("0.0.0.0/0", "offer an exit"),
        ("127.0.0.0/8", "not routed"),
        ("10.144.3.0/24", "VPN's own"),
        ("lan", "no network"),
    ],
)
def test_a_network_that_cannot_be_offered(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_subnet(text, MESH)


def test_a_machine_needs_no_route_to_where_it_is() -> None:
    assert installable([LAN], [ip_network("10.20.3.0/24")]) == ()
    assert installable([LAN], [ip_network("10.21.0.0/16"), ip_network("fd00::/8")]) == (LAN,)
    assert subnets.MAX_NETWORKS > 1


def test_the_first_rule_that_fits_decides() -> None:
    server = Subject(PeerId("12D3KooWserver00"), "s1", "east", "server")
    agent = Subject(PeerId("12D3KooWagent000"), "a1", "west", "agent")
    guest = Subject(PeerId("12D3KooWguest000"), "g1", "west", "")
    rules = parse_rules(
        ["allow node:agent000 to role:server", "deny region:west to role:server", "deny any to node:g1"]
    )
    assert judge(rules, agent, server).allowed
    assert judge(rules, guest, server).rule == "deny region:west to role:server"
    assert not judge(rules, server, guest).allowed
    assert judge(rules, server, agent).allowed
    for bad in (
        "deny west to any",
        "drop any to any",
        "deny any any",
        "deny role:king to any",
        "allow region: to any",
    ):
        with pytest.raises(ValueError, match=r"no rule|nobody|neither|no role"):
            parse_rules([bad])


def packet4(protocol: int, source: str, target: str, payload: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
    return head + ip_address(source).packed + ip_address(target).packed + payload


def tcp(source: int, target: int, flags: int) -> bytes:
    return struct.pack("!HHIIBBHHH", source, target, 0, 0, 0x50, flags, 0, 0, 0)


def test_only_answers_pass_a_guard() -> None:
    guard = Guard()
    me, peer = "10.144.0.1", "10.144.0.2"

    def sent(data: bytes, now: float = 0.0) -> None:
        guard.sent(data, 0, len(data), now)

    def admits(data: bytes, now: float = 1.0) -> bool:
        return guard.admits(data, 0, len(data), now)

    syn, syn_ack = packet4(6, me, peer, tcp(4000, 80, 0x02)), packet4(6, peer, me, tcp(80, 4000, 0x12))
    assert not admits(syn_ack)
    sent(packet4(6, me, peer, tcp(4000, 80, 0x10)))
    assert not admits(syn_ack), "what the peer began before is not ours"
    sent(syn)
    assert admits(syn_ack)
    assert not admits(packet4(6, peer, me, tcp(81, 4000, 0x12)))
    assert not admits(packet4(6, peer, me, tcp(4000, 80, 0x02)))
    sent(packet4(17, me, peer, struct.pack("!HHHH", 53, 5353, 8, 0)))
    answer = packet4(17, peer, me, struct.pack("!HHHH", 5353, 53, 8, 0))
    assert admits(answer)
    assert not admits(answer, now=2.0 + OTHER_S)
    sent(packet4(1, me, peer, struct.pack("!BBHHH", 8, 0, 0, 7, 1)))
    assert admits(packet4(1, peer, me, struct.pack("!BBHHH", 0, 0, 0, 7, 1)))
    assert not admits(packet4(1, peer, me, struct.pack("!BBHHH", 8, 0, 0, 7, 1)))
    too_big = struct.pack("!BBHHH", 3, 4, 0, 0, 1280)
    assert admits(packet4(1, peer, me, too_big + syn[:28])), "path MTU needs it"
    assert not admits(packet4(1, peer, me, too_big + packet4(6, me, peer, tcp(9, 9, 2))[:28]))
    for cut in range(24):
        assert not admits(syn_ack[:cut])
    for port in range(MAX_FLOWS + 10):
        sent(packet4(17, me, peer, struct.pack("!HHHH", port, 9, 8, 0)))
    assert len(guard) <= MAX_FLOWS


def test_answers_pass_over_ipv6_and_in_fragments() -> None:
    guard = Guard()
    me, peer = ip_address("fd77::1").packed, ip_address("fd77::2").packed
    echo = struct.pack("!IHBB", 6 << 28, 8, 58, 64) + me + peer + struct.pack("!BBHHH", 128, 0, 0, 5, 1)
    reply = struct.pack("!IHBB", 6 << 28, 8, 58, 64) + peer + me + struct.pack("!BBHHH", 129, 0, 0, 5, 1)
    later = (
        struct.pack("!IHBB", 6 << 28, 16, 44, 64)
        + peer
        + me
        + struct.pack("!BBHI", 58, 0, 8 << 3, 1)
        + bytes(8)
    )
    assert not guard.admits(later, 0, len(later), 0.0)
    guard.sent(echo, 0, len(echo), 0.0)
    assert guard.admits(reply, 0, len(reply), 1.0)
    assert guard.admits(later, 0, len(later), 1.0)
