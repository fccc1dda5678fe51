"""What of a lab is on disk, so that another process can use it or clean it up?

``<root>/<name>/state.json`` appears together with its folder (made aside, then renamed) and is the last
file that is removed; so a folder is a lab if and only if it has one, and nothing else is ever deleted. It
says how the lab was meant; what of it lives is read from the process list.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from p2p_network.core.errors import NotPermitted, UsageError
from p2p_simulations.lab.commands import LabError
from p2p_simulations.lab.topology import Topology, as_document, from_document

DEFAULT_ROOT: Final = "/var/tmp/kairos-p2p-lab"  # noqa: S108 - owner and mode are checked
MAX_STATE_BYTES: Final = 1024 * 1024
_FORMAT: Final = "kairos-p2p lab, version 1"
_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")
_NEW: Final = ".new-"


@dataclass(frozen=True, slots=True)
class State:
    """A lab as it was meant.

    Attributes:
        token: the network token, a secret; the file is readable by root only.
        env: added to the environment of every node.
        groups: the partition in force, () if none.
        enabled: nodes whose agent starts when they boot.
    """

    name: str
    topology: Topology
    token: str
    env: tuple[tuple[str, str], ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    enabled: frozenset[str] = frozenset()

    def with_agent(self, node: str, enabled: bool) -> State:
        """The state after a node's agent was enabled or not."""
        return replace(self, enabled=self.enabled | {node} if enabled else self.enabled - {node})


def lab_root() -> Path:
    """The folder of all labs: KAIROS_P2P_LAB_DIR or the default; made if absent.

    Raises NotPermitted if others could write to it, since root follows what stands there.
    """
    root = Path(os.environ.get("KAIROS_P2P_LAB_DIR") or DEFAULT_ROOT)
    if not root.is_absolute():
        raise UsageError(f"KAIROS_P2P_LAB_DIR must be an absolute path, is {str(root)!r}")
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.lstat()
    except OSError as exc:
        raise LabError(
            f"cannot make the lab's folder {root}: {exc.strerror}",
            hint="choose another with KAIROS_P2P_LAB_DIR",
        ) from exc
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise NotPermitted(
            f"{root} could be written by others",
            hint=f"remove it, or make it yours: chown root {root}; chmod 0700 {root}",
        )
    return root


def create(root: Path, state: State) -> Path:
    """Make a lab's folder. Raises UsageError if the name is bad, LabError if the lab exists."""
    if not _NAME.match(state.name):
        raise UsageError(f"{state.name!r} is no name for a lab", hint="1 to 32 of a-z, 0-9 and -")
    folder = root / state.name
    aside = root / f"{_NEW}{state.name}-{secrets.token_hex(4)}"
    aside.mkdir(mode=0o700, parents=True)  # another lab may have removed the empty root just now
    write(aside, state)
    try:
        aside.rename(folder)
    except OSError as exc:
        shutil.rmtree(aside)
        raise LabError(
            f"there is a lab {state.name!r} already, in {folder}",
            hint=f"remove it with: kairos-p2p lab down --name {state.name}; or choose another --name",
        ) from exc
    return folder


def write(folder: Path, state: State) -> None:
    """Replace the state file atomically."""
    document = {
        "format": _FORMAT,
        "name": state.name,
        "topology": as_document(state.topology),
        "token": state.token,
        "env": dict(state.env),
        "groups": [list(group) for group in state.groups],
        "enabled": sorted(state.enabled),
    }
    aside = folder / "state.json.new"
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(document, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(folder / "state.json")


def read(folder: Path) -> State:
    """The state of the lab in `folder`. Raises LabError if there is none or it cannot be read."""
    path = folder / "state.json"
    hint = "kairos-p2p lab down --all removes what is left of it"
    try:
        with open(path, "rb") as file:
            document: Any = json.loads(file.read(MAX_STATE_BYTES))
        if document["format"] != _FORMAT:
            raise ValueError(f"written by another version ({document['format']})")
        return State(
            name=str(document["name"]),
            topology=from_document(document["topology"]),
            token=str(document["token"]),
            env=tuple((str(key), str(value)) for key, value in document["env"].items()),
            groups=tuple(tuple(group) for group in document["groups"]),
            enabled=frozenset(document["enabled"]),
        )
    except FileNotFoundError as exc:
        raise LabError(f"there is no lab in {folder}", hint="start one with: kairos-p2p lab up") from exc
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as exc:
        raise LabError(f"cannot read {path}: {exc}", hint=hint) from exc


def folders(root: Path) -> list[Path]:
    """The folders of all labs in `root`, also one that `create` had not renamed yet; by name."""
    if not root.is_dir():
        return []
    return sorted(entry for entry in root.iterdir() if (entry / "state.json").is_file())


def remove_half_made(root: Path) -> None:
    """Delete what `create` left when it was killed before there was a state file."""
    for entry in root.glob(f"{_NEW}*"):
        if entry.is_dir() and {child.name for child in entry.iterdir()} <= {"state.json.new"}:
            shutil.rmtree(entry)


def remove(folder: Path) -> None:
    """Delete a lab's folder, the state file last; what is not a lab is left alone. Idempotent."""
    if not (folder / "state.json").is_file():
        return
    for entry in folder.iterdir():
        if entry.name == "state.json":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    (folder / "state.json").unlink()
    folder.rmdir()
    remove_root(folder.parent)


def remove_root(root: Path) -> None:
    """Delete the default folder of labs when it is empty; one that the operator chose stays."""
    if root == Path(DEFAULT_ROOT):
        with contextlib.suppress(OSError):
            root.rmdir()
