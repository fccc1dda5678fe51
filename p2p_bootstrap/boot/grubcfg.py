"""How does GRUB boot the slots, and count the tries of one that is on trial?

`render` makes a grub.cfg that reads the same file as we do: the slot pointer ``cOS/slots.env`` on the state
partition is a GRUB environment block. GRUB takes a try off before it starts anything, so a kernel that hangs
is counted too, and tells the boot by ``kairos.counted`` that it need not. Without tries left, passive is the
default.

As Kairos has it: the menu's names (``cos``, ``fallback``, ``recovery``, ``statereset``), ``next_entry`` and
``extra_cmdline`` in ``grubenv`` on the OEM partition, kernel and initrd inside the image. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from p2p_bootstrap.boot.slots import KAIROS_IMAGES, POINTER
from p2p_network.core.errors import BootError

MAX_TRIES: Final = 9  # GRUB can't count: the script has a line per number
OEM_ENVIRONMENT: Final = "/grubenv"
COUNTED: Final = "kairos.counted"
_SAFE: Final = re.compile(r"[A-Za-z0-9 _.,:/=+@%-]*")


@dataclass(frozen=True, slots=True)
class Menu:
    """What may differ. `kernel`, `initrd`: paths inside each image."""

    title: str = "kairos-p2p"
    timeout_s: int = 5
    kernel: str = "/boot/vmlinuz"
    initrd: str = "/boot/initrd"
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    text: str
    label: str  # of the partition
    image: str
    root: str  # the label that names the slot on the command line
    extra: str  # variable of the OEM environment
    words: str = ""


_ENTRIES: Final = (
    _Entry("cos", "", "COS_STATE", "$active_image", "COS_ACTIVE", "extra_active_cmdline", " $counted"),
    _Entry("fallback", " (passive)", "COS_STATE", "$passive_image", "COS_PASSIVE", "extra_passive_cmdline"),
    _Entry("recovery", " (recovery)", "COS_RECOVERY", KAIROS_IMAGES["recovery"], "COS_RECOVERY",
           "extra_recovery_cmdline", " recovery-mode"),
    _Entry("statereset", " (state reset)", "COS_RECOVERY", KAIROS_IMAGES["recovery"], "COS_RECOVERY",
           "extra_recovery_cmdline", " kairos.reset"),
)  # fmt: skip


def render(menu: Menu) -> str:
    """The file. Raises BootError for a text that a script of GRUB can't hold safely."""
    for name in ("title", "kernel", "initrd", "cmdline"):
        if not _SAFE.fullmatch(value := getattr(menu, name)):
            raise BootError(
                f"{value!r} can't stand in a grub.cfg", hint=f"choose a plainer {name}, without quotes"
            )
    lines = [
        "# written by kairos-p2p; the slots are in cOS/slots.env on the state partition",
        f"set timeout={menu.timeout_s}",
        "set default=cos",
        # an entry that can't even be loaded
        'set fallback="fallback recovery"',
        f"set active_image={KAIROS_IMAGES['active']}",
        f"set passive_image={KAIROS_IMAGES['passive']}",
        "set slot_trial=0",
        "set slot_tries_left=0",
        "search --no-floppy --label COS_STATE --set=state",
        "search --no-floppy --label COS_OEM --set=oem",
        f'if [ -f "($state){POINTER}" ]; then',
        f'  load_env --file "($state){POINTER}" active_image passive_image slot_trial slot_tries_left',
        "fi",
        'if [ "$slot_trial" = "1" -a "$slot_tries_left" = "0" ]; then',
        "  set default=fallback",
        "fi",
        f'if [ -f "($oem){OEM_ENVIRONMENT}" ]; then',
        f'  load_env --file "($oem){OEM_ENVIRONMENT}" next_entry extra_cmdline extra_active_cmdline '
        "extra_passive_cmdline extra_recovery_cmdline",
        '  if [ -n "$next_entry" ]; then',
        '    set default="$next_entry"',
        "    set next_entry=",
        f'    save_env --file "($oem){OEM_ENVIRONMENT}" next_entry',
        "  fi",
        "fi",
        *_count(),
    ]
    for entry in _ENTRIES:
        lines += _menu_entry(menu, entry)
    return "\n".join(lines) + "\n"


def _count() -> list[str]:
    """A function that takes a try off: GRUB's scripts have no arithmetic."""
    lines = ["function count_try {", '  set counted=""', '  if [ "$slot_trial" = "1" ]; then']
    for tries in range(MAX_TRIES, 0, -1):
        word = "if" if tries == MAX_TRIES else "elif"
        lines += [
            f'    {word} [ "$slot_tries_left" = "{tries}" ]; then',
            f"      set slot_tries_left={tries - 1}",
        ]
    lines += [
        '    elif [ "$slot_tries_left" != "0" ]; then',
        f"      set slot_tries_left={MAX_TRIES}",
        "    fi",
        # only a block that was written may be believed by the boot
        f'    if save_env --file "($state){POINTER}" slot_tries_left; then',
        f"      set counted={COUNTED}",
        "    fi",
        "  fi",
        "}",
    ]
    return lines


def _menu_entry(menu: Menu, entry: _Entry) -> list[str]:
    words = f"{menu.cmdline} $extra_cmdline ${entry.extra}".strip()
    named = f"root=LABEL={entry.root} cos-img/filename={entry.image}{entry.words}"
    return [
        f'menuentry "{menu.title}{entry.text}" --id {entry.name} {{',
        *(["  count_try"] if entry.name == "cos" else []),
        f"  search --no-floppy --label {entry.label} --set=root",
        f'  loopback image "{entry.image}"',
        f"  linux (image){menu.kernel} {named} {words}",
        f"  initrd (image){menu.initrd}",
        "}",
    ]
