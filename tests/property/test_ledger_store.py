"""A power cut at any byte of the store's writes: nothing acknowledged is lost, nothing half is read."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_network.core.clock import Stamp
from p2p_network.core.errors import MeshError
from p2p_network.identity import Identity
from p2p_network.ledger.durable import DurableFiles
from p2p_network.ledger.entry import Entry, sign_entry
from p2p_network.ledger.store import LedgerStore

MESH = "mesh"
PEOPLE = [Identity(hashlib.sha256(str(n).encode()).digest()) for n in range(4)]
ENTRIES = {
    (n, m): sign_entry(who, MESH, f"node/{who.peer_id}", Stamp(m, 0), bytes([m]) * 50)
    for n, who in enumerate(PEOPLE)
    for m in range(4)
}
writes = st.lists(st.dictionaries(st.integers(0, 3), st.integers(0, 3), min_size=1), min_size=1, max_size=6)


def loaded(path: Path) -> dict[str, Entry]:
    store = LedgerStore(path, MESH)
    found = store.load()
    store.close()
    assert found.damaged_rows == 0
    assert found.moved_aside is None
    return {entry.key: entry for entry in found.entries}


@settings(max_examples=40, deadline=None)
@given(writes, st.data())
def test_cut_anywhere_in_the_log_it_holds_all_or_nothing_of_each_write(
    batches: list[dict[int, int]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.sqlite"
        wal = Path(f"{path}-wal")
        store = LedgerStore(path, MESH)
        store.load()
        model: dict[str, Entry] = {}
        models: list[dict[str, Entry]] = [{}]
        sizes = [wal.stat().st_size]
        for batch in batches:
            entries = [ENTRIES[n, m] for n, m in batch.items()]
            store.store(entries)
            model |= {entry.key: entry for entry in entries}
            models.append(dict(model))
            sizes.append(wal.stat().st_size)
        acknowledged = data.draw(st.integers(0, len(batches)))
        end = sizes[min(acknowledged + 1, len(batches))]
        cut = data.draw(st.integers(sizes[acknowledged], end))
        torn = Path(folder) / "torn.sqlite"
        shutil.copy(path, torn)
        Path(f"{torn}-wal").write_bytes(wal.read_bytes()[:cut])
        store.close()
        after = loaded(torn)
        assert after == models[acknowledged] or (cut == end and after in models[acknowledged:])


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=60), st.data())
def test_a_damaged_promise_is_an_error_and_never_another_promise(value: bytes, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = DurableFiles(Path(folder) / "durable")
        files.set("genesis/kairos", value)
        (path,) = (Path(folder) / "durable").iterdir()
        raw = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
        else:
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(raw)
        for read in (lambda: files.get("genesis/kairos"), files.keys):
            with pytest.raises(MeshError, match="damaged"):
                read()


@given(st.dictionaries(st.text(max_size=80), st.binary(max_size=20), max_size=5))
@settings(max_examples=30, deadline=None)
def test_any_key_is_kept_under_its_own_name(promises: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = DurableFiles(Path(folder) / "durable")
        for key, value in promises.items():
            files.set(key, value)
        again = DurableFiles(Path(folder) / "durable")
        assert again.keys() == promises.keys()
        assert {key: again.get(key) for key in promises} == promises
