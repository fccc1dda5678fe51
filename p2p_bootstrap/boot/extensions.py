"""Which extensions of the system does this boot hand to the new root?

As with Kairos: images lie in ``/var/lib/kairos/extensions`` (they extend /usr) and in
``/var/lib/kairos/confexts`` (/etc); links in ``active``, ``passive``, ``recovery`` and ``common`` there say
which boot wants which. Each is linked into /run/extensions or /run/confexts, where systemd-sysext and
systemd-confext of the new root look; an image without them can't be extended, which is told. What is broken
is left out and told: an extension is never worth a boot. A unified kernel image takes none: nothing here
could prove that somebody signed them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from p2p_bootstrap.boot import files, superblock
from p2p_network.core.errors import BootError

# folder of the images -> where systemd looks for them, and the program that merges them
KINDS: Final = {
    "/var/lib/kairos/extensions": ("extensions", "usr/bin/systemd-sysext"),
    "/var/lib/kairos/confexts": ("confexts", "usr/bin/systemd-confext"),
}
SUFFIX: Final = ".raw"
ALWAYS: Final = "common"
MAX_EXTENSIONS: Final = 256


def offer(root: str, run: str, profile: str, *, trusted: bool) -> tuple[str, ...]:
    """Link what the profile and ``common`` name. Returns remarks: what was offered or left out, and why.

    Args:
        root: the new root, put together; `run`: the folder that will be its /run.
        profile: of the slot that boots; `trusted`: only what was signed may run.
    """
    remarks: list[str] = []
    for folder, (place, program) in KINDS.items():
        found: dict[str, str] = {}
        for name in dict.fromkeys((ALWAYS, profile)):
            for entry in _entries(files.resolve(root, f"{folder}/{name}")):
                found[entry] = f"{folder}/{name}/{entry}"
        if not found:
            continue
        if trusted:
            remarks.append(
                f"{', '.join(sorted(found))} left out: a unified kernel image takes no extensions, as their "
                "signatures are not checked; build them into the image"
            )
            continue
        if not os.path.exists(files.resolve(root, program)):
            remarks.append(f"{', '.join(sorted(found))} left out: the image has no /{program} to merge them")
            continue
        offered = []
        for entry in sorted(found)[:MAX_EXTENSIONS]:
            try:
                _link(Path(run, place), entry, _inside(root, found[entry]))
            except (BootError, OSError) as exc:
                remarks.append(f"the extension {entry} was left out: {exc}")
            else:
                offered.append(entry)
        if offered:
            remarks.append(f"extended by {', '.join(offered)}")
    return tuple(remarks)


def _entries(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.endswith(SUFFIX) and not name.startswith(".")]
    except OSError:
        return []


def _inside(root: str, path: str) -> str:
    """Where an extension lies, as it is called after the switch. Raises BootError if it is none."""
    place = files.resolve(root, path)
    try:
        with open(place, "rb") as file:

            def read(offset: int, size: int) -> bytes:
                return os.pread(file.fileno(), size, offset)

            whole = superblock.probe(read) is not None or bool(superblock.partitions(read))
    except OSError as exc:
        raise BootError(f"{path} can't be read: {exc.strerror}", hint="enable it anew") from exc
    if not whole:
        raise BootError(f"{path} holds no file system", hint="download it anew")
    return "/" + os.path.relpath(place, root)


def _link(folder: Path, name: str, target: str) -> None:
    """A link, new or in place of an old one."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / name
    if link.is_symlink() and os.readlink(link) == target:
        return
    link.unlink(missing_ok=True)
    link.symlink_to(target)
