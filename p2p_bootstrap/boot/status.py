"""Did this boot go well, and all the stages after it? What `boot status` tells.

Reads what others left: the boot's record, the stages' records, the slot pointer. A machine that our initramfs
did not boot has stages only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from p2p_bootstrap.boot import files, record
from p2p_bootstrap.boot.blessing import running_slot
from p2p_bootstrap.boot.slotstore import SlotStore
from p2p_network.core.errors import BootError

STAGES: Final = ("rootfs", "initramfs", "fs", "boot", "network", "reconcile")


@dataclass(frozen=True, slots=True)
class StageState:
    """How a stage went. `errors`: a sentence each."""

    stage: str
    ok: bool
    steps: int
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """This boot.

    Attributes:
        slot, mode: "" if our initramfs did not boot the machine.
        trial: whether the slot is on trial, with how many tries left; "" if not.
        explained: why this slot, what failed before it, and what is worth knowing.
    """

    slot: str
    mode: str
    trial: str
    fell_back: bool
    explained: tuple[str, ...]
    stages: tuple[StageState, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong."""
        return not self.fell_back and all(stage.ok for stage in self.stages)

    def document(self) -> dict[str, Any]:
        """As plain data."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain | {"ok": self.ok}

    def lines(self) -> list[str]:
        """For people."""
        lines = list(self.explained) or ["this machine was not booted by kairos-p2p"]
        if self.trial:
            lines.append(self.trial)
        for stage in self.stages:
            word = "went well" if stage.ok else "had errors"
            lines.append(f"stage {stage.stage} {word} ({stage.steps} steps)")
            lines += [f"  {error}" for error in stage.errors]
        return lines


def status(root: Path, state: Path) -> Status:
    """What there is to tell about the boot of `root`. Raises BootError, OSError if it may not be read."""
    made = record.from_json(files.read_text(root / "run/cos" / record.NAME, record.MAX_BYTES))
    trial = ""
    if (state / "cOS").is_dir():
        try:
            table = SlotStore(state).table()
            if table.trial:
                trial = f"{table.active} is on trial, {table.tries_left} tries left: nobody blessed it yet"
                if made and made.within_s is not None:
                    trial += f"; the machine restarts if nobody does within {made.within_s:g} s of its start"
        except BootError as exc:
            trial = exc.message
    return Status(
        slot=running_slot(root),
        mode=made.mode if made else "",
        trial=trial,
        fell_back=bool(made and made.failures),
        explained=tuple(record.explain(made)) if made else (),
        stages=tuple(found for stage in STAGES if (found := _stage(root, stage))),
    )


def _stage(root: Path, stage: str) -> StageState | None:
    text = files.read_text(root / f"run/kairos-p2p/stages/{stage}.json", record.MAX_BYTES)
    if not text:
        return None
    try:
        raw = json.loads(text)
        errors = [
            f"{outcome['label']}: {failure['action']}: {failure['message']}"
            + (f" ({failure['hint']})" if failure["hint"] else "")
            for outcome in raw["outcomes"]
            for failure in outcome["failures"]
        ]
        return StageState(stage, bool(raw["ok"]), len(raw["outcomes"]), (*errors, *map(str, raw["problems"])))
    except (ValueError, KeyError, TypeError, RecursionError):
        return StageState(stage, False, 0, ("its record is damaged",))
