"""Which errors can happen, and what does each tell a person to do next?

Every error that a person may see is a `P2PError`: a message (what, where, why) and a hint (what to do
next). Adapters wrap a library's error with ``raise ... from exc``. Bugs are not errors: invariants are
asserted and crash. The command line maps `exit_code` to the process's exit status.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


class P2PError(Exception):
    """Base of all errors shown to people.

    Args:
        message: what went wrong, where and why; one sentence without a trailing full stop.
        hint: what to do next; empty only if the message already says it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(P2PError):
    """The command was called wrongly."""

    exit_code = 2


class DaemonNotRunning(P2PError):
    """No agent answers on the local socket."""

    exit_code = 3


class TimedOut(P2PError):
    """What was waited for did not happen in time."""

    exit_code = 4


class NotPermitted(P2PError):
    """The operating system or our policy refuses this caller."""

    exit_code = 5


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing wrong in a file. `line` and `column` count from 1; 0 means the whole file."""

    file: str
    line: int
    column: int
    key: str  # dotted path, "" for the document itself
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = self.file + (f":{self.line}:{self.column}" if self.line else "")
        key = f" {self.key}:" if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}:{key} {self.message}{hint}"


class ConfigError(P2PError):
    """A configuration cannot be used. Carries every problem found, not only the first."""

    def __init__(self, problems: Iterable[Problem], *, hint: str = "") -> None:
        self.problems: tuple[Problem, ...] = tuple(sorted(problems))
        assert self.problems, "a ConfigError needs at least one problem"
        super().__init__("\n".join(str(p) for p in self.problems), hint=hint)


class BootError(P2PError):
    """The local module cannot bring up what the boot plan asks for."""


class MeshError(P2PError):
    """The mesh cannot do what was asked."""


class LocalViolation(MeshError):
    """We broke a protocol: a bug of ours or a wrong call; nothing was sent."""


class RemoteViolation(MeshError):
    """A peer broke a protocol. Never kills the node: the peer is dropped and counted."""

    def __init__(self, message: str, *, peer: str, hint: str = "") -> None:
        super().__init__(f"peer {peer}: {message}", hint=hint)
        self.peer = peer


class PeerUnreachable(MeshError):
    """A peer did not answer in time or its connection ended."""


class TokenError(MeshError):
    """A network token cannot be read."""


class RoleError(P2PError):
    """A role cannot be taken or a cluster cannot be formed."""


class K3sFailed(RoleError):
    """k3s ended or refused. The message quotes k3s's own words."""


class QuorumMissing(RoleError):
    """Too few voters are reachable to decide."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` was most likely meant to be, or None if none is near."""
    import difflib  # only now: the data plane would carry it for good

    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None
