"""Are nodes named as libp2p names them?"""

from __future__ import annotations

import pytest

from p2p_network.core.ids import (
    base58_decode,
    base58_encode,
    peer_id_of,
    public_key_of,
    short,
    stable_hash,
)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", ""),
        (b"\0", "1"),
        (b"\0\0\0", "111"),
        (b"Hello World!", "2NEpo7TZRRrLZSi2U"),
        (bytes.fromhex("0000287fb4cd"), "11233QC4"),
    ],
)
def test_base58_vectors(raw: bytes, text: str) -> None:
    assert base58_encode(raw) == text
    assert base58_decode(text) == raw


@pytest.mark.parametrize("text", ["0", "O", "I", "l", "ab cd", "é"])
def test_base58_refuses_other_characters(text: str) -> None:
    with pytest.raises(ValueError, match="not a base58 character"):
        base58_decode(text)


def test_the_peer_id_of_the_libp2p_specification() -> None:
    """The Ed25519 example key of libp2p's "peer ids" document."""
    key = bytes.fromhex("1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e")
    peer = "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"
    assert peer_id_of(key) == peer
    assert public_key_of(peer) == key


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "52 characters"),
        ("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "52 characters"),
        ("1" * 52, "not the id of an Ed25519 key"),
        ("z" * 52, "not the id of an Ed25519 key"),
        ("0" * 52, "base58"),
    ],
)
def test_what_is_no_peer_id(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        public_key_of(text)


def test_short_names_differ_where_the_ids_do() -> None:
    one, two = peer_id_of(bytes(32)), peer_id_of(bytes(31) + b"\1")
    assert one[:8] == two[:8]
    assert short(one) != short(two)
    assert len(short(one)) == 8


def test_stable_hash_is_the_same_everywhere() -> None:
    assert stable_hash("a", b"b", 3) == stable_hash("a", b"b", 3)
    assert stable_hash("ab", "c") != stable_hash("a", "bc"), "parts are told apart"
    assert stable_hash("a") != stable_hash("b")
    assert stable_hash() < 2**64
    assert stable_hash("kairos") == 5257237990485122290
