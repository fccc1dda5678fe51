"""Does a unified kernel image boot under Secure Boot, measured as foretold, and does the loader fall back?

Real firmware (OVMF), real keys, systemd-boot and its stub, a TPM (swtpm); QEMU without acceleration. One
machine starts with a slot whose root image was changed after it was built, and comes up on the other one by
itself; a second one is given a program that nobody signed.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import firmware_lab as lab
import pytest
from boot_lab import Disk, make_image, root_tree, run
from vm_lab import SPARING, kernels, mark

from p2p_bootstrap.boot import measure, signing
from p2p_bootstrap.boot.entries import LoaderFile, loader_files
from p2p_bootstrap.cli.main import main

# efi=runtime: real-time kernels leave EFI's services alone, and with them the variables
CMDLINE = f"console=ttyS0 quiet no_timer_check efi=runtime panic=1 rd.immucore.sysrootwait=5 {SPARING}"
INIT = """#!/bin/sh
export PATH=/bin
busybox echo "MARK version $(busybox cat /etc/version)"
busybox echo "MARK root $(busybox grep ' / ' /proc/mounts)"
busybox echo "MARK modes $(busybox echo $(busybox ls /run/cos))"
busybox echo "MARK pcr11 $(busybox cat /sys/class/tpm/tpm0/pcr-sha256/11)"
busybox echo "MARK lockdown $(busybox dmesg | busybox grep -c Lockdown:)"
busybox echo x >>/var/lib/rancher/state
busybox echo "MARK memory $(busybox grep MemAvailable /proc/meminfo)"
busybox sync
busybox poweroff -f
"""


class Bench:
    """What every test here needs, made once: an initramfs, a root, keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernel, modules = kernels()[-1]
        self.initrd = folder / "initramfs"
        assert (
            main(["boot", "build", "initramfs", "--file", str(self.initrd), "--modules", str(modules)]) == 0
        )
        tree = root_tree(folder / "tree", "v1")
        (tree / "sbin/init").write_text(INIT)
        self.root = make_image(tree, folder / "root.img")
        self.keys = lab.make_keys(folder)
        (folder / "vars.fd").write_bytes(lab.enrolled(self.keys))

    def build(self, name: str, *more: str) -> Path:
        """A unified kernel image, by the verb a person has."""
        target = self.folder / name
        assert main(
            ["boot", "build", "uki", "--file", str(target), "--kernel", str(self.kernel), "--initrd",
             str(self.initrd), "--root", str(self.root), "--cmdline", CMDLINE, *more]
        ) == 0  # fmt: skip
        return target

    def signature(self) -> tuple[str, ...]:
        return ("--sign-key", str(self.keys.key), "--sign-cert", str(self.keys.certificate))

    def loader(self) -> bytes:
        plain = (lab.EFI_FOLDER / "systemd-bootx64.efi").read_bytes()
        return signing.sign_image(plain, self.keys.key, self.keys.certificate)

    def machine(
        self, name: str, programs: dict[str, bytes], until: tuple[str, ...]
    ) -> tuple[str, Path, Disk]:
        """Boot a new machine from an EFI system partition with `programs`. Returns console, ESP, disk."""
        folder = self.folder / name
        folder.mkdir()
        shutil.copy(self.folder / "vars.fd", folder)
        menu = [one for one in loader_files("test", 1, timeout_s=0) if wanted(one, programs)]
        entries = {one.path: one.text.encode() for one in menu}
        disk = lab.esp(folder / "esp.img", {"/EFI/BOOT/BOOTX64.EFI": self.loader(), **entries, **programs})
        parts = Disk(folder)
        parts.add("oem", "COS_OEM", "4M")
        parts.add("persistent", "COS_PERSISTENT", "16M")
        return lab.start(folder, folder / "vars.fd", [disk, *parts.parts.values()], until), disk, parts


def wanted(file: LoaderFile, programs: dict[str, bytes]) -> bool:
    """The loader's configuration, and entries whose program is there."""
    return "efi " not in file.text or any(f"efi {path}\n" in file.text for path in programs)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    if reason := lab.why_not():
        pytest.skip(f"no machine with firmware: {reason}")
    if not kernels():
        pytest.skip("no machine with firmware: no kernel with its modules below / or $BOOT_TEST_KERNEL")
    return Bench(tmp_path_factory.mktemp("uki"))


def test_the_same_input_gives_the_same_bytes_and_any_change_another_value(bench: Bench) -> None:
    one, two = bench.build("one.efi").read_bytes(), bench.build("two.efi").read_bytes()
    assert one == two
    other = bench.build("other.efi", "--section", f".splash={bench.keys.key}").read_bytes()
    assert measure.predict(one) != measure.predict(other)
    signed = bench.build("signed.efi", *bench.signature()).read_bytes()
    assert measure.predict(signed) == measure.predict(one)
    run("sbverify", "--cert", bench.keys.certificate, bench.folder / "signed.efi")


@pytest.mark.timeout(1200)
def test_a_signed_image_boots_as_measured_falls_back_by_itself_and_an_unsigned_one_is_refused(
    bench: Bench,
) -> None:
    """Two machines beside each other."""
    with ThreadPoolExecutor(1) as beside:
        refused = beside.submit(unsigned, bench)
        signed(bench)
        refused.result()


def signed(bench: Bench) -> None:
    """Active's root lies beside and was changed: refused; then passive, whose root is inside."""
    active = bench.build("active.efi", "--beside", *bench.signature()).read_bytes()
    changed = bytearray(bench.root.read_bytes())
    beside = hashlib.sha256(changed).hexdigest()[:16]
    changed[-1] ^= 1
    passive = bench.build("passive.efi", *bench.signature()).read_bytes()
    programs = {
        "/EFI/kairos/active.efi": active, "/EFI/kairos/passive.efi": passive,
        f"/EFI/kairos-p2p/{beside}.img": bytes(changed),
    }  # fmt: skip
    console, disk, parts = bench.machine("good", programs, ("kB", "it waits here"))
    assert "is not the image that this unified kernel image was built with" in console
    assert mark(console, "version") == "v1"
    assert mark(console, "modes") == "boot.json passive_mode uki_boot_mode"
    assert "squashfs ro" in mark(console, "root")
    assert mark(console, "pcr11").lower() == measure.predict(passive)
    assert mark(console, "lockdown") != "0"  # the kernel saw that Secure Boot is on
    # the loader counted: active has no try left, passive spent one
    assert lab.esp_names(disk, "/loader/entries") == ["active+0-1.conf", "passive+0-1.conf"]
    # what failed was kept on the OEM partition, for boot explain
    assert "is not the image" in parts.files("oem", "/.kairos-p2p/boots/1.json")


def unsigned(bench: Bench) -> None:
    """One program without a signature, one with a stranger's."""
    plain = bench.build("plain.efi").read_bytes()
    foreign = lab.make_keys(bench.folder, "foreign")
    strange = signing.sign_image(plain, foreign.key, foreign.certificate)
    programs = {"/EFI/kairos/active.efi": plain, "/EFI/kairos/passive.efi": strange}
    console, disk, _ = bench.machine("bad", programs, ("Access Denied", "Access denied", "MARK", "Security"))
    assert "MARK" not in console
    assert "ccess denied" in console.replace("Denied", "denied"), console
    assert lab.esp_names(disk, "/loader/entries")[0] == "active+0-1.conf"
    assert struct.unpack_from("<2s", plain)[0] == b"MZ"  # it was a program; only its signature was missing
