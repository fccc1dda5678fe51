"""What was observed before a boot is planned? Frozen facts, and their form as JSON.

Facts are all that `plan` looks at, so a file of them (``boot plan -o json``, ``boot plan --facts FILE``)
reproduces a boot decision on any machine. None stands for "not looked yet": what is on the state partition
is known only once that is mounted, and the layout only once the `rootfs` stage has written it.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Final, TypeVar

from p2p_network.core.errors import BootError, nearest

T = TypeVar("T")

MAX_FACTS_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are while booting; another set of places makes a laboratory."""

    sysroot: str = "/sysroot"
    run: str = "/run"
    initrd: str = ""  # in front of paths in the initramfs

    @property
    def state(self) -> str:
        """Where the partition that holds the slot images is mounted."""
        return f"{self.run}/initramfs/cos-state"

    @property
    def recovery(self) -> str:
        """Where the recovery partition is mounted."""
        return f"{self.run}/initramfs/cos-recovery"

    @property
    def live(self) -> str:
        """Where the live medium is mounted."""
        return f"{self.run}/initramfs/live"

    @property
    def esp(self) -> str:
        """Where the EFI system partition is mounted, if the boot came from there."""
        return f"{self.run}/initramfs/esp"

    @property
    def memory(self) -> str:
        """Where images are copied to that run from memory."""
        return f"{self.run}/initramfs/memory"

    @property
    def cos(self) -> str:
        """The folder of sentinels, layout files and records of this boot."""
        return f"{self.run}/cos"

    def inside(self, path: str) -> str:
        """`path` of the new root, as seen before the switch."""
        return self.sysroot.rstrip("/") + path


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A block device that holds a file system. Empty texts: none."""

    path: str
    fstype: str = ""
    label: str = ""
    uuid: str = ""
    partuuid: str = ""
    partlabel: str = ""
    size_bytes: int = 0
    read_only: bool = False
    held: bool = False  # something lies on top of it: an unlocked volume, an active group


@dataclass(frozen=True, slots=True)
class Unlocking:
    """What became of an encrypted or grouped device. `reason`: why it stayed locked, "" if it did not."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class SlotImage:
    """An image file of a slot. `path` is absolute on its partition; `fstype` "" means unreadable."""

    path: str
    fstype: str
    identity: str
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Efi:
    """EFI variables that matter.

    Attributes:
        entry: LoaderEntrySelected; `partuuid`: LoaderDevicePartUUID.
        counted: LoaderBootCountPath, the file of the entry whose tries are counted; "" if it is blessed.
    """

    secure_boot: bool = False
    entry: str = ""
    partuuid: str = ""
    counted: str = ""


@dataclass(frozen=True, slots=True)
class UkiRoot:
    """The root image that came with the initrd. `fstype` "": it, or what tells of it, is damaged.

    Attributes:
        file: where it is, in the initrd; "" if it lies beside.
        beside: its path on the EFI system partition, compared with `sha256`.
        identity: tells images apart.
    """

    file: str
    beside: str
    sha256: str
    fstype: str
    identity: str = ""


@dataclass(frozen=True, slots=True)
class TextFile:
    """A small file that was read."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the boot wants of the cloud-config.

    Attributes:
        bind_mounts, ephemeral_mounts: of ``install``.
        bless_within_s: ``p2p.bless.within_s``, None if it is not set; 0: no limit.
    """

    bind_mounts: tuple[str, ...] = ()
    ephemeral_mounts: tuple[str, ...] = ()
    bless_within_s: int | None = None


@dataclass(frozen=True, slots=True)
class SlotFailure:
    """A slot that was tried in this boot and failed, at which step, why, and what to do."""

    slot: str
    step: str
    reason: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a boot plan depends on.

    Attributes:
        images: the images on the state partition; None while it isn't mounted.
        recovery_images: those on the recovery partition.
        unlocked: what the step `unlock` did; None before it.
        uki_root: an image in (or named by) the initrd; None: the initrd itself is the root.
        pointer: text of the slot pointer (`slots`), "" if there is none.
        layout: layout files in the order of precedence; None before the `rootfs` stage has run.
        wishes: mounts of the cloud-config, known together with `layout`.
        remarks: what was wrong with what was read.
        failures: slots that already failed in this boot.
    """

    cmdline: str = ""
    devices: tuple[BlockDevice, ...] = ()
    efi: Efi | None = None
    uki_root: UkiRoot | None = None
    unlocked: tuple[Unlocking, ...] | None = None
    images: tuple[SlotImage, ...] | None = None
    recovery_images: tuple[SlotImage, ...] | None = None
    pointer: str = ""
    layout: tuple[TextFile, ...] | None = None
    wishes: Wishes = field(default_factory=Wishes)
    failures: tuple[SlotFailure, ...] = ()
    remarks: tuple[str, ...] = ()
    places: Places = field(default_factory=Places)
    now_s: float = 0.0


def to_json(facts: Facts) -> str:
    """The facts as a JSON document."""
    return json.dumps(asdict(facts), indent=2)


def from_json(text: str) -> Facts:
    """Read what `to_json` wrote, or a person did: every field may be left out. Raises BootError."""
    if len(text) > MAX_FACTS_BYTES:
        raise BootError("the file is too large to be a file of facts", hint="make one: boot plan -o json")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BootError(
            f"the facts are no JSON: {exc}", hint="make a file of facts: boot plan -o json"
        ) from exc
    return _build(Facts, document, "facts")


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    return typing.get_type_hints(cls)


def _build(cls: type[T], value: Any, where: str) -> T:
    """An instance of a dataclass from plain data, every type checked."""
    assert is_dataclass(cls)
    if not isinstance(value, dict):
        raise BootError(f"{where} must be a map", hint="see boot plan -o json for the form")
    known = {f.name: f for f in fields(cls)}
    for key in value:
        if key not in known:
            near = nearest(str(key), known)
            raise BootError(f"{where} has no field {key!r}", hint=f"did you mean {near!r}?" if near else "")
    missing = [
        n
        for n, f in known.items()
        if n not in value and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise BootError(f"{where} lacks the field {missing[0]!r}", hint="see boot plan -o json for the form")
    hints = _hints(cls)
    return cls(**{key: _convert(hints[key], item, f"{where}.{key}") for key, item in value.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        if value is None:
            return None
        (hint,) = (a for a in typing.get_args(hint) if a is not type(None))
        return _convert(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise BootError(f"{where} must be a list", hint="see boot plan -o json for the form")
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, one, f"{where}[{i}]") for i, one in enumerate(value))
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return _build(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise BootError(f"{where} must be of type {hint.__name__}", hint="see boot plan -o json for the form")
    return value
