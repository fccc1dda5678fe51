"""Who asked this node to do what, and with which result?

One JSON line per administrative request, refused ones too, in a file that only root reads. Bounded: at
`MAX_BYTES` it becomes ``audit.log.1`` and a new one begins, so there are at most two. No secret is written:
the request's path and its parameters are, and no request carries one. A disk that is full must not keep an
operator from acting: what can't be written goes to the log instead.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from p2p_network.core import log

logger = log.get(__name__)

MAX_BYTES: Final = 1 << 20
MAX_VALUE_CHARS: Final = 200


class AuditLog:
    """The audit file of one agent. Blocks for one small write."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes

    def note(
        self, *, uid: int, pid: int, request: str, parameters: Mapping[str, str], status: int, error: str
    ) -> None:
        """One request and how it ended. `status`: of HTTP; `error`: "" if it was done. Raises nothing."""
        line = json.dumps(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "uid": uid,
                "pid": pid,
                "request": request[:MAX_VALUE_CHARS],
                "parameters": {k[:40]: v[:MAX_VALUE_CHARS] for k, v in list(parameters.items())[:20]},
                "result": "done" if status < 400 else "refused" if status == 403 else "failed",
                "status": status,
                "error": error[:MAX_VALUE_CHARS],
            },
            sort_keys=False,
        )
        try:
            self._append(line.encode() + b"\n")
        except OSError as exc:
            log.event(
                logger, "api.not_audited", logging.ERROR, path=str(self.path), detail=str(exc), reason=line
            )

    def _append(self, line: bytes) -> None:
        descriptor = os.open(
            self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            if os.fstat(descriptor).st_size + len(line) > self._max_bytes:
                os.replace(self.path, self.path.with_name(self.path.name + ".1"))
                os.close(descriptor)
                descriptor = os.open(
                    self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
                )
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
