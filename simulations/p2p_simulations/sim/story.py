"""How is a world told in a few lines, and as a sequence diagram?

The last votes before the end (or before a failure), with the states that the nodes entered and the faults
that struck them in between: as Mermaid text, which forges and editors draw, and as rows that `report` draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from p2p_simulations.sim.record import Record

STEPS: Final = 80
_TEXT_CHARS: Final = 90

Kind = Literal["ask", "answer", "state", "fault", "mark"]


@dataclass(frozen=True, slots=True)
class Step:
    """One row. `target` only for what goes from one node to another; `who` is "" for the whole world."""

    at: float
    kind: Kind
    who: str
    target: str
    text: str


def steps(record: Record, count: int = STEPS) -> tuple[Step, ...]:
    """The last `count` steps that matter, in order of time."""
    found = [Step(s.at, "answer" if s.is_answer else "ask", s.source, s.target, s.text) for s in record.said]
    for node, spans in record.roles.items():
        found += [
            Step(s.start, "state", node, "", f"{s.what}: {s.text}" if s.text else s.what) for s in spans
        ]
    found += [Step(s.start, "fault", "", "", s.text) for s in record.faults]
    found += [Step(s.start, "mark", "", "", s.text) for s in record.marks]
    found.sort(key=lambda step: step.at)
    # what comes after the last decision is mostly waiting: a failure is told up to its end all the same
    if not any(mark.what == "violation" for mark in record.marks):
        ends = [mark.start for mark in record.marks if mark.what == "certificate"]
        if ends:
            found = [step for step in found if step.at <= ends[-1] + 1.0] or found
    return tuple(found[-count:])


def mermaid(record: Record, told: Sequence[Step]) -> str:
    """A Mermaid sequence diagram."""
    names = {node: f"p{number}" for number, node in enumerate(record.regions)}
    lines = ["sequenceDiagram"]
    lines += [
        f"    participant {names[node]} as {_plain(node)} ({_plain(r)})" for node, r in record.regions.items()
    ]
    ends = list(names.values())
    everybody = ends[0] if len(ends) == 1 else f"{ends[0]},{ends[-1]}"
    for step in told:
        text = _plain(f"{step.at:.1f} s: {step.text}")
        if step.kind == "ask":
            lines.append(f"    {names[step.who]}->>{names[step.target]}: {text}")
        elif step.kind == "answer":
            lines.append(f"    {names[step.who]}-->>{names[step.target]}: {text}")
        elif step.kind == "state":
            lines.append(f"    Note over {names[step.who]}: {text}")
        else:
            lines.append(f"    Note over {everybody}: {text}")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Without what means something to Mermaid."""
    kept = "".join(c if c not in ";#:\n\r" else " " for c in text)
    return kept if len(kept) <= _TEXT_CHARS else kept[: _TEXT_CHARS - 3] + "..."
