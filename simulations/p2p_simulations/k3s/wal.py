"""What does a member of the stand-in's etcd have on its disk, also after a power cut?

One append-only file of lines, each `crc32 json`. A line is written and fsynced before anything is sent
that rests on it. A last line that was cut short by a crash is dropped; damage anywhere else is refused,
since a member that silently forgot a vote could break the cluster.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from p2p_simulations.k3s import raft
from p2p_simulations.k3s.errors import K3sError
from p2p_simulations.k3s.process import sync_dir

FILE_NAME = "0000000000000000-0000000000000000.wal"


def config_to_json(config: raft.Config | None) -> Any:
    if config is None:
        return None
    return [
        [[m.id, m.name, m.peer_url, m.client_url, m.learner] for m in config.members],
        list(config.removed),
    ]


def config_from_json(value: Any) -> raft.Config | None:
    if value is None:
        return None
    members, removed = value
    return raft.Config(tuple(raft.Member(*m) for m in members), tuple(removed))


def entry_to_json(entry: raft.Entry) -> Any:
    return [entry.index, entry.term, entry.data, config_to_json(entry.config)]


def entry_from_json(value: Any) -> raft.Entry:
    index, term, data, config = value
    return raft.Entry(index, term, data, config_from_json(config))


def snapshot_to_json(snapshot: raft.Snapshot) -> Any:
    return [snapshot.index, snapshot.term, config_to_json(snapshot.config), snapshot.data]


def snapshot_from_json(value: Any) -> raft.Snapshot:
    index, term, config, data = value
    return raft.Snapshot(index, term, config_from_json(config) or raft.Config(), data)


class Wal:
    """The log file in `folder`. `member_id` names whose it is."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self.member_id = 0
        self.saved = raft.Saved()
        self._file = -1
        self._lines = 0

    @classmethod
    def create(cls, folder: Path, member_id: int, saved: raft.Saved) -> Wal:
        """A new log; an older one in `folder` is replaced."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        wal = cls(folder)
        wal.member_id = member_id
        wal._rewrite(saved)
        return wal

    @classmethod
    def open(cls, folder: Path) -> Wal:
        """The log in `folder`. Raises K3sError if it is damaged or absent."""
        wal = cls(folder)
        try:
            raw = wal.path.read_bytes()
        except FileNotFoundError:
            raise K3sError(f"failed to open WAL: {wal.path}: no such file or directory") from None
        good = wal._replay(raw)
        wal._file = os.open(wal.path, os.O_WRONLY | os.O_APPEND)
        os.ftruncate(wal._file, good)
        os.fsync(wal._file)
        return wal

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @property
    def lines(self) -> int:
        """How many lines the file has: when to make a snapshot."""
        return self._lines

    def save(self, effects: Iterable[raft.SaveVote | raft.SaveEntries | raft.SaveSnapshot]) -> None:
        """Make these durable; returns when they are on the disk."""
        lines = []
        for effect in effects:
            if isinstance(effect, raft.SaveVote):
                lines.append(["vote", effect.term, effect.voted_for])
                self.saved = raft.Saved(effect.term, effect.voted_for)
            elif isinstance(effect, raft.SaveEntries):
                lines.append(["entries", [entry_to_json(e) for e in effect.entries]])
            else:
                self._append(lines)
                lines = []
                term, voted_for = self.saved.term, self.saved.voted_for
                self._rewrite(raft.Saved(term, voted_for, effect.snapshot, effect.entries))
        self._append(lines)

    def _append(self, lines: list[Any]) -> None:
        if lines:
            os.write(self._file, b"".join(_line(line) for line in lines))
            os.fdatasync(self._file)
            self._lines += len(lines)

    def _rewrite(self, saved: raft.Saved) -> None:
        lines: list[Any] = [
            ["member", self.member_id],
            ["vote", saved.term, saved.voted_for],
            ["snapshot", snapshot_to_json(saved.snapshot)],
        ]
        if saved.entries:
            lines.append(["entries", [entry_to_json(e) for e in saved.entries]])
        temporary = self.path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(descriptor, b"".join(_line(line) for line in lines))
        os.fsync(descriptor)
        os.replace(temporary, self.path)
        sync_dir(self.path.parent)
        self.close()
        os.close(descriptor)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._lines = len(lines)
        self.saved = saved

    def _replay(self, raw: bytes) -> int:
        """Read all lines into `saved`; the length of the undamaged part."""
        term, voted_for, snapshot, entries = 0, None, raft.Snapshot(), list[raft.Entry]()
        good = 0
        for line in raw.splitlines(keepends=True):
            value = _parse(line)
            if value is None:
                if good + len(line) == len(raw):
                    break  # cut short by a crash: it was never acknowledged
                raise K3sError(f"wal: crc mismatch at byte {good} of {self.path}")
            good += len(line)
            self._lines += 1
            match value:
                case ["member", member_id]:
                    self.member_id = member_id
                case ["vote", term, voted_for]:
                    pass
                case ["snapshot", body]:
                    snapshot, entries = snapshot_from_json(body), []
                case ["entries", bodies]:
                    new = [entry_from_json(body) for body in bodies]
                    del entries[max(0, new[0].index - snapshot.index - 1) :]
                    entries.extend(new)
                case _:
                    raise K3sError(f"wal: unknown record at byte {good} of {self.path}")
        self.saved = raft.Saved(term, voted_for, snapshot, tuple(entries))
        return good


def _line(value: Any) -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _parse(line: bytes) -> Any:
    """The value of a line, or None if it is damaged."""
    crc, _, body = line.partition(b" ")
    if not body.endswith(b"\n"):
        return None
    body = body[:-1]
    try:
        return json.loads(body) if int(crc, 16) == zlib.crc32(body) else None
    except ValueError:
        return None
