"""How does a checker say that something happened which must never be?"""

from __future__ import annotations


class Violation(AssertionError):
    """An invariant does not hold."""
