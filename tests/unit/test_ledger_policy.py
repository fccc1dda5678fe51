"""Who may write which key: every row of the table, and every way to break it."""

from __future__ import annotations

import hashlib

import pytest

from p2p_network.identity import Identity
from p2p_network.ledger.entry import MAX_VALUE_BYTES
from p2p_network.ledger.policy import TABLE, Policy, Refusal, rule_of

ALICE, BOB = (Identity(hashlib.sha256(name).digest()).peer_id for name in (b"alice", b"bob"))
POLICY = Policy(
    decided=lambda key, value: value if value.startswith(b"quorum") else None,
    may_write=lambda key, author: author == ALICE,
    admitted=lambda author: author in (ALICE, BOB),
)


@pytest.mark.parametrize(
    "key",
    [
        f"node/{ALICE}",
        f"address/{ALICE}",
        f"role/{ALICE}",
        f"assign/kairos/{ALICE}",
        f"assign/kairos/eu west/{ALICE}",
        "genesis/kairos/1/D2",
        "genesis/kairos/eu/12/D1",
    ],
)
def test_known_keys_have_a_rule(key: str) -> None:
    assert rule_of(key) is TABLE[key.split("/")[0]]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "node",
        "node/",
        "nodes/x",
        f"node/{ALICE[:-1]}",
        f"node/{ALICE}/x",
        f"node//{ALICE}",
        f"assign/{ALICE}",
        f"assign/a/b/c/{ALICE}",
        f"assign/a\n/{ALICE}",
        "genesis/kairos/01/D1",
        "genesis/kairos/x/D1",
        "genesis/kairos/1/",
        "genesis/kairos/²/D1",
        "genesis/kairos/12345678901/D1",
        "genesis/a/b/c/1/D1",
        f"genesis/{'x' * 300}/1/D1",
    ],
)
def test_other_keys_have_none(key: str) -> None:
    assert rule_of(key) is None


@pytest.mark.parametrize(
    ("key", "author", "value", "why"),
    [
        (f"node/{ALICE}", ALICE, b"x", None),
        (f"node/{ALICE}", ALICE, None, None),
        (f"node/{ALICE}", BOB, b"x", Refusal.NOT_OWNER),
        (f"node/{ALICE}", BOB, None, Refusal.NOT_OWNER),
        (f"node/{ALICE}", ALICE, b"x" * 9000, Refusal.TOO_LARGE),
        (f"address/{ALICE}", ALICE, None, Refusal.NOT_DELETABLE),
        (f"assign/kairos/{BOB}", ALICE, b"x", None),
        (f"assign/kairos/{BOB}", BOB, b"x", Refusal.NOT_AUTHORITY),
        ("genesis/kairos/1/D1", "nobody", b"quorum says so", None),
        ("genesis/kairos/1/D1", ALICE, b"I say so", Refusal.NOT_CERTIFIED),
        ("genesis/kairos/1/D1", ALICE, b"", Refusal.NOT_CERTIFIED),
        ("genesis/kairos/1/D1", ALICE, None, Refusal.NOT_DELETABLE),
        ("genesis/kairos/1/D1", ALICE, b"quorum" * MAX_VALUE_BYTES, Refusal.TOO_LARGE),
    ],
)
def test_the_table(key: str, author: str, value: bytes | None, why: Refusal | None) -> None:
    rule = rule_of(key)
    assert rule is not None
    assert POLICY.refusal(rule, key, author, value) is why


def test_a_stranger_may_not_even_speak_of_itself() -> None:
    stranger = Identity(bytes(32)).peer_id
    rule = rule_of(f"node/{stranger}")
    assert rule is not None
    assert POLICY.refusal(rule, f"node/{stranger}", stranger, b"x") is Refusal.NOT_ADMITTED
