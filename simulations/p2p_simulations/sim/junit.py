"""What did a run say, in the form that CI systems show? JUnit XML: one suite, one case per world."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from p2p_simulations.sim.world import Outcome

_TRACE_LINES = 200


def junit(name: str, outcomes: Sequence[Outcome], took_s: Sequence[float]) -> str:
    """The document. `took_s`: real seconds, one for each outcome."""
    failures = sum(bool(outcome.violation) for outcome in outcomes)
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        f'<testsuites><testsuite name={quoteattr(_clean(name))} tests="{len(outcomes)}" '
        f'failures="{failures}" errors="0" skipped="0" time="{sum(took_s):.3f}">',
    ]
    for outcome, seconds in zip(outcomes, took_s, strict=True):
        title = quoteattr(_clean(f"{name} seed {outcome.seed}"))
        lines.append(f'<testcase classname="kairos-p2p.sim" name={title} time="{seconds:.3f}">')
        if outcome.violation:
            message = quoteattr(_clean(outcome.violation))
            trace = escape(_clean("\n".join(outcome.trace[-_TRACE_LINES:])))
            lines.append(f'<failure message={message} type="violation">{trace}</failure>')
        said = (
            f"{outcome.events} events, {outcome.messages} messages, {outcome.virtual_s:.0f} s of virtual "
            f"time, trace {outcome.trace_hash}" + (f"; {outcome.exempt}" if outcome.exempt else "")
        )
        lines += [f"<system-out>{escape(_clean(said))}</system-out>", "</testcase>"]
    lines.append("</testsuite></testsuites>")
    return "\n".join(lines) + "\n"


def _clean(text: str) -> str:
    """Without the characters that XML has no place for."""
    return "".join(c for c in text if c in "\t\n\r" or (ord(c) >= 0x20 and not 0xD800 <= ord(c) <= 0xDFFF))
