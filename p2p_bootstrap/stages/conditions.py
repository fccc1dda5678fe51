"""Does a step run on this machine, and why not? Pure: facts and the answers to questions are passed in.

In Kairos's order: ``node``, ``only_os``, ``only_os_version``, ``only_arch``, ``only_service_manager``,
``if_files``; ``if`` comes last, since a shell must answer it. All must hold.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from p2p_bootstrap.stages.facts import Facts
from p2p_bootstrap.stages.model import Step


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a step runs. `ask` is a shell command that must succeed too; `reason` says what decided."""

    runs: bool
    reason: str
    ask: str = ""


def files_asked(step: Step) -> tuple[str, ...]:
    """The paths whose presence `judge` wants to know."""
    asked = step.if_files
    return tuple(dict.fromkeys((*asked.any, *asked.all, *asked.none))) if asked else ()


def judge(step: Step, facts: Facts, present: Collection[str] = ()) -> Verdict:
    """Decide. `present`: those of `files_asked` that are there."""
    refusal = (
        _node(step.node, facts)
        or _matches("only_os", step.only_os, (facts.os_name, facts.os_id), "the system")
        or _matches("only_os_version", step.only_os_version, (facts.os_version,), "the system's version")
        or _matches("only_arch", step.only_arch, (facts.arch, facts.machine), "the processor")
        or _service_manager(step.only_service_manager, facts)
        or _files(step, frozenset(present))
    )
    if refusal:
        return Verdict(False, refusal)
    if step.if_:
        return Verdict(True, "its if decides", step.if_)
    return Verdict(True, "nothing speaks against it")


def _node(pattern: str, facts: Facts) -> str:
    if not pattern or pattern == facts.hostname or re.search(pattern, facts.hostname):
        return ""
    return f"this node is {facts.hostname or 'nameless'}, not {pattern}"


def _matches(key: str, pattern: str, values: Collection[str], what: str) -> str:
    if not pattern or any(value and re.search(pattern, value) for value in values):
        return ""
    found = ", ".join(dict.fromkeys(value for value in values if value)) or "unknown"
    return f"{key} {pattern}: {what} is {found}"


def _service_manager(wanted: str, facts: Facts) -> str:
    if not wanted or wanted == facts.service_manager:
        return ""
    return f"only_service_manager {wanted}: this system has {facts.service_manager or 'none'}"


def _files(step: Step, present: frozenset[str]) -> str:
    asked = step.if_files
    if asked is None:
        return ""
    missing = [path for path in asked.all if path not in present]
    if missing:
        return f"if_files all: {missing[0]} is not there"
    if asked.any and present.isdisjoint(asked.any):
        return f"if_files any: none of {', '.join(asked.any)} is there"
    there = [path for path in asked.none if path in present]
    return f"if_files none: {there[0]} is there" if there else ""
