"""The pre-shared-key stream cipher against published vectors and an independent implementation."""

from __future__ import annotations

from p2p_network.host.psk import GREETING, KeyStream, hsalsa20

# D. J. Bernstein, "Cryptography in NaCl", section 8 ("Example of the long-term shared key" and on)
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
FIRST_KEY = bytes.fromhex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
NONCE = bytes.fromhex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37")
SECOND_KEY = bytes.fromhex("dc908dda0b9344a953629b733820778880f3ceb421bb61b91cbd4c3e66256ce4")
STREAM = bytes.fromhex("eea6a7251c1e72916d11c2cb214d3c252539121d8e234e652d651fa4c8cff880")


def test_hsalsa20_yields_the_published_subkeys() -> None:
    assert hsalsa20(SHARED, bytes(16)) == FIRST_KEY
    assert hsalsa20(FIRST_KEY, NONCE[:16]) == SECOND_KEY


def test_the_key_stream_is_the_published_one() -> None:
    assert KeyStream(FIRST_KEY, NONCE).apply(bytes(32)) == STREAM


def test_the_key_stream_is_that_of_libsodium() -> None:
    from nacl.bindings import crypto_secretbox

    key, nonce, length = bytes(range(32)), bytes(range(100, 124)), 1000
    # secretbox XORs with the stream from its 32nd byte on; the 16 bytes in front are the authenticator
    theirs = crypto_secretbox(bytes(length), nonce, key)[16:]
    assert KeyStream(key, nonce).apply(bytes(32 + length))[32:] == theirs


def test_the_greeting_is_a_length_prefixed_line() -> None:
    assert GREETING[0] == len(GREETING) - 1
    assert GREETING.endswith(b"\n")
