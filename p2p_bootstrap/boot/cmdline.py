"""What does the kernel command line ask of the boot?

`parse` reads every key that Kairos documents (``rd.cos.*`` and ``rd.immucore.*`` are two names of one
thing), but for those that set the cloud-config (`cloudconfig.cmdline`). Words that look like ours but aren't
are collected in `unknown`, with the nearest right one: a misspelt switch must not be silently without effect.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2p_network.core.errors import nearest

MAX_CHARS: Final = 16384  # the kernel's own limit is 2048 to 4096

_FLAGS: Final = {"debugrw", "disable", "debug", "uki", "rebootonfailure", "securebootdisabled"}
_VALUES: Final = {"overlay", "mount", "oemlabel", "oemtimeout", "sysrootwait"}
_KAIROS: Final = {
    "kairos.ram", "kairos.ram.create_partitions", "kairos.ram.wipe", "kairos.ram.oem",
    "kairos.ram.persistent", "kairos.config", "kairos.config_url", "kairos.reset", "kairos.counted",
}  # fmt: skip
_OURS: Final = tuple(f"rd.{who}.{key}" for who in ("cos", "immucore") for key in sorted(_FLAGS | _VALUES))
_TRUE: Final = {"", "1", "true", "yes", "on", "y"}
_FALSE: Final = {"0", "false", "no", "off", "n"}
# a stage's name without the key it belongs below: set by nobody, and easily written
_STAGE: Final = re.compile(r"(rootfs|initramfs|fs|boot|network|reconcile)(\.before|\.after)?[.\[][a-z0-9]")


Emergency: TypeAlias = Literal["", "reboot", "poweroff", "halt", "wait"]
_EMERGENCY: Final[dict[str, Emergency]] = {
    "reboot": "reboot", "poweroff": "poweroff", "halt": "halt", "wait": "wait",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RamOptions:
    """``kairos.ram*``: run from memory. `oem`, `persistent`: selectors of partitions to use, "" for none."""

    create_partitions: bool = False
    wipe: bool = False
    oem: str = ""
    persistent: str = ""


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What was asked for. Empty texts, zeros and None: not given.

    Attributes:
        root: ``root=`` as written, e.g. ``LABEL=COS_ACTIVE``.
        image: ``cos-img/filename=``, the image's path on its partition.
        live: the medium of ``live:...``, e.g. ``LABEL=COS_LIVE``; "" if this is no live boot.
        counted: whether the boot loader took a try off the slot pointer already (`grubcfg`).
        mounts: ``rd.*.mount=``, each ``SELECTOR:/path``.
        consoles: ``console=``, each a device and its options.
        emergency: ``rd.emergency=``, what to do when nothing can be booted; "" if not given.
        unknown: one sentence for each word that looks like ours but isn't.
    """

    root: str = ""
    image: str = ""
    live: str = ""
    netboot: bool = False
    recovery_mode: bool = False
    reset: bool = False
    counted: bool = False
    disable: bool = False
    uki: bool = False
    secure_boot_disabled: bool = False
    ram: RamOptions | None = None
    overlay: str = ""
    mounts: tuple[str, ...] = ()
    oem_label: str = ""
    oem_timeout_s: int = 0
    sysroot_wait_s: int = 0
    debug_rw: bool = False
    debug: bool = False
    reboot_on_failure: bool = False
    panic_s: int = 0
    emergency: Emergency = ""
    fsck_mode: str = ""
    fsck_repair: str = ""
    consoles: tuple[str, ...] = ()
    init: str = ""
    unknown: tuple[str, ...] = ()

    @property
    def root_label(self) -> str:
        """The label in ``root=LABEL=...``, "" if root is named otherwise."""
        kind, _, value = self.root.partition("=")
        return value if kind == "LABEL" else ""


def words(text: str) -> list[tuple[str, str | None]]:
    """The (key, value) pairs, quotes taken off as the kernel does; value None: a bare word.

    Everything after a lone ``--`` belongs to init.
    """
    found: list[tuple[str, str | None]] = []
    for word in _split(text[:MAX_CHARS]):
        if word == "--":
            break
        key, equals, value = word.partition("=")
        key = key.replace('"', "")
        if key:
            found.append((key, value.replace('"', "") if equals else None))
    return found


def _split(text: str) -> list[str]:
    parts: list[str] = []
    current, quoted = "", False
    for char in text:
        if char == '"':
            quoted = not quoted
            current += char
        elif char.isspace() and not quoted:
            if current:
                parts.append(current)
            current = ""
        else:
            current += char
    return [*parts, current] if current else parts


def parse(text: str) -> CommandLine:
    """Read the command line. Never fails: the machine has to boot with what there is."""
    found = _Reader()
    for key, value in words(text):
        found.take(key, value)
    return found.result()


class _Reader:
    """Collects the fields of a `CommandLine`; of a key given twice the last one counts."""

    def __init__(self) -> None:
        self._one: dict[str, str] = {}
        self._flags: set[str] = set()
        self._mounts: list[str] = []
        self._consoles: list[str] = []
        self._unknown: list[str] = []

    def take(self, key: str, value: str | None) -> None:
        if key == "rd.emergency":
            self._one[key] = (value or "").lower()
        elif key.startswith(("rd.cos.", "rd.immucore.")):
            self._take_rd(key, key.split(".", 2)[2], value)
        elif key.startswith("kairos.ram") or key in ("kairos.reset", "kairos.counted"):
            self._take_kairos(key, value)
        elif key in ("netboot", "recovery-mode"):
            self._switch(key, key, value)
        elif key.startswith("live:"):
            # LABEL=X or CDLABEL=X after the colon: the word was split at its equals sign
            self._one["live"] = key.removeprefix("live:") + (f"={value}" if value is not None else "")
        elif key == "console" and value:
            self._consoles.append(value)
        elif key in ("root", "cos-img/filename", "fsck.mode", "fsck.repair", "panic", "init"):
            self._one[key] = value or ""
        elif key.startswith("kairos.") and key not in _KAIROS:
            self._complain(key, tuple(_KAIROS))
        elif value is not None and _STAGE.match(key):
            self._unknown.append(f"{key} sets nothing; write stages.{key}=... to add to a stage")

    def _take_rd(self, key: str, name: str, value: str | None) -> None:
        if name in _FLAGS:
            self._switch(key, name, value)
        elif name == "mount" and value:
            self._mounts.append(value)
        elif name in _VALUES and value:
            self._one[name] = value
        elif name in _VALUES:
            self._unknown.append(f"{key} needs a value: {key}=...")
        else:
            self._complain(key, _OURS)

    def _take_kairos(self, key: str, value: str | None) -> None:
        if key not in _KAIROS:
            self._complain(key, tuple(_KAIROS))
        elif key in ("kairos.ram.oem", "kairos.ram.persistent"):
            self._one[key] = value or ""
            self._flags.add("kairos.ram")
        else:
            self._switch(key, key, value)
            if key.startswith("kairos.ram.") and key in self._flags:
                self._flags.add("kairos.ram")

    def _switch(self, key: str, name: str, value: str | None) -> None:
        word = (value or "").lower()
        if word in _TRUE:
            self._flags.add(name)
        elif word in _FALSE:
            self._flags.discard(name)
        else:
            self._unknown.append(f"{key}={value} is neither true nor false; it is left out")

    def _complain(self, key: str, choices: tuple[str, ...]) -> None:
        near = nearest(key, choices)
        self._unknown.append(f"there is no {key}" + (f"; did you mean {near}?" if near else ""))

    def _number(self, name: str) -> int:
        value = self._one.get(name, "").removesuffix("s")
        if not value:
            return 0
        if not (value.isascii() and value.isdigit() and len(value) <= 6):
            if name != "panic":  # panic=-1 (reboot at once) is the kernel's own
                self._unknown.append(f"{name}={self._one[name]} is no number of seconds; it is left out")
            return 0
        return int(value)

    def result(self) -> CommandLine:
        one, flags = self._one, self._flags
        root = one.get("root", "")
        live = one.get("live", "")
        if root.startswith("live:"):
            live = root.removeprefix("live:")
        ram = None
        if "kairos.ram" in flags:
            ram = RamOptions(
                "kairos.ram.create_partitions" in flags,
                "kairos.ram.wipe" in flags,
                one.get("kairos.ram.oem", ""),
                one.get("kairos.ram.persistent", ""),
            )
        emergency = _EMERGENCY.get(one.get("rd.emergency", ""), "")
        if one.get("rd.emergency") and not emergency:
            choices = ", ".join(_EMERGENCY)
            self._unknown.append(f"rd.emergency={one['rd.emergency']} is left out: it is one of {choices}")
        oem_timeout_s, wait_s, panic_s = map(self._number, ("oemtimeout", "sysrootwait", "panic"))
        return CommandLine(
            root=root, image=one.get("cos-img/filename", ""), live=live, netboot="netboot" in flags,
            recovery_mode="recovery-mode" in flags, reset="kairos.reset" in flags,
            counted="kairos.counted" in flags,
            disable="disable" in flags, uki="uki" in flags,
            secure_boot_disabled="securebootdisabled" in flags, ram=ram, overlay=one.get("overlay", ""),
            mounts=tuple(self._mounts), oem_label=one.get("oemlabel", ""), oem_timeout_s=oem_timeout_s,
            sysroot_wait_s=wait_s, debug_rw="debugrw" in flags, debug="debug" in flags,
            reboot_on_failure="rebootonfailure" in flags, panic_s=panic_s,
            emergency=emergency,
            fsck_mode=one.get("fsck.mode", ""), fsck_repair=one.get("fsck.repair", ""),
            consoles=tuple(self._consoles), init=one.get("init", ""),
            unknown=tuple(self._unknown),
        )  # fmt: skip
