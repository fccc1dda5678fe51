"""Names of the mesh: who gets which name, and what a query is answered."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_network.core.ids import PeerId
from p2p_network.names import resolv_conf
from p2p_network.names.answering import MAX_CACHED, Answer, Answering, Forward, Silence
from p2p_network.names.zone import Exposed, Host, label, zone_of

NET4, NET6 = IPv4Network("10.144.0.0/16"), IPv6Network("fd77::/64")


def host(number: int, hostname: str = "", region: str = "east", **changes: object) -> Host:
    given: dict[str, object] = {
        "peer": PeerId(f"12D3KooWpeer{number:08d}"),
        "hostname": hostname or f"n{number}",
        "region": region,
        "ipv4": f"10.144.0.{number}",
        "ipv6": f"fd77::{number}",
        "since": number,
        "alive": True,
    }
    return Host(**{**given, **changes})  # type: ignore[arg-type]


HOSTS = (
    host(1, role="server"),
    host(2, region="west", role="server"),
    host(3, role="agent"),
    host(4, "n1", since=0, ipv6=""),
    host(5, region="west", alive=False, role="server"),
    host(6, ipv4="", ipv6=""),
)
EXPOSED = (
    Exposed("web", HOSTS[0].peer, "tcp", 8080),
    Exposed("web", HOSTS[1].peer, "tcp", 8081),
    Exposed("web", HOSTS[4].peer, "tcp", 8082),
    Exposed("n2", HOSTS[0].peer, "udp", 1),
)
ZONE = zone_of("kairos", HOSTS, EXPOSED)


def addresses(name: str) -> list[str]:
    return [str(a) for a in ZONE.addresses.get(name, ())]


def test_the_older_claim_keeps_a_host_name_and_everyone_has_one() -> None:
    assert addresses("n1.kairos.p2p") == ["10.144.0.4"]
    assert addresses("00000001.kairos.p2p") == ["10.144.0.1", "fd77::1"]
    assert ZONE.reverse[ip_address("10.144.0.1")] == "00000001.kairos.p2p"
    assert ZONE.reverse[ip_address("10.144.0.4")] == "n1.kairos.p2p"
    assert "n6.kairos.p2p" not in ZONE.addresses


def test_services_and_roles_are_those_who_are_there() -> None:
    assert addresses("web.kairos.p2p") == ["10.144.0.1", "fd77::1", "10.144.0.2", "fd77::2"]
    assert addresses("web.west.kairos.p2p") == ["10.144.0.2", "fd77::2"]
    assert addresses("servers.west.kairos.p2p") == ["10.144.0.2", "fd77::2"]
    assert addresses("agents.kairos.p2p") == ["10.144.0.3", "fd77::3"]
    assert [(s.target, s.port) for s in ZONE.services["_web._tcp.kairos.p2p"]] == [
        ("00000001.kairos.p2p", 8080),
        ("n2.kairos.p2p", 8081),
    ]
    assert addresses("n2.kairos.p2p") == ["10.144.0.2", "fd77::2"], "a host's name beats a service's"


@given(st.text(max_size=80))
def test_labels_are_labels(text: str) -> None:
    made = label(text)
    assert len(made) <= 63
    assert not made.startswith("-")
    assert not made.endswith("-")
    assert label(made) == made


@given(st.lists(st.builds(host, st.integers(1, 250), st.text(max_size=8), st.text(max_size=8)), max_size=20))
def test_names_do_not_depend_on_the_order(hosts: list[Host]) -> None:
    unique = list({h.peer: h for h in hosts}.values())
    assert zone_of("x", unique, ()) == zone_of("x", reversed(unique), ())


# --- answers ---------------------------------------------------------------------------------------


def answering() -> Answering:
    made = Answering((NET4, NET6))
    made.zone = ZONE
    return made


def ask(
    name: str, kind: str = "A", *, at: Answering | None = None, is_local: bool = True, tcp: bool = False
) -> dns.message.Message:
    query = dns.message.make_query(name, kind)
    verdict = (at or answering()).ask(query.to_wire(), 0.0, is_local=is_local, tcp=tcp)
    assert isinstance(verdict, Answer), verdict
    reply = dns.message.from_wire(verdict.raw)
    assert query.is_response(reply)
    return reply


def texts(reply: dns.message.Message) -> list[str]:
    return sorted(str(item) for rrset in reply.answer for item in rrset)


@pytest.mark.parametrize(
    ("name", "kind", "code", "expected"),
    [
        ("n2.kairos.p2p", "A", "NOERROR", ["10.144.0.2"]),
        ("N2.KAIROS.p2p", "AAAA", "NOERROR", ["fd77::2"]),
        ("n1.kairos.p2p", "AAAA", "NOERROR", []),
        ("n2.kairos.p2p", "MX", "NOERROR", []),
        ("nobody.kairos.p2p", "A", "NXDOMAIN", []),
        ("n2.other.p2p", "A", "NXDOMAIN", []),
        ("west.kairos.p2p", "A", "NOERROR", []),
        ("_tcp.kairos.p2p", "A", "NOERROR", []),
        (
            "_web._tcp.kairos.p2p",
            "SRV",
            "NOERROR",
            ["0 0 8080 00000001.kairos.p2p.", "0 0 8081 n2.kairos.p2p."],
        ),
        ("2.0.144.10.in-addr.arpa", "PTR", "NOERROR", ["n2.kairos.p2p."]),
        ("99.0.144.10.in-addr.arpa", "PTR", "NXDOMAIN", []),
        (f"{ip_address('fd77::2').reverse_pointer}", "PTR", "NOERROR", ["n2.kairos.p2p."]),
    ],
)
def test_the_meshs_names_are_answered_with_authority(
    name: str, kind: str, code: str, expected: list[str]
) -> None:
    reply = ask(name, kind, is_local=False)
    assert dns.rcode.to_text(reply.rcode()) == code
    assert texts(reply) == expected
    assert reply.flags & dns.flags.AA


def test_other_names_are_for_this_machine_only() -> None:
    assert ask("example.org", is_local=False).rcode() == dns.rcode.REFUSED
    assert ask("4.3.2.1.in-addr.arpa", "PTR", is_local=False).rcode() == dns.rcode.REFUSED
    raw = dns.message.make_query("example.org", "A").to_wire()
    assert isinstance(answering().ask(raw, 0.0, is_local=True, tcp=False), Forward)


def forward(at: Answering, name: str, now: float, *, ttl: int = 60, code: int = 0) -> dns.message.Message:
    query = dns.message.make_query(name, "A")
    verdict = at.ask(query.to_wire(), now, is_local=True, tcp=False)
    assert isinstance(verdict, Forward)
    other = dns.message.make_response(query)
    other.set_rcode(dns.rcode.Rcode(code))
    other.answer.append(dns.rrset.from_text(f"{name}.", ttl, "IN", "A", "192.0.2.1"))
    return dns.message.from_wire(at.forwarded(verdict.query, other.to_wire(), now, tcp=False))


def test_replies_are_kept_as_long_as_they_live_and_age() -> None:
    at = answering()
    assert texts(forward(at, "example.org", 0.0)) == ["192.0.2.1"]
    query = dns.message.make_query("EXAMPLE.org", "A")
    verdict = at.ask(query.to_wire(), 45.0, is_local=True, tcp=False)
    assert isinstance(verdict, Answer)
    reply = dns.message.from_wire(verdict.raw)
    assert reply.id == query.id
    assert reply.answer[0].ttl == 15
    assert isinstance(at.ask(query.to_wire(), 61.0, is_local=True, tcp=False), Forward)


def test_failures_are_not_kept_and_the_cache_is_bounded() -> None:
    at = answering()
    forward(at, "broken.org", 0.0, code=2)
    forward(at, "broken.org", 0.0, code=2)
    for number in range(MAX_CACHED + 10):
        forward(at, f"n{number}.org", 0.0)
    assert isinstance(
        at.ask(dns.message.make_query("n0.org", "A").to_wire(), 0.0, is_local=True, tcp=False), Forward
    )


def test_another_servers_nonsense_is_a_failure() -> None:
    at = answering()
    query = dns.message.make_query("example.org", "A")
    other = dns.message.make_response(dns.message.make_query("evil.org", "A")).to_wire()
    for raw in (None, b"", b"\x00" * 40, other):
        reply = dns.message.from_wire(at.forwarded(query, raw, 0.0, tcp=False))
        assert reply.rcode() == dns.rcode.SERVFAIL


def test_what_does_not_fit_is_cut_and_marked() -> None:
    at = Answering((NET4, NET6))
    at.zone = zone_of("kairos", [host(n, role="agent") for n in range(1, 200)], ())
    query = dns.message.make_query("agents.kairos.p2p", "A")
    verdict = at.ask(query.to_wire(), 0.0, is_local=True, tcp=False)
    assert isinstance(verdict, Answer)
    assert len(verdict.raw) <= 512
    assert dns.message.from_wire(verdict.raw).flags & dns.flags.TC
    assert len(texts(ask("agents.kairos.p2p", at=at, tcp=True))) == 199


@given(st.binary(max_size=300))
def test_nonsense_is_passed_over_or_answered(raw: bytes) -> None:
    verdict = answering().ask(raw, 0.0, is_local=True, tcp=False)
    assert isinstance(verdict, (Answer, Forward, Silence))


def test_a_reply_is_no_query() -> None:
    raw = dns.message.make_response(dns.message.make_query("n1.kairos.p2p", "A")).to_wire()
    assert isinstance(answering().ask(raw, 0.0, is_local=True, tcp=False), Silence)


# --- resolv.conf -----------------------------------------------------------------------------------


def test_our_servers_come_first_and_nothing_else_is_lost() -> None:
    text = "# dhcp\nnameserver 192.0.2.53\nsearch example.org\noptions ndots:2\nnameserver bogus\n"
    before = resolv_conf.parse(text)
    made = resolv_conf.render(before, ("10.144.0.1", "fd77::1"), "kairos.p2p")
    assert resolv_conf.is_ours(made)
    after = resolv_conf.parse(made)
    assert after.servers == ("10.144.0.1", "fd77::1", "192.0.2.53")
    assert after.search == ("example.org", "kairos.p2p")
    assert after.others == ("options ndots:2",)
    assert not resolv_conf.is_ours(text)


@given(st.text(max_size=300))
def test_any_file_is_read(text: str) -> None:
    before = resolv_conf.parse(text)
    again = resolv_conf.parse(resolv_conf.render(before, (), "x.p2p"))
    assert again.servers == before.servers[:3]
