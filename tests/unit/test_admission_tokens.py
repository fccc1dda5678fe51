"""Join tokens, sealed boxes, and what a node keeps of its admission."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import segno

from p2p_network.admission import handshake
from p2p_network.admission.documents import Certificate, decode
from p2p_network.admission.join_token import (
    JoinToken,
    format_join_token,
    is_join_token,
    parse_join_token,
)
from p2p_network.admission.kept import (
    MAX_GENERATIONS,
    decode_kept,
    encode_kept,
    from_join_token,
    from_network_token,
    without_token,
)
from p2p_network.core.errors import TokenError
from p2p_network.identity import Identity
from p2p_network.sealed import seal, unseal
from p2p_network.token import NetworkToken, format_token, mesh_keys, parse_token, rotated

ME, OTHER = Identity(b"m" * 32), Identity(b"o" * 32)
TOKEN = NetworkToken(bytes(range(32)), ("192.0.2.1:4701",))
KEYS = mesh_keys(TOKEN)
JOIN = JoinToken(
    b"s" * 16,
    "00112233aabbccdd",
    KEYS.mesh_id,
    1,
    KEYS.psk,
    KEYS.rendezvous,
    b"a" * 32,
    2_000_000_000,
    ("192.0.2.1:4701", "[2001:db8::1]:4701"),
    dht=False,
)


def test_a_join_token_reads_as_it_was_written_in_any_case_and_width() -> None:
    text = format_join_token(JOIN)
    assert parse_join_token(text) == JOIN
    assert parse_join_token(f" {text[:50].lower()}\n  {text[50:]}\n") == JOIN
    assert is_join_token(text.lower())
    assert not is_join_token(format_token(TOKEN))
    assert parse_join_token(format_join_token(replace(JOIN, network_id="edge"))).network_id == "edge"
    assert "00112233aabbccdd" in repr(JOIN)
    assert KEYS.psk.hex() not in repr(JOIN)


def test_a_phone_reads_it_from_a_screen() -> None:
    """Alphanumeric mode, and small enough for a terminal of 80 columns (4 modules border on each side)."""
    code = segno.make_qr(format_join_token(JOIN), error="l")
    assert code.mode == "alphanumeric"
    assert code.symbol_size(border=4)[0] <= 72
    code.terminal(out=io.StringIO(), compact=True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t[:-1], "cut or mistyped"),
        (lambda t: t[:40] + ("A" if t[40] != "A" else "B") + t[41:], "checksum"),
        (lambda t: t + "!", "not base32"),
        (lambda t: t.replace("KP2PJ1-", "KP2PJ9-"), "format version 9"),
        (lambda t: "hello", "no join token"),
        (lambda t: "KP2PJ1-" + "A" * 20_000, "no join token"),
    ],
)
def test_every_damage_is_told_apart(change: object, why: str) -> None:
    text = format_join_token(JOIN)
    with pytest.raises(TokenError, match=why) as caught:
        parse_join_token(change(text))  # type: ignore[operator]
    assert caught.value.hint
    assert text[20:50] not in str(caught.value)


def test_a_rotated_token_carries_what_stays() -> None:
    new = rotated(KEYS, "kairos", b"n" * 32, bootstrap=TOKEN.bootstrap, dht=True, mdns=False)
    assert parse_token(format_token(new)) == new
    keys = mesh_keys(new)
    assert (keys.mesh_id, keys.rendezvous, keys.generation) == (KEYS.mesh_id, KEYS.rendezvous, 2)
    assert keys.psk != KEYS.psk
    assert keys.admission != KEYS.admission
    with pytest.raises(TokenError, match="belongs to network id 'kairos'"):
        mesh_keys(new, "edge")


def test_a_sealed_box_opens_for_one_node_and_one_purpose() -> None:
    box = seal(ME.peer_id, "seat", b"the secret", b"e" * 32)
    assert b"secret" not in box
    assert unseal(ME, "seat", box) == b"the secret"
    changed = bytes([*box[:-1], box[-1] ^ 1])
    for who, purpose, what in ((OTHER, "seat", box), (ME, "kubeconfig", box), (ME, "seat", changed)):
        with pytest.raises(ValueError, match="not sealed"):
            unseal(who, purpose, what)
    for garbage in (b"", b"x" * 47, bytes(48), b"\xff" * 100):
        with pytest.raises(ValueError, match="sealed"):
            unseal(ME, "seat", garbage)
    with pytest.raises(ValueError, match="peer id"):
        seal("nobody", "seat", b"x", b"e" * 32)


def test_a_network_token_certifies_its_node_once() -> None:
    first = from_network_token(TOKEN, "kairos", None, ME.peer_id, 5)
    again = from_network_token(TOKEN, "kairos", decode_kept(encode_kept(first)), ME.peer_id, 9)
    assert again == first, "nothing to write at the next start"
    own = first.own
    assert own is not None
    assert (own.is_issuer, own.issued_ms, own.limit) == (True, 5, "any")
    assert first.token == TOKEN
    assert KEYS.psk.hex() not in repr(first)


def test_who_takes_the_token_away_gives_up_the_root_but_stays_a_member() -> None:
    kept = without_token(from_network_token(TOKEN, "kairos", None, ME.peer_id, 5), ME.peer_id, 5)
    own = kept.own
    assert kept.authority is None
    assert own is not None
    assert not own.is_issuer
    assert without_token(kept, ME.peer_id, 9) == kept
    back = from_network_token(TOKEN, "kairos", kept, ME.peer_id, 10)
    assert back.own is not None
    assert back.own.is_issuer, "with the token again it holds the root again"


def test_an_old_token_in_the_configuration_does_not_undo_a_rotation() -> None:
    new = rotated(KEYS, "kairos", b"n" * 32, bootstrap=(), dht=True, mdns=True)
    moved = from_network_token(
        new, "kairos", from_network_token(TOKEN, "kairos", None, ME.peer_id, 5), ME.peer_id, 6
    )
    assert (moved.generation, len(moved.keys)) == (2, 2)
    assert moved.keys[0] == mesh_keys(new).psk
    assert from_network_token(TOKEN, "kairos", moved, ME.peer_id, 7) == moved
    assert moved.token == replace(new, bootstrap=())


def test_only_so_many_old_keys_are_kept() -> None:
    kept = from_network_token(TOKEN, "kairos", None, ME.peer_id, 5)
    for number in range(2, 20):
        kept = kept.moved(number, bytes([number]) * 32, b"a" * 32, b"", b"")
    assert len(kept.keys) == MAX_GENERATIONS
    assert kept.keys[0] == bytes([19]) * 32


def test_a_join_token_waits_for_its_certificate_and_then_has_done_its_work() -> None:
    waiting = from_join_token(JOIN, None)
    assert (waiting.certificate, waiting.invite, waiting.authority) == (b"", JOIN.invite, None)
    certificate = from_network_token(TOKEN, "kairos", None, ME.peer_id, 5).certificate
    member = waiting.admitted(certificate)
    assert (member.invite, member.invite_seed) == ("", b"")
    assert from_join_token(JOIN, member) == member
    assert isinstance(decode(member.certificate, Certificate), Certificate)


def test_a_redemption_is_for_one_claimant_and_one_member() -> None:
    from p2p_network.core.ids import public_key_of

    proof = handshake.redeem(JOIN.key, KEYS.mesh_id, JOIN.invite, ME.peer_id, OTHER.peer_id)
    key = public_key_of(JOIN.key.peer_id)
    assert handshake.is_redeemed(key, KEYS.mesh_id, proof, ME.peer_id, OTHER.peer_id)
    assert not handshake.is_redeemed(key, KEYS.mesh_id, proof, OTHER.peer_id, ME.peer_id)
    assert not handshake.is_redeemed(key, KEYS.mesh_id, proof, ME.peer_id, ME.peer_id)
    assert not handshake.is_redeemed(bytes(32), KEYS.mesh_id, proof, ME.peer_id, OTHER.peer_id)
    assert not handshake.is_redeemed(key, "f" * 16, proof, ME.peer_id, OTHER.peer_id)
