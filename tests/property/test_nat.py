"""Does what members say about a node's address lead to the right view of it, whoever lies or keeps silent?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_network import nat, wire
from p2p_network.core.ids import PeerId
from p2p_network.host.addresses import Endpoint
from p2p_network.nat import KEEP_S, WATCH_S, Observation, Outside, Told

OWN = frozenset({"192.168.1.5", "fd00::5"})
PORT = 4702
PUBLIC = "198.51.100.7"

ips = st.ip_addresses(v=4).map(str)
words = st.builds(
    Told,
    udp=st.one_of(st.just(""), st.builds("{}:{}".format, ips, st.integers(1, 65535)), st.text(max_size=20)),
    tcp=st.one_of(st.just(""), st.builds("{}:{}".format, ips, st.integers(1, 65535))),
    mesh=st.one_of(st.just(""), st.text(max_size=20)),
    own_udp=st.text(max_size=80),
)


def seen(*texts: str) -> list[Observation]:
    """Each by another observer at another address."""
    return [Observation(Told(udp=text), f"203.0.113.{i}") for i, text in enumerate(texts, 1)]


def judged(*texts: str) -> nat.Nat:
    return nat.judge(seen(*texts), OWN, PORT)


def test_the_kinds_of_nat() -> None:
    assert nat.judge((), OWN, PORT).kind == "unknown"
    open_ = judged("192.168.1.5:4702")
    assert (open_.kind, open_.udp, open_.ip, open_.is_behind) == ("none", "", "", False)
    cone = judged(f"{PUBLIC}:4702", f"{PUBLIC}:4702")
    assert (cone.kind, cone.udp, cone.ip) == ("cone", f"{PUBLIC}:4702", PUBLIC)
    assert cone.reason == f"2 members see its datagrams come from {PUBLIC}:4702"
    symmetric = judged(f"{PUBLIC}:1111", f"{PUBLIC}:2222")
    assert (symmetric.kind, symmetric.udp, symmetric.ip) == ("symmetric", "", PUBLIC)
    one = judged(f"{PUBLIC}:4702")
    assert (one.kind, one.udp, one.ip, one.is_behind) == ("unknown", f"{PUBLIC}:4702", PUBLIC, True)


def test_who_stands_inside_with_us_does_not_hide_the_router() -> None:
    mixed = judged("192.168.1.5:4702", "192.168.1.5:4702", f"{PUBLIC}:4702", f"{PUBLIC}:4702")
    assert mixed.kind == "cone"


def test_two_observers_at_one_address_are_one() -> None:
    told = Told(udp=f"{PUBLIC}:4702")
    assert nat.judge([Observation(told, "203.0.113.1")] * 2, OWN, PORT).kind == "unknown"
    assert nat.judge([Observation(told, "")] * 3, OWN, PORT).kind == "unknown", (
        "relayed ones see through others"
    )


def test_only_tcp_tells_that_there_is_a_router_but_not_of_which_kind() -> None:
    told = Told(tcp=f"{PUBLIC}:999", mesh=f"{PUBLIC}:4701")
    found = nat.judge([Observation(told, "203.0.113.1"), Observation(told, "203.0.113.2")], OWN, PORT)
    assert (found.kind, found.udp, found.ip) == ("unknown", "", PUBLIC)


@given(st.lists(words, max_size=3), st.integers(4, 9))
def test_a_few_that_say_anything_do_not_outvote_those_that_agree(liars: list[Told], honest: int) -> None:
    said = [Observation(nat.checked(w), f"192.0.2.{i}") for i, w in enumerate(liars) if len(w.own_udp) <= 64]
    said += seen(*([f"{PUBLIC}:4702"] * honest))
    found = nat.judge(said, OWN, PORT)
    assert (found.kind, found.udp) == ("cone", f"{PUBLIC}:4702")


@given(st.binary(max_size=200))
def test_no_bytes_of_a_peer_do_more_than_be_refused(raw: bytes) -> None:
    for kind in (Told, nat.DialBack, nat.DialledBack):
        try:
            wire.decode(raw, kind)
        except ValueError:
            continue


@given(st.lists(st.tuples(st.integers(0, 99), words), max_size=150))
def test_what_is_kept_is_bounded_and_clean(said: list[tuple[int, Told]]) -> None:
    outside = Outside()
    for number, told in said:
        try:
            clean = nat.checked(told)
        except ValueError:
            assert max(map(len, (told.udp, told.tcp, told.mesh, told.own_udp))) > nat.MAX_TEXT
            continue
        assert wire.decode(wire.encode(clean), Told) == clean
        for text in (clean.udp, clean.tcp, clean.mesh, clean.own_udp):
            assert not text or nat.usable(text)
        outside.note(PeerId(str(number)), clean, "192.0.2.1")
        assert outside.told_by(PeerId(str(number))) == clean
    assert len(outside.peers()) <= nat.MAX_OBSERVERS
    outside.judge(OWN, PORT)


@pytest.mark.parametrize(
    "text", ["", ":1", "1.2.3.4", "1.2.3.4:0", "1.2.3.4:65536", "0.0.0.0:1", "224.0.0.1:5", "x:1"]
)
def test_what_is_no_address_is_left_out(text: str) -> None:
    assert not nat.usable(text)


def test_an_address_in_six_brackets_and_one_mapped_into_it() -> None:
    assert nat.split("[2001:db8::7]:4702") == ("2001:db8::7", 4702)
    assert nat.split("[::ffff:192.0.2.1]:5") == ("192.0.2.1", 5)


def question(told: Told | None, *, is_here: bool = True, reachable: bool | None = True) -> float:
    return nat.question_s(told=told, own_ips=OWN, is_here=is_here, reachable=reachable)


def test_an_idle_path_is_asked_only_by_the_side_that_stands_behind_something() -> None:
    direct, behind = Told(udp="192.168.1.5:4702"), Told(udp=f"{PUBLIC}:4702", tcp="192.168.1.5:1")
    assert question(direct) == 0
    assert question(direct, reachable=None) == 0
    assert question(direct, reachable=False) == KEEP_S, "a firewall forgets as well"
    assert question(behind) == KEEP_S
    assert question(None) == question(Told()) == KEEP_S, "not known"
    assert question(direct, is_here=False) == WATCH_S, "nobody else watches it"


def test_dialled_back_are_only_the_addresses_of_who_asks() -> None:
    own = (Endpoint("192.168.1.5", 4701), Endpoint("fd00::5", 4701))
    cone = judged(f"{PUBLIC}:4702", f"{PUBLIC}:4702")
    wanted = nat.to_dial_back(cone, own)
    assert wanted == (Endpoint(PUBLIC, 4701), *own)
    assert nat.to_dial_back(nat.UNKNOWN, own) == own
    assert nat.may_be_dialled(wanted, {PUBLIC}) == (Endpoint(PUBLIC, 4701),)
    assert nat.may_be_dialled([Endpoint("203.0.113.9", 25)], {PUBLIC}) == ()
    assert len(nat.may_be_dialled([Endpoint(PUBLIC, port) for port in range(1, 99)], {PUBLIC})) == 4
