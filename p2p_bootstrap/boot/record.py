"""What happened in a boot? The record that the runner writes and `boot explain` reads, weeks later too.

Kept where it survives: on the persistent volume, else on the OEM partition; that of the running boot is
also in ``/run/cos/boot.json``. It holds no command line and no configuration: those may hold secrets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from p2p_bootstrap.boot.facts import SlotFailure

VERSION: Final = 1
KEPT: Final = 20
NAME: Final = "boot.json"
MAX_BYTES: Final = 4 * 1024 * 1024
FOLDER: Final = ".kairos-p2p/boots"


@dataclass(frozen=True, slots=True)
class Entry:
    """One step as it went. Times in seconds since the runner's start."""

    slot: str
    name: str
    text: str
    start_s: float
    duration_s: float
    outcome: Literal["done", "failed"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """A whole boot.

    Attributes:
        wall_s: Unix time of the start, as far as the clock could be believed.
        outcome: ``booted``, or ``stopped`` if there was no way left.
        image: path of the slot's image on its partition, "" where the boot came from elsewhere.
        within_s: the time in which the slot has to be blessed; None: no limit.
        planning_s: time spent observing and planning; `total_s`: until the switch.
        peak_kib: the most memory that process 1 had until then; 0 if unknown.
    """

    wall_s: float
    outcome: Literal["booted", "stopped"]
    mode: str
    slot: str
    reason: str
    hint: str = ""
    failures: tuple[SlotFailure, ...] = ()
    remarks: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()
    planning_s: float = 0.0
    total_s: float = 0.0
    image: str = ""
    within_s: float | None = None
    peak_kib: int = 0


def to_json(record: Record) -> str:
    """The file's text."""
    return json.dumps({"version": VERSION, **asdict(record)}, indent=1)


def from_json(text: str) -> Record | None:
    """Read a record; None if it is none (torn by a power cut, or of another version)."""
    try:
        raw: dict[str, Any] = json.loads(text)
        if raw.pop("version") != VERSION:
            return None
        raw["failures"] = tuple(SlotFailure(**one) for one in raw["failures"])
        raw["entries"] = tuple(Entry(**one) for one in raw["entries"])
        raw["remarks"] = tuple(map(str, raw["remarks"]))
        record = Record(**raw)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    numbers = (record.wall_s, record.planning_s, record.total_s, *(e.start_s for e in record.entries))
    sound = isinstance(record.image, str) and isinstance(record.within_s, int | float | None)
    sound = sound and isinstance(record.peak_kib, int)
    return record if sound and all(isinstance(number, int | float) for number in numbers) else None


def explain(record: Record) -> list[str]:
    """Why this slot, what failed, what to do: lines for people."""
    if record.outcome == "stopped":
        lines = [f"no slot could be booted: {record.reason}"]
    else:
        lines = [f"booted {record.slot} ({record.mode}) because {record.reason}"]
    for failure in record.failures:
        lines.append(f"{failure.slot} failed at the step {failure.step}: {failure.reason}")
        if failure.hint:
            lines.append(f"  to mend it: {failure.hint}")
    if record.hint and not any(failure.hint == record.hint for failure in record.failures):
        lines.append(f"  to mend it: {record.hint}")
    lines += [f"note: {remark}" for remark in record.remarks]
    return lines


def screen(record: Record, what_next: str) -> str:
    """What stands on the console when nothing can be booted. There is no shell on purpose."""
    width = 78
    lines = [
        "",
        "=" * width,
        "kairos-p2p: this machine can't boot",
        "=" * width,
        *explain(record),
        "",
        what_next,
    ]
    return "\n".join(lines) + "\n"


def slowest(entries: Iterable[Entry], count: int = 5) -> list[Entry]:
    """The steps that took longest."""
    return sorted(entries, key=lambda entry: -entry.duration_s)[:count]
