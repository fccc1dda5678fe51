"""What does a node do about an upgrade, on its own?

Pure: its durable `Progress`, the order and what is seen of its k3s give the one next act. A phase is durable
before what it stands for is done, and every act may be done again, so an agent that is killed in between goes
on where it was: also with putting the old program back, when there is no order in sight any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from msgspec.structs import replace

from p2p_roles.upgrade.model import UNDER_WAY, Order, Progress

FETCH_AGAIN_S: Final = 5.0


def settle_s(patience_s: float) -> float:
    """So long k3s must have been ready with the new program before it counts as well."""
    return min(15.0, max(1.0, patience_s / 20))


Deed = Literal[
    "none",
    "stage",  # fetch and check the program
    "swap",  # put the new program into place, start k3s again
    "swap-back",  # put the old one into place, start k3s again
    "note",  # only write down `progress`
]


@dataclass(frozen=True, slots=True)
class Seen:
    """What this node sees of itself.

    Attributes:
        is_begun: the deed of the present phase was done in this life of the agent.
        phase_s: for how long, or 0. ready_s: for how long k3s has been ready, since then; 0 if it is not.
        version: of the installed program.
        broken: why k3s can't work for sure, "" if it may.
        error: what k3s complains of.
        fetch_error: why the program could not be fetched; "" if it was not tried or is here.
        fetching_s: since when it is tried.
    """

    version: str
    is_begun: bool = False
    phase_s: float = 0.0
    ready_s: float = 0.0
    broken: str = ""
    error: str = ""
    fetch_error: str = ""
    fetching_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Act:
    """What to do, and what to write down before it."""

    deed: Deed
    progress: Progress


def next_act(mine: Progress, order: Order | None, seen: Seen, self_id: str) -> Act:
    """The next act. `order`: the newest of this node's cluster."""
    mine = replace(mine, version=seen.version)
    if mine.phase in UNDER_WAY:
        return _go_on(mine, order, seen)
    if order is None:
        return Act("none", mine)
    if mine.order != order.number:
        if order.state in ("back", "stopped") or seen.version in (order.version, ""):
            return Act("none", mine)
        mine = Progress(seen.version, mine.arch, order.number)
    if order.state == "back":
        if mine.phase == "done" and self_id in order.turns:
            return Act("swap-back", replace(mine, phase="returning", error=""))
        return Act("none", mine)
    if order.state == "stopped":
        return Act("none", mine)
    if mine.phase == "":
        return _fetch(mine, order, seen)
    if mine.phase == "staged" and self_id in order.turns:
        return Act("swap", replace(mine, phase="trying", before=seen.version, error=""))
    return Act("none", mine)


def _fetch(mine: Progress, order: Order, seen: Seen) -> Act:
    if order.program_for(mine.arch) is None:
        error = f"there is no program for {mine.arch} machines in this upgrade"
        return Act("note", replace(mine, phase="failed", error=error))
    if seen.fetch_error and seen.fetching_s >= order.patience_s:
        return Act("note", replace(mine, phase="failed", error=seen.fetch_error))
    return Act("stage", mine)


def _go_on(mine: Progress, order: Order | None, seen: Seen) -> Act:
    """In the middle of a change: the order of it may be gone, its patience is then the default one."""
    patience_s = order.patience_s if order is not None and order.number == mine.order else 300.0
    if mine.phase == "trying":
        if not seen.is_begun:
            return Act("swap", mine)
        if seen.ready_s >= settle_s(patience_s):
            return Act("note", replace(mine, phase="done", error=""))
        if seen.broken or (seen.phase_s >= patience_s and not seen.ready_s):
            why = seen.broken or seen.error or "k3s said nothing about it"
            error = f"k3s was not ready {seen.phase_s:.0f} s after the change: {why}"[:400]
            return Act("swap-back", replace(mine, phase="falling", error=error))
        return Act("none", mine)
    if not seen.is_begun:
        return Act("swap-back", mine)
    if mine.phase == "falling":
        return Act("note", replace(mine, phase="failed"))
    if seen.ready_s > 0:
        return Act("note", replace(mine, phase="returned", error=""))
    if seen.phase_s >= patience_s:
        return Act("note", replace(mine, phase="returned", error=seen.error or "k3s is not ready"))
    return Act("none", mine)
