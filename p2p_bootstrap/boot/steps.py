"""Which small actions make a boot? Each describes itself in a line and acts through the `Kernel`.

A step may be executed twice: what is done already is proved instead of done again. A step that can't be
done raises, and the slot has failed; what is worth telling comes back as remarks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from p2p_bootstrap.boot.ports import BindRequest, CanaryRequest, Kernel, MountEntry
from p2p_network.core.errors import BootError

Remarks = tuple[str, ...]


class Action(Protocol):
    """The shape of every step's work."""

    def describe(self) -> str:
        """One line in the imperative."""

    def execute(self, kernel: Kernel) -> Remarks:
        """Do it, or raise."""


@dataclass(frozen=True, slots=True)
class Required:
    """A mount without which nothing may start. Empty texts: any.

    Attributes:
        device: path of the block device that must carry it; `root`: how its path inside the file system ends.
        option: an option that must be set (``ro``, ``rw``).
    """

    target: str
    fstype: str = ""
    device: str = ""
    root: str = ""
    option: str = ""


def prove(required: Required, kernel: Kernel) -> MountEntry:
    """The mount as it is. Raises BootError if it is missing or another one than meant."""
    found = [entry for entry in kernel.mounts() if entry.target == required.target]
    if not found:
        raise BootError(f"nothing is mounted on {required.target}", hint="the kernel's log (dmesg) tells why")
    top = found[-1]
    wrong = ""
    if required.fstype and top.fstype != required.fstype:
        wrong = f"is a {top.fstype}, not a {required.fstype}"
    elif required.device and top.fstype != "btrfs" and top.device != kernel.device_number(required.device):
        wrong = f"lies on {top.source} ({top.device}), not on {required.device}"
    elif required.root and not top.root.endswith(required.root):
        wrong = f"shows {top.root}, not {required.root}"
    elif required.option and required.option not in (*top.options, *top.super_options):
        wrong = f"is not mounted {required.option}"
    elif top.fstype != "btrfs" and kernel.carrier(required.target) != top.device:
        wrong = "is hidden by another mount"
    if wrong:
        raise BootError(
            f"{required.target} {wrong}", hint="something else was mounted there; see /run/cos/boot.json"
        )
    return top


def _mounted(required: Required, kernel: Kernel) -> bool:
    if not any(entry.target == required.target for entry in kernel.mounts()):
        return False
    try:
        prove(required, kernel)
    except BootError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Sentinels:
    """Tell the running system, by empty-handed files, how it was booted."""

    folder: str
    names: tuple[str, ...]
    others: tuple[str, ...]

    def describe(self) -> str:
        return f"write {', '.join(self.names)} into {self.folder}"

    def execute(self, kernel: Kernel) -> Remarks:
        kernel.make_directory(self.folder)
        for name in self.others:
            kernel.remove_file(f"{self.folder}/{name}")
        for name in self.names:
            kernel.write_file(f"{self.folder}/{name}", "1\n")
        return ()


@dataclass(frozen=True, slots=True)
class Fsck:
    """Check a file system before it is mounted."""

    device: str
    fstype: str
    repair: bool
    force: bool

    def describe(self) -> str:
        return f"check {self.device} ({self.fstype})" + (" and repair it" if self.repair else "")

    def execute(self, kernel: Kernel) -> Remarks:
        remark = kernel.check_file_system(self.device, self.fstype, repair=self.repair, force=self.force)
        return (remark,) if remark else ()


@dataclass(frozen=True, slots=True)
class Mount:
    """Mount a device, or a file system without one (`device` False)."""

    source: str
    target: str
    fstype: str
    options: tuple[str, ...]
    device: bool = True
    make_target: bool = True

    @property
    def required(self) -> Required:
        option = "ro" if "ro" in self.options else "rw"
        return Required(self.target, self.fstype, self.source if self.device else "", "", option)

    def describe(self) -> str:
        return f"mount {self.source} ({self.fstype}) on {self.target}, {','.join(self.options) or 'rw'}"

    def execute(self, kernel: Kernel) -> Remarks:
        if _mounted(self.required, kernel):
            return ()
        _make_target(self.target, self.make_target, kernel)
        kernel.mount(self.source, self.target, self.fstype, self.options)
        prove(self.required, kernel)
        return ()


@dataclass(frozen=True, slots=True)
class MountImage:
    """Mount an image file; read-only, unless somebody debugs."""

    file: str
    target: str
    fstype: str
    option: str = "ro"

    @property
    def required(self) -> Required:
        return Required(self.target, self.fstype, option=self.option)

    def describe(self) -> str:
        return f"mount the image {self.file} ({self.fstype}) on {self.target}, {self.option}"

    def execute(self, kernel: Kernel) -> Remarks:
        if not _mounted(self.required, kernel):
            kernel.make_directory(self.target)
            kernel.mount_image(self.file, self.target, self.fstype, (self.option,))
            prove(self.required, kernel)
        return ()


@dataclass(frozen=True, slots=True)
class View:
    """Keep a view of the untouched image, which later mounts don't cover."""

    source: str
    target: str

    def describe(self) -> str:
        return f"show {self.source} as it is in the image on {self.target}"

    def execute(self, kernel: Kernel) -> Remarks:
        if not _mounted(Required(self.target), kernel):
            kernel.make_directory(self.target)
            kernel.bind(self.source, self.target)
            prove(Required(self.target), kernel)
        return ()


@dataclass(frozen=True, slots=True)
class Look:
    """Observe again: what comes after depends on it. The runner does it, by planning anew."""

    what: str

    def describe(self) -> str:
        return f"look at {self.what} and plan on"

    def execute(self, kernel: Kernel) -> Remarks:
        return ()


@dataclass(frozen=True, slots=True)
class Unlock:
    """Activate groups of volumes, and open what is encrypted if its secrets are wanted."""

    record: str
    esp: str
    secrets: bool

    def describe(self) -> str:
        return "activate groups of volumes" + (" and open encrypted ones" if self.secrets else "")

    def execute(self, kernel: Kernel) -> Remarks:
        return kernel.unlock(self.record, self.esp, secrets=self.secrets)


@dataclass(frozen=True, slots=True)
class CountTry:
    """A slot on trial has one try less, whatever becomes of this boot."""

    state: str

    def describe(self) -> str:
        return f"take one try off the slot pointer on {self.state}"

    def execute(self, kernel: Kernel) -> Remarks:
        remark = kernel.count_try(self.state)
        return (remark,) if remark else ()


@dataclass(frozen=True, slots=True)
class CopyToMemory:
    """Copy an image into memory."""

    source: str
    target: str

    def describe(self) -> str:
        return f"copy {self.source} into memory, as {self.target}"

    def execute(self, kernel: Kernel) -> Remarks:
        kernel.copy_to_memory(self.source, self.target)
        return ()


@dataclass(frozen=True, slots=True)
class CopyProved:
    """Copy an image into memory, and compare it with what the signed initrd says of it."""

    source: str
    target: str
    sha256: str

    def describe(self) -> str:
        return f"copy {self.source} into memory, if its SHA-256 is {self.sha256[:16]}..."

    def execute(self, kernel: Kernel) -> Remarks:
        kernel.copy_proved(self.source, self.target, self.sha256)
        return ()


@dataclass(frozen=True, slots=True)
class RunStage:
    """Run a stage of the cloud-config."""

    name: str
    root: str

    def describe(self) -> str:
        return f"run the stage {self.name} on {self.root}"

    def execute(self, kernel: Kernel) -> Remarks:
        return kernel.run_stage(self.name, self.root)


@dataclass(frozen=True, slots=True)
class Overlay:
    """Make a path writable: an overlay over itself, its changes in `base`."""

    target: str
    base: str
    lower: str = ""  # the target itself if ""

    @property
    def required(self) -> Required:
        return Required(self.target, "overlay", option="rw")

    def describe(self) -> str:
        return f"make {self.target} writable, its changes in {self.base}"

    def execute(self, kernel: Kernel) -> Remarks:
        if _mounted(self.required, kernel):
            return ()
        lower = self.lower or self.target
        _make_target(self.target, True, kernel)
        upper, work = f"{self.base}/upper", f"{self.base}/work"
        kernel.make_directory(upper)
        kernel.make_directory(work)
        kernel.copy_tree_attributes(lower, upper)
        options = (f"lowerdir={_escaped(lower)}", f"upperdir={_escaped(upper)}", f"workdir={_escaped(work)}")
        kernel.mount("overlay", self.target, "overlay", ("rw", *options))
        prove(self.required, kernel)
        return ()


@dataclass(frozen=True, slots=True)
class Bind:
    """Mount a path that lasts, filled from the image at first use and merged when the image changed."""

    request: BindRequest
    target: str

    @property
    def required(self) -> Required:
        return Required(self.target, root=f"/{self.request.name}", option="rw")

    def describe(self) -> str:
        return f"mount {self.request.state}/{self.request.name} on {self.target} ({self.request.policy})"

    def execute(self, kernel: Kernel) -> Remarks:
        if _mounted(self.required, kernel):
            return ()
        _make_target(self.target, True, kernel)
        remarks = kernel.prepare_bind(self.request)
        kernel.bind(f"{self.request.state}/{self.request.name}", self.target)
        prove(self.required, kernel)
        return remarks


@dataclass(frozen=True, slots=True)
class Canary:
    """Prove that the persistent partition is the one that this node wrote to before."""

    request: CanaryRequest

    def describe(self) -> str:
        return f"prove by its canary that {self.request.persistent} is the partition we know"

    def execute(self, kernel: Kernel) -> Remarks:
        remark = kernel.check_canary(self.request)
        return (remark,) if remark else ()


@dataclass(frozen=True, slots=True)
class MachineId:
    """Give the machine its id, the same at every boot."""

    state: str
    target: str

    def describe(self) -> str:
        return f"mount the machine's id on {self.target}"

    def execute(self, kernel: Kernel) -> Remarks:
        if not _mounted(Required(self.target), kernel):
            kernel.machine_id(self.state, self.target)
            prove(Required(self.target), kernel)
        return ()


@dataclass(frozen=True, slots=True)
class OfferExtensions:
    """Hand the extensions that this slot wants to the new root. `trusted`: only what was signed may run."""

    root: str
    run: str
    profile: str
    trusted: bool

    def describe(self) -> str:
        return f"offer the system extensions of {self.profile} and common"

    def execute(self, kernel: Kernel) -> Remarks:
        return kernel.offer_extensions(self.root, self.run, self.profile, trusted=self.trusted)


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Write a small file."""

    path: str
    text: str

    def describe(self) -> str:
        return f"write {self.path} ({len(self.text)} bytes)"

    def execute(self, kernel: Kernel) -> Remarks:
        kernel.write_file(self.path, self.text)
        return ()


@dataclass(frozen=True, slots=True)
class ReadOnly:
    """Make a mounted root read-only."""

    root: str

    def describe(self) -> str:
        return f"make {self.root} read-only"

    def execute(self, kernel: Kernel) -> Remarks:
        kernel.remount(self.root, read_only=True)
        return ()


@dataclass(frozen=True, slots=True)
class Prove:
    """Look once more at every mount that must be there."""

    required: tuple[Required, ...]

    def describe(self) -> str:
        return f"prove all {len(self.required)} required mounts"

    def execute(self, kernel: Kernel) -> Remarks:
        for one in self.required:
            prove(one, kernel)
        return ()


@dataclass(frozen=True, slots=True)
class SwitchRoot:
    """Become the init of the new root. `within_s`: the time in which a slot on trial has to be blessed."""

    sysroot: str
    init: str
    within_s: float | None = None

    def describe(self) -> str:
        start = f"make {self.sysroot} the root and start {self.init}"
        if self.within_s is None:
            return start
        return f"{start}; restart if nobody blesses the slot within {self.within_s:g} s"

    def execute(self, kernel: Kernel) -> Remarks:
        kernel.switch_root(self.sysroot, self.init, self.within_s)
        return ()


@dataclass(frozen=True, slots=True)
class Step:
    """A planned action: its name, and the names of the steps that must be done before it."""

    name: str
    action: Action
    needs: tuple[str, ...] = field(default=())


def _escaped(path: str) -> str:
    """overlayfs takes apart its options at commas and colons and reads backslashes."""
    for char in "\\,:":
        path = path.replace(char, f"\\{char}")
    return path


def _make_target(target: str, make: bool, kernel: Kernel) -> None:
    if kernel.is_directory(target):
        return
    if make:
        try:
            kernel.make_directory(target)
            return
        except OSError as exc:
            raise BootError(
                f"{target} can't be made as a mount point: {exc.strerror or exc}",
                hint="let the image have this directory, or put it below a path in RW_PATHS",
            ) from exc
    raise BootError(f"{target} is no directory", hint="let the image have this directory")
