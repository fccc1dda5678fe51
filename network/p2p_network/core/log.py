"""What do we log, and under which names?

Transitions, not ticks: one line when something changed, with its reason. Fields come from one
dictionary, `FIELDS`, so that a log query written today works tomorrow; an unknown field is a bug and
asserts. Rendering (console or JSON) is chosen once, by the process's entry point.
"""

from __future__ import annotations

import logging
from typing import Final

FIELDS: Final[dict[str, str]] = {
    "address": "multiaddress or host:port",
    "attempt": "number of this try, from 1",
    "bytes": "size in bytes",
    "certificate": "what a quorum signed, short",
    "cluster": "cluster scope (network id, or network id/region)",
    "count": "how many",
    "detail": "text of a library's error",
    "device": "network device",
    "epoch": "genesis epoch",
    "error": "message of an error of ours",
    "from": "state before",
    "hint": "what to do next",
    "hostname": "a node's host name",
    "ipv4": "VPN address",
    "ipv6": "VPN address",
    "key": "ledger key or configuration key",
    "latency_ms": "round trip in milliseconds",
    "method": "name of a request between peers",
    "name": "of a file or an object",
    "path": "file",
    "peer": "peer id",
    "pid": "process id",
    "port": "TCP or UDP port",
    "reason": "one sentence: what and why",
    "region": "failure domain",
    "role": "server or agent",
    "snapshot": "digest of an etcd snapshot",
    "source": "where something was learned",
    "to": "state after",
    "url": "address of an API",
    "version": "version of a program",
    "waited_s": "seconds",
}


def get(name: str) -> logging.Logger:
    """The logger of a module; pass ``__name__``."""
    return logging.getLogger(name)


def event(logger: logging.Logger, name: str, /, level: int = logging.INFO, **fields: object) -> None:
    """Log one transition. `name` is ``room.thing_happened``; fields are those of `FIELDS`.

    `from` is a Python keyword: pass it as ``from_``.
    """
    named = {key.rstrip("_"): value for key, value in fields.items()}
    assert named.keys() <= FIELDS.keys(), f"unknown log fields {named.keys() - FIELDS.keys()}"
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={"fields": named}, stacklevel=2)
