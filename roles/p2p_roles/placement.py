"""In which regions may the servers of one cluster stand?

The one place that says so, pure; genesis, later assignments and reconciliation all ask here, so that they
never pull in two directions. The rule itself (`Placement`) is certified with the genesis.

- **spread**: even over the regions (and in a region over its zones), so that the loss of any one region
  leaves a majority: of T servers at most T // 2 stand in one region. Where the regions can't give that, the
  largest odd number below is taken that they can give (two regions: one server), with a sentence that says
  why and what to do. Two things lift the limit, each an explicit word of the operator: ``p2p.home_region``
  (that region may hold the majority) and ``p2p.role: server`` on a node. Where all nodes that may be servers
  stand in one region, or no region is named, there is nothing to spread over and no limit.
- **pack**: all servers in the home region, over its zones; the other regions have agents only.

How to use it::

    rule = of_genesis(genesis)                                # or Placement(kind, home_region)
    choose(rule, keep, candidates, servers)                   # whom to have; `keep` are never dropped
    removals(rule, keep, servers)                             # whom to let go, in this order, to get down
    fault(rule, keep)                                         # "" or what is wrong with the servers there are

`keep` and `candidates` are `ViewNode`s; candidates best first, and only such as may be servers. A dead
server that is to be replaced is simply not in `keep`. `choose` may want fewer servers than declared; a
caller that grows the cluster adds one at a time in the order given, and only towards the whole choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from p2p_network.core.ids import PeerId
from p2p_roles.genesis.messages import MAX_SERVERS, Genesis
from p2p_roles.view import ViewNode

Kind = Literal["spread", "pack"]


@dataclass(frozen=True, slots=True)
class Placement:
    """The rule. `home_region`: pack: where all servers stand ("": where most candidates are); spread: which
    region may hold the majority ("": none)."""

    kind: Kind = "spread"
    home_region: str = ""


SPREAD: Final = Placement()
"""What holds where nothing is said."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Whom to have as servers: those kept, then the new ones in the order in which to add them.

    `remark`: why they are fewer than wanted and what to do; "" if they are not.
    """

    servers: tuple[PeerId, ...]
    remark: str = ""


def of_genesis(genesis: Genesis) -> Placement:
    """The rule that was certified with a cluster's genesis."""
    kind: Kind = "pack" if genesis.placement == "pack" else "spread"
    assert kind in get_args(Kind), "a placement is spread or pack"
    return Placement(kind, genesis.home_region)


def home_of(rule: Placement, nodes: Sequence[ViewNode]) -> str:
    """The home region for `pack`: as declared, else that of most of these nodes (by name, if equal)."""
    if rule.home_region or not nodes:
        return rule.home_region
    count = Counter(node.region for node in nodes)
    return min(count, key=lambda region: (-count[region], region))


def may_initialise(rule: Placement, candidates: Sequence[ViewNode]) -> tuple[ViewNode, ...]:
    """Those of the candidates that may be the first server, in the order given."""
    if rule.kind == "spread":
        return tuple(candidates)
    home = home_of(rule, candidates)
    return tuple(node for node in candidates if node.region == home)


def choose(rule: Placement, keep: Sequence[ViewNode], candidates: Sequence[ViewNode], servers: int) -> Choice:
    """At most `servers` servers: all of `keep`, and of the candidates as the rule allows."""
    servers = min(servers, MAX_SERVERS)
    kept = {node.peer for node in keep}
    free = [node for node in candidates if node.peer not in kept]
    if rule.kind == "pack":
        return _pack(rule, keep, free, servers)
    if not _is_spread_over(rule, [*keep, *free]):
        return Choice(_picked(rule, keep, free, servers, servers))
    for target in (servers, *range(_odd_below(servers), 0, -2)):
        if target < len(keep):
            break
        picked = _picked(rule, keep, free, target, target // 2 if target > 1 else 1)
        if len(picked) == target:
            return Choice(picked, "" if target == servers else _why_fewer(target, servers, [*keep, *free]))
    return Choice(
        tuple(node.peer for node in keep), _why_fewer(len(keep), servers, [*keep, *free]) if free else ""
    )


def removals(rule: Placement, keep: Sequence[ViewNode], servers: int) -> tuple[PeerId, ...]:
    """Whom to let go, first one first, to get down to `servers`: from where too many stand, forced ones
    and those that are `keep`'s first ones last."""
    left, gone = list(keep), []
    home = home_of(rule, keep)
    while len(left) > max(servers, 1):
        regions = Counter(node.region for node in left)
        zones = Counter((node.region, node.zone) for node in left)

        def order(
            index: int, regions: Counter[str] = regions, zones: Counter[tuple[str, str]] = zones
        ) -> tuple[bool, bool, bool, int, bool, int, int]:
            node = left[index]
            away = rule.kind == "pack" and node.region != home
            return (
                node.wish != "server",
                not node.alive,
                away,
                regions[node.region],
                node.region != home,
                zones[node.region, node.zone],
                index,
            )

        gone.append(left.pop(max(range(len(left)), key=order)).peer)
    return tuple(gone)


def fault(rule: Placement, keep: Sequence[ViewNode]) -> str:
    """What is wrong with where these servers stand, in a sentence; "" if nothing is."""
    if len(keep) < 2:
        return ""
    count = Counter(node.region for node in keep)
    if rule.kind == "pack":
        home = home_of(rule, keep)
        away = sorted(node.hostname for node in keep if node.region != home and node.wish != "server")
        return f"{', '.join(away)}: a server outside the home region {_named(home)}" if away else ""
    if len(count) < 2:
        return ""
    region, most = count.most_common(1)[0]
    told = region == rule.home_region or any(n.wish == "server" and n.region == region for n in keep)
    if most <= len(keep) // 2 or told:
        return ""
    return f"{most} of {len(keep)} servers stand in {_named(region)}: its loss would take the majority"


def _pack(rule: Placement, keep: Sequence[ViewNode], free: Sequence[ViewNode], servers: int) -> Choice:
    home = home_of(rule, keep or free)
    near = [node for node in free if node.region == home or node.wish == "server"]
    picked = _picked(rule, keep, near, servers, servers)
    remark = ""
    if len(picked) < servers and len(near) < len(free):
        remark = (
            f"{len(picked)} of {servers} servers: all stand in the home region {_named(home)} "
            f"(p2p.placement: pack), which has no more nodes"
        )
    return Choice(picked, remark)


def _is_spread_over(rule: Placement, nodes: Sequence[ViewNode]) -> bool:
    """Whether there are several regions to keep a balance between."""
    return len({node.region for node in nodes}) > 1


def _picked(
    rule: Placement, keep: Sequence[ViewNode], free: Sequence[ViewNode], target: int, limit: int
) -> tuple[PeerId, ...]:
    """Greedy and even: forced ones first, then from the region (and in it the zone) that has the fewest so
    far, and there the best ranked; never more than `limit` in a region but for what the operator said."""
    chosen, ranked = list(keep), list(enumerate(free))
    while len(chosen) < target:
        regions = Counter(node.region for node in chosen)
        zones = Counter((node.region, node.zone) for node in chosen)
        open_ = [
            (position, node)
            for position, node in ranked
            if node.wish == "server" or regions[node.region] < _limit(rule, node, target, limit)
        ]
        if not open_:
            break
        best = min(open_, key=_order(rule, regions, zones))
        ranked.remove(best)
        chosen.append(best[1])
    return tuple(node.peer for node in chosen)


def _limit(rule: Placement, node: ViewNode, target: int, limit: int) -> int:
    at_home = bool(rule.home_region) and node.region == rule.home_region
    return target if at_home else limit


def _order(
    rule: Placement, regions: Counter[str], zones: Counter[tuple[str, str]]
) -> Callable[[tuple[int, ViewNode]], tuple[bool, int, bool, int, int]]:
    def order(item: tuple[int, ViewNode]) -> tuple[bool, int, bool, int, int]:
        position, node = item
        away = bool(rule.home_region) and node.region != rule.home_region
        return (
            node.wish != "server",
            regions[node.region],
            away,
            zones[node.region, node.zone],
            position,
        )

    return order


def _why_fewer(have: int, wanted: int, nodes: Sequence[ViewNode]) -> str:
    regions = sorted({node.region for node in nodes})
    listed = ", ".join(map(_named, regions[:6]))
    return (
        f"{have} of {wanted} servers: {listed} cannot hold {wanted} without a majority in one of them; "
        f"add nodes in another region, or name the one that may hold it: p2p.home_region"
    )


def _named(region: str) -> str:
    return f"region {region}" if region else "the nodes without a region"


def _odd_below(number: int) -> int:
    return number - 1 if number % 2 == 0 else number - 2
