"""How are a world's timeline, map and votes drawn? SVG text, made of a record; `report` puts it into a page.

Everything that came from outside (names, reasons) is escaped. Widths are in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Final

from p2p_simulations.sim.record import Record, Span
from p2p_simulations.sim.story import Step

WIDTH: Final = 1000
LEFT: Final = 120
_ROW: Final = 30
_MAP: Final = (640, 420)

COLOURS: Final = {
    "off": "#3f4650", "dead": "#8a4b4b", "gone": "#17191c", "frozen": "#8fd3ff", "starting": "#d5dae0",
    "DISCOVER": "#b9c2cd", "ELECT": "#e8b04b", "INIT": "#8e63ce", "WAIT": "#7aa6d8", "JOIN": "#45aebb",
    "FENCED": "#e0605b", "MEMBER": "#bcd9a6", "server ready": "#23804b", "agent ready": "#6fc08a",
    "ready": "#6fc08a",
}  # fmt: skip
K3S_COLOURS: Final = {"starting": "#e8b04b", "running": "#7aa6d8", "ready": "#23804b", "failed": "#e0605b"}
_MARKS: Final = {"certificate": "#3568b8", "alarm": "#e07b00", "healing": "#2e8b57", "violation": "#c9302c"}


def timeline(record: Record) -> str:
    """A row per node: what it was, and below it what its k3s did; faults above, certificates as lines."""
    end = max(record.ended_s, 1.0)
    lanes = _fault_lanes(record.faults)
    top = 24 + 9 * len(lanes)
    height = top + _ROW * len(record.regions) + 96

    def x(moment: float) -> float:
        return LEFT + moment / end * WIDTH

    parts = [f'<svg viewBox="0 0 {LEFT + WIDTH + 20} {height}" width="100%" role="img">']
    bottom = top + _ROW * len(record.regions)
    for moment in _ticks(end):
        parts.append(
            f'<line class="grid" x1="{x(moment):.1f}" y1="16" x2="{x(moment):.1f}" y2="{bottom + 74}"/>'
        )
        parts.append(
            f'<text class="soft" x="{x(moment):.1f}" y="12" text-anchor="middle">{_clock(moment)}</text>'
        )
    for number, lane in enumerate(lanes):
        for span in lane:
            width = max(3.0, x(span.end) - x(span.start))
            parts.append(
                _bar(x(span.start), 20 + 9 * number, width, 7, "#d98a1f", f"{span.start:.1f} s: {span.text}")
            )
    if lanes:
        parts.append('<text class="soft" x="0" y="28">faults</text>')
    for number, (node, region) in enumerate(record.regions.items()):
        y = top + _ROW * number + 6
        parts.append(
            f'<text x="0" y="{y + 12}">{escape(node)} <tspan class="soft">{escape(region)}</tspan></text>'
        )
        parts.append(f'<rect class="lane" x="{LEFT}" y="{y}" width="{WIDTH}" height="20"/>')
        parts += _bars(record.roles.get(node, ()), COLOURS, x, y, 14)
        parts += _bars(record.k3s.get(node, ()), K3S_COLOURS, x, y + 15, 5)
    parts += _rate(record, end, bottom + 8)
    for mark in record.marks:
        colour = _MARKS[mark.what]
        parts.append(
            f'<line x1="{x(mark.start):.1f}" x2="{x(mark.start):.1f}" y1="{top}" y2="{bottom}" '
            f'stroke="{colour}" '
            f'stroke-width="1.6" stroke-dasharray="{"" if mark.what == "violation" else "2 3"}">'
            f"<title>{mark.start:.1f} s: {escape(mark.text)}</title></line>"
        )
    parts.append(
        f'<line id="hand" x1="{LEFT}" x2="{LEFT}" y1="16" y2="{bottom + 70}" stroke="#c9302c"/></svg>'
    )
    return "".join(parts)


def _bars(
    spans: Iterable[Span], colours: Mapping[str, str], x: Callable[[float], float], y: float, height: float
) -> list[str]:
    return [
        _bar(x(s.start), y, max(0.8, x(s.end) - x(s.start)), height, colours[s.what],
             f"{s.start:.1f} to {s.end:.1f} s: {s.what}. {s.text}")
        for s in spans if s.what in colours
    ]  # fmt: skip


def _bar(x: float, y: float, width: float, height: float, colour: str, title: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" rx="1.5" fill="{colour}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _fault_lanes(faults: Sequence[Span]) -> list[list[Span]]:
    """Faults that overlap go below one another; at most eight lanes."""
    lanes: list[list[Span]] = []
    for span in sorted(faults, key=lambda span: span.start):
        free = next((lane for lane in lanes if lane[-1].end + 1 < span.start), None)
        if free is None and len(lanes) < 8:
            lanes.append(free := [])
        (free if free is not None else lanes[-1]).append(span)
    return lanes


def _rate(record: Record, end: float, y: float) -> list[str]:
    """Messages per second, as an area."""
    height, count = 50.0, 250
    width_s = end / count
    sums = [0.0] * count
    for second, sent in record.sent.items():
        sums[min(count - 1, int(second / width_s))] += sent / max(width_s, 1.0)
    most = max([*sums, 1.0])
    points = [
        f"{LEFT + (i + 0.5) * WIDTH / count:.1f},{y + height - value / most * height:.1f}"
        for i, value in enumerate(sums)
    ]
    path = f"M{LEFT},{y + height:.1f} L" + " L".join(points) + f" L{LEFT + WIDTH},{y + height:.1f} Z"
    return [
        f'<text class="soft" x="0" y="{y + 14}">messages/s</text>',
        f'<text class="soft" x="0" y="{y + 28}">at most {most:.0f}</text>',
        f'<path d="{path}" fill="#3568b8" fill-opacity="0.35" stroke="#3568b8"/>',
    ]


def _ticks(end: float) -> list[float]:
    step = next((s for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600) if end / s <= 12), 7200)
    return [float(moment) for moment in range(0, int(end) + 1, step)]


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


# ---------------------------------------------------------------- map


def places(record: Record) -> dict[str, tuple[float, float]]:
    """Where each node stands on the map: regions on a ring, nodes on a ring in their region."""
    regions = list(dict.fromkeys(record.regions.values()))
    found: dict[str, tuple[float, float]] = {}
    for region, (x, y, _) in _region_circles(regions).items():
        nodes = [node for node, where in record.regions.items() if where == region]
        radius = 0.0 if len(nodes) == 1 else min(46.0, 18 + 5 * len(nodes))
        for number, node in enumerate(nodes):
            angle = 2 * math.pi * number / len(nodes) - math.pi / 2
            found[node] = (round(x + radius * math.cos(angle), 1), round(y + radius * math.sin(angle), 1))
    return found


def _region_circles(regions: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    width, height = _MAP
    found = {}
    for number, region in enumerate(regions):
        angle = 2 * math.pi * number / len(regions) - math.pi / 2
        spread = 0.0 if len(regions) == 1 else 1.0
        found[region] = (
            width / 2 + spread * 215 * math.cos(angle),
            height / 2 + spread * 125 * math.sin(angle) + 6,
            70.0 if len(regions) <= 6 else 46.0,
        )
    return found


def region_map(record: Record) -> str:
    """Regions and their nodes; the page's script colours the nodes and draws the cuts."""
    width, height = _MAP
    regions = list(dict.fromkeys(record.regions.values()))
    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">']
    circles = _region_circles(regions)
    for a, (x1, y1, _) in circles.items():
        for b, (x2, y2, _) in circles.items():
            if a < b:
                parts.append(f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    for region, (x, y, radius) in circles.items():
        parts.append(f'<circle class="lane" cx="{x:.1f}" cy="{y:.1f}" r="{radius}" stroke="#9aa7b5"/>')
        parts.append(
            f'<text class="soft" x="{x:.1f}" y="{y - radius - 5:.1f}" text-anchor="middle">'
            f"{escape(region)}</text>"
        )
    parts.append('<g id="links"></g>')
    for node, (x, y) in places(record).items():
        parts.append(
            f'<circle id="dot-{escape(node)}" cx="{x}" cy="{y}" r="12" fill="#999" '
            'stroke="#fff" stroke-width="2">'
            f"<title>{escape(node)}</title></circle>"
            f'<text class="soft" x="{x}" y="{y + 24}" text-anchor="middle">{escape(node)}</text>'
        )
    return "".join([*parts, "</svg>"])


# ---------------------------------------------------------------- votes


def sequence(record: Record, told: Sequence[Step]) -> str:
    """A sequence diagram: a column per node, a row per step."""
    nodes = list(record.regions)
    gap = max(96.0, min(200.0, 900 / max(1, len(nodes))))
    column = {node: 90 + gap * (number + 0.5) for number, node in enumerate(nodes)}
    width, height = 90 + gap * len(nodes) + 20, 46 + 22 * len(told)
    parts = [
        f'<svg viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" role="img"><defs>'
        '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#5d6b7a"/></marker></defs>'
    ]
    for node, x in column.items():
        parts.append(f'<text x="{x:.0f}" y="14" text-anchor="middle">{escape(node)}</text>')
        parts.append(f'<line class="grid" x1="{x:.0f}" x2="{x:.0f}" y1="22" y2="{height}"/>')
    for number, step in enumerate(told):
        y = 42 + 22 * number
        parts.append(f'<text class="soft" x="0" y="{y}">{step.at:.2f} s</text>')
        text = escape(step.text if len(step.text) <= 70 else step.text[:67] + "...")
        title = f"<title>{escape(step.text)}</title>"
        if step.target:
            x1, x2 = column[step.who], column[step.target]
            dashed = ' stroke-dasharray="4 3"' if step.kind == "answer" else ""
            parts.append(
                f'<g>{title}<line x1="{x1:.0f}" x2="{x2:.0f}" y1="{y}" y2="{y}" stroke="#5d6b7a"{dashed} '
                f'marker-end="url(#tip)"/><text class="soft" x="{(x1 + x2) / 2:.0f}" y="{y - 3}" '
                f'text-anchor="middle">{text}</text></g>'
            )
        elif step.who:
            x = column[step.who]
            word = step.text.partition(":")[0]
            colour = COLOURS.get(word, "#999")
            parts.append(
                f'<g>{title}<circle cx="{x:.0f}" cy="{y - 4}" r="6" fill="{colour}"/>'
                f'<text class="soft" x="{x + 10:.0f}" y="{y}">{escape(word)}</text></g>'
            )
        else:
            colour = "#d98a1f" if step.kind == "fault" else "#3568b8"
            parts.append(
                f'<g>{title}<rect x="90" y="{y - 13}" width="{width - 110:.0f}" height="17" fill="{colour}" '
                f'fill-opacity="0.18" rx="3"/><text class="soft" x="98" y="{y}">{text}</text></g>'
            )
    return "".join([*parts, "</svg>"])
