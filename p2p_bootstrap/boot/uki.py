"""How is a whole system one EFI program? Stub, kernel, command line, os-release, initrd and root in one file.

`assemble` is pure and reproducible. The root image goes into the initrd, or beside the program on the EFI
system partition: then the initrd, which is signed, names its SHA-256, and the boot copies it into memory and
compares before it mounts anything. Either way nothing runs that the signature does not cover.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import dataclass
from typing import Any, Final

from p2p_bootstrap.boot import cpio, pe
from p2p_network.core.errors import BootError

ROOT_FILE: Final = "usr/lib/kairos-p2p/root.img"
LOADED_ROOT: Final = "rootfs.squashfs"  # what a boot loader adds to the initrd itself (iPXE: initrd --name)
ROOT_NOTE: Final = "usr/lib/kairos-p2p/root.json"
BESIDE: Final = "/EFI/kairos-p2p"  # folder of roots on the EFI system partition
SWITCH: Final = "rd.immucore.uki"
MAX_CMDLINE_BYTES: Final = 2047  # COMMAND_LINE_SIZE of x86 and arm64, less its NUL
MAX_NOTE_BYTES: Final = 4096
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PATH: Final = re.compile(rf"{BESIDE}/[0-9a-f]{{16}}\.img")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a unified kernel image is made of. Empty: no such section.

    Attributes:
        initrds: joined in order; the kernel unpacks one after the other.
        public_key: PEM, `.pcrpkey`; `extra`: more sections, (name, content).
    """

    stub: bytes
    kernel: bytes
    cmdline: str
    os_release: bytes
    initrds: tuple[bytes, ...]
    uname: str = ""
    sbat: bytes = b""
    public_key: bytes = b""
    extra: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class RootNote:
    """Where the root image is. `path`: on the EFI system partition, "" for the one inside the initrd."""

    path: str
    sha256: str
    size_bytes: int
    fstype: str


def assemble(parts: Parts, signature: bytes = b"") -> bytes:
    """The program. `signature`: content of `.pcrsig`. Raises BootError for parts that can't be."""
    cmdline = parts.cmdline.encode("utf-8")
    if len(cmdline) > MAX_CMDLINE_BYTES or b"\0" in cmdline or b"\n" in cmdline:
        raise BootError(
            f"the command line can't be passed to a kernel: {len(cmdline)} bytes",
            hint=f"keep it to one line of {MAX_CMDLINE_BYTES} bytes; put the rest into a cloud-config",
        )
    uname = parts.uname or kernel_version(parts.kernel)
    wanted = (
        (".osrel", parts.os_release), (".cmdline", cmdline), (".uname", uname.encode()),
        (".sbat", parts.sbat), (".pcrpkey", parts.public_key), (".pcrsig", signature), *parts.extra,
        (".initrd", b"".join(_aligned(one) for one in parts.initrds)), (".linux", parts.kernel),
    )  # fmt: skip
    names = [name for name, data in wanted if data]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BootError(f"the section {twice[0]} is given twice", hint="leave one of them out")
    return pe.add(parts.stub, [(name, data) for name, data in wanted if data])


def kernel_version(kernel: bytes) -> str:
    """The version that an x86 kernel image tells in its header; "" for another kind of kernel."""
    if len(kernel) < 0x210 or kernel[0x202:0x206] != b"HdrS":
        return ""
    at = struct.unpack_from("<H", kernel, 0x20E)[0] + 0x200
    text = kernel[at : at + 256].split(b"\0")[0].decode("ascii", "replace")
    return text.split(" ")[0]


def root_note(image: bytes, fstype: str, *, beside: bool) -> RootNote:
    """What the initrd has to say about a root image."""
    digest = hashlib.sha256(image).hexdigest()
    return RootNote(f"{BESIDE}/{digest[:16]}.img" if beside else "", digest, len(image), fstype)


def root_initrd(note: RootNote, image: bytes) -> bytes:
    """The archive with the note, and the image too if it is to be inside. Not compressed: the image is."""
    tree = {ROOT_NOTE: cpio.file(render_note(note))}
    if not note.path:
        tree[ROOT_FILE] = cpio.file(image)
    return cpio.archive(tree)


def render_note(note: RootNote) -> bytes:
    """The note as a file."""
    document = {
        "path": note.path, "sha256": note.sha256, "size_bytes": note.size_bytes, "fstype": note.fstype,
    }  # fmt: skip
    return json.dumps(document, sort_keys=True).encode() + b"\n"


def parse_note(text: str) -> RootNote:
    """Read the note. Raises BootError if it is damaged."""
    try:
        raw: Any = json.loads(text)
        note = RootNote(str(raw["path"]), str(raw["sha256"]), int(raw["size_bytes"]), str(raw["fstype"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        note = None
    if note is None or not _SHA256.fullmatch(note.sha256) or (note.path and not _PATH.fullmatch(note.path)):
        raise BootError(f"/{ROOT_NOTE} in the initrd is damaged", hint="build the unified kernel image anew")
    return note


def with_switch(cmdline: str) -> str:
    """The command line, with the word that makes it a boot of a unified kernel image."""
    words = cmdline.split()
    return " ".join(words if SWITCH in words else [*words, SWITCH])


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
