"""Are encrypted volumes opened with the right key, by whom it is known, and left alone otherwise?

The real cryptsetup, on files: this needs no device mapper, for ``open`` is only asked whether the key fits. A
virtual machine with a device mapper boots from such a volume.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from boot_lab import Disk, make_image, root_tree, run, why_not
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from vm_lab import POLL_S, Drive, Machine, kernels, mark
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


@pytest.mark.timeout(1500)
def test_a_machine_boots_from_an_encrypted_volume(crypt: None, tmp_path: Path) -> None:
    """What must last lies encrypted. Without its key nothing is booted, and it says why."""
    if reason := why_no_machine() or why_not():
        pytest.skip(f"no virtual machine: {reason}")
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
    encrypt(disk.parts["persistent"], inside.read_bytes(), b"right key")
    executable(tmp_path / "hook", "exit 1")  # the initramfs has no shell: it can only fail
    (tmp_path / "key").write_bytes(b"right key")
    initrd = tmp_path / "initramfs"
    kernel, modules = kernels()[-1]
    build = ["boot", "build", "initramfs", "--file", str(initrd), "--modules", str(modules),
             "--program", "cryptsetup", "--hook", str(tmp_path / "hook")]  # fmt: skip
    drives = [Drive(path) for path in disk.parts.values()]
    machine = Machine("machine", tmp_path, kernel, initrd, drives, memory_mib=384)
    assert main(build) == 0
    machine.start("root=LABEL=COS_ACTIVE")
    try:
        deadline = time.monotonic() + LIMIT_S
        while "it waits here" not in (locked := machine.console()):
            assert machine.is_on, locked
            assert time.monotonic() < deadline, locked
            time.sleep(POLL_S)
    finally:
        machine.stop()
    assert "is encrypted and was not unlocked: hook: " in locked
    assert "MARK" not in locked
    assert main([*build, "--key", f"{UUID}={tmp_path / 'key'}"]) == 0
    first = machine.boot("root=LABEL=COS_ACTIVE", "Power down", LIMIT_S)
    assert "/dev/dm-0 /usr/local ext4 rw" in mark(first, "on")
    assert mark(machine.boot("root=LABEL=COS_ACTIVE", "Power down", LIMIT_S), "kept") == "x"
