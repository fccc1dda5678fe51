"""Is the archive what a kernel reads, and are modules found with what they need?"""

from __future__ import annotations

import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from p2p_bootstrap.boot import cpio, initramfs, modules
from p2p_network.core.errors import BootError


def test_the_archive_is_what_cpio_reads() -> None:
    if not shutil.which("cpio"):
        pytest.skip("missing: cpio")
    tree = {
        "init": cpio.file(b"#!/bin/sh\n", 0o755),
        "a/b/c": cpio.file(b"odd"),
        "l": cpio.link("a/b/c"),
        "dev/null": cpio.character_device(1, 3, 0o666),
    }
    data = cpio.archive(tree)
    assert data == cpio.archive(dict(reversed(tree.items())))
    done = subprocess.run(["cpio", "-tv", "--quiet", "-n"], input=data, capture_output=True, check=True)
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert [line[0] for line in lines] == [
        "drwxr-xr-x", "drwxr-xr-x", "-rw-r--r--", "drwxr-xr-x", "crw-rw-rw-", "-rwxr-xr-x", "lrwxrwxrwx",
    ]  # fmt: skip
    assert lines[-1][-3:] == ["l", "->", "a/b/c"]


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/a.ko.xz").write_bytes(lzma.compress(b"module a"))
    (tmp_path / "modules.dep").write_text(
        "kernel/a.ko.xz: kernel/b-1.ko kernel/c.ko\nkernel/b-1.ko: kernel/c.ko\nkernel/c.ko:\nkernel/d.ko:\n"
    )
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4.ko\n")
    found = modules.wanted(tmp_path, ["ext4", "a", "c"])
    assert [path.name for path in found] == ["c.ko", "b-1.ko", "a.ko.xz"]
    assert modules.unpacked(found[-1]) == b"module a"
    with pytest.raises(BootError, match="has no module nonsense"):
        modules.wanted(tmp_path, ["nonsense"])
    with pytest.raises(BootError, match="is no folder of kernel modules"):
        modules.wanted(tmp_path / "none", [])


def test_what_is_packed_is_small_and_can_boot() -> None:
    packed = initramfs.build(None)
    for name in (
        b"p2p_bootstrap/boot/__main__.pyc",
        b"encodings/utf_8.pyc",
        b"yaml/__init__.pyc",
        b"dev/urandom",
    ):
        assert name in packed
    for name in (b"pydantic", b"trio/", b"click/"):
        assert name not in packed
    data, _ = initramfs.compress(packed)
    if shutil.which("strip"):
        assert len(data) < 8_000_000
