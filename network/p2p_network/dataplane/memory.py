"""Which of the memory that it took to start is needed no longer?

Code: of the programs and libraries mapped into the process, most pages ran once, while modules were imported
and keys set up. `release_code` hands them back to the kernel's page cache; what runs again is mapped again at
its first use. Only mappings that nobody may write to are touched, so that nothing can be lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Final

_MADV_DONTNEED: Final = 4
_CODE: Final = "r-xp"


def code_mappings(lines: Iterable[str]) -> list[tuple[int, int]]:
    """(begin, end) of the mapped files' code, from the lines of /proc/PID/maps."""
    found = []
    for line in lines:
        span, mode, _offset, _device, _inode, *path = line.split()
        if mode == _CODE and path and path[0].startswith("/"):
            begin, _, end = span.partition("-")
            found.append((int(begin, 16), int(end, 16)))
    return found


def release_code() -> None:
    """Hand back the pages of code that are resident. No effect where that isn't possible."""
    import ctypes  # 0.3 MB, for 6 that it gives back

    with contextlib.suppress(OSError, AttributeError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            mappings = code_mappings(maps)
        for begin, end in mappings:
            madvise(begin, end - begin, _MADV_DONTNEED)
