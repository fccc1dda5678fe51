"""What does a machine do when nothing can be booted? A screen on every console, then what was asked for.

The command line asks: ``rd.emergency=reboot|poweroff|halt|wait``, ``rd.immucore.rebootonfailure``,
``panic=N`` (reboot after N seconds). A boot loader that counts has another entry to try: it gets the machine
back. Without a word the machine waits for a person. There is no shell, whoever asks.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from p2p_bootstrap.boot import record
from p2p_bootstrap.boot.cmdline import CommandLine, Emergency

ACT_AFTER_S: Final = 10
_SENTENCES: Final[dict[Emergency, str]] = {
    "wait": "Mend it and start it anew; it waits here.",
    "reboot": "It starts anew in {} s.",
    "poweroff": "It switches itself off in {} s.",
    "halt": "It halts in {} s.",
}
_WORDS: Final[dict[Emergency, int]] = {  # linux/reboot.h
    "reboot": 0x01234567, "poweroff": 0x4321FEDC, "halt": 0xCDEF0123,
}  # fmt: skip


def what_next(command: CommandLine, *, counted: bool) -> tuple[Emergency, int]:
    """What the machine does, and after how many seconds. `counted`: the boot loader counts tries."""
    by_default: Emergency = "reboot" if command.panic_s or command.reboot_on_failure or counted else "wait"
    return command.emergency or by_default, command.panic_s or ACT_AFTER_S


def fail(made: record.Record, command: CommandLine, *, counted: bool = False) -> None:
    """The screen, and what comes after it. Returns only if this is not process 1."""
    verb, wait_s = what_next(command, counted=counted)
    show(record.screen(made, _SENTENCES[verb].format(wait_s)), command.consoles)
    if os.getpid() != 1:
        return
    while verb == "wait":
        time.sleep(3600)
    time.sleep(wait_s)
    os.sync()
    ctypes.CDLL(None).reboot(ctypes.c_int(_WORDS[verb]))


def show(text: str, consoles: Sequence[str], dev: Path = Path("/dev")) -> None:
    """Write on every console that the command line names: who stands before the machine sees one of them."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the console is all there is
    for name in consoles[:-1]:  # /dev/console, which stderr is, is the last one
        try:
            fd = os.open(
                dev / os.path.basename(name.split(",")[0]),
                os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC,
            )
        except OSError:
            continue  # a console that isn't there
        try:
            os.write(fd, text.replace("\n", "\r\n").encode())
        except OSError:
            continue  # one that nobody reads
        finally:
            os.close(fd)
