"""Who votes on the mesh's first new keys, before a rotation has given it a signed roster?

In the first generation everybody who has the network token holds the root, so a majority of "those I know"
can be had on both sides of a partition. Therefore holders agree on a *founding roster*, early, while all is
well: each states the list that it counts on (``founder/<peer>``, its own word). A list is in force when every
member of it states exactly that one. What makes two lists safe:

- a holder states only a list with itself in it that includes the one it stated before, so of two lists in
  force that share a member one includes the other;
- once it has voted for new keys it states no other list, and it votes only where the list is its own. So if a
  majority of the smaller one has voted, the larger one is never in force; and if it is, that majority never
  votes.

Lists without a common member could only come about apart, so a first list needs as many members of the mesh
in sight as `p2p.minimum_nodes` says, like the genesis of a cluster. A member that was revoked need not agree,
as long as most of the list are not. Pure: the caller keeps what was stated (`voting.Votes.roster`) before it
states it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Final

import msgspec

PREFIX: Final = "founder/"
MAX_FOUNDERS: Final = 7
"""So many are asked to join; more only if two lists met, or `p2p.minimum_nodes` is larger."""
MAX_ROSTER: Final = 64

_Peer = Annotated[str, msgspec.Meta(max_length=128)]


class Roster(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Key ``founder/<peer>``: the holders of the root that this one counts on, sorted."""

    peers: Annotated[tuple[_Peer, ...], msgspec.Meta(min_length=1, max_length=MAX_ROSTER)]


Lists = Mapping[str, frozenset[str]]
"""Who states which list."""


def in_force(stated: Lists, holders: Collection[str], revoked: Collection[str] = ()) -> frozenset[str] | None:
    """The list that all its members state, holders of the root all of them.

    None while there is none; also where there are two, which came about apart, until they have become one.
    """
    found = [
        peers
        for peers in set(stated.values())
        if all(stated.get(peer) == peers and peer in holders for peer in peers if peer not in revoked)
        and 2 * sum(peer not in revoked for peer in peers) > len(peers)
    ]
    return found[0] if len(found) == 1 else None


def to_propose(
    own: frozenset[str],
    stated: Lists,
    *,
    self_id: str,
    holders: Collection[str],
    in_sight: Collection[str],
    revoked: Collection[str],
    is_enough: bool,
    at_most: int = MAX_FOUNDERS,
) -> frozenset[str] | None:
    """The list that this holder begins to state, for the others to follow; None to leave it as it is.

    Only the smallest in sight proposes, and only what all who must agree can agree to at once.

    Args:
        own: what it states now; empty for nothing.
        holders: who holds the root; `in_sight`: those of them that can be talked to, this one among them.
        is_enough: whether so many members are in sight as a first list needs.
        at_most: so many are asked to join; not fewer than a first list needs.
    """
    if self_id != min(in_sight, default="") or not (own or is_enough):
        return None
    known = {*holders, *revoked, *own}
    wanted = own.union(*(peers for peers in stated.values() if peers <= known))
    for peer in sorted(in_sight):
        if len(wanted) < at_most:
            wanted |= {peer}
    wanted |= {self_id}
    missing = [peer for peer in wanted if peer not in in_sight and peer not in revoked]
    return None if missing or wanted == own or len(wanted) > MAX_ROSTER else wanted


def may_follow(
    own: frozenset[str],
    proposed: frozenset[str],
    *,
    self_id: str,
    holders: Collection[str],
    revoked: Collection[str],
    is_enough: bool,
    has_voted: bool,
) -> bool:
    """Whether this holder may state a list that another one states."""
    return (
        not has_voted
        and (bool(own) or is_enough)
        and self_id in proposed
        and own < proposed
        and len(proposed) <= MAX_ROSTER
        and proposed <= {*holders, *revoked, *own}
    )
