"""How does the ledger survive a restart, a kill -9, a damaged disk?

One sqlite database (WAL, synchronous=FULL: what `store` has returned from is on the disk). A row carries a
checksum: a damaged row is left out and removed, and comes back from a peer; a damaged file is moved aside
(``store.sqlite.corrupt-1``) and a new one begun. Neither stops the node, both are reported. Entries of
another mesh (a state directory that saw another token before) rest there untouched.

All methods block; call them from a thread, one at a time or several: a lock puts them in order.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2p_network import wire
from p2p_network.core import log
from p2p_network.core.errors import MeshError, P2PError
from p2p_network.ledger.entry import Entry
from p2p_network.state import explain

_logger = log.get(__name__)

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entry (
    id INTEGER PRIMARY KEY,
    mesh TEXT NOT NULL, key TEXT NOT NULL, raw BLOB NOT NULL, checksum BLOB NOT NULL,
    UNIQUE (mesh, key)
) STRICT
"""
_CHECKSUM_BYTES: Final = 8
_MAX_ASIDE: Final = 1000


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was on the disk.

    Attributes:
        entries: of this mesh, each with a right checksum.
        damaged_rows: rows left out and removed.
        moved_aside: where the damaged database went, None if it was sound.
    """

    entries: tuple[Entry, ...]
    damaged_rows: int
    moved_aside: Path | None


class LedgerStore:
    """The database of one mesh's ledger."""

    def __init__(self, path: Path, mesh_id: str) -> None:
        """Raises nothing: the file is opened by `load`."""
        self._path = path
        self._mesh_id = mesh_id
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def load(self) -> Loaded:
        """Open the database and read everything; call it first.

        Raises MeshError or NotPermitted if the place is read-only, full or not ours.
        """
        with self._lock:
            moved_aside = None
            try:
                rows = self._open()
            except sqlite3.DatabaseError as exc:
                if not _is_damage(exc):
                    raise self._explain(exc) from exc
                moved_aside = self._move_aside(str(exc))
                try:
                    rows = self._open()
                except sqlite3.DatabaseError as again:
                    raise self._explain(again) from again
            entries, damaged = sound(rows)
            try:
                with self._opened() as database:
                    database.executemany("DELETE FROM entry WHERE id = ?", [(row,) for row in damaged])
            except sqlite3.DatabaseError as exc:
                raise self._explain(exc) from exc
            if damaged:
                log.event(
                    _logger,
                    "ledger.rows_damaged",
                    logging.WARNING,
                    count=len(damaged),
                    path=str(self._path),
                    hint="they come back from peers; check the disk",
                )
            return Loaded(entries, len(damaged), moved_aside)

    def store(self, entries: Iterable[Entry]) -> None:
        """Keep entries, all or none; durable on return. Raises MeshError if they can't be kept."""
        rows = []
        for entry in entries:
            raw = wire.encode(entry)
            rows.append((self._mesh_id, entry.key, raw, checksum_of(raw)))
        with self._lock:
            database = self._opened()
            try:
                with database:
                    database.executemany(
                        "INSERT OR REPLACE INTO entry (mesh, key, raw, checksum) VALUES (?, ?, ?, ?)", rows
                    )
            except sqlite3.DatabaseError as exc:
                raise self._explain(exc) from exc

    def remove(self, keys: Iterable[str]) -> None:
        """Forget entries; durable on return. Raises MeshError if that can't be."""
        rows = [(self._mesh_id, key) for key in keys]
        with self._lock:
            database = self._opened()
            try:
                with database:
                    database.executemany("DELETE FROM entry WHERE mesh = ? AND key = ?", rows)
            except sqlite3.DatabaseError as exc:
                raise self._explain(exc) from exc

    def close(self) -> None:
        """Close the database. Safe to call twice."""
        with self._lock:
            self._shut()

    def _open(self) -> list[tuple[int, object, object]]:
        # sqlite only says "unable to open": the system itself says why (not ours, read-only, full)
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as exc:
            raise explain(exc, self._path) from exc
        database = sqlite3.connect(self._path, check_same_thread=False, timeout=5.0)
        self._database = database
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.execute(_SCHEMA)
            verdict = database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != ("ok",):
                raise sqlite3.DatabaseError(f"malformed: {verdict}")
            return database.execute(
                "SELECT id, raw, checksum FROM entry WHERE mesh = ?", (self._mesh_id,)
            ).fetchall()
        except BaseException:
            self._shut()
            raise

    def _opened(self) -> sqlite3.Connection:
        assert self._database is not None, "load() comes first"
        return self._database

    def _shut(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _move_aside(self, detail: str) -> Path:
        for number in range(1, _MAX_ASIDE):
            target = self._path.with_name(f"{self._path.name}.corrupt-{number}")
            if not target.exists():
                break
        else:
            raise MeshError(
                f"{self._path} is damaged, and {_MAX_ASIDE} damaged ones lie beside it already",
                hint="replace the disk",
            )
        try:
            for suffix in ("-wal", "-shm", ""):  # the database last: until then the next start tries again
                part = Path(f"{self._path}{suffix}")
                if part.exists():
                    os.replace(part, f"{target}{suffix}")
        except OSError as exc:
            raise explain(exc, self._path) from exc
        log.event(
            _logger,
            "ledger.store_damaged",
            logging.ERROR,
            path=str(target),
            detail=detail,
            hint="the ledger comes back from peers; check the disk",
        )
        return target

    def _explain(self, exc: sqlite3.DatabaseError) -> P2PError:
        name = getattr(exc, "sqlite_errorname", "")
        if name.startswith("SQLITE_FULL") or (name.startswith("SQLITE_IOERR") and _is_full(self._path)):
            return explain(OSError(errno.ENOSPC, "no space left"), self._path)
        if name.startswith("SQLITE_READONLY"):
            return explain(OSError(errno.EROFS, "read-only"), self._path)
        if _is_damage(exc):
            hint = "restart the agent: it moves the file aside, and the ledger comes back from peers"
        else:
            hint = "check the disk (dmesg) and who else has the file open"
        return MeshError(f"{self._path} can't be used: {exc}", hint=hint)


def _is_damage(exc: sqlite3.DatabaseError) -> bool:
    """Whether the file's content is bad, as against the place it lies in."""
    name = getattr(exc, "sqlite_errorname", "")
    return name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or str(exc).startswith("malformed")


def _is_full(path: Path) -> bool:
    """sqlite calls it an I/O error when its shared-memory file finds no room."""
    return os.statvfs(path.parent).f_bavail == 0


def sound(rows: Iterable[tuple[int, object, object]]) -> tuple[tuple[Entry, ...], list[int]]:
    """The entries of sound rows, and the ids of the others. A row: id, bytes of the entry, their checksum."""
    entries, damaged = [], []
    for row, raw, checksum in rows:
        try:
            if not isinstance(raw, bytes) or checksum != checksum_of(raw):
                raise ValueError("checksum")
            entries.append(wire.decode(raw, Entry))
        except ValueError:
            damaged.append(row)
    return tuple(entries), damaged


def checksum_of(raw: bytes) -> bytes:
    """What a row carries beside its entry's bytes."""
    return hashlib.blake2b(raw, digest_size=_CHECKSUM_BYTES).digest()
