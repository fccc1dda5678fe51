"""Which image is which slot, and how does that change without a moment in which nothing boots?

One file on the state partition is the pointer: a GRUB environment block of exactly 1024 bytes, so the boot
loader and we read the same file, and it is replaced by one atomic rename. It names the image of each slot,
which slot is on trial and how many tries are left. Images are never renamed or changed in place:

    intend -> write the new image -> check -> flip the pointer -> remove what nothing points to

The intent is written ahead (`Intent`, the journal) so that whatever interrupts, `replay` says what is left
to do: before the flip the old slots boot, after it the new one does, and rubbish is swept in both cases.
A slot on trial is blessed by a health check; until then every boot costs it a try, and without tries left
the other slot is taken. Only a blessed image is ever made the one to fall back to, and only the image that
runs can be blessed. Pure; `slotstore` does the files.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal, TypeAlias, assert_never

from p2p_network.core.errors import BootError

SlotName: TypeAlias = Literal["active", "passive", "recovery"]

HEADER: Final = "# GRUB Environment Block\n"
BLOCK_BYTES: Final = 1024
POINTER: Final = "/cOS/slots.env"
JOURNAL: Final = "/cOS/slots.journal"
DEFAULT_TRIES: Final = 1
DEFAULT_WITHIN_S: Final = 1800  # for a slot on trial to be blessed (`guard`)
# where Kairos keeps them; what a disk means that has no pointer yet
KAIROS_IMAGES: Final[dict[SlotName, str]] = {
    "active": "/cOS/active.img",
    "passive": "/cOS/passive.img",
    "recovery": "/cOS/recovery.img",
}

_PATH: Final = re.compile(r"/cOS/[A-Za-z0-9._+-]{1,100}")
_COUNTER: Final = re.compile(r"(.+?)\+([0-9]{1,4})(?:-([0-9]{1,4}))?(\.(?:conf|efi))")


@dataclass(frozen=True, slots=True)
class SlotTable:
    """The pointer's content.

    Attributes:
        active, passive: paths of images on the state partition; passive may be "" (none).
        trial: whether the active slot still has to be blessed; `tries_left`: boots it may still take.
        generation: counts the changes.
    """

    active: str = KAIROS_IMAGES["active"]
    passive: str = KAIROS_IMAGES["passive"]
    trial: bool = False
    tries_left: int = 0
    generation: int = 0

    @property
    def spent(self) -> bool:
        """Whether the active slot was tried as often as it may be and never blessed."""
        return self.trial and self.tries_left <= 0

    def image(self, slot: str) -> str:
        """The path of a slot's image on its partition; "" if there is none."""
        match slot:
            case "active":
                return self.active
            case "passive":
                return self.passive
            case _:
                return KAIROS_IMAGES["recovery"]


def render(table: SlotTable) -> bytes:
    """The pointer file: a GRUB environment block."""
    lines = [
        f"active_image={table.active}",
        f"passive_image={table.passive}",
        f"slot_trial={int(table.trial)}",
        f"slot_tries_left={table.tries_left}",
        f"slot_generation={table.generation}",
    ]
    text = HEADER + "".join(f"{line}\n" for line in lines)
    raw = text.encode("ascii")
    assert len(raw) <= BLOCK_BYTES, "paths are bounded"
    return raw + b"#" * (BLOCK_BYTES - len(raw))


def parse(text: str) -> SlotTable:
    """Read a pointer file; "" is a disk that Kairos made. Raises BootError if it is damaged."""
    if not text:
        return SlotTable()
    damaged = BootError("the slot pointer is damaged", hint=f"boot recovery and write {POINTER} anew")
    if not text.startswith(HEADER) or len(text) > BLOCK_BYTES:
        raise damaged
    values: dict[str, str] = {}
    for line in text[len(HEADER) :].splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            values[key] = value
    try:
        table = SlotTable(
            values["active_image"],
            values.get("passive_image", ""),
            _number(values.get("slot_trial", "0")) != 0,
            _number(values.get("slot_tries_left", "0")),
            _number(values.get("slot_generation", "0")),
        )
    except (KeyError, ValueError):
        raise damaged from None
    if not _PATH.fullmatch(table.active) or not (table.passive == "" or _PATH.fullmatch(table.passive)):
        raise damaged
    return table


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ValueError(text)
    return int(text)


def count_try(table: SlotTable) -> SlotTable:
    """The table after one more boot of a slot on trial."""
    if not table.trial or table.tries_left <= 0:
        return table
    return replace(table, tries_left=table.tries_left - 1, generation=table.generation + 1)


def bless(table: SlotTable, running: str, image: str = "") -> tuple[SlotTable, str]:
    """The table after the running slot proved healthy, and one sentence what that means.

    `image`: the path of the image that runs, "" if that is unknown.
    """
    if running == "active" and image not in ("", table.active):
        return table, f"{image} is healthy; {table.active} was written since, and has to prove itself"
    if running == "active":
        if not table.trial:
            return table, "the active slot is blessed already"
        changed = replace(table, trial=False, tries_left=0, generation=table.generation + 1)
        return changed, "the active slot is blessed: it boots from now on without a trial"
    if running == "passive":
        if table.spent:
            return table, "passive is healthy; active failed its trial and is tried no more until an upgrade"
        return table, "passive is healthy; active is tried again at the next boot"
    return table, f"{running} is never blessed: it is for repairs"


@dataclass(frozen=True, slots=True)
class Intent:
    """An upgrade, written ahead. `before` and `after` are whole tables: the flip is one write.

    Attributes:
        image: path of the new image; `sha256`: of its content, "" if the writer checks otherwise.
        running: path of the image that runs, where that is no slot's any more: removed at the next boot.
    """

    image: str
    sha256: str
    before: SlotTable
    after: SlotTable
    running: str = ""


def new_image_path(table: SlotTable, sha256: str) -> str:
    """A name that no slot uses."""
    return f"/cOS/slot-{table.generation + 1}-{(sha256 or 'unnamed')[:12]}.img"


def intend_upgrade(
    table: SlotTable, running: str, sha256: str, *, tries: int = DEFAULT_TRIES, in_use: str = ""
) -> Intent:
    """Plan an upgrade. An active slot that is blessed becomes passive; from passive only active changes.

    One on trial is no image to fall back to: the passive slot stays, if there is one. `in_use`: the path of
    the image that runs, "" if unknown.
    """
    image = new_image_path(table, sha256)
    keep = running == "passive" or table.trial
    passive = table.passive if keep and table.passive else table.active
    after = SlotTable(image, passive, True, tries, table.generation + 1)
    return Intent(image, sha256, table, after, "" if in_use in (table.active, table.passive) else in_use)


def render_intent(intent: Intent) -> bytes:
    """The journal file."""
    return json.dumps(asdict(intent)).encode()


def parse_intent(text: str) -> Intent | None:
    """Read the journal; None if there is none, or a torn one (then the pointer was never touched)."""
    try:
        raw = json.loads(text)
        before, after = SlotTable(**raw["before"]), SlotTable(**raw["after"])
        intent = Intent(raw["image"], raw["sha256"], before, after, raw.get("running", ""))
        named = (intent.image, intent.running, before.active, before.passive, after.active, after.passive)
        # what is named may be removed: it has to be an image
        return intent if all(path == "" or _PATH.fullmatch(path) for path in named) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class WriteJournal:
    """Make the intent durable."""

    intent: Intent


@dataclass(frozen=True, slots=True)
class WriteImage:
    """Write the new image under its final name, durable and checked."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class FlipPointer:
    """Replace the pointer, atomically and durable: the one moment at which the slots change."""

    table: SlotTable


@dataclass(frozen=True, slots=True)
class RemoveImage:
    """Remove an image that no slot uses."""

    path: str


@dataclass(frozen=True, slots=True)
class RemoveJournal:
    """The intent is done."""


Action: TypeAlias = WriteJournal | WriteImage | FlipPointer | RemoveImage | RemoveJournal


def upgrade_actions(intent: Intent, in_use: str = "") -> tuple[Action, ...]:
    """Everything an upgrade does, in order; interruptible between and inside any two.

    `in_use`: the image that runs. It can't be removed before the next boot, whose `replay` does it.
    """
    return (
        WriteJournal(intent),
        WriteImage(intent.image, intent.sha256),
        FlipPointer(intent.after),
        *_sweep(intent, intent.after, in_use),
    )


def replay(journal: str, table: SlotTable, files: Collection[str], in_use: str = "") -> tuple[Action, ...]:
    """What to do about an interrupted upgrade: finish it after the flip, undo it before.

    Args:
        journal: text of the journal, "" if there is none.
        table: the pointer as it is now.
        files: paths of the images that are there.
        in_use: the image that runs; it stays, and the journal with it.
    """
    if not journal:
        return ()
    intent = parse_intent(journal)
    if intent is None:
        return (RemoveJournal(),)
    # flipped, perhaps counted or blessed since; the generation alone doesn't tell, for a try counts it up too
    if intent.image in (table.active, table.passive):
        return _sweep(intent, table, in_use)
    used = {table.active, table.passive, ""}
    rubbish = [path for path in (intent.image, intent.running) if path in files and path not in used]
    removals = tuple(RemoveImage(path) for path in rubbish if path != in_use)
    return removals if in_use in rubbish else (*removals, RemoveJournal())


def _sweep(intent: Intent, after: SlotTable, in_use: str) -> tuple[Action, ...]:
    """Remove what nothing points to, and then the journal: it names what is left to remove."""
    used = {after.active, after.passive, KAIROS_IMAGES["recovery"], ""}
    named = dict.fromkeys((intent.before.active, intent.before.passive, intent.running))
    rubbish = [path for path in named if path not in used]
    removals = tuple(RemoveImage(path) for path in rubbish if path != in_use)
    return removals if in_use in rubbish else (*removals, RemoveJournal())


def describe(action: Action) -> str:
    """One line for people."""
    match action:
        case WriteJournal(intent):
            return f"write down that {intent.image} shall become active"
        case WriteImage(path, _):
            return f"write {path} and check it"
        case FlipPointer(table):
            return f"point active to {table.active} and passive to {table.passive or 'nothing'}"
        case RemoveImage(path):
            return f"remove {path}, which no slot uses"
        case RemoveJournal():
            return "forget the intent"
        case _:
            assert_never(action)


def blessed_entry(name: str) -> str:
    """systemd-boot counts in file names: ``active+2-1.conf`` becomes ``active.conf``."""
    folder, base = posixpath.split(name)
    match = _COUNTER.fullmatch(base)
    return posixpath.join(folder, match[1] + match[4]) if match else name


def entry_tries(name: str) -> tuple[int, int] | None:
    """(tries left, tries done) of a systemd-boot entry, or None if it isn't counted."""
    match = _COUNTER.fullmatch(posixpath.basename(name))
    return (int(match[2]), int(match[3] or 0)) if match else None
