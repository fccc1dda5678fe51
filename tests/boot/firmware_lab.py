"""A machine with firmware: OVMF with Secure Boot's keys, a TPM (swtpm), an EFI system partition; for tests.

The keys go into a copy of OVMF's variable store as the firmware itself would write them (EDK2's authenticated
variables), so no program for it is needed. The virtual machine ends with us; its files lie in one folder.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import select
import shutil
import struct
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from boot_lab import run
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from vm_lab import CPU

QEMU = "qemu-system-x86_64"
CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
EFI_FOLDER = Path("/usr/lib/systemd/boot/efi")
PROGRAMS = {
    QEMU: "qemu-system-x86", "swtpm": "swtpm", "sbsign": "sbsigntool", "mcopy": "mtools",
    "mkfs.vfat": "dosfstools", "sfdisk": "fdisk", "mke2fs": "e2fsprogs", "mksquashfs": "squashfs-tools",
}  # fmt: skip
FILES = {CODE: "ovmf", VARIABLES: "ovmf", EFI_FOLDER / "linuxx64.efi.stub": "systemd-boot-efi"}
GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
X509_LIST = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
AUTHENTICATED = 0x27  # kept, at boot and at run time, changed only with a signature that has a time
TIMEOUT_S = 900  # a loaded machine takes many times the minute of a quiet one
MIB = 1 << 20


def why_not() -> str:
    """Why this machine can't run the lane; "" if it can."""
    missing = {package for program, package in PROGRAMS.items() if not shutil.which(program)}
    missing |= {package for path, package in FILES.items() if not path.exists()}
    return f"missing packages: {', '.join(sorted(missing))}" if missing else ""


@dataclass(frozen=True)
class Keys:
    """A key and its certificate, for PK, KEK and db at once."""

    key: Path
    certificate: Path
    der: bytes


def make_keys(folder: Path, name: str = "db") -> Keys:
    """A self-signed certificate, as a vendor of images has one."""
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"kairos-p2p test {name}")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500)).sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    keys = Keys(
        folder / f"{name}.key", folder / f"{name}.crt", certificate.public_bytes(serialization.Encoding.DER)
    )
    keys.key.write_bytes(private)
    keys.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return keys


def enrolled(keys: Keys) -> bytes:
    """A variable store in which the keys are PK, KEK and db: Secure Boot is on."""
    store = bytearray(VARIABLES.read_bytes())
    (header,) = struct.unpack_from(
        "<H", store, 48
    )  # of the firmware volume; the variable store comes behind it
    at = header + 28
    while store[at : at + 2] == b"\xaa\x55":
        name, data = struct.unpack_from("<II", store, at + 36)
        at = -(-(at + 60 + name + data) // 4) * 4
    signature = uuid.UUID(int=1).bytes_le + keys.der
    listed = X509_LIST.bytes_le + struct.pack("<III", 28 + len(signature), 0, len(signature)) + signature
    for name, guid in (("PK", GLOBAL), ("KEK", GLOBAL), ("db", DATABASE)):
        raw = name.encode("utf-16-le") + b"\0\0"
        stamp = struct.pack("<HBBBBBxIhBx", 2020, 1, 1, 0, 0, 0, 0, 0, 0)
        row = struct.pack("<HBBIQ", 0x55AA, 0x3F, 0, AUTHENTICATED, 0) + stamp
        row += struct.pack("<III", 0, len(raw), len(listed)) + guid.bytes_le + raw + listed
        store[at : at + len(row)] = row
        at = -(-(at + len(row)) // 4) * 4
    return bytes(store)


def esp(path: Path, files: dict[str, bytes], size_mib: int = 96) -> Path:
    """A disk with one EFI system partition that holds `files`."""
    path.write_bytes(b"")
    os.truncate(path, (size_mib + 2) * MIB)
    script = f"label: gpt\nstart=2048, size={size_mib * 2048}, type=uefi\n"
    subprocess.run(["sfdisk", "-q", path], input=script, text=True, check=True, capture_output=True)
    run("mkfs.vfat", "-F", "32", "-s", "1", "--offset", "2048", path, size_mib * 1024)
    for name, data in files.items():
        source = path.with_name("esp-file")
        source.write_bytes(data)
        for parent in reversed(Path(name).parents):
            if str(parent) not in ("/", "."):
                subprocess.run(
                    ["mmd", "-D", "s", "-i", f"{path}@@1M", f"::{parent}"], capture_output=True, check=False
                )
        run("mcopy", "-i", f"{path}@@1M", source, f"::{name}")
    return path


def esp_names(path: Path, folder: str) -> list[str]:
    """The names in a folder of an EFI system partition."""
    listing = run("mdir", "-b", "-i", f"{path}@@1M", f"::{folder}")
    return sorted(line.rpartition("/")[2] for line in listing.splitlines())


@contextlib.contextmanager
def tpm(folder: Path) -> Iterator[Path]:
    """A TPM of software; its socket."""
    state, socket = folder / "tpm", folder / "tpm.sock"
    state.mkdir(exist_ok=True)
    child = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={socket}",
         "--terminate"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not socket.exists():
            assert child.poll() is None, "swtpm ended at once"
            assert time.monotonic() < deadline, "swtpm does not start"
            time.sleep(0.02)
        yield socket
    finally:
        child.kill()
        child.wait()


def start(folder: Path, variables: Path, drives: list[Path], until: tuple[str, ...]) -> str:
    """Switch a machine on. Its console's output up to the line with one of `until`, or its end."""
    with tpm(folder) as socket:
        drive_args = [a for p in drives for a in ("-drive", f"file={p},if=virtio,format=raw")]
        machine = subprocess.Popen(
            [QEMU, "-machine", "q35", "-accel", "tcg", "-cpu", CPU, "-m", "384", "-display", "none",
             "-serial", "stdio", "-monitor", "none", "-nic", "none",
             "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={CODE}",
             "-drive", f"if=pflash,format=raw,unit=1,file={variables}",
             "-chardev", f"socket,id=tpm,path={socket}", "-tpmdev", "emulator,id=tpm0,chardev=tpm",
             "-device", "tpm-tis,tpmdev=tpm0", *drive_args],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert machine.stdout is not None
        text = ""
        deadline = time.monotonic() + TIMEOUT_S
        try:
            while not any(word in text for word in (*until, "Kernel panic")):
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"none of {until} within {TIMEOUT_S} s:\n{text}"
                if not select.select([machine.stdout], [], [], left_s)[0]:
                    continue
                piece = os.read(machine.stdout.fileno(), 65536)
                if not piece:
                    break
                text += piece.decode("utf-8", "replace")
        finally:
            machine.kill()
            machine.wait()
    return text
