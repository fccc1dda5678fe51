"""Which files make up the configuration, in which order, and what do they say together?

Paths are read in the order given, lowest first. A directory stands for its ``.yaml`` and ``.yml`` files,
those of its folders too, in the order of their names (as Kairos reads ``/oem``); a file in there without a
header is left out with a remark, since such folders also hold other YAML. ``-`` is standard input.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2p_bootstrap.cloudconfig.document import MAX_BYTES, has_header, parse, too_big
from p2p_bootstrap.cloudconfig.merge import merge
from p2p_bootstrap.cloudconfig.nodes import MapNode
from p2p_network.core.errors import ConfigError, Problem

STDIN: Final = "-"
MAX_FILES: Final = 256
_SUFFIXES: Final = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Collected:
    """Everything that was read, merged.

    Attributes:
        root: the merged document; what could be understood, also when there are problems.
        files: names of the files that it came from, lowest first.
        problems: everything wrong.
        remarks: what a person should know although it is not wrong.
    """

    root: MapNode
    files: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    remarks: tuple[Problem, ...] = ()

    def checked(self) -> MapNode:
        """The root. Raises ConfigError with every problem if there is one."""
        if self.problems:
            raise ConfigError(self.problems)
        return self.root


def collect(paths: Sequence[Path], *, stdin: str | None = None) -> Collected:
    """Read and merge. Never raises for what is in the files, or for files that can't be read.

    Args:
        paths: files, directories, or ``Path("-")`` for `stdin`.
        stdin: the text of standard input; read where ``-`` stands, or last if no path is ``-``.
    """
    problems: list[Problem] = []
    remarks: list[Problem] = []
    roots: list[MapNode] = []
    files: list[str] = []
    wanted = list(paths)
    if stdin is not None and Path(STDIN) not in wanted:
        wanted.append(Path(STDIN))
    for name, data in _sources(wanted, stdin, problems, remarks):
        document = parse(data, name)
        problems.extend(document.problems)
        roots.append(document.root)
        files.append(name)
    root, clashes = merge(roots)
    return Collected(root, tuple(files), (*problems, *clashes), tuple(remarks))


def _sources(
    paths: Sequence[Path], stdin: str | None, problems: list[Problem], remarks: list[Problem]
) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        if path == Path(STDIN):
            yield "stdin", (stdin or "").encode("utf-8", "surrogateescape")
        elif path.is_dir():
            yield from _directory(path, problems, remarks)
        elif (data := _read(path, problems)) is not None:
            yield str(path), data


def _directory(folder: Path, problems: list[Problem], remarks: list[Problem]) -> Iterator[tuple[str, bytes]]:
    unreadable: list[OSError] = []
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=unreadable.append):
        folders.sort()
        found += [Path(parent, name) for name in names if name.endswith(_SUFFIXES)]
        if len(found) > MAX_FILES:
            break
    problems += [_unreadable(Path(exc.filename or folder), exc) for exc in unreadable]
    if len(found) > MAX_FILES:
        what = f"the directory holds more than {MAX_FILES} YAML files"
        problems.append(Problem(str(folder), 0, 0, "", what, "is it the right directory?"))
        return
    if not found and not unreadable:
        what = "the directory holds no .yaml or .yml file"
        problems.append(Problem(str(folder), 0, 0, "", what, "name the file, or put one there"))
    for path in sorted(found):
        if (data := _read(path, problems)) is None:
            continue
        if has_header(data[:200].decode("utf-8", "replace").removeprefix("\ufeff")):
            yield str(path), data
        else:
            what = "left out: its first line is no cloud-config header"
            remarks.append(Problem(str(path), 1, 1, "", what, "to use it, make #cloud-config its first line"))


def _read(path: Path, problems: list[Problem]) -> bytes | None:
    """The bytes of a file, at most one more than `MAX_BYTES`; None, and a problem, if it can't be had."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_size > MAX_BYTES:
                problems.append(too_big(str(path), status.st_size))
                return None
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        problems.append(_unreadable(path, exc))
        return None


def _unreadable(path: Path, exc: OSError | ValueError) -> Problem:
    match exc:
        case FileNotFoundError():
            return Problem(str(path), 0, 0, "", "no such file", "check the path")
        case PermissionError():
            return Problem(
                str(path), 0, 0, "", "may not be read by this user", "run as root: the file holds a secret"
            )
        case OSError():
            return Problem(str(path), 0, 0, "", f"can't be read: {exc.strerror or exc}", "check the path")
        case _:
            return Problem(str(path).replace("\0", "?"), 0, 0, "", f"can't be read: {exc}", "check the path")
