"""Which files make up the configuration, in which order, and what do they say together?

Paths are read in the order given, lowest first. A directory stands for its ``.yaml`` and ``.yml`` files,
those of its folders too, in the order of their names (as Kairos reads ``/oem``); a file in there without a
header is left out with a remark, since such folders also hold other YAML. ``-`` is standard input.
`collect_system` reads what a running machine has: its folders, its kernel command line, and ``config_url``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from p2p_bootstrap.cloudconfig import cmdline, remote
from p2p_bootstrap.cloudconfig.document import MAX_BYTES, Document, has_header, parse, too_big
from p2p_bootstrap.cloudconfig.merge import merge
from p2p_bootstrap.cloudconfig.nodes import MapNode, Mark, ScalarNode
from p2p_network.core.errors import ConfigError, P2PError, Problem

STDIN: Final = "-"
MAX_FILES: Final = 256
_SUFFIXES: Final = (".yaml", ".yml")

SHIPPED: Final = "/system/oem"  # the image's own stages; these files need no header
SYSTEM_PATHS: Final = (SHIPPED, "/run/initramfs/live", "/etc/kairos", "/usr/local/cloud-config", "/oem")
PROC_CMDLINE: Final = "/proc/cmdline"


@dataclass(frozen=True, slots=True)
class Collected:
    """Everything that was read, merged.

    Attributes:
        root: the merged document; what could be understood, also when there are problems.
        files: names of the files that it came from, lowest first.
        problems: everything wrong.
        remarks: what a person should know although it is not wrong.
        names: the ``name`` that a file gives itself, by file; steps of others may refer to it.
    """

    root: MapNode
    files: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    remarks: tuple[Problem, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    def checked(self) -> MapNode:
        """The root. Raises ConfigError with every problem if there is one."""
        if self.problems:
            raise ConfigError(self.problems)
        return self.root


def collect(
    paths: Sequence[Path], *, stdin: str | None = None, fetch: remote.Fetcher | None = None
) -> Collected:
    """Read and merge. Never raises for what is in the files, or for files that can't be read.

    Args:
        paths: files, directories, or ``Path("-")`` for `stdin`.
        stdin: the text of standard input; read where ``-`` stands, or last if no path is ``-``.
        fetch: how to follow ``config_url``; None: don't (checking a file needs no network).
    """
    problems: list[Problem] = []
    remarks: list[Problem] = []
    wanted = list(paths)
    if stdin is not None and Path(STDIN) not in wanted:
        wanted.append(Path(STDIN))
    documents = [parse(data, name) for name, data in _sources(wanted, stdin, problems, remarks)]
    named = remote.url_of(merge(document.root for document in documents)[0])
    return _merged(documents, [named] if named else [], fetch, problems, remarks)


def collect_system(
    root: Path = Path("/"), *, fetch: remote.Fetcher | None, command_line: str | None = None
) -> Collected:
    """Read what a machine has: `SYSTEM_PATHS` below `root`, its command line, then what these name.

    Folders that aren't there are left out; that none is there is no problem. Never raises for contents.

    Args:
        fetch: gets addresses; None while there is no network: each address is then left out with a remark,
            files that the command line names are read all the same.
        command_line: the kernel's, instead of that in the root's /proc.
    """
    problems: list[Problem] = []
    remarks: list[Problem] = []
    documents: list[Document] = []
    for name in SYSTEM_PATHS:
        folder = root / name.lstrip("/")
        if not folder.is_dir() or not _holds_files(folder):
            continue
        bare = name == SHIPPED
        for file, data in _directory(folder, problems, remarks, bare=bare):
            documents.append(parse(data, file, header=not bare))
    line = cmdline.parse(_command_line(root) if command_line is None else command_line[: cmdline.MAX_CHARS])
    problems += line.problems
    if line.root.entries:
        documents.append(Document(cmdline.FILE, line.root))
    merged, _ = merge(document.root for document in documents)
    named = remote.url_of(merged)
    sources = [*([named] if named else []), *line.sources]
    if fetch is None:
        for address, mark in sources:
            if not address.startswith("/"):
                hint = "it is read from the stage network on"
                what = "left out: there is no network yet"
                remarks.append(Problem(mark.file, mark.line, mark.column, remote.KEY, what, hint))
        sources = [source for source in sources if source[0].startswith("/")]
    return _merged(documents, sources, fetch or _no_network, problems, remarks, root=root)


def _command_line(root: Path) -> str:
    try:
        return (root / PROC_CMDLINE.lstrip("/")).read_bytes()[: cmdline.MAX_CHARS].decode("utf-8", "replace")
    except OSError:
        return ""


def _no_network(address: str, limit: int) -> bytes:
    """The fetcher of a machine without a network: a file that was read names an address."""
    raise P2PError("there is no network yet", hint="it is read from the stage network on")


def _merged(
    documents: list[Document],
    sources: Sequence[tuple[str, Mark]],
    fetch: remote.Fetcher | None,
    problems: list[Problem],
    remarks: list[Problem],
    *,
    root: Path = Path("/"),
) -> Collected:
    merged, clashes = merge(document.root for document in documents)
    if fetch is not None:
        more, failures = remote.collect_remote(sources, fetch, root=root)
        documents = [*documents, *more]
        problems += failures
        merged, clashes = merge(document.root for document in documents)
    for document in documents:
        problems.extend(document.problems)
    names = {
        document.file: node.text
        for document in documents
        if isinstance(node := document.root.get("name"), ScalarNode) and node.text
    }
    files = tuple(document.file for document in documents)
    return Collected(merged, files, (*problems, *clashes), tuple(remarks), names)


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


def _holds_files(folder: Path) -> bool:
    return any(name.endswith(_SUFFIXES) for _, _, names in os.walk(folder) for name in names)


def _directory(
    folder: Path, problems: list[Problem], remarks: list[Problem], *, bare: bool = False
) -> Iterator[tuple[str, bytes]]:
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
        if bare or has_header(data[:200].decode("utf-8", "replace").removeprefix("\ufeff")):
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
