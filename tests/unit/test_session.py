"""Session keys: both ends agree, nobody else does, and nothing malformed is taken."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from p2p_network import session, wire
from p2p_network.core.errors import RemoteViolation
from p2p_network.session import AES, CHACHA, PeerSession, SessionAnswer, SessionOffer

ALICE, BOB = (X25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
SESSION_ID = bytes(range(16))


def make_offer(**changes: object) -> SessionOffer:
    made = session.offer(ALICE, SESSION_ID, ciphers=(AES, CHACHA), offloads=0x67, mtu=1420)
    return msgspec.structs.replace(made, **changes)


def make_answer(offer: SessionOffer, **changes: object) -> tuple[SessionAnswer, PeerSession]:
    wanted: dict[str, object] = {
        "self_id": "bob",
        "peer_id": "alice",
        "mesh_id": "m",
        "ciphers": (AES, CHACHA),
        "offloads": 0x67,
        "mtu": 1420,
    }
    return session.answer(BOB, offer, **{**wanted, **changes})  # type: ignore[arg-type]


def conclude(offer: SessionOffer, got: SessionAnswer, **changes: str) -> PeerSession:
    ids = {"self_id": "alice", "peer_id": "bob", "mesh_id": "m", **changes}
    return session.conclude(ALICE, offer, got, **ids)


def test_both_ends_have_the_same_keys_the_other_way_round() -> None:
    offer = make_offer()
    got, bobs = make_answer(wire.decode(wire.encode(offer), SessionOffer))
    alices = conclude(offer, wire.decode(wire.encode(got), SessionAnswer))
    assert (alices.send_key, alices.receive_key) == (bobs.receive_key, bobs.send_key)
    assert alices.send_key != alices.receive_key
    assert alices.session_id == bobs.session_id == SESSION_ID
    assert (alices.cipher, alices.offloads, alices.mtu, alices.carriers) == (AES, 0x67, 1420, ("tcp",))


@pytest.mark.parametrize(
    "other",
    [
        {"mesh_id": "n"},
        {"peer_id": "carol"},
        {"self_id": "carol"},
    ],
)
def test_keys_are_bound_to_the_mesh_and_both_peers(other: dict[str, str]) -> None:
    offer = make_offer()
    got, bobs = make_answer(offer)
    assert conclude(offer, got, **other).send_key != bobs.receive_key


def test_keys_are_bound_to_every_field_that_was_sent() -> None:
    offer = make_offer()
    _, honest = make_answer(offer)
    for changes in ({"mtu": 1400}, {"offloads": 0x07}, {"ciphers": (CHACHA, AES)}, {"session_id": bytes(16)}):
        got, bobs = make_answer(make_offer(**changes))
        assert bobs.send_key != honest.send_key
        if got.session_id == offer.session_id:
            assert conclude(offer, got).receive_key != bobs.send_key, "a changed offer must not go unnoticed"


def test_the_weaker_of_both_is_chosen() -> None:
    got, bobs = make_answer(make_offer(), offloads=0x07, mtu=1400)
    assert (got.offloads, got.mtu) == (bobs.offloads, bobs.mtu) == (0x07, 1400)


@pytest.mark.parametrize(
    ("offered", "own", "chosen"),
    [
        ((AES, CHACHA), (AES, CHACHA), AES),
        ((CHACHA, AES), (AES, CHACHA), CHACHA),
        ((AES, CHACHA), (CHACHA, AES), CHACHA),
        ((AES,), (CHACHA, AES), AES),
        (("new", CHACHA), (AES, CHACHA), CHACHA),
    ],
)
def test_cipher(offered: tuple[str, ...], own: tuple[str, ...], chosen: str) -> None:
    assert make_answer(make_offer(ciphers=offered), ciphers=own)[0].cipher == chosen


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"public_key": bytes(32)}, "all-zero"),
        ({"public_key": bytes([1]) + bytes(31)}, "all-zero"),
        ({"public_key": bytes(31)}, "wrong length"),
        ({"session_id": bytes(15)}, "wrong length"),
        ({"public_key": BOB.public_key().public_bytes_raw()}, "own key"),
        ({"ciphers": ("rot13",)}, "no common cipher"),
        ({"ciphers": ("x",) * 9}, "too many"),
        ({"carriers": ("pigeon",)}, "no common carrier"),
        ({"mtu": 68}, "MTU"),
        ({"mtu": 1 << 40}, "MTU"),
        ({"offloads": -1}, "out of range"),
    ],
)
def test_a_bad_offer_is_refused_in_the_peers_name(changes: dict[str, object], why: str) -> None:
    with pytest.raises(RemoteViolation, match=why) as refused:
        make_answer(make_offer(**changes))
    assert refused.value.peer == "alice"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda got: msgspec.structs.replace(got, session_id=bytes(16)), "another session"),
        (lambda got: msgspec.structs.replace(got, cipher="rot13"), "not offered"),
        (lambda got: msgspec.structs.replace(got, offloads=0x80), "not offered"),
        (lambda got: msgspec.structs.replace(got, mtu=9000), "not offered"),
        (lambda got: msgspec.structs.replace(got, carriers=()), "not offered"),
        (lambda got: msgspec.structs.replace(got, carriers=("tcp", "pigeon")), "not offered"),
        (lambda got: msgspec.structs.replace(got, public_key=bytes(32)), "all-zero"),
    ],
)
def test_a_bad_answer_is_refused(spoil: Callable[[SessionAnswer], SessionAnswer], why: str) -> None:
    offer = make_offer()
    with pytest.raises(RemoteViolation, match=why):
        conclude(offer, spoil(make_answer(offer)[0]))


def test_printing_a_session_shows_no_key() -> None:
    _, bobs = make_answer(make_offer())
    for key in (bobs.send_key, bobs.receive_key):
        assert key.hex() not in repr(bobs)
        assert repr(key)[2:-1] not in repr(bobs)
