"""How does systemd-boot know the slots of unified kernel images?

Each slot is an entry (``loader/entries/active+3.conf``) that names its program; the sort key puts active
first, and the loader itself counts the tries in the file's name and passes over an entry that has none left.
To bless a slot is to take the counter out of its entry's name (`slots.blessed_entry`). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from p2p_network.core.errors import BootError

FOLDER: Final = "/loader/entries"
PROGRAMS: Final = "/EFI/kairos"  # where Kairos has them
SLOTS: Final = ("active", "passive", "recovery", "statereset")


@dataclass(frozen=True, slots=True)
class LoaderFile:
    """A small file on the EFI system partition."""

    path: str
    text: str


def loader_files(title: str, tries: int, *, timeout_s: int = 5) -> tuple[LoaderFile, ...]:
    """The loader's configuration, and an entry per slot; the first two are counted if `tries` is not 0.

    Recovery is never counted: it is where one ends up. Programs are ``/EFI/kairos/SLOT.efi``.
    """
    if not 0 <= tries <= 9999 or "\n" in title:
        raise BootError(
            f"{tries} tries can't be counted", hint="take a number from 0 to 9999, and a title of one line"
        )
    found = [LoaderFile("/loader/loader.conf", f"timeout {timeout_s}\nconsole-mode auto\neditor no\n")]
    for number, slot in enumerate(SLOTS, start=1):
        counter = f"+{tries}" if tries and slot in ("active", "passive") else ""
        text = f"title {title} ({slot})\nsort-key {number:04}\nefi {PROGRAMS}/{slot}.efi\n"
        found.append(LoaderFile(f"{FOLDER}/{slot}{counter}.conf", text))
    return tuple(found)
