"""Line charts as inline SVG, coloured by the style sheet of the page around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 380, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 36


@dataclass
class Line:
    """One line: its name, the CSS class that colours it, and its points."""

    name: str
    css: str
    points: Sequence[tuple[float, float]]


def line_chart(
    lines: Sequence[Line], *, x_label: str, y_label: str, from_zero: bool = False
) -> str:
    """An SVG of the lines with axes, grid and a title on each point; "" for no points."""
    lines = [
        Line(line.name, line.css, [p for p in line.points if all(map(math.isfinite, p))])
        for line in lines
    ]
    values = [y for line in lines for _, y in line.points]
    places = [x for line in lines for x, _ in line.points]
    if not values:
        return ""
    ticks = _ticks(0.0 if from_zero else min(values), max(values))
    low, high = ticks[0], ticks[-1]
    first, last = min(places), max(places)
    span = (last - first) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        inner_width = _WIDTH - _LEFT - _RIGHT
        inner_height = _HEIGHT - _TOP - _BOTTOM
        place = 0.5 if last == first else (x - first) / span
        return _LEFT + place * inner_width, _TOP + (high - y) / (high - low) * inner_height

    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(y_label)} by {escape(x_label)}">'
    ]
    for tick in ticks:
        _, y = at(first, tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick, ticks)}</text>'
        )
    marks = (
        [t for t in _ticks(first, last, 6) if t == int(t) and first <= t <= last]
        if last > first
        else []
    )
    for mark in marks or sorted({first, last}):
        x, _ = at(mark, low)
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{mark:g}</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    for line in lines:
        if not line.points:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line.points))
        parts.append(f'<polyline class="line {line.css}" points="{path}"/>')
        radius = 2.2 if len(line.points) <= 40 else 0.9
        for point in line.points:
            x, y = at(*point)
            parts.append(
                f'<circle class="dot {line.css}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
                f"<title>{escape(line.name)}, {escape(x_label)} {point[0]:g}: "
                f"{point[1]:.4g}</title></circle>"
            )
    parts.append("</svg>")
    return "".join(parts)


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About `wanted` round numbers from at most `low` to at least `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0) * 0.1
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    start = math.floor(low / step)
    stop = math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(start, stop + 1)]


def _number(value: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    return f"{value:.{digits}f}"
