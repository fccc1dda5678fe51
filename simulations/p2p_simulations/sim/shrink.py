"""What is the smallest world that still fails in the same way?

Delta debugging over a plan: faults and triggers are taken out (halves first, then quarters, ... one by one),
then nodes, then everything that differs from the defaults, then times are made round; over and over until
nothing can go. A candidate counts if it fails with the same kind of violation (numbers and names aside) with
the same seed or one of a few others: a smaller plan draws other chances. Every candidate has been through its
scenario file, so the file that is printed in the end fails, to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from p2p_network.core.errors import ConfigError
from p2p_simulations.sim.files import parse_scenario
from p2p_simulations.sim.plan import Fault, K3sPlan, NodePlan, Partition, Plan, Trigger
from p2p_simulations.sim.world import Outcome
from p2p_simulations.sim.writing import render
from p2p_simulations.world.net import CALM

Play = Callable[[Plan, int, float], Outcome]
_OTHER_SEEDS = 2
_NODE_FIELDS = (
    "zone", "wish", "minimum_nodes", "clock_offset_s", "slowness", "k3s_broken", "stale_k3s", "boots_at_s",
    "joins_later", "nat",
)  # fmt: skip
_KEPT = re.compile(r"\b(?:n\d+(?:'\d+)?|[0-9a-f]{16,}|stale-\w+|uid-\w+|[A-Za-z0-9]*\d[A-Za-z0-9.:]*)\b")


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A small failing world. `plays`: how many worlds were played to find it."""

    plan: Plan
    seed: int
    violation: str
    plays: int


def kind_of(violation: str, plan: Plan) -> str:
    """A violation without what differs from world to world: names, numbers, hashes; its first sentence."""
    text = violation.partition(": ")[0] if violation.startswith("not healed") else violation
    for node in sorted(plan.nodes, key=lambda node: -len(node.name)):
        text = re.sub(rf"\b{re.escape(node.name)}\b", "_", text)
    return _KEPT.sub("_", text)[:60]


def shrink(failed: Outcome, play: Play, *, is_over: Callable[[], bool], max_plays: int = 600) -> Shrunk:
    """Make a failed world small.

    Args:
        failed: with its plan, seed and violation.
        play: plays a plan with a seed, up to a virtual second at most.
        is_over: asked before every play; True ends the search with the best so far.
    """
    return _Search(failed, play, is_over, max_plays).run()


class _Over(Exception):
    pass


class _Search:
    def __init__(self, failed: Outcome, play: Play, is_over: Callable[[], bool], max_plays: int) -> None:
        self._play, self._is_over, self._max_plays = play, is_over, max_plays
        self._kind = kind_of(failed.violation, failed.plan)
        self._plays = 0
        self._failed_at_s = failed.virtual_s
        self._tried: set[str] = set()
        self.best = Shrunk(failed.plan, failed.seed, failed.violation, 0)

    def run(self) -> Shrunk:
        """Until nothing can go, or it takes too long."""
        try:
            self._holds(self.best.plan)  # as a file it must fail too; if it does not, the seed is the finding
            early = [fault for fault in self.best.plan.faults if fault[0] <= self._failed_at_s]
            self._holds(replace(self.best.plan, faults=tuple(early)))
            while any([self._fewer_faults(), self._fewer_nodes(), self._plainer(), self._rounder()]):
                pass
        except _Over:
            pass
        return replace(self.best, plays=self._plays)

    def _holds(self, plan: Plan) -> bool:
        """Whether this plan fails in the same way, with some seed: then it is the best so far."""
        text = render(plan)
        if text in self._tried:
            return False
        self._tried.add(text)
        try:
            exact = parse_scenario(text.encode(), plan.name)
        except ConfigError:
            return False
        seeds = (self.best.seed, *range(1, _OTHER_SEEDS + 1))
        for seed in dict.fromkeys(seeds):
            if self._plays >= self._max_plays or self._is_over():
                raise _Over
            self._plays += 1
            outcome = self._play(exact, seed, 1.5 * self._failed_at_s + 30)
            if outcome.violation and kind_of(outcome.violation, exact) == self._kind:
                self.best = Shrunk(exact, seed, outcome.violation, self._plays)
                self._failed_at_s = max(outcome.virtual_s, 1.0)
                return True
        return False

    # ------------------------------------------------------------ what can go

    def _fewer_faults(self) -> bool:
        """Delta debugging: drop halves, quarters, ... single faults."""
        before = self.best.plan
        pieces = 2
        while True:
            items: list[Any] = [*self.best.plan.faults, *self.best.plan.triggers]
            if not items:
                break
            pieces = min(pieces, len(items))
            size = -(-len(items) // pieces)
            for start in range(0, len(items), size):
                left = items[:start] + items[start + size :]
                if self._holds(_with_timeline(self.best.plan, left)):
                    pieces = max(2, pieces - 1)
                    break
            else:
                if pieces >= len(items):
                    break
                pieces *= 2
        return self.best.plan != before

    def _fewer_nodes(self) -> bool:
        before = self.best.plan
        for node in reversed(before.nodes):
            if len(self.best.plan.nodes) > 1:
                self._holds(_without(self.best.plan, node.name))
        return self.best.plan != before

    def _plainer(self) -> bool:
        before = self.best.plan
        for change in _SIMPLIFICATIONS:
            self._holds(change(self.best.plan))
        for number in range(len(self.best.plan.nodes)):
            for plain in _plainer_nodes(self.best.plan.nodes[number]):
                nodes = self.best.plan.nodes
                self._holds(replace(self.best.plan, nodes=(*nodes[:number], plain, *nodes[number + 1 :])))
        return self.best.plan != before

    def _rounder(self) -> bool:
        """Whole seconds, and healing soon after the last fault."""
        before = self.best.plan
        self._holds(_rounded(self.best.plan))
        for number in range(len(self.best.plan.faults)):
            plan = self.best.plan
            if number < len(plan.faults):
                at_s, fault = plan.faults[number]
                changed = (float(round(at_s)), _rounded_fault(fault))
                self._holds(_with_faults(plan, (*plan.faults[:number], changed, *plan.faults[number + 1 :])))
        last_s = max((at_s for at_s, _ in self.best.plan.faults), default=0.0)
        for heal_at_s in (last_s + 1, last_s + 10, last_s + 30):
            if round(heal_at_s) < self.best.plan.heal_at_s and self._holds(
                replace(self.best.plan, heal_at_s=float(round(heal_at_s)))
            ):
                break
        return self.best.plan != before


def _with_faults(plan: Plan, faults: Sequence[tuple[float, Fault]]) -> Plan:
    return replace(plan, faults=tuple(sorted(faults, key=lambda planned: planned[0])))


def _with_timeline(plan: Plan, items: Sequence[Any]) -> Plan:
    triggers = tuple(item for item in items if isinstance(item, Trigger))
    return replace(plan, faults=tuple(i for i in items if not isinstance(i, Trigger)), triggers=triggers)


def _without(plan: Plan, name: str) -> Plan:
    """The same without one node, who is in no fault either."""
    nodes = tuple(node for node in plan.nodes if node.name != name)
    faults = [(at_s, kept) for at_s, fault in plan.faults if (kept := _spared(fault, name)) is not None]
    triggers = [
        replace(trigger, fault=kept)
        for trigger in plan.triggers
        if (kept := _spared(trigger.fault, name)) is not None
    ]
    left = {node.region for node in nodes}
    links = tuple(link for link in plan.weather.links if {link.one, link.other} <= left)
    everybody = plan.minimum_nodes == len(plan.nodes)
    minimum = plan.minimum_nodes - 1 if everybody else min(plan.minimum_nodes, len(nodes))
    return replace(
        plan,
        nodes=nodes,
        weather=replace(plan.weather, links=links),
        minimum_nodes=max(1, minimum),
        faults=tuple(faults),
        triggers=tuple(triggers),
    )


def _spared(fault: Any, name: str) -> Any:
    """A fault that leaves `name` alone; None if nothing of it is left."""
    if isinstance(fault, Partition):
        groups = tuple(left for group in fault.groups if (left := tuple(n for n in group if n != name)))
        return replace(fault, groups=groups) if groups or not fault.groups else None
    if getattr(fault, "node", None) == name or name in (
        getattr(fault, "one", ""),
        getattr(fault, "other", ""),
    ):
        return None
    for field in ("nodes", "sources", "targets"):
        said = getattr(fault, field, ())
        if name in said:
            left = tuple(n for n in said if n != name)
            if not left:
                return None
            fault = replace(fault, **{field: left})
    if hasattr(fault, "pairs"):
        pairs = tuple(pair for pair in fault.pairs if name not in pair)
        return replace(fault, pairs=pairs) if pairs else None
    return fault


def _plainer_nodes(node: NodePlan) -> Iterator[NodePlan]:
    plain = NodePlan(node.name, node.region)
    if node != plain:
        yield plain
        for field in _NODE_FIELDS:
            if getattr(node, field) != getattr(plain, field):
                yield replace(node, **{field: getattr(plain, field)})


_SIMPLIFICATIONS: tuple[Callable[[Plan], Plan], ...] = (
    lambda plan: replace(plan, chaos=0.0),
    lambda plan: replace(plan, weather=CALM),
    lambda plan: replace(plan, weather=replace(plan.weather, loss=0.0)),
    lambda plan: replace(plan, weather=replace(plan.weather, duplication=0.0)),
    lambda plan: replace(plan, weather=replace(plan.weather, links=())),
    lambda plan: replace(plan, k3s=K3sPlan()),
    lambda plan: replace(plan, k3s=replace(plan.k3s, failure=0.0)),
    lambda plan: replace(plan, k3s=replace(plan.k3s, lingers_s=K3sPlan().lingers_s)),
    lambda plan: replace(plan, network=Plan("", (), 1, 1).network),
    lambda plan: replace(plan, per_region=False),
    lambda plan: replace(plan, replaces=False),
    lambda plan: replace(plan, relays=True),
    lambda plan: replace(plan, servers=1),
    lambda plan: replace(plan, max_chaos=1),
)


def _rounded(plan: Plan) -> Plan:
    return _with_faults(plan, [(float(round(at_s)), _rounded_fault(fault)) for at_s, fault in plan.faults])


def _rounded_fault(fault: Fault) -> Fault:
    lasting: dict[str, float] = {}
    for field in ("down_s", "for_s", "by_s", "every_s"):
        value = getattr(fault, field, None)
        if isinstance(value, float):
            lasting[field] = float(round(value) or (1 if value > 0 else -1))
    changed: Any = fault
    return replace(changed, **lasting) if lasting else fault
