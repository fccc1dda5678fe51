"""How does a checker say that something happened which must never be?"""

from __future__ import annotations

from typing import NoReturn


class Violation(AssertionError):
    """An invariant does not hold."""


def fail(what: str) -> NoReturn:
    """`what` happened, and must never: `Violation`."""
    raise Violation(what)
