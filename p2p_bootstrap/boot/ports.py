"""What does a boot step need of the machine? The `Kernel` that steps act through, and its words.

`kernel.LinuxKernel` is the real one; tests give steps a fake, so every plan runs without root too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

Policy: TypeAlias = Literal["merge", "local", "image"]


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A line of ``/proc/self/mountinfo``. `device` is ``major:minor``; `root` the path inside its fs."""

    target: str
    root: str
    device: str
    fstype: str
    source: str
    options: tuple[str, ...]
    super_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BindRequest:
    """A path that lasts: where its content lies, and where the image's own lies.

    Attributes:
        path: absolute, in the new root.
        image_path: the same path in the untouched image.
        state: folder of everything that lasts (`Layout.target`).
        name: of its folder in there; `legacy`: the name Kairos gave it, "" if that is ambiguous.
        identity: of the image, to notice a change.
    """

    path: str
    image_path: str
    state: str
    name: str
    legacy: str
    identity: str
    policy: Policy


@dataclass(frozen=True, slots=True)
class CanaryRequest:
    """The persistent partition's canary and the OEM partition's memory of it ("" without OEM)."""

    persistent: str
    oem: str


class Kernel(Protocol):
    """The machine. Every call raises OSError or BootError if it can't be done."""

    def mount(self, source: str, target: str, fstype: str, options: tuple[str, ...]) -> None:
        """mount(2); `options` as in fstab."""

    def mount_image(self, file: str, target: str, fstype: str, options: tuple[str, ...]) -> None:
        """Mount an image file by a read-only loop device that goes away with the mount."""

    def bind(self, source: str, target: str) -> None:
        """Bind-mount, without what is mounted below `source`."""

    def remount(self, target: str, *, read_only: bool) -> None:
        """Make a mounted file system read-only or writable."""

    def mounts(self) -> tuple[MountEntry, ...]:
        """Everything mounted, oldest first."""

    def device_number(self, path: str) -> str:
        """``major:minor`` of a block device."""

    def carrier(self, path: str) -> str:
        """``major:minor`` of the file system that one gets to by `path`."""

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        """Make a directory and its parents; fine if it is there. Follows no link out of the new root."""

    def write_file(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a small file; one that is there keeps its mode."""

    def remove_file(self, path: str) -> None:
        """Remove a file; fine if it isn't there."""

    def is_directory(self, path: str) -> bool:
        """Whether a directory is there."""

    def copy_tree_attributes(self, source: str, target: str) -> None:
        """Give `target` the owner and mode of `source`."""

    def check_file_system(self, device: str, fstype: str, *, repair: bool, force: bool) -> str:
        """Run fsck if the initramfs has one; returns a remark, "" if all is well."""

    def prepare_bind(self, request: BindRequest) -> tuple[str, ...]:
        """Fill or merge what lasts; returns remarks (conflicts)."""

    def check_canary(self, request: CanaryRequest) -> str:
        """Prove that this is the partition we know; returns a remark."""

    def machine_id(self, state: str, target: str) -> None:
        """Make the machine's id if there is none, and mount it over `target`."""

    def unlock(self, record: str, esp: str, *, secrets: bool) -> tuple[str, ...]:
        """Activate LVM groups and, with `secrets`, open LUKS volumes; writes what became of each to `record`.

        `esp`: where the EFI system partition is mounted, if it is: keys sealed to a TPM lie there.

        A device that stays locked is a remark: whether it was needed is the plan's to say.
        """

    def count_try(self, state: str) -> str:
        """Take one try off the slot pointer, durably; returns a remark."""

    def copy_to_memory(self, source: str, target: str) -> None:
        """Copy a file or a tree of one file system."""

    def copy_proved(self, source: str, target: str, sha256: str) -> None:
        """Copy a file; raises BootError, and leaves no copy, if what was copied has another SHA-256."""

    def run_stage(self, name: str, root: str) -> tuple[str, ...]:
        """Run a cloud-config stage on the new root; returns remarks."""

    def offer_extensions(self, root: str, run: str, profile: str, *, trusted: bool) -> tuple[str, ...]:
        """Hand the slot's extensions of the system to the new root; returns remarks (`extensions.offer`)."""

    def switch_root(self, sysroot: str, init: str, within_s: float | None) -> None:
        """Make `sysroot` the root, prove that it is, and become its init. Returns only by an error.

        `within_s`: restart the machine if nobody blesses the slot within so many seconds; None: never.
        """
