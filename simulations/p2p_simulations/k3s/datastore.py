"""Where do the cluster's objects live? In etcd among several servers, or in SQLite on one.

`Datastore` is what the API needs of either; here is the SQLite kind, `etcd.py` is the other.
"""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Protocol

from p2p_simulations.k3s.errors import Unavailable
from p2p_simulations.k3s.raft import Member
from p2p_simulations.k3s.state import Object, Outcome, State


class Datastore(Protocol):
    """What the API and the controllers see."""

    @property
    def state(self) -> State:
        """Everything decided that this server has applied."""
        ...

    async def propose(self, command: Object) -> Outcome:
        """Have a command decided; returns once it is durable and applied here. Raises Unavailable."""
        ...

    async def barrier(self) -> None:
        """Returns once `state` holds all that was acknowledged before the call. Raises Unavailable."""
        ...

    async def changed(self) -> None:
        """Returns after the next change of `state`, and at the latest after a second."""
        ...

    def fault(self) -> str:
        """ "" if reads and writes can be decided now, else why not."""
        ...

    def leads(self) -> bool:
        """Do the cluster's controllers run here?"""
        ...

    def members(self) -> tuple[Member, ...]:
        """Of etcd; () for SQLite."""
        ...


class Sqlite:
    """`server/db/state.db`: one row per key. One server only."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._db = sqlite3.connect(path, isolation_level=None)
        os.chmod(path, 0o600)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("CREATE TABLE IF NOT EXISTS kv (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        self._db.execute("CREATE TABLE IF NOT EXISTS revision (value INTEGER NOT NULL)")
        row = self._db.execute("SELECT value FROM revision").fetchone()
        if row is None:
            self._db.execute("INSERT INTO revision VALUES (0)")
        self._state = State(
            revision=row[0] if row else 0,
            objects={k: json.loads(v) for k, v in self._db.execute("SELECT key, value FROM kv")},
        )

    @property
    def state(self) -> State:
        return self._state

    async def propose(self, command: Object) -> Outcome:
        command = json.loads(json.dumps(command))  # what is stored belongs to nobody else
        before = set(self._state.objects)
        outcome = self._state.apply(self._state.revision + 1, command)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for key in before - set(self._state.objects):
                self._db.execute("DELETE FROM kv WHERE key = ?", (key,))
            if command["op"] == "put" and outcome.verdict == "ok":
                row = (command["key"], json.dumps(outcome.object))
                self._db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", row)
            self._db.execute("UPDATE revision SET value = ?", (self._state.revision,))
            self._db.execute("COMMIT")
        except sqlite3.Error as exc:
            raise Unavailable(f"database is unusable: {exc}") from exc
        return outcome

    async def barrier(self) -> None:
        return

    async def changed(self) -> None:
        from asyncio import sleep

        revision = self._state.revision
        for _ in range(10):
            await sleep(0.1)
            if self._state.revision != revision:
                return

    def fault(self) -> str:
        return ""

    def leads(self) -> bool:
        return True

    def members(self) -> tuple[Member, ...]:
        return ()

    def close(self) -> None:
        self._db.close()
