"""Which nodes stand in one place, when nobody has said so? Pure and the same on every node.

A node whose operator named its region is where that says. Of the others, each with a settled coordinate
joins the named region whose nodes (their median) are nearest, if that is near enough; the rest form groups
around leaders: in the order of the peer ids, a node joins the nearest leader that is near enough, or leads a
group of its own. A group is named after its leader's id, so that all nodes with the same ledger give it the
same name.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from p2p_network.coordinates import Coordinate, apart_s
from p2p_network.core.ids import PeerId, stable_hash

NEAR_S: Final = 0.012
"""Nodes whose places are no farther apart than this are in one region (about 1000 km of fibre)."""

SETTLED_ERROR: Final = 0.35
"""A coordinate with a larger error says nothing yet."""

Source = Literal["declared", "near", "group", "unknown"]


@dataclass(frozen=True, slots=True)
class Located:
    """What is known of a node's place. `region`: as declared or confirmed, "" if it is not."""

    peer: PeerId
    region: str
    coordinate: Coordinate | None


@dataclass(frozen=True, slots=True)
class Inferred:
    """Where a node is taken to be. `region`: "" if that can't be told; `leader`: whose group it is, if it
    is one without a declared name; `reason`: one sentence."""

    region: str
    source: Source
    leader: PeerId | None
    reason: str


def infer(nodes: Sequence[Located], near_s: float = NEAR_S) -> dict[PeerId, Inferred]:
    """The region of every node."""
    ordered = sorted(nodes, key=lambda node: node.peer)
    named: dict[str, list[Coordinate]] = {}
    found: dict[PeerId, Inferred] = {}
    for node in ordered:
        if node.region:
            found[node.peer] = Inferred(node.region, "declared", None, "declared")
            if _is_settled(node.coordinate):
                named.setdefault(node.region, []).append(_of(node))
    leaders: list[Located] = []
    for node in ordered:
        if node.region:
            continue
        if not _is_settled(node.coordinate):
            found[node.peer] = Inferred("", "unknown", None, "too few round trips were measured yet")
            continue
        away_s, region = min(
            (
                (statistics.median(apart_s(_of(node), c) for c in there), name)
                for name, there in named.items()
            ),
            default=(float("inf"), ""),
        )
        if away_s <= near_s:
            reason = f"{away_s * 1000:.1f} ms from the nodes of region {region}"
            found[node.peer] = Inferred(region, "near", None, reason)
            continue
        found[node.peer] = _grouped(node, leaders, near_s)
    return found


def _grouped(node: Located, leaders: list[Located], near_s: float) -> Inferred:
    at = _of(node)
    nearest = min(leaders, key=lambda leader: (apart_s(at, _of(leader)), leader.peer), default=None)
    if nearest is None or apart_s(at, _of(nearest)) > near_s:
        leaders.append(node)
        return Inferred(name_of(node.peer), "group", node.peer, "no other region is near")
    away_ms = apart_s(at, _of(nearest)) * 1000
    return Inferred(
        name_of(nearest.peer), "group", nearest.peer, f"{away_ms:.1f} ms from ...{nearest.peer[-8:]}"
    )


def name_of(leader: PeerId) -> str:
    """The name of the group around a leader: a valid label."""
    return f"region-{stable_hash('region', leader) & 0xFFFFFF:06x}"


def _is_settled(coordinate: Coordinate | None) -> bool:
    return coordinate is not None and coordinate.error <= SETTLED_ERROR


def _of(node: Located) -> Coordinate:
    assert node.coordinate is not None, "only nodes with a coordinate are compared"
    return node.coordinate
