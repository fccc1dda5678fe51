"""What does a world look like? One HTML file that needs nothing else: no server, no network, no other file.

Verdict and figures, a timeline with a row per node, a map of the regions that can be played back, the votes
as a sequence diagram, the trace, and the scenario that plays it again. Its own policy forbids the page to
load or send anything; all data that came from a world is escaped.
"""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from typing import Any

from p2p_bootstrap.cli.options import format_duration
from p2p_simulations.sim import drawing, story
from p2p_simulations.sim.record import Span
from p2p_simulations.sim.world import Outcome
from p2p_simulations.sim.writing import render

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_MAX_LINES = 5000


def report(outcome: Outcome, *, again: str, description: str = "") -> str:
    """The page of one world. `again`: the command that plays it again. The outcome must have a record."""
    record = outcome.record
    assert record is not None, "only a world that was drawn can be shown"
    told = story.steps(record)
    title = description or outcome.plan.name
    bad = bool(outcome.violation)
    healed = next((mark.start for mark in record.marks if mark.what == "healing"), record.ended_s)
    data: dict[str, Any] = {
        "end": max(record.ended_s, 1.0),
        "healed": healed,
        "left": drawing.LEFT,
        "width": drawing.WIDTH,
        "colours": drawing.COLOURS,
        "places": drawing.places(record),
        "roles": {node: [_row(span) for span in spans] for node, spans in record.roles.items()},
        "faults": [[span.start, span.end, span.text] for span in record.faults],
        "cuts": [[start, end, sorted(pairs)] for start, end, pairs in record.cuts],
    }
    sections = [
        _head(outcome, title, again, bad),
        _figures(outcome),
        _card("Timeline", drawing.timeline(record) + _legend()),
        _card(
            "Map",
            '<div class="controls"><button id="play">play</button>'
            f'<input type="range" id="time" min="0" max="{data["end"]:.3f}" step="0.1" value="{healed:.3f}" '
            'aria-label="virtual time"><span id="clock"></span></div><div id="says"></div>'
            + drawing.region_map(record),
        ),
        _card(
            f"The {'last steps before the failure' if bad else 'votes, up to the last certificate'}",
            drawing.sequence(record, told)
            + "<details><summary>the same as Mermaid text</summary><pre id='mermaid'>"
            + escape(story.mermaid(record, told))
            + "</pre></details>",
        ),
        _card("Trace", _trace(outcome)),
        _card(
            "Scenario",
            f"<p>Play it again: <code>{escape(again)}</code></p><pre>{escape(render(outcome.plan))}</pre>",
        ),
    ]
    page = files("p2p_simulations.sim") / "page"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} (seed {outcome.seed})</title>"
        f"<style>{(page / 'report.css').read_text()}</style></head><body><main>"
        + "".join(sections)
        + f'</main><script type="application/json" id="data">{_embedded(data)}</script>'
        f"<script>{(page / 'report.js').read_text()}</script></body></html>\n"
    )


def _embedded(data: Any) -> str:
    """JSON that can't end the element it stands in."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _row(span: Span) -> list[Any]:
    return [round(span.start, 3), round(span.end, 3), span.what, span.text[:300]]


def _head(outcome: Outcome, title: str, again: str, bad: bool) -> str:
    verdict = "an invariant did not hold" if bad else "everything held"
    why = f'<p class="why">{escape(outcome.violation)}</p>' if bad else ""
    if not bad and outcome.exempt:
        why = f"<p>No cluster of all nodes was expected: {escape(outcome.exempt)}.</p>"
    return (
        f"<h1>{escape(title)}</h1><p class='lead'>seed {outcome.seed}, trace {outcome.trace_hash}</p>"
        f'<span class="verdict {"bad" if bad else "good"}">{verdict}</span><code>{escape(again)}</code>{why}'
    )


def _figures(outcome: Outcome) -> str:
    healed = "" if outcome.violation or outcome.exempt else format_duration(outcome.healed_after_s)
    figures = [
        (str(len(outcome.plan.nodes)), "nodes"),
        (str(len({node.region for node in outcome.plan.nodes})), "regions"),
        (format_duration(outcome.virtual_s), "of virtual time"),
        (f"{outcome.events:,}", "events"),
        (f"{outcome.messages:,}", "messages"),
        (f"{outcome.bytes / 1e6:.1f} MB", "sent"),
        (
            ("at once" if outcome.healed_after_s == 0 else healed) if healed else "-",
            "from healing to one cluster",
        ),
    ]
    return "<div class='cards'>" + "".join(
        f'<div class="figure"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
        for value, what in figures
    ) + "</div>"  # fmt: skip


def _legend() -> str:
    roles = "".join(
        f'<span><i style="background:{colour}"></i>{escape(state)}</span>'
        for state, colour in drawing.COLOURS.items()
        if state != "ready"
    )
    k3s = "".join(
        f'<span><i style="background:{colour};height:5px"></i>k3s {state}</span>'
        for state, colour in drawing.K3S_COLOURS.items()
    )
    return f'<div class="legend">{roles}{k3s}</div>'


def _card(title: str, content: str) -> str:
    return f'<section class="card"><h2>{escape(title)}</h2>{content}</section>'


def _trace(outcome: Outcome) -> str:
    rows = []
    lines = outcome.trace[-_MAX_LINES:]
    for line in lines:
        at, who, what = line[:10].strip(), line[11:19].strip(), line[20:]
        kind = "fault" if who == "(fault)" else "world" if who == "(world)" else ""
        if "VIOLATION" in what or what.startswith("ALARM"):
            kind = "bad"
        rows.append(
            f'<tr class="{kind}"><td>{escape(at)}</td><td>{escape(who)}</td><td>{escape(what)}</td></tr>'
        )
    left = len(outcome.trace) - len(lines)
    note = f"<p>{left} earlier lines are left out.</p>" if left else ""
    return (
        '<input type="search" id="find" placeholder="only lines with ..." aria-label="filter the trace">'
        f'{note}<div class="trace"><table>{"".join(rows)}</table></div>'
    )
