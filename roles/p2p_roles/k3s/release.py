"""Which files make up a release of k3s, and what must their content be?

Pure. As upstream publishes them: the program, ``sha256sum-ARCH.txt`` with a line for every file of the
release, and the images for a machine without a network. A file is only ever taken with a checksum; the list
of checksums may itself be signed (Ed25519, the signature in a file of the same name with ``.sig``), which
upstream's is not, but a private mirror's can be.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from p2p_network.core.errors import RoleError

UPSTREAM: Final = "https://github.com/k3s-io/k3s/releases/download"
MAX_LIST_BYTES: Final = 64 << 10
MAX_FILE_BYTES: Final = 2 << 30

_VERSION: Final = re.compile(r"v\d{1,3}\.\d{1,3}\.\d{1,3}(-[a-z0-9.]{1,16})?\+k3s\d{1,3}")
_LINE: Final = re.compile(r"([0-9a-f]{64})[ \t]+\*?([A-Za-z0-9._+-]{1,128})")
MACHINES: Final = {  # as ``uname -m`` names them: as upstream does
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
_SUFFIXES: Final = {"amd64": "", "arm": "-armhf"}


@dataclass(frozen=True, slots=True)
class Release:
    """The names of a release's files for one kind of machine. `arch` as upstream calls it."""

    version: str
    arch: str

    @property
    def program(self) -> str:
        """The program."""
        return f"k3s{_SUFFIXES.get(self.arch, f'-{self.arch}')}"

    @property
    def checksums(self) -> str:
        """The list of checksums."""
        return f"sha256sum-{self.arch}.txt"

    @property
    def images(self) -> str:
        """The images for a machine without a network."""
        return f"k3s-airgap-images-{self.arch}.tar.zst"

    def folder(self, mirror: str = "") -> str:
        """The address below which the files lie, here or on a mirror built like upstream's."""
        return f"{(mirror or UPSTREAM).rstrip('/')}/{quote(self.version, safe='')}"


def release(version: str, machine: str) -> Release:
    """The release for a machine as ``uname -m`` names it. Raises RoleError."""
    if not _VERSION.fullmatch(version):
        raise RoleError(f"{version[:40]!r} is no version of k3s", hint="write it in full, e.g. v1.36.1+k3s1")
    arch = MACHINES.get(machine)
    if arch is None:
        raise RoleError(
            f"there is no k3s for {machine} machines", hint=f"k3s is made for {', '.join(MACHINES)}"
        )
    return Release(version, arch)


def expected_sha256(text: str, name: str, where: str) -> str:
    """The checksum of file `name` in a list. Raises RoleError that names the list (`where`)."""
    found = set()
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if line.strip() and match is None:
            raise RoleError(
                f"{where} is no list of checksums: {line.strip()[:60]!r}",
                hint="check the address of the mirror",
            )
        if match is not None and match[2] == name:
            found.add(match[1])
    if len(found) != 1:
        what = "has no checksum" if not found else "has several checksums"
        raise RoleError(f"{where} {what} for {name}", hint="is it the list of this version and machine?")
    return found.pop()


def said_version(output: str) -> str:
    """The version in the output of ``k3s --version``; "" if there is none."""
    return next((word for word in output.split() if _VERSION.fullmatch(word.removesuffix("-simulated"))), "")
