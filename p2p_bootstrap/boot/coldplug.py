"""Which drivers does this machine's hardware ask for, and are they loaded?

The kernel gives every device a name that says what it is (its ``modalias`` in sysfs); modules say by patterns
which they drive (``modules.alias``). `catalogue` keeps, when an initramfs is built, the patterns of drivers
of disks and their buses; `Coldplug` loads at boot what the machine has, and again while the boot waits for a
device: a USB disk shows up behind its controller a while later.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2p_bootstrap.boot import modules
from p2p_network.core.errors import BootError

NAME: Final = "hardware.json"
# below /lib/modules/VERSION/kernel: what a root may lie behind
FOLDERS: Final = (
    "drivers/ata", "drivers/message/fusion", "drivers/mmc", "drivers/nvme/host", "drivers/scsi",
    "drivers/usb/host", "drivers/usb/storage", "drivers/virtio", "drivers/block", "drivers/hv", "drivers/xen",
)  # fmt: skip
MAX_DEVICES: Final = 4096
_SPECIAL: Final = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What may be loaded: (pattern, module), and for each module the files to insert, in order."""

    patterns: tuple[tuple[str, str], ...] = ()
    files: Mapping[str, Sequence[str]] | None = None

    def asked(self, devices: Iterable[str]) -> tuple[str, ...]:
        """The modules that devices with these names ask for, in the order of the catalogue."""
        names = list(dict.fromkeys(devices))
        found: dict[str, None] = {}
        for pattern, module in self.patterns:
            if module in found:
                continue
            start = _SPECIAL.split(pattern, maxsplit=1)[0]  # most patterns end here, without a regex
            if any(name.startswith(start) and fnmatch.fnmatchcase(name, pattern) for name in names):
                found[module] = None
        return tuple(found)


def catalogue(folder: Path, only: Collection[str] = ()) -> Catalogue:
    """The drivers of disks that a kernel has, or `only` these. Raises BootError.

    `folder`: ``/lib/modules/VERSION``.
    """
    kernel = modules.Kernel.read(folder)
    below = tuple(f"kernel/{name}/" for name in FOLDERS)
    drivers = {
        name
        for name, (path, _) in kernel.table.items()
        if name in only or (not only and str(path.relative_to(folder)).startswith(below))
    }
    try:
        aliases = (folder / "modules.alias").read_text().splitlines()
    except OSError as exc:
        raise BootError(
            f"{folder} is no folder of kernel modules: {exc.strerror}", hint="name one: /lib/modules/VERSION"
        ) from exc
    patterns = []
    for line in aliases:
        words = line.split()
        if len(words) == 3 and words[0] == "alias" and words[2] in drivers and ":" in words[1]:
            patterns.append((words[1], words[2]))
    files = {
        name: tuple(modules.file_name(path) for path in kernel.wanted([name]))
        for name in sorted({name for _, name in patterns})
    }
    return Catalogue(tuple(patterns), files)


def render(made: Catalogue) -> bytes:
    """The file in the initramfs."""
    return json.dumps({"patterns": made.patterns, "files": made.files}).encode()


def parse(text: bytes) -> Catalogue:
    """Read what `render` wrote."""
    raw = json.loads(text)
    return Catalogue(tuple((p, m) for p, m in raw["patterns"]), raw["files"])


class Coldplug:
    """Loads drivers as devices appear.

    Args:
        folder: of the modules; without a catalogue in it nothing is ever loaded.
        insert: takes a module's file; returns a remark, "" if all is well.
        sys: where sysfs is.
    """

    def __init__(
        self, folder: Path, insert: Callable[[Path], str] = modules.insert, sys: Path = Path("/sys")
    ) -> None:
        path = folder / NAME
        self._folder, self._insert, self._sys = folder, insert, sys
        self._known = parse(path.read_bytes()) if path.exists() else Catalogue()
        self._seen: frozenset[str] = frozenset()
        self._done: set[str] = set()

    def __call__(self) -> tuple[str, ...]:
        """Load what is asked for now, and what that brings to light. Returns remarks."""
        remarks: list[str] = []
        while self._known.patterns and (fresh := self._devices() - self._seen):
            self._seen |= fresh
            for module in self._known.asked(sorted(fresh)):
                for file in (self._known.files or {})[module]:
                    if file not in self._done:
                        self._done.add(file)
                        if remark := self._insert(self._folder / file):
                            remarks.append(remark)
        return tuple(remarks)

    def _devices(self) -> frozenset[str]:
        found: set[str] = set()
        for parent, _, names in os.walk(self._sys / "devices"):
            if "modalias" in names and len(found) < MAX_DEVICES:
                try:
                    found.add(Path(parent, "modalias").read_text("ascii", "replace").strip())
                except OSError:
                    continue  # it was unplugged meanwhile
        return frozenset(found)
