"""Disks for boot tests: made once a test, unplugged afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import image_lab
import pytest
import vm_lab
from boot_lab import Disk, MakeDisk, make_image, root_tree, why_not
from vm_lab import Whole


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two versions, as squashfs; made once, for they never change."""
    if reason := why_not():
        pytest.skip(f"no boot in namespaces on this machine: {reason}")
    folder = tmp_path_factory.mktemp("images")
    for version, text in (("v1", "one"), ("v2", "two")):
        tree = root_tree(
            folder / version, version,
            {"etc/rancher/image.conf": text, "var/lib/a-b/name": "a-b", "var/lib/a/b/name": "a/b",
             "etc/ssh/sshd_config": text, "etc/ssh/banner": "same"},
        )  # fmt: skip
        make_image(tree, folder / f"{version}.squashfs")
    return folder


@pytest.fixture
def make_disk(images: Path, tmp_path: Path) -> Iterator[MakeDisk]:
    """Makes disks. `active`, `passive`, `recovery`: image files; None for none."""
    made: list[Disk] = []

    def make(
        active: Path | None = None, passive: Path | None = None, recovery: Path | None = None, *,
        persistent: str = "16M", config: str = "",
    ) -> Disk:  # fmt: skip
        folder = tmp_path / f"disk{len(made)}"
        state, oem = folder / "state/cOS", folder / "oem"
        state.mkdir(parents=True)
        oem.mkdir()
        shutil.copy(active or images / "v1.squashfs", state / "active.img")
        if passive:
            shutil.copy(passive, state / "passive.img")
        if config:
            (oem / "90_custom.yaml").write_text(config)
        disk = Disk(folder)
        made.append(disk)
        disk.add("state", "COS_STATE", "32M", folder / "state")
        disk.add("oem", "COS_OEM", "4M", oem)
        if persistent:
            disk.add("persistent", "COS_PERSISTENT", persistent)
        if recovery:
            place = folder / "recovery/cOS"
            place.mkdir(parents=True)
            shutil.copy(recovery, place / "recovery.img")
            disk.add("recovery", "COS_RECOVERY", "16M", folder / "recovery")
        return disk

    yield make
    for disk in made:
        disk.unplug()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """One image with all inits and everything to join a mesh, as a state partition, and its initramfs."""
    if reason := why_not() or vm_lab.why_not() or image_lab.why_not():
        pytest.skip(f"no virtual machine: {reason}")
    return vm_lab.make_whole(tmp_path_factory.mktemp("whole"))
