"""Which way and which slot does this machine boot, and why?

The rules stand in the reference's order. `candidates` gives the wanted way first and behind it what to fall
back to: active -> passive -> recovery. A slot that failed in this boot, or was tried as often as it may be,
is passed over, with the reason told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2p_bootstrap.boot import slots
from p2p_bootstrap.boot.cmdline import CommandLine
from p2p_bootstrap.boot.facts import Facts
from p2p_network.core.errors import BootError

Mode: TypeAlias = Literal["normal", "live", "ram", "uki", "stop"]
Slot: TypeAlias = Literal["active", "passive", "recovery", "autoreset", "live", "none"]

RECOVERY_LABELS: Final = ("COS_RECOVERY", "COS_SYSTEM")
SENTINELS: Final = (
    "active_mode", "passive_mode", "recovery_mode", "autoreset_mode", "live_mode", "uki_boot_mode",
    "uki_install_mode", "in_ram_mode",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Choice:
    """A way to boot. `reason` is one sentence."""

    mode: Mode
    slot: Slot
    reason: str

    @property
    def sentinels(self) -> tuple[str, ...]:
        """Which files in ``/run/cos`` tell the running system how it was booted."""
        names: list[str] = []
        if self.mode == "uki":
            names.append("uki_install_mode" if self.slot == "live" else "uki_boot_mode")
        if self.mode == "ram":
            names.append("in_ram_mode")
        if self.slot != "none":
            names.append(f"{self.slot}_mode")
        return tuple(names)


def wanted(facts: Facts, command: CommandLine) -> Choice:
    """What the command line and the firmware ask for."""
    slot, why = _slot(facts, command)
    if command.ram is not None:
        if not command.root_label and command.image == "" and not command.recovery_mode:
            return Choice("ram", "live", "kairos.ram is on the command line and no installed slot is named")
        return Choice("ram", slot, f"kairos.ram is on the command line, and {why}")
    if command.live:
        return Choice("live", "live", f"the command line asks for the live medium {command.live}")
    if command.netboot:
        return Choice("live", "live", "the command line says netboot")
    if command.disable:
        return Choice("live", "live", "the command line switches the immutable boot off (rd.*.disable)")
    if command.uki:
        return _uki(facts, command)
    return Choice("normal", slot, why)


def _slot(facts: Facts, command: CommandLine) -> tuple[Slot, str]:
    label = command.root_label
    if command.reset:
        return "autoreset", "kairos.reset is on the command line"
    if command.recovery_mode:
        return "recovery", "recovery-mode is on the command line"
    if label in RECOVERY_LABELS:
        return "recovery", f"root is the label {label}"
    if label == "COS_PASSIVE":
        return "passive", "root is the label COS_PASSIVE"
    if label == "COS_ACTIVE":
        return "active", "root is the label COS_ACTIVE"
    if command.image.endswith("/passive.img"):
        return "passive", f"the image {command.image} is named"
    if command.image.endswith("/recovery.img"):
        return "recovery", f"the image {command.image} is named"
    return "active", "no slot is named on the command line, so the active one is meant"


def _uki(facts: Facts, command: CommandLine) -> Choice:
    efi = facts.efi
    if efi is None or not efi.partuuid:
        return Choice(
            "uki", "live", "a unified kernel image that was not started from a disk (no LoaderDevicePartUUID)"
        )
    entry = efi.entry.lower()
    for word, slot in (("statereset", "autoreset"), ("recovery", "recovery"), ("passive", "passive"),
                       ("active", "active")):  # fmt: skip
        if word in entry:
            return Choice("uki", slot, f"the boot loader started the entry {efi.entry}")  # type: ignore[arg-type]
    return Choice("uki", "active", f"the boot loader started {efi.entry or 'an entry without a name'}")


def candidates(facts: Facts, command: CommandLine) -> tuple[tuple[Choice, ...], tuple[str, ...]]:
    """The ways to try, best first, and a sentence for each that is passed over."""
    first = wanted(facts, command)
    ways = [first]
    if first.mode == "normal" and first.slot in ("active", "passive"):
        others: tuple[Slot, ...] = ("passive",) if first.slot == "active" else ("active",)
        ways += [Choice("normal", slot, f"{slot} takes over") for slot in (*others, "recovery")]
    passed: list[str] = []
    open_ways: list[Choice] = []
    failed = {failure.slot: failure for failure in facts.failures}
    try:
        # what the boot loader counted already, it also judged: this may be the last try
        spent = facts.images is not None and not command.counted and slots.parse(facts.pointer).spent
    except BootError:
        spent = False  # the plan itself reports the damage
    for way in ways:
        if failure := failed.get(way.slot):
            passed.append(f"{way.slot} failed at {failure.step}: {failure.reason}")
        elif way.mode == "normal" and way.slot == "active" and spent:
            passed.append("active was tried as often as it may be and was never blessed")
        else:
            open_ways.append(way)
    if passed:
        because = "; ".join(passed)
        open_ways = [Choice(w.mode, w.slot, f"{w.reason} ({because})") for w in open_ways]
    return tuple(open_ways), tuple(passed)
