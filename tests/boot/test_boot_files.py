"""What do the adapters of the boot see and write? Real file systems in files, real folders; no mounts."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from boot_lab import run

from p2p_bootstrap.boot import merge3, persistence, slots, superblock
from p2p_bootstrap.boot.files import resolve, straight
from p2p_bootstrap.boot.kernel import parse_mountinfo
from p2p_bootstrap.boot.observe import Observer, probe_file
from p2p_bootstrap.boot.ports import BindRequest, CanaryRequest, Policy
from p2p_bootstrap.boot.slotstore import SlotStore
from p2p_network.core.errors import BootError

MAKE = {
    "ext4": ("mke2fs", "-q", "-t", "ext4", "-L", "A-LABEL", "{}", "4M"),
    "ext2": ("mke2fs", "-q", "-t", "ext2", "-L", "A-LABEL", "{}", "4M"),
    "vfat": ("mkfs.vfat", "-C", "-n", "A-LABEL", "{}", "4096"),
    "erofs": ("mkfs.erofs", "--quiet", "{}", "tree"),
    "squashfs": ("mksquashfs", "tree", "{}", "-quiet", "-no-progress"),
}


@pytest.mark.parametrize("kind", list(MAKE))
def test_superblocks_are_read_as_blkid_reads_them(kind: str, tmp_path: Path) -> None:
    if not (shutil.which(MAKE[kind][0]) and shutil.which("blkid")):
        pytest.skip(f"missing: {MAKE[kind][0]} or blkid")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("x")
    image = tmp_path / "image"
    run(*(part.replace("tree", str(tmp_path / "tree")).format(image) for part in MAKE[kind]))
    found = probe_file(image)
    assert found is not None
    theirs = dict(
        line.split("=", 1)
        for line in run("blkid", "--probe", "--output", "export", image).splitlines()
        if "=" in line
    )
    assert found.fstype == theirs["TYPE"] == kind
    assert found.label == theirs.get("LABEL", "")
    assert found.uuid == theirs.get("UUID", "")
    # a single flipped bit in what is checked, or a lost magic number, is noticed
    raw = bytearray(image.read_bytes())
    raw[:2048] = bytes(2048)
    image.write_bytes(raw)
    assert probe_file(image) is None


def test_a_damaged_ext4_superblock_is_noticed_by_its_checksum(tmp_path: Path) -> None:
    image = tmp_path / "image"
    run("mke2fs", "-q", "-t", "ext4", "-L", "GOOD", image, "4M")
    raw = bytearray(image.read_bytes())
    raw[1024 + 120] ^= 1  # the label
    image.write_bytes(raw)
    assert probe_file(image) is None


def test_partition_tables_give_partuuids_and_names(tmp_path: Path) -> None:
    if not shutil.which("sfdisk"):
        pytest.skip("missing: sfdisk")
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(16 * 1024 * 1024))
    script = 'label: gpt\nsize=2M, name="first one", uuid=6E1AE8D2-2F0C-4A6A-9A55-0A86C3A2B1C0\nsize=4M\n'
    subprocess.run(["sfdisk", "-q", disk], input=script, text=True, check=True, capture_output=True)
    raw = disk.read_bytes()
    first, second = superblock.partitions(lambda offset, size: raw[offset : offset + size])
    assert (first.partuuid, first.partlabel) == ("6e1ae8d2-2f0c-4a6a-9a55-0a86c3a2b1c0", "first one")
    assert (first.start, second.start) == (2048, 2048 + 4096)
    torn = bytearray(raw)
    torn[1024] ^= 1
    assert superblock.partitions(lambda offset, size: bytes(torn[offset : offset + size])) == ()


def test_efi_variables(tmp_path: Path) -> None:
    folder = tmp_path / "firmware/efi/efivars"
    folder.mkdir(parents=True)
    loader, world = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f", "8be4df61-93ca-11d2-aa0d-00e098032b8c"
    (folder / f"LoaderEntrySelected-{loader}").write_bytes(bytes(4) + "active.conf\0".encode("utf-16-le"))
    (folder / f"LoaderDevicePartUUID-{loader}").write_bytes(bytes(4) + "AB-CD\0".encode("utf-16-le"))
    (folder / f"SecureBoot-{world}").write_bytes(bytes(4) + b"\1")
    efi = Observer(sys=tmp_path).efi()
    assert efi is not None
    assert (efi.secure_boot, efi.entry, efi.partuuid) == (True, "active.conf", "ab-cd")
    assert Observer(sys=tmp_path / "none").efi() is None


def request(tmp_path: Path, image: str, policy: Policy = "merge", legacy: str = "") -> BindRequest:
    (tmp_path / "state").mkdir(exist_ok=True)
    return BindRequest(
        "/etc/x", str(tmp_path / image), str(tmp_path / "state"), "etc-x.bind", legacy, image, policy
    )


def trees(tmp_path: Path) -> None:
    for name, text in (("v1", "one"), ("v2", "two")):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub/both").write_text(text)
        (tmp_path / name / "same").write_text("same")
        (tmp_path / name / f"only-{name}").write_text(text)
        (tmp_path / name / "link").symlink_to(text)


@pytest.mark.parametrize(("policy", "kept", "aside"), [("merge", "mine", "two"), ("local", "mine", "two"),
                                                     ("image", "two", "mine")])  # fmt: skip
def test_a_conflict_is_settled_by_policy_and_the_loser_kept_aside(
    tmp_path: Path, policy: Policy, kept: str, aside: str
) -> None:
    trees(tmp_path)
    persistence.prepare(request(tmp_path, "v1", policy))
    folder = tmp_path / "state/etc-x.bind"
    (folder / "sub/both").write_text("mine")
    (folder / "own").write_text("own")
    (conflict,) = persistence.prepare(request(tmp_path, "v2", policy))
    assert "/etc/x/sub/both was changed by the image and by this node" in conflict
    assert (folder / "sub/both").read_text() == kept
    assert (tmp_path / "state/.kairos-p2p/conflicts/etc-x/sub/both").read_text() == aside
    assert sorted(p.name for p in folder.iterdir()) == ["link", "only-v2", "own", "same", "sub"]
    assert os.readlink(folder / "link") == "two"
    assert persistence.prepare(request(tmp_path, "v2", policy)) == ()


def test_a_folder_with_own_work_is_not_replaced_by_a_file_of_the_image(tmp_path: Path) -> None:
    trees(tmp_path)
    persistence.prepare(request(tmp_path, "v1"))
    folder = tmp_path / "state/etc-x.bind"
    (folder / "sub/own").write_text("own")
    shutil.rmtree(tmp_path / "v2/sub")
    (tmp_path / "v2/sub").write_text("now a file")
    assert len(persistence.prepare(request(tmp_path, "v2"))) == 1
    assert (folder / "sub/own").read_text() == "own"


def test_what_kairos_filled_is_taken_over(tmp_path: Path) -> None:
    trees(tmp_path)
    old = tmp_path / "state/kairos-name.bind"
    old.mkdir(parents=True)
    (old / "own").write_text("own")
    persistence.prepare(request(tmp_path, "v1", legacy="kairos-name.bind"))
    assert (tmp_path / "state/etc-x.bind/own").read_text() == "own"
    assert (tmp_path / "state/etc-x.bind/same").read_text() == "same"
    assert not old.exists()


def test_modes_owners_and_links_survive_the_filling(tmp_path: Path) -> None:
    trees(tmp_path)
    (tmp_path / "v1/same").chmod(0o4750)
    persistence.prepare(request(tmp_path, "v1"))
    image, filled = persistence.scan(tmp_path / "v1"), persistence.scan(tmp_path / "state/etc-x.bind")
    assert filled == image
    assert merge3.merge({}, image, filled, "merge").changes == ()


def test_the_canary_knows_its_partition(tmp_path: Path) -> None:
    ours, other, oem = (tmp_path / name for name in ("ours", "other", "oem"))
    for folder in (ours, other, oem):
        folder.mkdir()
    assert "is new" in persistence.check_canary(CanaryRequest(str(ours), str(oem)))
    assert persistence.check_canary(CanaryRequest(str(ours), str(oem))) == ""
    with pytest.raises(BootError, match="lacks its canary"):
        persistence.check_canary(CanaryRequest(str(other), str(oem)))
    persistence.check_canary(CanaryRequest(str(other), ""))
    with pytest.raises(BootError, match="belongs to another installation"):
        persistence.check_canary(CanaryRequest(str(other), str(oem)))
    shutil.rmtree(oem / ".kairos-p2p")  # OEM was formatted by a reset: it learns anew
    assert persistence.check_canary(CanaryRequest(str(ours), str(oem))) == ""


def test_an_upgrade_is_written_checked_tried_and_blessed(tmp_path: Path) -> None:
    store = SlotStore(tmp_path)
    (tmp_path / "cOS").mkdir()
    (tmp_path / "cOS/active.img").write_bytes(b"old")
    first = store.upgrade(io.BytesIO(b"new image"), "active")
    assert (tmp_path / first.active.lstrip("/")).read_bytes() == b"new image"
    assert (first.passive, first.trial, first.tries_left) == ("/cOS/active.img", True, 1)
    assert "0 tries are left" in store.count_try()
    assert store.table().spent
    second = store.upgrade(io.BytesIO(b"a better one"), "passive")
    assert second.passive == "/cOS/active.img"
    assert store.images() == {second.active, second.passive}
    assert "is blessed" in store.bless("active")
    assert store.count_try() == ""
    assert store.journal() == ""


def test_an_upgrade_that_was_cut_off_is_undone(tmp_path: Path) -> None:
    store = SlotStore(tmp_path)
    (tmp_path / "cOS").mkdir()
    (tmp_path / "cOS/active.img").write_bytes(b"old")
    intent = slots.intend_upgrade(store.table(), "active", "ab" * 32)
    store.perform(slots.WriteJournal(intent), None)
    (tmp_path / intent.image.lstrip("/")).write_bytes(b"half")
    (done, _) = store.recover()
    assert "remove" in done
    assert store.images() == {"/cOS/active.img"}
    assert store.table() == slots.SlotTable()


def test_links_are_followed_inside_the_new_root_only(tmp_path: Path) -> None:
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin/init").symlink_to("/lib/systemd")
    (tmp_path / "lib").symlink_to("usr/lib")
    assert resolve(str(tmp_path), "/sbin/init") == f"{tmp_path}/usr/lib/systemd"
    assert resolve(str(tmp_path), "/sbin/../../../etc") == f"{tmp_path}/etc"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BootError, match="go round"):
        resolve(str(tmp_path), "/loop")
    with pytest.raises(BootError, match="goes through a symbolic link"):
        straight(f"{tmp_path}/lib/x")


def test_mountinfo_is_taken_apart() -> None:
    line = r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/ro\134ot rw,errors=continue"
    (entry,) = parse_mountinfo(f"{line}\nrubbish\n")
    assert (entry.root, entry.target, entry.device) == ("/mnt1", "/mnt 2", "98:0")
    assert (entry.fstype, entry.source, entry.options) == ("ext3", "/dev/ro\\ot", ("rw", "noatime"))
