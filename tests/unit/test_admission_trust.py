"""Who is a member, and why not? The judge, over a ledger that is a plain map."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from p2p_network.admission import documents as docs
from p2p_network.admission.documents import (
    Announcement,
    Authority,
    Certificate,
    Invitation,
    Revocation,
    Seat,
    Withdrawal,
    certify,
    encode,
    is_announced,
    is_signed,
)
from p2p_network.admission.trust import Cause, Trust
from p2p_network.identity import Identity
from p2p_network.ledger.entry import Entry

MESH = "0123456789abcdef"
ONE, TWO, THREE = (Authority(bytes([n]) * 32, MESH, n) for n in (1, 2, 3))
LEAKED_TWO = Authority(b"x" * 32, MESH, 2)
NOW = 1_900_000_000_000


def peer(name: str) -> str:
    return Identity(hashlib.sha256(name.encode()).digest()).peer_id


ALICE, BOB, CAROL = peer("alice"), peer("bob"), peer("carol")


class Map:
    """The ledger."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def get(self, key: str) -> Entry | None:
        value = self.values.get(key)
        return None if value is None else Entry(key, "", 0, 0, value, bytes(64))

    def items(self, prefix: str = "") -> Iterator[Entry]:
        found = (self.get(key) for key in sorted(self.values) if key.startswith(prefix))
        return (entry for entry in found if entry is not None)


@pytest.fixture
def words() -> Map:
    return Map()


@pytest.fixture
def trust(words: Map) -> Trust:
    return Trust(MESH, {1: ONE.public}, 1, words)


def certificate(name: str, authority: Authority = ONE, **more: object) -> Certificate:
    return certify(authority, name, issued_ms=5, **more)  # type: ignore[arg-type]


def announced(old: Authority, new: Authority, members: int) -> bytes:
    bare = Announcement(new.generation, new.public, old.public, members, NOW)
    return encode(new.signed(old.announced(bare)))


def seat(name: str, authority: Authority) -> bytes:
    document = Seat(name, authority.generation, encode(certificate(name, authority)), b"sealed")
    return encode(authority.signed(document))


def rotate(words: Map, old: Authority, new: Authority, *names: str) -> None:
    for name in names:
        words.values[f"seat/{new.generation}/{name}"] = seat(name, new)
    words.values[f"generation/{new.generation}"] = announced(old, new, len(names))


def test_a_certificate_of_the_authority_admits_its_peer_and_nobody_else(trust: Trust) -> None:
    assert trust.verdict(ALICE, NOW).cause is Cause.UNCERTIFIED
    assert trust.present(encode(certificate(ALICE)), ALICE) is Cause.NONE
    assert trust.verdict(ALICE, NOW).is_admitted
    assert trust.present(encode(certificate(ALICE)), BOB) is Cause.FORGED, "shown by another"
    assert trust.present(encode(certificate(BOB, LEAKED_TWO)), BOB) is Cause.FORGED
    assert trust.present(b"\x00", BOB) is Cause.MALFORMED
    assert trust.verdict(BOB, NOW).cause is Cause.UNCERTIFIED


def test_a_certificate_expires(trust: Trust) -> None:
    trust.present(encode(certificate(ALICE, expires_ms=NOW)), ALICE)
    assert trust.verdict(ALICE, NOW).is_admitted
    assert trust.verdict(ALICE, NOW + 1).cause is Cause.EXPIRED


def test_a_revocation_counts_from_the_ledger_and_from_a_handshake(trust: Trust, words: Map) -> None:
    for name in (ALICE, BOB):
        trust.present(encode(certificate(name)), name)
    words.values[f"revoked/{ALICE}"] = encode(ONE.signed(Revocation(ALICE, 1, NOW, "stolen")))
    assert trust.verdict(ALICE, NOW).cause is Cause.REVOKED
    assert trust.tell_revoked(encode(TWO.signed(Revocation(BOB, 1, NOW, "")))) is None, "another authority"
    assert trust.verdict(BOB, NOW).is_admitted
    assert trust.tell_revoked(encode(ONE.signed(Revocation(BOB, 1, NOW, "")))) is not None
    assert trust.verdict(BOB, NOW).cause is Cause.REVOKED
    assert set(trust.told()) == {BOB}
    assert len(trust.revocations()) == 2
    assert trust.known_out() == {ALICE, BOB}


def test_after_a_rotation_only_the_roster_counts(trust: Trust, words: Map) -> None:
    for name in (ALICE, BOB):
        trust.present(encode(certificate(name)), name)
        words.values[f"member/{name}"] = encode(certificate(name))
    rotate(words, ONE, TWO, ALICE)
    assert trust.settle() == 2
    assert trust.verdict(ALICE, NOW).is_admitted, "her seat has a certificate for her"
    assert trust.verdict(BOB, NOW).cause is Cause.OUTDATED, "he had none"
    # the leaked old token certifies whom it will: nobody cares
    trust.present(encode(certificate(CAROL, ONE)), CAROL)
    assert trust.verdict(CAROL, NOW).cause is Cause.OUTDATED
    trust.present(encode(certificate(CAROL, TWO)), CAROL)
    assert trust.verdict(CAROL, NOW).is_admitted


def test_a_rotation_is_in_force_only_where_the_whole_roster_is_known(trust: Trust, words: Map) -> None:
    rotate(words, ONE, TWO, ALICE, BOB)
    held = words.values.pop(f"seat/2/{BOB}")
    assert trust.settle() == 1
    trust.present(encode(certificate(CAROL, TWO)), CAROL)
    assert trust.verdict(CAROL, NOW).is_admitted, "who has moved already is believed"
    words.values[f"seat/2/{BOB}"] = held
    assert trust.settle() == 2


def test_only_the_roster_of_the_generation_in_force_votes_on_the_next_keys(trust: Trust, words: Map) -> None:
    assert trust.electorate() is None
    rotate(words, ONE, TWO, ALICE, BOB)
    assert trust.settle() == 2
    roster = trust.electorate()
    assert roster is not None
    assert roster <= {ALICE, BOB}
    words.values[f"member/{CAROL}"] = encode(certificate(CAROL, TWO))  # joined since
    assert trust.electorate() == roster


def test_two_rotations_are_caught_up_with_at_once(trust: Trust, words: Map) -> None:
    rotate(words, ONE, TWO, ALICE, BOB)
    rotate(words, TWO, THREE, ALICE)
    del words.values[f"seat/2/{BOB}"]  # not even needed
    assert trust.settle() == 3
    assert trust.verdict(ALICE, NOW).is_admitted
    assert len(trust.announcements()) == 2


def test_what_was_before_the_newest_whole_roster_is_outlived(trust: Trust, words: Map) -> None:
    rotate(words, ONE, TWO, ALICE, BOB)
    assert trust.outlived() == set(), "somebody may still have to move to these"
    rotate(words, TWO, THREE, ALICE, BOB)
    held = words.values.pop(f"seat/3/{BOB}")
    assert trust.outlived() == set()
    words.values[f"seat/3/{BOB}"] = held
    assert trust.outlived() == {f"seat/2/{ALICE}", f"seat/2/{BOB}"}
    for key in trust.outlived():
        del words.values[key]
    assert trust.settle() == 3, "who was away for two rotations moves all the same"


def test_a_link_that_does_not_fit_the_chain_is_refused(trust: Trust) -> None:
    good = announced(ONE, TWO, 1)
    forged = announced(LEAKED_TWO, THREE, 1)
    assert not trust.learn(b"garbage")
    assert not trust.learn(forged)
    assert trust.learn(good)
    assert not trust.learn(announced(ONE, LEAKED_TWO, 1)), "a second generation 2, by the same old key"
    assert trust.learn(announced(TWO, THREE, 1))


def test_the_chain_is_followed_backwards_too(words: Map) -> None:
    """A node that comes with the new token must believe what the old authority signed of its time."""
    young = Trust(MESH, {2: TWO.public}, 2, words)
    words.values["generation/2"] = announced(ONE, TWO, 1)
    old = encode(ONE.signed(Revocation(BOB, 1, NOW, "")))
    assert young.proven(f"revoked/{BOB}", old) is not None


def invitation(words: Map, uses: int, **more: object) -> Invitation:
    fields: dict[str, object] = {
        "id": "aaaaaaaaaaaaaaaa",
        "key": bytes(32),
        "generation": 1,
        "limit": "agent",
        "region": "",
        "uses": uses,
        "created_ms": NOW,
        "expires_ms": NOW + 1000,
        **more,
    }
    made = ONE.signed(Invitation(**fields))  # type: ignore[arg-type]
    words.values[f"invite/{made.id}"] = encode(made)
    return made


def use(words: Map, invite: str, name: str, issued_ms: int) -> None:
    cert = certify(ONE, name, issued_ms=issued_ms, invite=invite)  # type: ignore[arg-type]
    words.values[f"use/{invite}/{name}"] = encode(cert)
    words.values[f"member/{name}"] = encode(cert)


def test_uses_beyond_the_number_are_expelled_in_the_same_order_everywhere(trust: Trust, words: Map) -> None:
    made = invitation(words, 2)
    assert trust.may_redeem(made.id, ALICE, NOW) is not None
    use(words, made.id, ALICE, 30)
    use(words, made.id, BOB, 10)
    assert trust.may_redeem(made.id, CAROL, NOW) is None
    assert trust.may_redeem(made.id, BOB, NOW) is not None, "whose answer got lost may ask again"
    use(words, made.id, CAROL, 20)  # redeemed on the other side of a partition
    assert trust.count_uses() == {ALICE}, "first come, by the time of issue"
    assert trust.verdict(ALICE, NOW).cause is Cause.SURPLUS
    assert trust.verdict(CAROL, NOW).is_admitted


def test_an_invitation_ends(trust: Trust, words: Map) -> None:
    made = invitation(words, 2)
    assert trust.may_redeem(made.id, ALICE, NOW + 1001) is None, "expired"
    assert trust.may_redeem("bbbbbbbbbbbbbbbb", ALICE, NOW) is None, "unknown"
    words.values[f"withdrawn/{made.id}"] = encode(ONE.signed(Withdrawal(made.id, 1, NOW)))
    assert trust.may_redeem(made.id, ALICE, NOW) is None, "withdrawn"
    del words.values[f"withdrawn/{made.id}"]
    rotate(words, ONE, TWO, ALICE)
    trust.settle()
    assert trust.may_redeem(made.id, ALICE, NOW) is None, "rotated away"
    use(words, made.id, BOB, 10)
    words.values[f"withdrawn/{made.id}"] = encode(ONE.signed(Withdrawal(made.id, 1, NOW)))
    assert trust.outlived() == {f"invite/{made.id}", f"withdrawn/{made.id}", f"use/{made.id}/{BOB}"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"revoked/{ALICE}", ONE.signed(Revocation(ALICE, 1, NOW, ""))),
        ("withdrawn/aaaaaaaaaaaaaaaa", ONE.signed(Withdrawal("aaaaaaaaaaaaaaaa", 1, NOW))),
        (
            f"use/aaaaaaaaaaaaaaaa/{ALICE}",
            certify(ONE, ALICE, issued_ms=1, invite="aaaaaaaaaaaaaaaa"),  # type: ignore[arg-type]
        ),
    ],
)
def test_only_what_the_authority_signed_for_that_key_is_proven(
    trust: Trust, key: str, value: Revocation | Withdrawal | Certificate
) -> None:
    assert trust.proven(key, encode(value)) is not None
    other = key.replace(ALICE, BOB).replace("withdrawn/aaaa", "withdrawn/bbbb")
    assert trust.proven(other, encode(value)) is None, "put under another key"
    assert trust.proven(key, encode(LEAKED_TWO.signed(value))) is None  # type: ignore[type-var]
    assert trust.proven(key, encode(value)[:-1]) is None
    assert trust.proven("node/x", encode(value)) is None


def test_who_may_write_its_own_membership(trust: Trust) -> None:
    assert trust.owns(f"member/{ALICE}", encode(certificate(ALICE)))
    assert not trust.owns(f"member/{BOB}", encode(certificate(ALICE)))
    assert not trust.owns(f"member/{ALICE}", encode(certificate(ALICE, LEAKED_TWO)))


def test_no_signature_verifies_as_another_kind_or_in_another_mesh() -> None:
    revocation = ONE.signed(Revocation(ALICE, 1, NOW, ""))
    assert is_signed(revocation, ONE.public, MESH)
    assert not is_signed(revocation, ONE.public, "f" * 16)
    moved = Withdrawal("aaaaaaaaaaaaaaaa", 1, NOW, revocation.signature)
    assert not is_signed(moved, ONE.public, MESH)
    link = docs.decode(announced(ONE, TWO, 1), Announcement)
    assert is_announced(link, MESH)
    assert not is_announced(docs.decode(announced(LEAKED_TWO, TWO, 1), Announcement), "f" * 16)


def test_what_an_authority_said_before_it_was_put_out_stays_true(trust: Trust, words: Map) -> None:
    assert not trust.spoke(ALICE, NOW, NOW), "never a member"
    trust.present(encode(certificate(ALICE)), ALICE)
    assert not trust.spoke(ALICE, NOW + 9, NOW), "shown to us alone: the others could not judge it"
    words.values[f"member/{ALICE}"] = encode(certificate(ALICE))
    assert trust.spoke(ALICE, NOW + 9, NOW)
    words.values[f"revoked/{ALICE}"] = encode(ONE.signed(Revocation(ALICE, 1, NOW, "")))
    assert trust.spoke(ALICE, NOW, NOW + 9)
    assert not trust.spoke(ALICE, NOW + 1, NOW + 9)
    words.values[f"member/{BOB}"] = encode(certificate(BOB, expires_ms=NOW))
    assert trust.spoke(BOB, NOW, NOW + 9)
    assert not trust.spoke(BOB, NOW + 1, NOW + 9)
    trust.present(encode(certificate(CAROL)), CAROL)
    words.values[f"member/{CAROL}"] = encode(certificate(CAROL))
    rotate(words, ONE, TWO, BOB)
    trust.settle()
    assert trust.spoke(CAROL, NOW, NOW + 9)
    assert not trust.spoke(CAROL, NOW + 1, NOW + 9), "by the leaked old token"
