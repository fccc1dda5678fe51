"""Which steps of a stage run, in which order, and why that order? Pure.

Kairos's rules: the steps of a file follow each other, the files follow each other; a step with ``after``
waits for the steps it names instead of the one before it, and for the files before its own. Where the
order of files contradicts an ``after``, the ``after`` counts. Kairos runs
what is ready at the same time; here the earlier one in the files runs first, so that two boots do the
same. A step in a ring never runs, and says so; a name that isn't there is a remark, as Kairos goes on
without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2p_bootstrap.cloudconfig.nodes import dotted
from p2p_bootstrap.stages import names
from p2p_bootstrap.stages.configured import ConfiguredStep
from p2p_network.core.errors import Problem, nearest


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step in its turn; `waits_for` are the ids of the steps that must come first."""

    configured: ConfiguredStep
    waits_for: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stage does.

    Attributes:
        stage: as asked for.
        steps: in the order in which they run.
        problems: rings; their steps are not in `steps`.
        remarks: names in ``after`` that no step has.
    """

    stage: str
    steps: tuple[PlannedStep, ...]
    problems: tuple[Problem, ...] = ()
    remarks: tuple[Problem, ...] = ()


def plan(stage: str, steps: Sequence[ConfiguredStep]) -> Plan:
    """The plan of a stage with its ``.before`` and ``.after``."""
    planned: list[PlannedStep] = []
    problems: list[Problem] = []
    remarks: list[Problem] = []
    for part in names.sequence(stage):
        mine = [step for step in steps if step.stage == part]
        waits = _edges(mine, remarks)
        order, ring = _sorted(len(mine), waits)
        planned += [
            PlannedStep(mine[number], tuple(mine[other].id for other in sorted(waits[number])))
            for number in order
        ]
        for number in ring:
            others = ", ".join(mine[other].label for other in ring if other != number) or "itself"
            problems.append(
                _problem(mine[number], f"never runs: it waits in a ring with {others}", "remove one after")
            )
    return Plan(stage, tuple(planned), tuple(problems), tuple(remarks))


def _edges(steps: Sequence[ConfiguredStep], remarks: list[Problem]) -> list[set[int]]:
    """What each step waits for. What is written counts; the order of the files gives way to it."""
    waits: list[set[int]] = [set() for _ in steps]
    for number, configured in enumerate(steps):
        for after in configured.step.after:
            waits[number] |= _named(after.name, number, steps, remarks)
    before: list[int] = []  # steps of the file before
    current: list[int] = []
    for number, configured in enumerate(steps):
        if current and steps[current[-1]].file != configured.file:
            before, current = current, []
        implied = [other for other in before if not steps[other].step.after]
        if current and not configured.step.after:
            implied.append(current[-1])
        for other in implied:
            if not _reaches(other, number, waits):
                waits[number].add(other)
        current.append(number)
    return waits


def _named(name: str, number: int, steps: Sequence[ConfiguredStep], remarks: list[Problem]) -> set[int]:
    full = {other for other, step in enumerate(steps) if step.id == name}
    found = full or {other for other, step in enumerate(steps) if name in step.aliases}
    if not found:
        known = [alias for step in steps for alias in (step.id, step.step.name) if alias]
        near = nearest(name, known)
        hint = f"did you mean {near!r}?" if near else "a step is named FILE.STEP, or by its own name"
        remarks.append(_problem(steps[number], f"waits for {name[:60]!r}, but no step has that name", hint))
    return found


def _sorted(count: int, waits: Sequence[set[int]]) -> tuple[list[int], list[int]]:
    """Numbers in order, the lowest that is ready first; then those that wait for themselves, if any.

    What only waits for a ring still runs, at its place in the files.
    """
    ring = {number for number in range(count) if _reaches(number, number, waits)}
    left = [number for number in range(count) if number not in ring]
    order: list[int] = []
    while left:
        number = next(number for number in left if not (waits[number] - ring) & set(left))
        order.append(number)
        left.remove(number)
    return order, sorted(ring)


def _reaches(start: int, goal: int, waits: Sequence[set[int]]) -> bool:
    seen: set[int] = set()
    open_ = list(waits[start])
    while open_:
        number = open_.pop()
        if number == goal:
            return True
        if number not in seen:
            seen.add(number)
            open_ += waits[number]
    return False


def _problem(configured: ConfiguredStep, message: str, hint: str) -> Problem:
    mark = configured.step.mark
    key = dotted(("stages", configured.stage, "after"))
    return Problem(mark.file, mark.line, mark.column, key, f"{configured.label}: {message}", hint)
