"""Are extensions of the system offered to the boot that wants them, and to no other? In a namespace."""

from __future__ import annotations

from pathlib import Path

from boot_lab import MakeDisk, make_image, root_tree

from p2p_bootstrap.boot import extensions
from p2p_bootstrap.boot.facts import Efi, Facts
from p2p_bootstrap.boot.plan import plan

HOME = "/var/lib/kairos/extensions"
ENABLE = f"""
export PATH=/bin
cd {HOME}
for name in tool other gone broken; do busybox cp /image.raw $name.sysext.raw; done
busybox mkdir -p active passive common
busybox ln -s ../tool.sysext.raw active/
busybox ln -s {HOME}/other.sysext.raw common/
busybox ln -s ../gone.sysext.raw active/
busybox rm gone.sysext.raw
echo nonsense >broken.sysext.raw
busybox ln -s ../broken.sysext.raw common/
busybox ln -s ../tool.sysext.raw passive/only-passive.sysext.raw
busybox ln -s /etc/passwd active/no-extension
busybox sync
"""
TELL = """
export PATH=/bin
cd /run/extensions && echo "offered $(busybox echo $(busybox ls))"
echo "leads $(busybox readlink tool.sysext.raw)"
busybox cmp tool.sysext.raw /image.raw && echo the same
"""


def test_what_a_slot_wants_is_offered_and_what_is_broken_is_told(make_disk: MakeDisk, tmp_path: Path) -> None:
    extra = tmp_path / "extra/usr/lib/extension-release.d"
    extra.mkdir(parents=True)
    (extra / "extension-release.tool.sysext").write_text("ID=_any\n")
    raw = make_image(tmp_path / "extra", tmp_path / "tool.raw")
    tree = root_tree(tmp_path / "tree", "v1", {"usr/bin/systemd-sysext": ""})
    (tree / "image.raw").write_bytes(raw.read_bytes())
    (tree / "var/lib/kairos/extensions").mkdir(parents=True)
    disk = make_disk(make_image(tree, tmp_path / "active.img"))
    first = disk.boot(ENABLE)
    assert first.code == 0, first.why
    second = disk.boot(TELL)
    assert "offered other.sysext.raw tool.sysext.raw\n" in second.output, second.why
    assert f"leads {HOME}/tool.sysext.raw\n" in second.output
    assert "the same\n" in second.output
    told = "\n".join(second.record["remarks"])
    assert "extended by other.sysext.raw, tool.sysext.raw" in told
    assert "broken.sysext.raw was left out: " in told
    assert "holds no file system" in told
    assert "gone.sysext.raw was left out: " in told


def test_without_a_program_that_merges_them_none_is_offered(tmp_path: Path) -> None:
    place = tmp_path / "root/var/lib/kairos/confexts/common"
    place.mkdir(parents=True)
    (place / "x.confext.raw").write_bytes(b"")
    (said,) = extensions.offer(str(tmp_path / "root"), str(tmp_path / "run"), "active", trusted=False)
    assert said == "x.confext.raw left out: the image has no /usr/bin/systemd-confext to merge them"
    (said,) = extensions.offer(str(tmp_path / "root"), str(tmp_path / "run"), "active", trusted=True)
    assert "a unified kernel image takes no extensions" in said
    assert not (tmp_path / "run").exists()


def test_a_live_system_is_not_extended() -> None:
    efi = Efi(entry="", partuuid="", secure_boot=True)
    assert "extensions" not in [step.name for step in plan(Facts(cmdline="rd.immucore.uki", efi=efi)).steps]
