"""Does the production's way of replacing a file survive a disk that honours fsync and nothing else?"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_network.core.errors import MeshError
from p2p_network.ledger import durable
from p2p_network.ledger.durable import SealedFiles
from p2p_simulations.world.sectors import Script, SectorDisk, Sync, SyncDirectory

KEY, PATH = "bootstrap/kairos", "d/bootstrap%2Fkairos"
Honest = Callable[[Script], Script]


def kept(disk: SectorDisk, values: list[bytes], until: int, sees: Honest = lambda script: script) -> int:
    """Set one value after the other, up to that call of them all. Returns how many were acknowledged."""
    calls = disk.calls()
    files = SealedFiles(Path("d"), calls)
    for number, value in enumerate(values):
        files.set(KEY, value)
        script = sees(calls.take())
        for call in script[:until]:
            disk.carry_out(call)
        if until < len(script):
            return number
        until -= len(script)
    return len(values)


def found(disk: SectorDisk) -> bytes | None:
    return SealedFiles(Path("d"), disk.calls()).get(KEY)


@given(st.lists(st.binary(max_size=3000), max_size=4), st.integers(0, 25), st.integers(0, 10**6))
def test_a_power_cut_between_any_two_calls_leaves_the_old_or_the_new(
    values: list[bytes], until: int, seed: int
) -> None:
    disk = SectorDisk(random.Random(seed))
    done = kept(disk, values, until)
    disk.crash()
    assert found(disk) in [None, *values][done : done + 2]
    assert not disk.is_damaged


def _without_syncs(script: Script) -> Script:
    return tuple(call for call in script if not isinstance(call, Sync | SyncDirectory))


def test_without_syncs_the_disk_tears_files_and_the_checksum_tells() -> None:
    """So the disk is a bad one indeed, and what the production reads is right or refused, never wrong."""
    seen = set()
    for seed in range(200):
        disk = SectorDisk(random.Random(seed))
        kept(disk, [b"a" * 1500], 99)
        kept(disk, [b"b" * 1500], 99, _without_syncs)
        disk.crash()
        if disk.is_damaged:
            with pytest.raises(MeshError, match="damaged"):
                found(disk)
            seen.add("refused")
            continue
        value = found(disk)
        assert value in (b"a" * 1500, b"b" * 1500)
        seen.add("old" if value == b"a" * 1500 else "new")
    assert seen == {"refused", "old", "new"}


def test_without_the_checksum_a_torn_vote_would_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_checksum", lambda body: bytes(16))
    wrong = set()
    for seed in range(100):
        disk = SectorDisk(random.Random(seed))
        kept(disk, [b"a" * 1500], 99, _without_syncs)
        disk.crash()
        try:
            wrong.add(found(disk))
        except MeshError:
            continue
    assert wrong - {None, b"a" * 1500}


@given(st.binary(max_size=2000), st.integers(0, 10**6))
def test_a_bad_sector_is_an_error_until_the_file_is_written_anew(value: bytes, seed: int) -> None:
    disk = SectorDisk(random.Random(seed))
    kept(disk, [value], 99)
    before = disk.read(PATH)
    how = disk.corrupt(PATH)
    if how == "unreadable":
        with pytest.raises(MeshError, match="Input/output"):
            found(disk)
    elif disk.read(PATH) != before:
        with pytest.raises(MeshError, match="damaged"):
            found(disk)
    assert disk.is_damaged
    kept(disk, [b"new"], 99)
    assert found(disk) == b"new"
    assert not disk.is_damaged


def test_a_full_disk_keeps_the_old_value_and_leaves_nothing_behind() -> None:
    room = [True]
    disk = SectorDisk(random.Random(1), lambda: room[0])
    kept(disk, [b"old"], 99)
    room[0] = False
    calls = disk.calls()
    with pytest.raises(MeshError, match="no space is left"):
        SealedFiles(Path("d"), calls).set(KEY, b"new")
    for call in calls.take():
        disk.carry_out(call)
    assert found(disk) == b"old"
    assert disk.names() == [PATH]
    with pytest.raises(FileNotFoundError) as missing:
        disk.read("d/other")
    assert missing.value.errno == errno.ENOENT
