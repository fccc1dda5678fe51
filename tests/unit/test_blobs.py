"""Does what is larger than a frame arrive whole or not at all, and does the key alone open what is sealed?"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_bootstrap.node.vault import Vault
from p2p_network import wire
from p2p_network.blobs import files, sealing, transfer
from p2p_network.blobs.sealing import Damaged, Header
from p2p_network.blobs.transfer import PIECE_BYTES, Answer, Fetch, Gone, Manifest
from p2p_network.core.errors import RoleError
from p2p_roles.k3s.datastore import digest_of
from p2p_roles.recovery import SnapshotFacts

SECRET = b"K10 token"


def source(folder: Path, size: int) -> Path:
    path = folder / "source"
    path.write_bytes(bytes(i * 7 % 251 for i in range(997)) * (size // 997 + 1))
    with path.open("r+b") as file:
        file.truncate(size)
    return path


def answer(path: Path, raw: bytes) -> bytes:
    ask = transfer.decode_ask(raw)
    if ask.piece < 0:
        return wire.encode(Answer(manifest=files.manifest_of(path)))
    return wire.encode(Answer(data=files.read_piece(path, ask.piece)))


def fetch(path: Path, target: Path, *, breaks_after: int = 1 << 30) -> int:
    """How many pieces were asked for."""
    session, partial, asked = Fetch("s", "name", max_bytes=1 << 30), None, 0
    try:
        while (request := session.next_request()) is not None:
            piece = session.take(answer(path, request))
            if partial is None:
                assert session.manifest is not None
                partial = files.Partial(target, session.manifest)
                session.resume(partial.have())
            elif piece is not None:
                asked += 1
                partial.write(piece)
                if asked >= breaks_after:
                    return asked
        assert partial is not None
        partial.finish()
        return asked
    finally:
        if partial is not None:
            partial.close()


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES // 2])
def test_a_blob_arrives_whole(tmp_path: Path, size: int) -> None:
    path, target = source(tmp_path, size), tmp_path / "target"
    fetch(path, target)
    assert target.read_bytes() == path.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.part"))


def test_a_transfer_goes_on_where_it_ended_and_a_torn_piece_is_fetched_again(tmp_path: Path) -> None:
    path, target = source(tmp_path, 6 * PIECE_BYTES), tmp_path / "target"
    assert fetch(path, target, breaks_after=4) == 4
    assert not target.exists(), "what is not whole has no name of its own"
    with (tmp_path / "target.part").open("r+b") as file:
        file.seek(2 * PIECE_BYTES + 5)
        file.write(b"torn by a power cut")
    assert fetch(path, target) == 3
    assert target.read_bytes() == path.read_bytes()


def test_a_peer_that_lies_is_noticed_at_once(tmp_path: Path) -> None:
    path = source(tmp_path, 2 * PIECE_BYTES)
    session = Fetch("s", "name", max_bytes=1 << 30)
    session.take(answer(path, session.next_request() or b""))
    with pytest.raises(ValueError, match="not what its manifest says"):
        session.take(wire.encode(Answer(data=b"something else")))
    for manifest in (
        Manifest(5, ()),
        Manifest(PIECE_BYTES * 3, (b"x" * 32,)),
        Manifest(1, (b"short",)),
        Manifest(-1, ()),
        Manifest(1 << 40, (b"x" * 32,) * 9),
    ):
        with pytest.raises(ValueError, match=r"blob|pieces|hash"):
            Fetch("s", "name", max_bytes=1 << 20).take(wire.encode(Answer(manifest=manifest)))
    with pytest.raises(Gone):
        Fetch("s", "n", max_bytes=9).take(wire.encode(Answer(missing="no such blob")))


@pytest.mark.parametrize("name", ["", "../secret", ".hidden", "a/b", "x" * 200, "line\nbreak"])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        transfer.decode_ask(wire.encode(transfer.Ask("s", name)))


@given(raw=st.binary(max_size=300))
def test_garbage_is_no_request_and_no_sealed_file(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        transfer.decode_ask(raw)
    with pytest.raises(Damaged):
        sealing.read_header(io.BytesIO(raw))


def sealed(content: bytes, *, passphrase: bool = False) -> bytes:
    header = Header("test", {"name": "n"}, len(content), b"s" * 16)
    header = sealing.with_passphrase(header) if passphrase else header
    return b"".join(sealing.seal(header, sealing.key_of(header, SECRET), [content[:100], content[100:]]))


def opened(raw: bytes, secret: bytes = SECRET) -> bytes:
    file = io.BytesIO(raw)
    header = sealing.read_header(file)
    return b"".join(sealing.unseal(header, sealing.key_of(header, secret), file))


@pytest.mark.parametrize(
    "size", [0, 1, sealing.CHUNK_BYTES, sealing.CHUNK_BYTES + 1, 3 * sealing.CHUNK_BYTES]
)
def test_what_is_sealed_comes_out_again(size: int) -> None:
    content = b"secret" * (size // 6 + 1)
    content = content[:size]
    raw = sealed(content)
    assert opened(raw) == content
    assert len(raw) == sealing.sealed_size(sealing.read_header(io.BytesIO(raw)))
    assert size < 10 or b"secretsecret" not in raw


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_change_is_noticed(where: float, bit: int) -> None:
    raw = bytearray(sealed(b"x" * (sealing.CHUNK_BYTES + 50)))
    raw[int(where * len(raw))] ^= 1 << bit
    with pytest.raises(Damaged):
        opened(bytes(raw))


def test_a_header_that_says_the_same_in_other_bytes_is_noticed() -> None:
    raw = sealed(b"x")
    assert raw.count(b"scrypt") == 1
    with pytest.raises(Damaged):
        opened(raw.replace(b"scrypt", b"scrypu"))  # an unknown field: scrypt is then () by default


def test_cut_appended_exchanged_and_wrong_keys_are_noticed() -> None:
    raw = sealed(b"a" * (2 * sealing.CHUNK_BYTES))
    chunk = sealing.CHUNK_BYTES + sealing.TAG_BYTES
    head = len(raw) - 2 * chunk
    for bad in (
        raw[:-1],
        raw[:-chunk],
        raw + b"x",
        raw[:head] + raw[head + chunk :] + raw[head : head + chunk],
    ):
        with pytest.raises(Damaged):
            opened(bad)
    with pytest.raises(Damaged, match="passphrase or key"):
        opened(raw, b"another secret")
    assert opened(sealed(b"x", passphrase=True)) == b"x"


def test_a_header_that_asks_for_absurd_work_is_refused() -> None:
    for scrypt in ((1 << 30, 8, 1), (3, 8, 1), (1 << 15, 999, 1), (1,)):
        with pytest.raises(Damaged):
            sealing.key_of(Header("x", {}, 0, b"s" * 16, scrypt), b"y")


def test_the_vault_keeps_what_is_whole_and_no_more_than_it_may(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "vault")
    known = []
    for number in range(6):
        path = tmp_path / f"s{number}"
        path.write_bytes(b"data %d" % number * 1000)
        node = "a" if number % 2 else "b"
        facts = SnapshotFacts(path.name, digest_of(path), path.stat().st_size, 100.0 + number, node)
        vault.seal_in(path, facts, SECRET)
        known.append(facts)
    assert [f.name for f in vault.entries()] == ["s5", "s4", "s3", "s2", "s1", "s0"]
    vault.unseal(known[0].digest, SECRET, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "s0").read_bytes()
    with pytest.raises(RoleError, match="cannot be used"):
        vault.unseal(known[0].digest, b"not the token", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    torn = vault.path_of(known[5].digest)
    torn.write_bytes(torn.read_bytes()[:-7])
    assert [f.name for f in vault.entries()] == ["s4", "s3", "s2", "s1", "s0"], "a torn copy is no copy"
    assert sorted(vault.prune(keep=1, max_bytes=1 << 30)) == ["s0", "s1", "s2"]
    assert vault.prune(keep=9, max_bytes=1, spared=frozenset({known[3].digest})) == []
    assert vault.prune(keep=9, max_bytes=8000) == ["s3"], "the newest of all stays in any case"
    with pytest.raises(RoleError, match="changed while"):
        vault.seal_in(tmp_path / "s1", known[2], SECRET)


def test_another_copy_takes_the_place_of_a_damaged_one_if_it_is_whole(tmp_path: Path) -> None:
    vault, source = Vault(tmp_path / "vault"), tmp_path / "s"
    source.write_bytes(b"data" * 1000)
    facts = SnapshotFacts("s", digest_of(source), source.stat().st_size, 100.0, "a")
    vault.seal_in(source, facts, SECRET)
    own, copy = vault.path_of(facts.digest), vault.copy_of(facts.digest)
    whole = own.read_bytes()
    bad = bytearray(whole)
    bad[-1000] ^= 1
    own.write_bytes(bad)
    assert vault.entries() == [facts], "its head is whole: only who opens it sees"
    with pytest.raises(RoleError, match="cannot be used"):
        vault.unseal(facts.digest, SECRET, tmp_path / "out")
    copy.write_bytes(bad[:-1])
    with pytest.raises(RoleError, match="cannot be used"):
        vault.unseal(facts.digest, SECRET, tmp_path / "out")
    assert not copy.exists()
    copy.write_bytes(whole)
    vault.unseal(facts.digest, SECRET, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    assert own.read_bytes() == whole
    assert not copy.exists()
    copy.write_bytes(bad)  # left by a power cut: the own one is whole, and stays
    vault.unseal(facts.digest, SECRET, tmp_path / "out")
    assert own.read_bytes() == whole
