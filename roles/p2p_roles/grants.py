"""Whose word on a cluster's roles is believed, by somebody who has nothing but the certificates?

The first servers stand in the GENESIS certificate. A server that comes later gets a *grant* from one that
may speak already: ``grant/<scope>/<server>/<grantor>``, its own, never contested or deleted.
A word is believed if a chain of grants leads from a certificate to its author. The assignments themselves
can't be that chain: each holder of the lease writes them anew, and then nobody knows who said it first.

As a first server does, one that was granted stays believed after its time: what it said of others stays true,
and a stale word of it loses by its fence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from typing import Final

VALUE: Final = b"server"
"""What is granted; the key says the rest."""


def prefix_of(scope: str, server: str) -> str:
    """Of the ledger keys of all grants to one server."""
    return f"grant/{scope}/{server}/"


def key_of(scope: str, server: str, grantor: str) -> str:
    """The ledger key of one grant."""
    return prefix_of(scope, server) + grantor


def grantor_of(key: str) -> str:
    """Who grants, by the key; "" if it is the key of no grant."""
    return key.rpartition("/")[2] if key.startswith("grant/") else ""


def speaks(author: str, certified: Set[str], grantors: Callable[[str], Iterable[str]]) -> bool:
    """Whether a chain of grants leads from a certified server to `author`.

    Args:
        certified: the servers that certificates name.
        grantors: who granted this server; may be anybody's claim, in rings as well.
    """
    seen, open_ends = {author}, [author]
    while open_ends:
        one = open_ends.pop()
        if one in certified:
            return True
        further = set(grantors(one)) - seen
        seen |= further
        open_ends += sorted(further)
    return False
