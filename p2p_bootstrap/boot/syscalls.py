"""Which kernel interfaces does the boot use that Python has no function for? ctypes, nothing else.

mount(2), umount2(2), pivot_root(2), syncfs(2), and the loop driver's ioctls (linux/loop.h).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import Final

MS_RDONLY: Final = 1
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2
FLAGS: Final[dict[str, int]] = {
    "ro": MS_RDONLY, "rw": 0, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "noatime": 1024,
    "nodiratime": 2048, "relatime": 1 << 21, "strictatime": 1 << 24, "defaults": 0,
}  # fmt: skip

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_READ_ONLY: Final = 1
_LOOP_AUTOCLEAR: Final = 4
_LOOP_MAJOR: Final = 7
# struct loop_config: fd, block size, loop_info64, 8 reserved words
_LOOP_CONFIG: Final = struct.Struct("=II QQQQQ IIII 64s 64s 32s QQ 64x")
_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "armv7l": 218}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _c(text: str) -> bytes:
    return os.fsencode(text)


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """mount(2). Raises OSError."""
    result = _libc.mount(
        _c(source), _c(target), _c(fstype), ctypes.c_ulong(flags), _c(data) if data else None
    )
    _check(result, target)


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2). Raises OSError."""
    _check(_libc.umount2(_c(target), flags), target)


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2). Raises OSError; EINVAL on the kernel's first root file system."""
    number = _PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, "pivot_root has no known number on this machine", new)
    _check(_libc.syscall(number, _c(new), _c(old)), new)


def syncfs(path: str) -> None:
    """Make everything on the file system of `path` durable. Raises OSError, e.g. for a broken disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.syncfs(fd), path)
    finally:
        os.close(fd)


def attach_loop(file: str, *, read_only: bool = True, attempts: int = 50) -> tuple[int, str]:
    """A loop device for `file`, which frees itself with its last user: (open file descriptor, path).

    Somebody else may be quicker to take the free device: then the next one is tried.
    """
    mode = os.O_RDONLY if read_only else os.O_RDWR
    backing = os.open(file, mode | os.O_CLOEXEC)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(attempts):
                number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
                path = f"/dev/loop{number}"
                if not os.path.exists(path):
                    os.mknod(path, 0o60600, os.makedev(_LOOP_MAJOR, number))
                device = os.open(path, mode | os.O_CLOEXEC)
                flags = _LOOP_AUTOCLEAR | (_LOOP_READ_ONLY if read_only else 0)
                name = _c(file)[-63:]
                config = _LOOP_CONFIG.pack(backing, 0, 0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
                try:
                    fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                    return device, path
                except OSError as exc:
                    os.close(device)
                    if exc.errno != errno.EBUSY:
                        raise
            raise OSError(errno.EBUSY, "no loop device stays free for long enough", file)
        finally:
            os.close(control)
    finally:
        os.close(backing)
