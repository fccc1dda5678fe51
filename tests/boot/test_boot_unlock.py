"""Are encrypted volumes opened with the right key, by whom it is known, and left alone otherwise?

The real cryptsetup, on files: this needs no device mapper, for ``open`` is only asked whether the key fits. A
virtual machine with a device mapper boots from such a volume.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from boot_lab import Disk, make_image, root_tree, run, why_not
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from vm_lab import Drive, Machine, kernels, mark, wait_for
from vm_lab import why_not as why_no_machine

from p2p_bootstrap.boot import unlocking
from p2p_bootstrap.boot.facts import BlockDevice
from p2p_bootstrap.boot.observe import probe_file
from p2p_bootstrap.cli.main import main

UUID = "6e1ae8d2-2f0c-4a6a-9a55-0a86c3a2b1c0"
SECTOR = 512
MIB = 1 << 20
LIMIT_S = 900  # some 20 s on a quiet machine
INIT = """#!/bin/sh
export PATH=/bin
busybox echo "MARK kept $(busybox cat /var/lib/rancher/state 2>/dev/null)"
busybox echo "MARK on $(busybox grep ' /usr/local ' /proc/mounts)"
busybox echo x >>/var/lib/rancher/state
busybox sync
busybox poweroff -f
"""


@pytest.fixture(scope="module")
def crypt() -> None:
    if not shutil.which("cryptsetup"):
        pytest.skip("missing: cryptsetup (cryptsetup-bin)")


def encrypt(path: Path, plain: bytes, key: bytes) -> None:
    """A LUKS2 volume with `plain` inside, made without a device mapper: AES-XTS, sector by sector."""
    master = path.with_suffix(".master")
    master.write_bytes(os.urandom(64))
    path.write_bytes(bytes(16 * MIB + len(plain)))
    subprocess.run(
        ["cryptsetup", "luksFormat", "-q", "--type", "luks2", "--uuid", UUID, "--cipher", "aes-xts-plain64",
         "--key-size", "512", "--volume-key-file", master, "--sector-size", str(SECTOR),
         "--offset", str(16 * MIB // SECTOR), "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
         "--label", "COS_PERSISTENT", "--key-file", "-", path],
        input=key, check=True, capture_output=True,
    )  # fmt: skip
    with path.open("r+b") as file:
        file.seek(16 * MIB)
        for number in range(len(plain) // SECTOR):
            tweak = number.to_bytes(16, "little")
            sector = plain[number * SECTOR : (number + 1) * SECTOR]
            file.write(
                Cipher(algorithms.AES(master.read_bytes()), modes.XTS(tweak)).encryptor().update(sector)
            )


def asks(argv: Sequence[str], stdin: bytes) -> tuple[int, str]:
    """cryptsetup itself, which only says whether the key fits."""
    return unlocking._run([*argv[:2], "--test-passphrase", *argv[2:-1]], stdin)


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_each_source_of_keys_is_asked_in_turn(crypt: None, tmp_path: Path) -> None:
    volume, folder, record = tmp_path / "volume", tmp_path / "initrd", tmp_path / "run/unlocked.json"
    encrypt(volume, bytes(MIB), b"right key")
    found = probe_file(volume)
    assert found is not None
    assert (found.fstype, found.label, found.uuid) == ("crypto_LUKS", "COS_PERSISTENT", UUID)
    device = BlockDevice(str(volume), found.fstype, found.label, found.uuid)

    def unlock() -> str:
        """Why it stays locked; "" if it does not."""
        unlocking.unlock(
            record, tmp_path / "esp", secrets=True, folder=folder, devices=lambda: (device,), run=asks
        )
        return str(json.loads(record.read_text())[str(volume)])

    assert "no key for it" in unlock()
    keys = folder / unlocking.KEYS
    keys.mkdir(parents=True)
    (keys / "default.key").write_bytes(b"wrong")
    assert "No key available" in unlock()
    (keys / f"{UUID}.key").write_bytes(b"right key")
    assert unlock() == ""
    (keys / f"{UUID}.key").unlink()
    hooks = folder / unlocking.HOOKS
    executable(hooks / "10-broken", "echo down >&2; exit 3")
    executable(hooks / "20-kms", f'[ "$LUKS_UUID $LABEL" = "{UUID} COS_PERSISTENT" ] && echo "right key"')
    assert unlock() == ""
    (hooks / "20-kms").unlink()
    why = unlock()
    assert "10-broken: it gave no key (exit code 3) down" in why
    assert "default.key: No key available" in why
    sealed = tmp_path / "esp" / unlocking.SEALED / f"{UUID}.tpm"
    sealed.parent.mkdir(parents=True)
    sealed.write_text("rubbish")
    assert "TPM: the sealed secret is damaged" in unlock()


def test_volumes_in_groups_in_volumes_are_opened_one_after_the_other(tmp_path: Path) -> None:
    ran: list[str] = []

    def devices() -> Sequence[BlockDevice]:
        """A group of volumes, in it an encrypted one, in that a group again."""
        chain = [
            BlockDevice("/dev/vdb", "LVM2_member"), BlockDevice("/dev/dm-0", "crypto_LUKS", uuid="u"),
            BlockDevice("/dev/dm-1", "LVM2_member"),
        ]  # fmt: skip
        return chain[: 1 + sum("vgchange" in one or "open" in one for one in ran)]

    def answer(argv: Sequence[str], stdin: bytes) -> tuple[int, str]:
        ran.append(" ".join(argv[:2]))
        return 0, ""

    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/default.key").write_bytes(b"k")
    said = unlocking.unlock(
        tmp_path / "r.json", tmp_path, secrets=True, folder=tmp_path, devices=devices, run=answer
    )
    assert said == ()
    assert [one for one in ran if "vgmknodes" not in one] == [
        "lvm vgchange",
        "cryptsetup open",
        "lvm vgchange",
    ]
    ran.clear()
    unlocking.unlock(
        tmp_path / "r.json", tmp_path, secrets=False, folder=tmp_path, devices=devices, run=answer
    )
    assert "cryptsetup open" not in ran
    missing = unlocking._run(["no-such-program-here"], b"")
    assert missing[0] == 127
    assert "boot build initramfs --program no-such-program-here" in missing[1]


def grouped(path: Path, content: bytes) -> None:
    """A disk for LVM with one volume that has `content`, made by lvm itself without a device mapper."""
    start = MIB  # where lvm puts the first volume
    path.write_bytes(bytes(start + len(content) + 4 * MIB))
    device = run("losetup", "--find", "--show", path)
    config = (
        f'devices {{use_devicesfile=0 filter=["a|^{device}$|", "r|.*|"]}} backup {{backup=0 archive=0}} '
        "activation {udev_sync=0 udev_rules=0 monitoring=0} "
        f'global {{use_lvmpolld=0 locking_dir="{path.parent}"}}'
    )
    options = ("--config", config, "--driverloaded", "n")
    try:
        run("lvm", "pvcreate", *options, device)
        run("lvm", "vgcreate", *options, "kairos", device)
        run("lvm", "lvcreate", *options, "-an", "-Zn", "-Wn", "-n", "data", "-l", "100%FREE", "kairos")
        places = run("lvm", "pvs", *options, "--noheadings", "-o", "pe_start", "--units", "b", device)
        assert f"{start}B" in places.split()
    finally:
        run("losetup", "--detach", device)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


@pytest.mark.timeout(1500)
def test_a_machine_boots_from_an_encrypted_volume_in_a_group(crypt: None, tmp_path: Path) -> None:
    """What must last lies encrypted on LVM. Without its key nothing is booted, and it says why."""
    if reason := why_no_machine() or why_not():
        pytest.skip(f"no virtual machine: {reason}")
    if not shutil.which("lvm"):
        pytest.skip("missing: lvm (lvm2)")
    state = tmp_path / "state/cOS"
    state.mkdir(parents=True)
    tree = root_tree(tmp_path / "tree", "v1")
    (tree / "sbin/init").write_text(INIT)
    make_image(tree, state / "active.img")
    disk = Disk(tmp_path)
    disk.add("state", "COS_STATE", "32M", tmp_path / "state")
    disk.add("oem", "COS_OEM", "4M")
    inside = tmp_path / "inside"
    run("mke2fs", "-q", "-t", "ext4", "-L", "COS_PERSISTENT", inside, "8M")
    disk.parts["persistent"] = tmp_path / "persistent.part"
    encrypt(tmp_path / "luks", inside.read_bytes(), b"right key")
    grouped(disk.parts["persistent"], (tmp_path / "luks").read_bytes())
    executable(tmp_path / "hook", "exit 1")  # the initramfs has no shell: it can only fail
    (tmp_path / "key").write_bytes(b"right key")
    kernel, modules = kernels()[-1]
    build = ["boot", "build", "initramfs", "--modules", str(modules), "--program", "cryptsetup",
             "--program", "lvm", "--hook", str(tmp_path / "hook")]  # fmt: skip
    machines = []
    for name, key in (("locked", []), ("machine", ["--key", f"{UUID}={tmp_path / 'key'}"])):
        initrd = tmp_path / f"{name}.initramfs"
        assert main([*build, "--file", str(initrd), *key]) == 0
        drives = []
        for part, path in disk.parts.items():
            own = tmp_path / f"{name}-{part}"
            shutil.copy(path, own)
            drives.append(Drive(own, controller="scsi"))
        machines.append(Machine(name, tmp_path, kernel, initrd, drives, memory_mib=384))
    locked, machine = machines
    try:
        locked.start("root=LABEL=COS_ACTIVE")
        first = machine.boot("root=LABEL=COS_ACTIVE", "Power down", LIMIT_S)
        wait_for([locked], "it waits here", LIMIT_S, may_fail=True)
    finally:
        locked.stop()
    assert "is encrypted and was not unlocked: hook: " in locked.console()
    assert "MARK" not in locked.console()
    assert "/dev/dm-1 /usr/local ext4 rw" in mark(first, "on")
    assert mark(machine.boot("root=LABEL=COS_ACTIVE", "Power down", LIMIT_S), "kept") == "x"
