"""Which disc, stick or folder holds user data for this machine?

NoCloud (label ``cidata``) and config drive (``config-2``) are file systems; labels are read from the
superblock (ISO 9660, FAT, ext), so nothing needs udev. The file system is mounted read-only for the
reading. A folder that cloud-init calls a seed is read first.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from p2p_bootstrap.stages.metadata import Absent, UserData
from p2p_bootstrap.stages.root import Root
from p2p_bootstrap.stages.system import System

MOUNT_POINT: Final = "/run/kairos-p2p/stages/media"


@dataclass(frozen=True, slots=True)
class Medium:
    """How one kind is found: label of its file system, folders that stand for it, files of user data."""

    label: str
    seeds: tuple[str, ...]
    userdata: tuple[str, ...]
    metadata: str


MEDIA: Final[Mapping[str, Medium]] = {
    "nocloud": Medium(
        "cidata", ("/var/lib/cloud/seed/nocloud", "/run/cidata"), ("user-data", "config"), "meta-data"
    ),
    "config-drive": Medium(
        "config-2",
        ("/var/lib/cloud/seed/config_drive", "/run/config-2"),
        ("openstack/latest/user_data",),
        "openstack/latest/meta_data.json",
    ),
}


def find(name: str, root: Root, system: System) -> UserData:
    """User data of a medium (``cdrom`` is ``nocloud``, and any disc with user data on it). Raises Absent."""
    medium = MEDIA["nocloud" if name == "cdrom" else name]
    for seed in medium.seeds:
        if found := _read(name, root, seed, medium):
            return found
    for device in _devices(root, medium.label, discs=name == "cdrom"):
        root.make_folder(MOUNT_POINT, 0o700)
        if system.run(["mount", "-o", "ro,nodev,nosuid,noexec", device, MOUNT_POINT]).code != 0:
            continue
        try:
            if found := _read(name, root, MOUNT_POINT, medium):
                return found
        finally:
            system.run(["umount", MOUNT_POINT])
    raise Absent(f"no {medium.label} disk is there")


def label_of(start: bytes) -> str:
    """The label of the file system that begins with these bytes (36 KiB are enough); empty if none."""
    if start[32769:32774] == b"CD001":
        return start[32808:32840].decode("ascii", "replace").strip()
    if len(start) > 1144 and start[1080:1082] == b"\x53\xef":
        return start[1144:1160].split(b"\0")[0].decode("utf-8", "replace")
    if start[510:512] == b"\x55\xaa":
        for place, kind in ((71, 82), (43, 54)):
            if start[kind : kind + 3] == b"FAT":
                return start[place : place + 11].decode("ascii", "replace").strip()
    return ""


_MAGICS: Final = (  # file systems and containers: where each writes its name
    (510, b"\x55\xaa"), (1080, b"\x53\xef"), (0, b"XFSB"), (0x10040, b"_BHRfS_M"), (0, b"LUKS\xba\xbe"),
    (4086, b"SWAPSPACE2"), (32769, b"CD001"), (536, b"LVM2 001"), (1024, b"\xe2\xe1\xf5\xe0"), (0, b"hsqs"),
)  # fmt: skip


def holds_something(start: bytes) -> bool:
    """Whether a disk that begins with these bytes (72 KiB) has an old partition table or a file system."""
    return any(start[place : place + len(magic)] == magic for place, magic in _MAGICS)


def _devices(root: Root, label: str, *, discs: bool) -> Iterator[str]:
    try:
        names = sorted(os.listdir(root.path("/sys/class/block")))
    except OSError:
        return
    labelled, others = [], []
    for name in names:
        if re.match(r"loop|ram|zram", name):
            continue
        try:
            with root.path(f"/dev/{name}").open("rb") as file:
                found = label_of(file.read(36 * 1024))
        except (OSError, struct.error):
            continue
        if found.lower() == label:
            labelled.append(f"/dev/{name}")
        elif discs and name.startswith("sr"):
            others.append(f"/dev/{name}")
    yield from (*labelled, *others)


def _read(name: str, root: Root, folder: str, medium: Medium) -> UserData | None:
    for file in medium.userdata:
        data = root.read(f"{folder}/{file}")
        if data:
            meta = root.text(f"{folder}/{medium.metadata}")
            hostname = re.search(
                r"(?:^|[{,])\s*\"?(?:local-)?hostname\"?\s*:\s*\"?([A-Za-z0-9.-]+)", meta, re.MULTILINE
            )
            return UserData(name, data, hostname[1] if hostname else "")
    return None
