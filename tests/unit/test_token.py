"""Is a token read as it was written, and every damage told apart?"""

from __future__ import annotations

import base64

import pytest

from p2p_network.core.errors import TokenError
from p2p_network.token import (
    MAX_TOKEN_CHARS,
    PREFIX,
    NetworkToken,
    format_token,
    mesh_keys,
    parse_token,
)

SEED = bytes(range(32))
TOKEN = NetworkToken(SEED, ("192.0.2.1:4701", "/ip6/2001:db8::1/tcp/4701"), dht=False, mdns=True)
KAIROS = """\
otp:
  dht:
    interval: 9000
    key: mTn1uC5oQ6oVtqQvKDDzGkiCxKrvvgUhPNfU2rdTrnM
    length: 43
  crypto:
    interval: 9000
    key: 0123456789012345678901234567890123456789012
    length: 43
room: room-of-the-test
rendezvous: rendezvous-of-the-test
mdns: true
max_message_size: 20971520
"""


def kairos(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()


def refusal(text: str) -> TokenError:
    with pytest.raises(TokenError) as caught:
        parse_token(text)
    assert caught.value.hint
    if len(text) > 30:
        assert text[:20] not in str(caught.value), "a token is never quoted"
    return caught.value


def test_round_trip_and_white_space() -> None:
    text = format_token(TOKEN)
    assert text.startswith(PREFIX)
    assert parse_token(text) == TOKEN
    assert parse_token(f"  {text[:20]}\n  {text[20:]}\r\n") == TOKEN


def test_the_wire_form_never_changes() -> None:
    """A token made today must be read for ever."""
    assert format_token(NetworkToken(SEED)) == (
        "kp2p1_UAzoFpTEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fkMPD"
    )
    keys = mesh_keys(NetworkToken(SEED), "kairos")
    assert keys.mesh_id == "5d4dd1eee7884378"
    assert NetworkToken(SEED).fingerprint == "ccff36f85b44"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t[:-1], "cut or mistyped"),
        (lambda t: t[:-4], "cut or mistyped"),
        (lambda t: t[: len(t) // 2], "cut or mistyped"),
        (lambda t: PREFIX, "cut or mistyped"),
        (lambda t: t + "AAAA", "cut or mistyped"),
        (lambda t: t[:10] + "!" + t[11:], "not base64url"),
        (lambda t: t.replace("kp2p1_", "kp2p2_"), "format version 2, this program reads version 1"),
        (lambda t: t.replace("kp2p1_", "kp2p17_"), "format version 17"),
        (lambda t: t.replace("kp2p1_", "kp3p1_"), "neither kairos-p2p's"),
        (lambda t: t.removeprefix("kp2p1_"), "neither kairos-p2p's"),
        (lambda t: "", "is empty"),
        (lambda t: " \n", "is empty"),
        (lambda t: "x" * (MAX_TOKEN_CHARS + 1), "at most"),
        (lambda t: "YOUR_TOKEN_GOES_HERE", "no network token"),
    ],
)
def test_damage_is_told_apart(damage, message) -> None:  # type: ignore[no-untyped-def]
    assert message in refusal(damage(format_token(TOKEN))).message


def test_a_newer_version_says_upgrade() -> None:
    assert "upgrade" in refusal(format_token(TOKEN).replace("kp2p1_", "kp2p2_")).hint


def test_the_seed_is_in_no_repr() -> None:
    token = NetworkToken(SEED)
    assert repr(token) == f"NetworkToken(<{token.fingerprint}>)"
    assert SEED.hex() not in repr(mesh_keys(token))
    assert mesh_keys(token).psk.hex() not in repr(mesh_keys(token))


def test_keys_differ_by_use_network_and_token() -> None:
    a, b = mesh_keys(NetworkToken(SEED), "a"), mesh_keys(NetworkToken(SEED), "b")
    other = mesh_keys(NetworkToken(bytes(32)), "a")
    keys = [a.psk, a.rendezvous, a.admission, b.psk, b.rendezvous, b.admission, other.psk]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 for key in keys)
    assert len({a.mesh_id, b.mesh_id, other.mesh_id}) == 3
    assert mesh_keys(NetworkToken(SEED, dht=False, bootstrap=("x:1",)), "a") == a, "only the seed counts"


def test_a_kairos_token_yields_a_mesh_of_its_own() -> None:
    token = parse_token(kairos(KAIROS))
    assert token.origin == "kairos"
    assert (token.dht, token.mdns, token.bootstrap) == (True, True, ())
    assert token == parse_token(kairos(KAIROS)), "deterministic"
    assert token == parse_token(kairos(KAIROS).rstrip("=")), "padding may be lost on the way"
    assert parse_token(format_token(token)).seed == token.seed, "may be handed on in our form"
    assert token.fingerprint == "19f597abc540", "the same on every machine and in every release"


@pytest.mark.parametrize(
    "old", ["mTn1uC5oQ6", "0123456789012345678901234567890123456789012", "room-of", "rendezvous-of"]
)
def test_every_secret_of_a_kairos_token_counts(old: str) -> None:
    changed = KAIROS.replace(old, old[:-1] + "x")
    assert parse_token(kairos(changed)).seed != parse_token(kairos(KAIROS)).seed


def test_what_is_no_secret_does_not_change_the_mesh() -> None:
    changed = KAIROS.replace("9000", "60").replace("mdns: true", "mdns: false").replace("20971520", "1")
    token = parse_token(kairos(changed))
    assert token.seed == parse_token(kairos(KAIROS)).seed
    assert not token.mdns
    as_edgevpn_writes_it = KAIROS.replace("mdns: true", "mdns: 3NxRmmKUqwbGKkRDDpaGzDWRmyFTRZYS")
    assert parse_token(base64.b64encode(as_edgevpn_writes_it.encode()).decode()).mdns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("just a text", "no network token"),
        ("- a\n- list\n", "no network token"),
        ("a: [\n", "no network token"),
        ("[" * 5000, "no network token"),
        ('a: "\\UFFFFFFFF"\n', "no network token"),
        ("otp: {}\n", "incomplete"),
        (KAIROS.replace("room:", "rooom:"), "incomplete"),
        (KAIROS.replace("room: room-of-the-test", "room: [a, b]"), "incomplete"),
        (KAIROS.replace("room: room-of-the-test", 'room: "\\ud800"'), "incomplete"),
        ("otp: [a]\nroom: b\nrendezvous: c\n", "incomplete"),
        (KAIROS.replace("mTn1uC5oQ6oVtqQvKDDzGkiCxKrvvgUhPNfU2rdTrnM", "short"), "too weak"),
    ],
)
def test_bad_kairos_tokens(text: str, message: str) -> None:
    assert message in refusal(kairos(text)).message


def test_a_yaml_bomb_in_a_kairos_token() -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    bomb += "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 15))
    assert "incomplete" in refusal(kairos(bomb + "otp: {dht: {key: *a14}, crypto: {key: *a14}}\n")).message
    text = bomb + KAIROS.replace("room: room-of-the-test", "room: *a14")
    assert "incomplete" in refusal(kairos(text)).message
