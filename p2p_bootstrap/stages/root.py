"""How do steps touch files below a root folder, so that nothing leaves it and doing it twice changes nothing?

Paths are resolved as inside a chroot: an absolute link stays below the root, ``..`` stops at it. A file is
replaced by a rename, so that a power cut leaves the old one or the new one; one that is right already is not
touched. Files are made with mode 0600 and get their own mode before they get their name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from p2p_network.core.errors import BootError

MAX_LINKS: Final = 40
MAX_READ_BYTES: Final = 16 * 1024 * 1024
# what can't be replaced by a rename: kernel interfaces, and files that containers have mounted in place
_IN_PLACE: Final = ("/proc/", "/sys/", "/dev/")


class Root:
    """A file system tree: ``/`` of this machine, or a folder that stands for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def is_machine(self) -> bool:
        """Whether it is the running system's own root."""
        return self.folder == Path("/")

    def path(self, name: str, *, follow: bool = True) -> Path:
        """Where a path of the root lies. `follow`: also a link that is the last part. Raises BootError."""
        pending = [part for part in reversed(name.split("/")) if part not in ("", ".")]
        done: list[str] = []
        links = 0
        while pending:
            part = pending.pop()
            if part == "..":
                done = done[:-1]
                continue
            here = self.folder.joinpath(*done, part)
            if (pending or follow) and here.is_symlink():
                links += 1
                if links > MAX_LINKS:
                    raise BootError(f"{name}: too many links", hint="look for links in a ring")
                target = os.readlink(here)
                if target.startswith("/"):
                    done = []
                pending += [part for part in reversed(target.split("/")) if part not in ("", ".")]
                continue
            done.append(part)
        return self.folder.joinpath(*done)

    def exists(self, name: str) -> bool:
        """Whether something is there, behind links too."""
        try:
            return self.path(name).exists()
        except (BootError, OSError):
            return False

    def read(self, name: str) -> bytes | None:
        """A file's content; None if it isn't there. Raises BootError if it can't be read."""
        try:
            with self.path(name).open("rb") as file:
                data = file.read(MAX_READ_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise _failed(name, "can't be read", exc) from exc
        if len(data) > MAX_READ_BYTES:
            raise BootError(f"{name}: is larger than {MAX_READ_BYTES} bytes", hint="is it the right file?")
        return data

    def text(self, name: str) -> str:
        """A file's content as text; empty if it isn't there."""
        return (self.read(name) or b"").decode("utf-8", "surrogateescape")

    def write(
        self,
        name: str,
        data: bytes,
        mode: int | None = None,
        owner: tuple[int | None, int | None] = (None, None),
    ) -> bool:
        """Make a file hold `data`. Returns whether anything changed. Raises BootError.

        Args:
            mode: its permissions; None keeps those of an existing file, and makes a new one 0600.
            owner: user and group id; None keeps, and leaves a new file to whoever runs this.
        """
        path = self.path(name)
        try:
            self.make_folder(str(Path("/", name).parent))
            status = path.stat() if path.exists() else None
            if status and not stat.S_ISREG(status.st_mode):
                raise BootError(f"{name}: is there already and is no file", hint="choose another path")
            changed = status is None or path.read_bytes() != data
            if changed:
                self._replace(path, name, data, mode, status)
            return self.set_attributes(name, mode, owner) or changed
        except OSError as exc:
            raise _failed(name, "can't be written", exc) from exc

    def _replace(
        self, path: Path, name: str, data: bytes, mode: int | None, status: os.stat_result | None
    ) -> None:
        if name.startswith(_IN_PLACE) or (status is not None and os.path.ismount(path)):
            path.write_bytes(data)
            return
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                if status is not None:
                    os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode) if mode is None else mode)
                    with contextlib.suppress(PermissionError):
                        os.fchown(file.fileno(), status.st_uid, status.st_gid)
                elif mode is not None:
                    os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.replace(temporary, path)
            except OSError as exc:
                if exc.errno != errno.EBUSY:  # a file that is a mount point can't be replaced
                    raise
                path.write_bytes(data)
                os.unlink(temporary)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def set_attributes(self, name: str, mode: int | None, owner: tuple[int | None, int | None]) -> bool:
        """Permissions and owner of what is there; returns whether they changed."""
        path = self.path(name)
        changed = False
        status = path.stat()
        uid = status.st_uid if owner[0] is None else owner[0]
        gid = status.st_gid if owner[1] is None else owner[1]
        if (status.st_uid, status.st_gid) != (uid, gid):
            os.chown(path, uid, gid)
            changed = True
        if mode is not None and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)  # after chown, which clears setuid
            changed = True
        return changed

    def make_folder(
        self, name: str, mode: int | None = None, owner: tuple[int | None, int | None] = (None, None)
    ) -> bool:
        """Make a folder and those above it. `mode` and `owner` are for the last one; the others get 0755."""
        path = self.path(name)
        try:
            changed = not path.is_dir()
            for folder in (*reversed(path.parents), path):
                if self.folder in folder.parents and not folder.is_dir():
                    folder.mkdir(mode=0o755)
                    folder.chmod(0o755)  # whatever the umask is
            return self.set_attributes(name, mode, owner) or changed
        except FileExistsError as exc:
            raise BootError(f"{name}: is there already and is no folder", hint="choose another path") from exc
        except OSError as exc:
            raise _failed(name, "can't be made", exc) from exc

    def remove(self, name: str) -> bool:
        """Remove a file or a link; returns whether it was there."""
        path = self.path(name, follow=False)
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as exc:
            raise _failed(name, "can't be removed", exc) from exc
        return True


def _failed(name: str, what: str, exc: OSError) -> BootError:
    hint = "check the path"
    match exc.errno:
        case errno.EACCES | errno.EPERM:
            hint = "run as root"
        case errno.EROFS:
            hint = "the file system is read-only: add the path to RW_PATHS, or write to a persistent one"
        case errno.ENOSPC | errno.EDQUOT:
            hint = "the disk is full: free some space"
    return BootError(f"{name}: {what}: {exc.strerror or exc}", hint=hint)
