"""Can any bytes from a peer, a person or a disk do more to the admission than be refused?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2p_network.admission import documents as docs
from p2p_network.admission import handshake
from p2p_network.admission.join_token import JOIN_PREFIX, parse_join_token
from p2p_network.admission.kept import decode_kept, encode_kept, from_network_token
from p2p_network.admission.trust import Cause, Trust
from p2p_network.core.errors import TokenError
from p2p_network.identity import Identity
from p2p_network.sealed import seal, unseal
from p2p_network.token import NetworkToken

ME = Identity(b"m" * 32)
AUTHORITY = docs.Authority(b"a" * 32, "0123456789abcdef", 1)
CLAIM = handshake.encode(
    handshake.Claim(AUTHORITY.mesh_id, docs.encode(docs.certify(AUTHORITY, ME.peer_id, issued_ms=5)))
)
KEPT = encode_kept(from_network_token(NetworkToken(bytes(32)), "kairos", None, ME.peer_id, 5))
KINDS = (
    docs.Certificate,
    docs.Invitation,
    docs.Withdrawal,
    docs.Revocation,
    docs.Announcement,
    docs.Seat,
)


class Nothing:
    def get(self, key: str) -> None:
        return None

    def items(self, prefix: str = "") -> object:
        return iter(())


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Cut, or with some bytes changed."""
    cut = st.integers(0, len(whole) - 1).map(lambda n: whole[:n])
    change = st.tuples(st.integers(0, len(whole) - 1), st.integers(1, 255)).map(
        lambda c: whole[: c[0]] + bytes([whole[c[0]] ^ c[1]]) + whole[c[0] + 1 :]
    )
    return st.one_of(cut, change)


@given(st.one_of(st.binary(max_size=300), damaged(CLAIM)))
def test_any_claim_is_read_or_refused(raw: bytes) -> None:
    for decode in (handshake.decode_claim, handshake.decode_answer):
        try:
            decode(raw)
        except ValueError:
            continue


@given(
    st.one_of(st.binary(max_size=300), damaged(docs.encode(docs.certify(AUTHORITY, ME.peer_id, issued_ms=5))))
)
def test_no_damaged_certificate_admits(raw: bytes) -> None:
    trust = Trust(AUTHORITY.mesh_id, {1: AUTHORITY.public}, 1, Nothing())  # type: ignore[arg-type]
    assert trust.present(raw, ME.peer_id) in (Cause.FORGED, Cause.MALFORMED) or not raw
    assert trust.verdict(ME.peer_id, 9).cause is Cause.UNCERTIFIED
    assert not trust.learn(raw)
    assert trust.tell_revoked(raw) is None
    for kind in KINDS:
        try:
            docs.decode(raw, kind)
        except ValueError:
            continue


@given(st.sampled_from(["revoked", "invite", "withdrawn", "use", "seat", "generation", "member", "node"]),
       st.text(max_size=60), st.binary(max_size=200))  # fmt: skip
def test_nothing_is_proven_by_accident(name: str, rest: str, value: bytes) -> None:
    trust = Trust(AUTHORITY.mesh_id, {1: AUTHORITY.public}, 1, Nothing())  # type: ignore[arg-type]
    assert trust.proven(f"{name}/{rest}", value) is None
    assert not trust.owns(f"{name}/{rest}", value)


@given(st.text(max_size=400))
def test_any_text_is_a_join_token_or_refused_without_quoting_it(text: str) -> None:
    for candidate in (text, JOIN_PREFIX + text):
        try:
            parse_join_token(candidate)
        except TokenError as exc:
            assert len(text) < 20 or text not in str(exc)  # noqa: PT017


@given(damaged(KEPT))
def test_a_damaged_admission_on_disk_is_an_error_of_ours(raw: bytes) -> None:
    try:
        decode_kept(raw)
    except ValueError:
        return


@given(st.binary(max_size=200), st.binary(min_size=32, max_size=32))
def test_what_is_sealed_comes_out_again_and_garbage_does_not(message: bytes, ephemeral: bytes) -> None:
    assert unseal(ME, "x", seal(ME.peer_id, "x", message, ephemeral)) == message
    try:
        unseal(ME, "x", message)
    except ValueError:
        return
    raise AssertionError("garbage was opened")
