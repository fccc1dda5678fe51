"""Is the archive what a kernel reads, and are modules found with what they need?"""

from __future__ import annotations

import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from p2p_bootstrap.boot import coldplug, cpio, initramfs, modules
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


def test_a_boot_loads_what_it_needs_and_no_more(tmp_path: Path) -> None:
    """Each module costs time at each boot: disks' drivers wait for a device, file systems for a mount."""
    (tmp_path / "kernel").mkdir()
    kernel = ("loop", "overlay", "nvme", "crc32c_generic", "mbcache", "ext4", "floppy")
    needs = {"ext4": "kernel/mbcache.ko"}
    for name in kernel:
        (tmp_path / f"kernel/{name}.ko").write_bytes(b"x")
    (tmp_path / "modules.dep").write_text("".join(f"kernel/{n}.ko: {needs.get(n, '')}\n" for n in kernel))
    (tmp_path / "modules.builtin").write_text("")
    (tmp_path / "modules.alias").write_text("alias pci:v*bc01* nvme\nalias pci:v*bc02* floppy\n")
    tree: dict[str, cpio.Entry] = {}
    initramfs._add_modules(tree, tmp_path, modules.DEFAULT, hardware=False)
    for name, entry in tree.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(entry.data)
    packed = tmp_path / modules.FOLDER
    assert not (packed / "floppy.ko").exists()
    loaded: list[str] = []

    def put(path: Path) -> str:
        assert path.exists()
        loaded.append(path.name)
        return ""

    assert (packed / modules.ORDER).read_text().split() == ["loop.ko", "overlay.ko"]
    assert coldplug.parse((packed / coldplug.NAME).read_bytes()).asked(["pci:v1bc01sc"]) == ("nvme",)
    assert modules.demand("ext4", packed, put)
    assert loaded == ["crc32c_generic.ko", "mbcache.ko", "ext4.ko"]
    assert not modules.demand("erofs", packed, put)  # this kernel has it built in, or not at all
    assert not modules.demand("btrfs", packed, put)
    assert not modules.demand("ext4", tmp_path / "nowhere", put)


def test_what_is_packed_is_small_and_can_boot() -> None:
    packed = initramfs.build(None)
    for name in (
        b"p2p_bootstrap/boot/__main__.pyc",
        b"encodings/utf_8.pyc",
        b"yaml/__init__.pyc",
        b"dev/urandom",
    ):
        assert name in packed
    for name in (b"pydantic/", b"trio/", b"click/"):
        assert name not in packed
    data, _ = initramfs.compress(packed)
    if shutil.which("strip"):
        assert len(data) < 8_000_000
