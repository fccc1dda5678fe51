"""Which nodes stand in one place, when nobody has said so? Pure.

`infer` says it of all nodes, the same wherever the ledger is the same, and so can only use what
everybody was told. Of itself a node knows better (`of_itself`): a round trip that it measured is no
shorter than the way, so who answers quickly is near, whatever the coordinates say by then. Neighbours
that find a region out at the same moment give it one name, whoever is first: that of the smallest id
among them.

A node whose operator named its region is where that says. Of the others, each with a settled coordinate
joins the named region whose nodes (their median) are nearest, if that is near enough; the rest form groups
around leaders: in the order of the peer ids, a node joins the nearest leader that is near enough, or leads a
group of its own. A group is named after its leader's id, so that all nodes with the same ledger give it the
same name.
"""

from __future__ import annotations

import statistics
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from p2p_network.coordinates import Coordinate, apart_s
from p2p_network.core.ids import PeerId, stable_hash

NEAR_S: Final = 0.012
"""Nodes whose places are no farther apart than this are in one region (about 1000 km of fibre)."""

MAYBE_NEAR_S: Final = 4 * NEAR_S
"""Who answered no later than this may yet turn out to be near, as long as it was asked a few times only."""

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


@dataclass(frozen=True, slots=True)
class Own:
    """Where a node takes itself to be, and `waits_for`: who may know better; it speaks first for a while."""

    inferred: Inferred
    waits_for: tuple[PeerId, ...] = ()


def of_itself(
    self_id: PeerId,
    nodes: Sequence[Located],
    measured: Mapping[PeerId, float],
    young: Container[PeerId] = (),
    near_s: float = NEAR_S,
) -> Own:
    """The region of one node without a region.

    Args:
        nodes: those that are there, itself among them.
        measured: round trips from this node, seconds.
        young: who was asked too seldom for its round trip to be the shortest there is.
    """
    itself = next(node for node in nodes if node.peer == self_id)
    away = {n.peer: _away_s(itself, n, measured.get(n.peer), near_s) for n in nodes if n is not itself}
    regions: dict[str, list[float]] = {}
    for node in nodes:
        if node.region and (away_s := away.get(node.peer)) is not None:
            regions.setdefault(node.region, []).append(away_s)
    nearest_s, region = min(
        ((statistics.median(there), name) for name, there in regions.items()), default=(float("inf"), "")
    )
    if nearest_s <= near_s:
        reason = f"{nearest_s * 1000:.1f} ms from the nodes of region {region}"
        return Own(Inferred(region, "near", None, reason))
    nameless = sorted(node.peer for node in nodes if not node.region and node is not itself)
    near = [peer for peer in nameless if (s := away[peer]) is not None and s <= near_s]
    leader = min([self_id, *near])
    first = {p for p in nameless if p < self_id and (p == leader or away[p] is None)}
    first |= {p for p, s in measured.items() if p in away and p in young and near_s < s <= MAYBE_NEAR_S}
    waits_for = tuple(sorted(first))
    if leader != self_id:
        why = f"{(away[leader] or 0.0) * 1000:.1f} ms from ...{leader[-8:]}"
        return Own(Inferred(name_of(leader), "group", leader, why), waits_for)
    if not near and not _is_settled(itself.coordinate):
        return Own(Inferred("", "unknown", None, "too few round trips were measured yet"), waits_for)
    return Own(Inferred(name_of(self_id), "group", self_id, "no other region is near"), waits_for)


def _away_s(itself: Located, other: Located, measured_s: float | None, near_s: float) -> float | None:
    """How far away the place of another node is; None while that can't be told."""
    if measured_s is not None and measured_s <= near_s:
        return measured_s
    if not _is_settled(itself.coordinate):
        return None
    if _is_settled(other.coordinate):  # without what the access of both costs
        return apart_s(_of(itself), _of(other))
    return measured_s


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
