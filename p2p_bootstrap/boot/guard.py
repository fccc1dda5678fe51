"""Who restarts a machine whose slot on trial never proves healthy? A process that outlives the initramfs.

It is forked off before the switch, and only for a slot on trial that another one stands behind. It needs
nothing of the image, so an image whose init hangs, whose Python is broken or whose network is dead is left
too: when nobody blessed the slot in time (`MARKER`, written by `blessing`), it asks process 1 for a restart
as Ctrl-Alt-Del does, and does it itself if that does not help. The next boot finds a try spent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from typing import Final

MARKER: Final = "cos/blessed"  # below /run
LOOK_EVERY_S: Final = 5.0
GRACE_S = 120.0  # for the init to end its services
SYNC_S: Final = 10.0
_REBOOT: Final = 0x01234567  # linux/reboot.h
_OOM_NEVER: Final = b"-1000"


def start(within_s: float, run: str) -> int:
    """Fork the guard off. Returns its process id.

    Args:
        within_s: seconds until which the slot has to be blessed.
        run: where /run is now; it may be moved afterwards.
    """
    folder = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.close(folder)
        return child
    try:
        os.setsid()
        with contextlib.suppress(OSError):
            fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
            os.write(fd, _OOM_NEVER)
            os.close(fd)
        if not _blessed(folder, time.monotonic() + within_s):
            _restart(within_s, folder)
    finally:
        os._exit(0)


def _blessed(folder: int, deadline_s: float) -> bool:
    """Wait for the marker; False when it is too late."""
    while True:
        try:
            os.stat(MARKER, dir_fd=folder)
            return True
        except OSError:
            pass
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return False
        time.sleep(min(left_s, LOOK_EVERY_S))


def _restart(within_s: float, folder: int) -> None:
    text = f"kairos-p2p: nobody blessed this slot within {within_s:g} s: the machine starts anew\n"
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
    os.kill(1, signal.SIGINT)
    if _blessed(folder, time.monotonic() + GRACE_S):
        return
    # a disk that hangs must not keep the machine from it
    writer = os.fork()
    if writer == 0:
        os.sync()
        os._exit(0)
    deadline_s = time.monotonic() + SYNC_S
    while os.waitpid(writer, os.WNOHANG)[0] == 0 and time.monotonic() < deadline_s:
        time.sleep(0.1)
    ctypes.CDLL(None).reboot(ctypes.c_int(_REBOOT))
