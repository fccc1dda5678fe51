"""Does each way to boot come up, and tell the system which one it was? Real mounts, in a namespace.

Normal, live and recovery boots are in ``test_boot_namespaces``; here are a unified kernel image (killed at
its steps too), the network, memory, and the state reset.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from boot_lab import CMDLINE, MakeDisk, run
from test_boot_namespaces import PROOF, booted, stopped, value

from p2p_bootstrap.boot import blessing, cpio, uki

UKI = "rd.immucore.uki rd.immucore.securebootdisabled rd.immucore.sysrootwait=1 fsck.mode=skip"
ACTIVE = {"secure_boot": False, "entry": "active.conf", "partuuid": "esp"}
KILLED = ("esp", "root", "oem", "look-layout", "canary", "bind-var-lib-rancher", "prove", "switch-root")
ASK = (
    "echo modes $(busybox ls /run/cos); echo kept $(busybox cat /var/lib/rancher/state 2>/dev/null)\n"
    "busybox touch /bin/x 2>/dev/null || echo root read-only\n"
)
KEEP = "echo kept >/var/lib/rancher/state\n"


def unpacked(archive: bytes, folder: Path) -> Path:
    """What the kernel makes of our archive (`cpio.archive`): files and folders."""
    at = 0
    while True:
        header = archive[at : at + 110]
        mode, size, name_size = (int(header[6 + 8 * n : 14 + 8 * n], 16) for n in (1, 6, 11))
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at += -(-(110 + name_size) // 4) * 4
        if name == cpio.TRAILER:
            return folder
        if mode & 0o170000 == 0o040000:
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            (folder / name).write_bytes(archive[at : at + size])
        at += -(-size // 4) * 4


@pytest.fixture
def initrd(tmp_path: Path) -> Path:
    folder = tmp_path / "initrd"
    folder.mkdir()
    return folder


def with_root(initrd: Path, image: Path, *, beside: bool) -> uki.RootNote:
    data = image.read_bytes()
    note = uki.root_note(data, "squashfs", beside=beside)
    unpacked(uki.root_initrd(note, data), initrd)
    return note


def test_a_unified_kernel_image_with_its_root_inside(make_disk: MakeDisk, images: Path, initrd: Path) -> None:
    with_root(initrd, images / "v2.squashfs", beside=False)
    disk = make_disk()
    disk.add("esp", "ESP", "4M")
    first = booted(disk.boot(PROOF + KEEP + ASK, cmdline=UKI, initrd=initrd, efi=ACTIVE))
    assert first.record["mode"] == "uki"
    assert value(first, "version") == "v2"
    assert value(first, "root") == "read-only"
    assert value(first, "modes") == "active_mode boot.json uki_boot_mode"
    for name in KILLED:  # then it comes up, with what it kept
        killed = disk.boot(PROOF, cmdline=UKI, initrd=initrd, efi=ACTIVE, kill_at=name)
        assert killed.code != 0, f"never came to {name}: {killed.why}"
    again = booted(disk.boot(PROOF + ASK, cmdline=UKI, initrd=initrd, efi=ACTIVE))
    assert value(again, "kept") == "kept"
    refused = stopped(disk.boot(PROOF, cmdline="rd.immucore.uki", initrd=initrd, efi=ACTIVE))
    assert "Secure Boot is off" in refused.record["reason"]
    secure = booted(
        disk.boot(PROOF, cmdline="rd.immucore.uki", initrd=initrd, efi={**ACTIVE, "secure_boot": True})
    )
    assert value(secure, "version") == "v2"


def test_a_unified_kernel_image_with_its_root_beside(
    make_disk: MakeDisk, images: Path, initrd: Path, tmp_path: Path
) -> None:
    note = with_root(initrd, images / "v2.squashfs", beside=True)
    esp = tmp_path / "esp"
    (esp / note.path.lstrip("/")).parent.mkdir(parents=True)
    shutil.copy(images / "v2.squashfs", esp / note.path.lstrip("/"))
    disk = make_disk()
    disk.add("esp", "ESP", "8M", esp)
    passive = {**ACTIVE, "entry": "passive+1-1.conf"}
    boot = booted(disk.boot(PROOF + ASK, cmdline=UKI, initrd=initrd, efi=passive), "passive")
    assert value(boot, "version") == "v2"
    assert value(boot, "modes") == "boot.json passive_mode uki_boot_mode"
    # another image under that name is refused before it is mounted
    disk.unplug()
    shutil.copy(images / "v1.squashfs", esp / note.path.lstrip("/"))
    disk.add("esp", "ESP", "8M", esp)
    refused = stopped(disk.boot(PROOF, cmdline=UKI, initrd=initrd, efi=ACTIVE))
    assert "is not the image that this unified kernel image was built with" in refused.record["reason"]
    assert "version" not in refused.output


def test_a_unified_kernel_image_whose_initrd_is_the_system(
    make_disk: MakeDisk, images: Path, initrd: Path
) -> None:
    """As Kairos builds it: copied into memory, read-only at the end; from a medium nothing lasts."""
    shutil.copytree(images / "v1", initrd, symlinks=True, dirs_exist_ok=True)
    disk = make_disk()
    disk.add("esp", "ESP", "4M")
    booted(disk.boot(KEEP, cmdline=UKI, initrd=initrd, efi=ACTIVE))
    boot = booted(disk.boot(PROOF + ASK, cmdline=UKI, initrd=initrd, efi=ACTIVE))
    assert (value(boot, "version"), value(boot, "root")) == ("v1", "read-only")
    assert value(boot, "kept") == "kept"
    medium = booted(disk.boot(PROOF + ASK, cmdline=UKI, initrd=initrd, efi={"entry": "active.efi"}), "live")
    assert value(medium, "modes") == "boot.json live_mode uki_install_mode"
    assert "kept kept" not in medium.output


@pytest.mark.parametrize("words", ["netboot", "root=live:https://boot.example/rootfs.squashfs"])
def test_over_the_network_the_image_comes_with_the_initrd(
    make_disk: MakeDisk, images: Path, initrd: Path, words: str
) -> None:
    shutil.copy(images / "v2.squashfs", initrd / uki.LOADED_ROOT)
    boot = booted(make_disk().boot(PROOF + ASK + "echo x >/bin/y && echo writable yes\n", cmdline=words,
                                   initrd=initrd), "live")  # fmt: skip
    assert value(boot, "version") == "v2"
    assert value(boot, "modes") == "boot.json live_mode"
    assert value(boot, "writable") == "yes"
    assert "initrd --name rootfs.squashfs" in stopped(make_disk().boot(cmdline=words)).record["hint"]


def test_from_memory_with_a_partition_that_lasts(make_disk: MakeDisk) -> None:
    words = f"{CMDLINE} kairos.ram.persistent=LABEL=COS_PERSISTENT"
    disk = make_disk()
    booted(disk.boot(KEEP, cmdline=words))
    boot = booted(disk.boot(PROOF + ASK, cmdline=words))
    assert value(boot, "modes") == "active_mode boot.json in_ram_mode"
    assert value(boot, "kept") == "kept"


def test_a_state_reset_starts_recovery_and_says_so(make_disk: MakeDisk, images: Path) -> None:
    disk = make_disk(recovery=images / "v2.squashfs")
    boot = booted(disk.boot(PROOF + ASK, cmdline=f"{CMDLINE} kairos.reset"), "autoreset")
    assert value(boot, "version") == "v2"
    assert value(boot, "modes") == "autoreset_mode boot.json"


def test_switched_off_the_root_is_mounted_as_it_is(make_disk: MakeDisk, images: Path) -> None:
    disk = make_disk()
    disk.add("plain", "PLAIN", "16M", images / "v1")
    write = "echo x >/etc/written && echo wrote yes\n"
    boot = booted(disk.boot(PROOF + ASK + write, cmdline="rd.cos.disable root=LABEL=PLAIN"), "live")
    assert (value(boot, "version"), value(boot, "wrote")) == ("v1", "yes")
    disk.unplug()
    assert disk.files("plain", "/etc/written") == "x\n"


def test_while_debugging_the_image_can_be_written(make_disk: MakeDisk, images: Path, tmp_path: Path) -> None:
    from boot_lab import make_image

    image = make_image(images / "v1", tmp_path / "image", "ext4")
    disk = make_disk(image)
    boot = booted(
        disk.boot(PROOF + "busybox touch /bin/x && echo wrote yes\n", cmdline=f"{CMDLINE} rd.cos.debugrw")
    )
    assert value(boot, "wrote") == "yes"


def test_the_running_entry_is_blessed_on_the_partition_that_the_boot_mounted(
    tmp_path: Path, images: Path
) -> None:
    """It is mounted read-only, and is so again afterwards. `images`: this machine may mount."""
    esp, counted = tmp_path / blessing.BOOT_ESP, "\\loader\\entries\\active+1-2.conf"
    for name, data in (
        ("run/cos/active_mode", b"1"), (blessing.COUNT_PATH, b"\7\0\0\0" + counted.encode("utf-16-le")),
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    esp.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "tmpfs", esp)
    try:
        (esp / "loader/entries").mkdir(parents=True)
        (esp / "loader/entries/active+1-2.conf").write_text("x")
        run("mount", "-o", "remount,ro", esp)
        assert blessing.bless(tmp_path) == ("the boot loader's entry is blessed",)
        assert [one.name for one in (esp / "loader/entries").iterdir()] == ["active.conf"]
        with pytest.raises(OSError, match="Read-only"):
            (esp / "x").write_text("x")
    finally:
        run("umount", esp)


def test_changes_may_lie_on_a_device_instead_of_in_memory(make_disk: MakeDisk) -> None:
    disk = make_disk()
    disk.add("scratch", "SCRATCH", "16M")
    layout = 'OVERLAY="LABEL=SCRATCH"\nRW_PATHS="/etc /srv /var"\nPERSISTENT_STATE_BIND=true\n'
    booted(disk.boot("echo there >/srv/f\n", layout=layout))
    ask = "echo srv $(busybox cat /srv/f); echo on $(busybox grep -c ' /run/overlay ext4 rw' /proc/mounts)\n"
    boot = booted(disk.boot(PROOF + ask, layout=layout))
    assert (value(boot, "srv"), value(boot, "on")) == ("there", "1")
    disk.unplug()
    del disk.parts["scratch"]
    gone = stopped(disk.boot(PROOF, layout=layout))
    assert "no partition answers to LABEL=SCRATCH" in gone.record["reason"]
