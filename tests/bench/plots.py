"""Plots of the benchmarks: small SVG files, made without a library."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, LEFT, ROW = 760, 190, 28
COLOURS = ("#4c6ef5", "#12b886", "#868e96", "#f59f00", "#e64980", "#7950f2")


def bars(path: Path, title: str, figures: dict[str, list[float]]) -> None:
    """Medians as bars, ranges as whiskers."""
    top = max((max(values) for values in figures.values() if values), default=1.0) or 1.0
    scale = (WIDTH - LEFT - 90) / top
    body = []
    for index, (name, values) in enumerate(figures.items()):
        y = 44 + index * ROW
        body.append(f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        if values:
            middle = statistics.median(values)
            low, high = LEFT + min(values) * scale, LEFT + max(values) * scale
            colour = COLOURS[0] if name.startswith("ours") else COLOURS[2]
            body.append(
                f'<rect x="{LEFT}" y="{y}" width="{middle * scale:.1f}" height="18" fill="{colour}"/>'
            )
            body.append(f'<path d="M{low:.1f} {y + 9}H{high:.1f}" stroke="#212529" stroke-width="2"/>')
            body.append(f'<text x="{max(high, LEFT) + 8:.1f}" y="{y + 14}">{middle:.2f}</text>')
    _write(path, title, body, 60 + len(figures) * ROW)


def lines(path: Path, title: str, figures: dict[str, list[float]], ticks: list[str]) -> None:
    """One line per name over the ticks, on a logarithmic scale."""
    known = [v for values in figures.values() for v in values if v and not math.isnan(v)]
    low, high = math.log10(max(0.01, min(known, default=1))), math.log10(max(known, default=10) * 1.2)
    height, step = 300, (WIDTH - 260) / max(1, len(ticks) - 1)

    def y_of(value: float) -> float:
        return 40 + height * (1 - (math.log10(max(value, 0.01)) - low) / max(0.01, high - low))

    body = []
    for index, tick in enumerate(ticks):
        x = 60 + index * step
        body.append(
            f'<text transform="translate({x:.0f} {height + 60}) rotate(40)" font-size="11">'
            f"{escape(tick)}</text>"
        )
    for power in range(math.floor(low), math.ceil(high) + 1):
        if low <= power <= high:
            y = y_of(10.0**power)
            body.append(f'<path d="M50 {y:.0f}H{WIDTH - 190}" stroke="#dee2e6"/>')
            body.append(f'<text x="46" y="{y + 4:.0f}" text-anchor="end">{10.0**power:g}</text>')
    for index, (name, values) in enumerate(figures.items()):
        colour = COLOURS[index % len(COLOURS)]
        points = [
            f"{60 + i * step:.0f},{y_of(v):.1f}" for i, v in enumerate(values) if v and not math.isnan(v)
        ]
        body.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body.append(f'<text x="{WIDTH - 180}" y="{60 + index * 20}" fill="{colour}">{escape(name)}</text>')
    _write(path, title, body, height + 140)


def _write(path: Path, title: str, body: list[str], height: int) -> None:
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="12" y="24" font-size="15" font-weight="bold">{escape(title)}</text>{"".join(body)}</svg>\n'
    )
