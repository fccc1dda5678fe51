"""How are the costs of growing meshes drawn? Three curves on logarithmic scales, as one SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from p2p_simulations.sim.scale import Cost

_WIDTH, _HEIGHT, _GAP = 300, 220, 90
_OURS, _THEIRS = "#3568b8", "#d98a1f"
Line = tuple[str, str, Callable[[Cost], float]]
_PANELS: Final[tuple[tuple[str, str, tuple[Line, ...]], ...]] = (
    ("seconds until all ledgers are equal", "s", (("", _OURS, lambda c: c.converged_s),)),
    (
        "messages per node",
        "",
        (
            ("until equal", _OURS, lambda c: c.messages),
            ("idle, per minute", "#2e8b57", lambda c: c.idle_messages),
        ),
    ),
    (
        "bytes per node and minute, idle",
        "B",
        (
            ("kairos-p2p", _OURS, lambda c: c.idle_bytes),
            ("whole ledger every 10 s", _THEIRS, lambda c: c.broadcast_bytes),
        ),
    ),
)


def curves(costs: Sequence[Cost]) -> str:
    """The SVG. `costs`: at least two, by number of nodes."""
    width = len(_PANELS) * (_WIDTH + _GAP) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT + 90}" width="{width}" '
        f'height="{_HEIGHT + 90}" font-family="system-ui, DejaVu Sans, sans-serif" font-size="12">'
        f'<rect width="{width}" height="{_HEIGHT + 90}" fill="#ffffff"/>'
    ]
    for number, (title, unit, lines) in enumerate(_PANELS):
        parts += _panel(costs, 60 + number * (_WIDTH + _GAP), 40, title, unit, lines)
    return "".join([*parts, "</svg>\n"])


def _panel(
    costs: Sequence[Cost], left: float, top: float, title: str, unit: str, lines: Sequence[Line]
) -> list[str]:
    values = [max(value(cost), 1e-3) for _, _, value in lines for cost in costs]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    first, last = math.log10(costs[0].nodes), math.log10(costs[-1].nodes)

    def x(nodes: int) -> float:
        return left + (math.log10(nodes) - first) / max(last - first, 1e-9) * _WIDTH

    def y(value: float) -> float:
        return top + _HEIGHT - (math.log10(max(value, 1e-3)) - low) / (high - low) * _HEIGHT

    parts = [f'<text x="{left}" y="{top - 16}" font-weight="bold" fill="#1d2733">{title}</text>']
    step = max(1, math.ceil((high - low) / 7))
    for power in range(low, high + 1, step):
        at = y(10.0**power)
        parts.append(f'<line x1="{left}" x2="{left + _WIDTH}" y1="{at:.1f}" y2="{at:.1f}" stroke="#dde3ea"/>')
        parts.append(
            f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end" fill="#5d6b7a">'
            f"{_big(power, unit)}</text>"
        )
    for cost in costs:
        parts.append(
            f'<text x="{x(cost.nodes):.1f}" y="{top + _HEIGHT + 18}" text-anchor="middle" fill="#5d6b7a">'
            f"{cost.nodes:,}</text>"
        )
    for number, (name, colour, value) in enumerate(lines):
        points = " ".join(f"{x(cost.nodes):.1f},{y(value(cost)):.1f}" for cost in costs)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(cost.nodes):.1f}" cy="{y(value(cost)):.1f}" r="3.5" fill="{colour}">'
            f"<title>{cost.nodes} nodes: {value(cost):,.1f} {unit}</title></circle>"
            for cost in costs
        ]
        if name:
            parts.append(f'<text x="{left + 8}" y="{top + 14 + 16 * number}" fill="{colour}">{name}</text>')
    return parts


def _big(power: int, unit: str) -> str:
    names = {0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}
    thousands = power // 3 * 3
    if thousands not in names:
        return f"10^{power} {unit}".strip()
    return f"{10 ** (power - thousands)} {names[thousands]}{unit}".strip()
