"""What happened on this node lately?

A bounded log in memory, numbered from 1. It is fed by `EventLogHandler`, a logging handler that takes the
records made by `core.log.event` (those with ``fields``) and no others, so that an event is written once,
where it happens, and is seen in the log, in ``kairos-p2p events`` and by every follower alike. Records may
come from any thread; followers wait in trio. Values are made JSON-safe, short and free of secrets on entry.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import trio

from p2p_bootstrap.api.service import EventDoc
from p2p_bootstrap.redaction import redact

KEPT_EVENTS: Final = 2000
MAX_TEXT_CHARS: Final = 500

Value = str | int | float | bool | None


class EventLog:
    """The last `kept` events. Thread-safe to append; to be waited on in trio only."""

    def __init__(self, kept: int = KEPT_EVENTS) -> None:
        self._events: deque[EventDoc] = deque(maxlen=kept)
        self._last_seq = 0
        self._lock = threading.Lock()
        self._waiters: set[tuple[trio.lowlevel.TrioToken, trio.Event]] = set()

    @property
    def last_seq(self) -> int:
        """The number of the newest event, 0 before the first."""
        return self._last_seq

    def append(self, wall_s: float, name: str, fields: Mapping[str, object]) -> None:
        """Keep one event. `wall_s`: Unix seconds; `reason` is taken out of `fields`."""
        safe = {key: _safe(value) for key, value in fields.items()}
        reason = safe.pop("reason", None)
        time = datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds")
        with self._lock:
            self._last_seq += 1
            self._events.append(
                EventDoc(
                    seq=self._last_seq,
                    time=time.replace("+00:00", "Z"),
                    name=name,
                    reason="" if reason is None else str(reason),
                    fields=safe,
                )
            )
            waiters, self._waiters = self._waiters, set()
        for token, arrived in waiters:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(arrived.set)

    def since(self, seq: int) -> list[EventDoc]:
        """The kept events numbered above `seq`, oldest first. A first number above ``seq + 1`` means that
        the ones between are no longer kept."""
        with self._lock:
            newer = min(len(self._events), max(0, self._last_seq - seq))
            return list(self._events)[len(self._events) - newer :]

    async def wait(self, seq: int) -> None:
        """Return once there is an event numbered above `seq`."""
        while True:
            waiter = (trio.lowlevel.current_trio_token(), trio.Event())
            with self._lock:
                if self._last_seq > seq:
                    break
                self._waiters.add(waiter)
            try:
                await waiter[1].wait()
            finally:
                with self._lock:
                    self._waiters.discard(waiter)
        await trio.lowlevel.checkpoint()


class EventLogHandler(logging.Handler):
    """Feeds an `EventLog` from the records of `core.log.event`."""

    def __init__(self, events: EventLog) -> None:
        super().__init__(logging.INFO)
        self._target = events

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record if it is an event. Never raises."""
        fields = getattr(record, "fields", None)
        if isinstance(fields, Mapping):
            try:
                self._target.append(record.created, record.getMessage(), fields)
            except Exception:  # a broken record must not hurt the one who logs
                self.handleError(record)


def _safe(value: object) -> Value:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)  # JSON has neither NaN nor infinity
    text = redact(str(value))
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"
