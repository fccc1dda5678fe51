"""How does a boot step reach the Linux kernel? The real `Kernel` (see `ports`).

Every path to be mounted on is looked at first: a symbolic link on the way would put the mount elsewhere.
`switch_root` starts an init only as process 1, and only after it has seen with its own eyes that ``/`` is
the root it meant: an init in the wrong root would tidy up the wrong machine.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from p2p_bootstrap.boot import extensions, files, guard, modules, persistence, slotstore, syscalls, unlocking
from p2p_bootstrap.boot.ports import BindRequest, CanaryRequest, MountEntry
from p2p_network.core.errors import BootError

StageRunner = Callable[[str, str], tuple[str, ...]]  # stage name, root of the new system -> remarks

API_MOUNTS: Final = ("/dev", "/proc", "/sys", "/run")
INITRD_RELEASE: Final = "/etc/initrd-release"
FSCK_TIMEOUT_S: Final = 600.0
_CHUNK_BYTES: Final = 1 << 20
_FSCK_CLEAN_UNTIL: Final = 1  # exit codes of fsck: 0 clean, 1 repaired, from 4 on damaged


class LinuxKernel:
    """The machine we run on. `stages` runs a stage of the cloud-config; without one each is remarked on."""

    def __init__(self, stages: StageRunner | None = None) -> None:
        self._stages = stages

    def mount(self, source: str, target: str, fstype: str, options: tuple[str, ...]) -> None:
        files.straight(target)
        flags, data = 0, []
        for option in options:
            if option in syscalls.FLAGS:
                flags |= syscalls.FLAGS[option]
            else:
                data.append(option)
        try:
            try:
                syscalls.mount(source, target, fstype, flags, ",".join(data))
            except OSError as exc:
                if exc.errno != errno.ENODEV or not modules.demand(fstype):
                    raise
                syscalls.mount(source, target, fstype, flags, ",".join(data))
        except OSError as exc:
            raise _cannot_mount(source, target, fstype, exc) from exc

    def mount_image(self, file: str, target: str, fstype: str, options: tuple[str, ...]) -> None:
        device, path = syscalls.attach_loop(file, read_only="ro" in options)
        try:
            try:
                self.mount(path, target, fstype, options)
            except BootError as exc:
                raise BootError(exc.message.replace(path, file), hint=exc.hint) from exc
        finally:
            os.close(device)  # the mount keeps it; without one it frees itself

    def bind(self, source: str, target: str) -> None:
        files.straight(target)
        try:
            syscalls.mount(source, target, "none", syscalls.MS_BIND)
        except OSError as exc:
            raise _cannot_mount(source, target, "bind", exc) from exc

    def remount(self, target: str, *, read_only: bool) -> None:
        flags = syscalls.MS_REMOUNT | (syscalls.MS_RDONLY if read_only else 0)
        syscalls.mount("none", target, "none", flags)

    def unmount(self, target: str) -> None:
        """Unmount, at once if it is free, else as soon as nobody uses it."""
        try:
            syscalls.unmount(target)
        except OSError as exc:
            if exc.errno == errno.EBUSY:
                syscalls.unmount(target, syscalls.MNT_DETACH)
            elif exc.errno != errno.EINVAL:
                raise

    def mounts(self) -> tuple[MountEntry, ...]:
        return parse_mountinfo(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape"))

    def device_number(self, path: str) -> str:
        number = os.stat(path).st_rdev
        return f"{os.major(number)}:{os.minor(number)}"

    def carrier(self, path: str) -> str:
        number = os.stat(path).st_dev
        return f"{os.major(number)}:{os.minor(number)}"

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        files.straight(path)
        Path(path).mkdir(mode=mode, parents=True, exist_ok=True)

    def write_file(self, path: str, text: str, mode: int = 0o644) -> None:
        target = Path(path)
        files.straight(str(target.parent))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink():
            target.unlink()
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)

    def remove_file(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)

    def is_directory(self, path: str) -> bool:
        files.straight(path)
        return os.path.isdir(path)

    def copy_tree_attributes(self, source: str, target: str) -> None:
        status = os.stat(source)
        os.chown(target, status.st_uid, status.st_gid)
        os.chmod(target, stat.S_IMODE(status.st_mode))

    def check_file_system(self, device: str, fstype: str, *, repair: bool, force: bool) -> str:
        program = shutil.which(f"fsck.{fstype}")
        if program is None:
            return ""  # the kernel's own recovery (a journal, say) has to do
        arguments = [
            "-a" if repair else "-n",
            *(["-f"] if force and fstype.startswith("ext") else []),
            device,
        ]
        try:
            done = subprocess.run(
                [program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=FSCK_TIMEOUT_S,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as exc:
            raise BootError(f"checking {device} took too long", hint="check the disk from recovery") from exc
        text = done.stdout.decode("utf-8", "replace").strip().splitlines()
        if done.returncode > _FSCK_CLEAN_UNTIL and repair:
            last = text[-1] if text else f"exit code {done.returncode}"
            raise BootError(
                f"{device} is damaged: {last}", hint=f"repair it from recovery: fsck.{fstype} -y {device}"
            )
        if done.returncode:
            return f"the file system on {device} " + ("was repaired" if repair else "has errors")
        return ""

    def prepare_bind(self, request: BindRequest) -> tuple[str, ...]:
        try:
            self.make_directory(request.state)
            return persistence.prepare(request)
        except OSError as exc:
            full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = (
                "free some space on the persistent partition, from recovery"
                if full
                else "check the disk (dmesg)"
            )
            raise BootError(
                f"{request.path} can't be made to last: {exc.strerror or exc}", hint=hint
            ) from exc

    def check_canary(self, request: CanaryRequest) -> str:
        return persistence.check_canary(request)

    def machine_id(self, state: str, target: str) -> None:
        self.make_directory(state)
        path = persistence.machine_id(Path(state))
        place = Path(target)
        if place.is_symlink() or not place.exists():
            self.write_file(target, "")
        self.bind(str(path), target)

    def unlock(self, record: str, esp: str, *, secrets: bool) -> tuple[str, ...]:
        return unlocking.unlock(Path(record), Path(esp), secrets=secrets)

    def count_try(self, state: str) -> str:
        return slotstore.SlotStore(Path(state), self.remount).count_try()

    def copy_to_memory(self, source: str, target: str) -> None:
        if not os.path.isdir(source):
            shutil.copyfile(source, target)
            return
        root = Path(source)
        for path in sorted(persistence.scan(root)):
            persistence.copy_item(root / path, Path(target) / path)
        for entry in os.scandir(root):
            if entry.is_dir(follow_symlinks=False):  # what is mounted there is not copied, but its place is
                Path(target, entry.name).mkdir(exist_ok=True)

    def copy_proved(self, source: str, target: str, sha256: str) -> None:
        digest = hashlib.sha256()
        with open(source, "rb") as reading, open(target, "wb") as writing:
            while chunk := reading.read(_CHUNK_BYTES):
                digest.update(chunk)
                writing.write(chunk)
        if digest.hexdigest() != sha256:
            os.unlink(target)
            raise BootError(
                f"{source} is not the image that this unified kernel image was built with",
                hint="write both anew: they come from one run of boot build uki",
            )

    def run_stage(self, name: str, root: str) -> tuple[str, ...]:
        if self._stages is None:
            return (f"the stage {name} was not run: no engine of stages was packed",)
        return self._stages(name, root)

    def offer_extensions(self, root: str, run: str, profile: str, *, trusted: bool) -> tuple[str, ...]:
        return extensions.offer(root, run, profile, trusted=trusted)

    def switch_root(self, sysroot: str, init: str, within_s: float | None) -> None:
        program = files.resolve(sysroot, init)
        if not os.access(program, os.X_OK):
            raise BootError(f"the image has no program {init}", hint="name the image's init with init=...")
        if os.getpid() != 1:
            raise BootError("only process 1 may become an init", hint="run this as the init of a machine")
        old = initramfs_root(self.mounts())  # while there is a /proc to ask
        guarding = None if within_s is None else guard.start(within_s, "/run")
        for path in API_MOUNTS:
            inside = sysroot.rstrip("/") + path
            if os.path.ismount(path) and os.path.isdir(inside) and not sysroot.startswith(f"{path}/"):
                syscalls.mount(path, inside, "none", syscalls.MS_MOVE)
        try:
            enter(sysroot)
            if old is not None:
                forget(old)
            os.execv(init, [init])  # noqa: S606 - it is what an initramfs is for
        finally:
            if old is not None:
                os.close(old)
            if guarding is not None:  # this slot is left now, by another way
                os.kill(guarding, signal.SIGKILL)
                os.waitpid(guarding, 0)


def initramfs_root(mounts: tuple[MountEntry, ...]) -> int | None:
    """``/`` as an open folder if it is our initramfs, in memory; None for any other root.

    Only such a root is emptied after the switch: three things must say that it is one.
    """
    root = next((entry for entry in mounts if entry.target == "/"), None)
    in_memory = root is not None and root.fstype in ("rootfs", "ramfs", "tmpfs")
    if os.getpid() != 1 or not in_memory or not os.path.isfile(INITRD_RELEASE):
        return None
    return os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def forget(old: int) -> None:
    """Give back the memory of the initramfs, in a process of its own that the new init reaps."""
    if os.fork() != 0:
        return
    try:
        empty(old, os.fstat(old).st_dev)
    finally:
        os._exit(0)


def empty(folder: int, device: int) -> None:
    """Remove what lies below an open folder on `device`; links and other mounts are not entered."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        try:
            if os.stat(name, dir_fd=folder, follow_symlinks=False).st_dev != device:
                continue
            if not is_folder:
                os.unlink(name, dir_fd=folder)
                continue
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            try:
                empty(inner, device)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=folder)
        except OSError:
            continue  # in use: so be it, the memory is all that is lost


def enter(sysroot: str) -> None:
    """Make `sysroot` the root of this process and of its mount namespace, and prove it. Raises BootError."""
    before = os.stat(sysroot)
    os.chdir(sysroot)
    try:
        syscalls.pivot_root(".", ".")
        syscalls.unmount(".", syscalls.MNT_DETACH)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        # the kernel's first root can't be pivoted away: move over it, as every initramfs does
        syscalls.mount(".", "/", "none", syscalls.MS_MOVE)
        os.chroot(".")
    os.chdir("/")
    after = os.stat("/")
    if (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino):
        raise BootError(f"/ is not {sysroot} after the switch", hint="this is a bug: please report it")


def _cannot_mount(source: str, target: str, fstype: str, exc: OSError) -> BootError:
    why = exc.strerror or str(exc)
    hint = "the kernel's log (dmesg) tells more"
    if exc.errno == errno.ENODEV:
        hint = f"the kernel knows no {fstype}: put its module into the initramfs"
    elif exc.errno in (errno.EINVAL, errno.EUCLEAN):
        hint = f"the file system on {source} may be damaged: check it from recovery (fsck)"
    elif exc.errno == errno.ENOENT:
        hint = f"is {source} there, and the folder {target}?"
    return BootError(f"{source} can't be mounted on {target} ({fstype}): {why}", hint=hint)


def parse_mountinfo(text: str) -> tuple[MountEntry, ...]:
    """The lines of ``/proc/self/mountinfo`` (proc(5)); what can't be understood is left out."""
    found = []
    for line in text.splitlines():
        left, dash, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if not dash or len(fields) < 6 or len(tail) < 3:
            continue
        target, root, source = map(_plain, (fields[4], fields[3], tail[1]))
        options, super_options = tuple(fields[5].split(",")), tuple(_plain(tail[2]).split(","))
        found.append(MountEntry(target, root, fields[2], tail[0], source, options, super_options))
    return tuple(found)


def _plain(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text
