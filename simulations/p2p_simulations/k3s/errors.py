"""How does the stand-in fail? With k3s's own sentences, so that whoever reads them can be tested."""

from __future__ import annotations


class K3sError(Exception):
    """Ends the process, or is logged by the loop that tries again. The text is k3s's."""

    def within(self, where: str) -> K3sError:
        """The same error told by a caller: "where: error", as Go programs wrap."""
        return K3sError(f"{where}: {self}")


class Unavailable(Exception):
    """The datastore cannot decide now: no leader, no majority, or too slow."""


class HttpError(Exception):
    """An answer that is not 2xx; `status` is its code, the text what a person should see."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
