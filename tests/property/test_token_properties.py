"""What holds for every token?"""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_network.core.errors import TokenError
from p2p_network.token import PREFIX, NetworkToken, format_token, mesh_keys, parse_token

SEEDS = st.binary(min_size=32, max_size=32)
TOKENS = st.builds(
    NetworkToken,
    SEEDS,
    st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=5).map(tuple),
    st.booleans(),
    st.booleans(),
)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@given(TOKENS)
def test_what_is_formatted_is_parsed(token: NetworkToken) -> None:
    assert parse_token(format_token(token)) == token


@given(TOKENS, st.data())
def test_any_single_changed_character_is_detected(token: NetworkToken, data: st.DataObject) -> None:
    text = format_token(token)
    at = data.draw(st.integers(0, len(text) - 1))
    new = data.draw(st.sampled_from(ALPHABET).filter(lambda c: c != text[at]))
    with pytest.raises(TokenError):
        parse_token(text[:at] + new + text[at + 1 :])


@given(TOKENS, st.data())
def test_any_cut_is_detected(token: NetworkToken, data: st.DataObject) -> None:
    text = format_token(token)
    start, end = sorted((data.draw(st.integers(0, len(text))), data.draw(st.integers(0, len(text)))))
    if (start, end) != (0, len(text)):
        with pytest.raises(TokenError):
            parse_token(text[start:end])


@given(TOKENS, st.integers(0, 200))
def test_swapped_neighbours_are_detected(token: NetworkToken, seed: int) -> None:
    text = format_token(token)
    at = len(PREFIX) + seed % (len(text) - len(PREFIX) - 1)
    if text[at] != text[at + 1]:
        with pytest.raises(TokenError):
            parse_token(text[:at] + text[at + 1] + text[at] + text[at + 2 :])


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: base64.b64encode(b).decode()))
def test_anything_is_a_token_or_a_token_error(text: str) -> None:
    for candidate in (text, PREFIX + text, base64.b64encode(text.encode("utf-8", "replace")).decode()):
        try:
            parse_token(candidate)
        except TokenError as exc:
            message = str(exc)
        else:
            continue
        assert message


KEYS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567abcdefgh", min_size=32, max_size=43)


@given(KEYS, KEYS, KEYS, KEYS)
def test_kairos_tokens_are_deterministic_and_independent_of_their_layout(
    dht: str, crypto: str, room: str, rendezvous: str
) -> None:
    plain = f"otp:\n  dht:\n    key: {dht}\n  crypto:\n    key: {crypto}\n"
    plain += f"room: {room}\nrendezvous: {rendezvous}\n"
    flow = f'{{"rendezvous": "{rendezvous}", "room": "{room}", "otp": {{"crypto": {{"key": "{crypto}"}}, '
    flow += f'"dht": {{"key": "{dht}"}}}}}}'
    one, two = (parse_token(base64.b64encode(text.encode()).decode()) for text in (plain, flow))
    assert one == two
    assert mesh_keys(one).mesh_id == mesh_keys(two).mesh_id


@given(SEEDS, st.text(max_size=20), st.text(max_size=20))
def test_network_ids_never_share_keys(seed: bytes, a: str, b: str) -> None:
    x, y = mesh_keys(NetworkToken(seed), a), mesh_keys(NetworkToken(seed), b)
    assert (x.psk == y.psk) == (a == b)
    assert (x.mesh_id == y.mesh_id) == (a == b)
