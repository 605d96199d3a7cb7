"""Curves as an inline SVG that follows the page's colours: lines with a legend, axes with units, a grid.

Blue and orange are told apart by those who see no red or green, and the lines differ in width and marks as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from gptmodel.markdown_text import spread

Point = tuple[float, float]

CHART_STYLE = """
.chart { width: 100%; max-width: 760px; min-width: 520px; height: auto; }
.chart text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.chart .title { fill: var(--ink); }
.chart .grid { stroke: var(--line); stroke-width: 1; opacity: .3; }
.chart .axis { stroke: var(--line); stroke-width: 1; }
.chart polyline { fill: none; stroke-linejoin: round; }
.chart .blue { stroke: #0072b2; stroke-width: 1.3; }
.chart .orange { stroke: #d98200; stroke-width: 2.2; }
.chart .dot { fill: #d98200; }
.chart .reference { stroke: var(--soft); stroke-width: 1.3; stroke-dasharray: 6 4; }
@media (prefers-color-scheme: dark) { .chart .blue { stroke: #56b4e9; } .chart .orange { stroke: #f0a830; }
  .chart .dot { fill: #f0a830; } }
"""
_WIDTH, _HEIGHT = 760, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 70, 40, 48
_POINTS = 600  # of a curve: more would not be seen


@dataclass(frozen=True)
class Line:
    """A curve: its name, `blue` or `orange`, and its points in the order of x."""

    name: str
    colour: str
    points: Sequence[Point]
    marks: bool = False


def line_chart(
    lines: Sequence[Line],
    x_name: str,
    y_name: str,
    *,
    x_words: Callable[[float], str],
    right: tuple[str, Callable[[float], float], Sequence[float]] | None = None,
    reference: tuple[str, float] | None = None,
) -> str:
    """The drawing; empty where no line has two finite points.

    `right` is a second scale: its name, what of it is a value of y, and its ticks. `reference` is a level with a name.
    """
    finite = [(line, [p for p in line.points if math.isfinite(p[0]) and math.isfinite(p[1])]) for line in lines]
    drawn = [(line, points) for line, points in finite if points]
    if not any(len(points) > 1 for _, points in drawn):
        return ""
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points] + ([reference[1]] if reference else [])
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    frame = _Frame(min(*xs, x_ticks[0]), max(xs), min(*ys, y_ticks[0]), max(*ys, y_ticks[-1]))
    parts = [*_grid(frame, x_ticks, y_ticks, x_words), *_names(x_name, y_name)]
    if right is not None:
        parts += _right_scale(frame, *right)
    if reference is not None:
        y = frame.y(reference[1])
        parts.append(f'<line class="reference" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts += [_curve(frame, line, points) for line, points in drawn]
    parts += _legend([line for line, _ in drawn], reference[0] if reference else "")
    label = f"{', '.join(line.name for line, _ in drawn)}: {y_name} against {x_name}"
    opening = f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">\n'
    return opening + "\n".join(parts) + "\n</svg>\n"


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from at most `low` to at least `high`; two at least."""
    span = (high - low) or abs(high) or 1.0
    raw = span / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class _Frame:
    """Values to pixels."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - self.x_low) / ((self.x_high - self.x_low) or 1.0)

    def y(self, value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (self.y_high - value) / ((self.y_high - self.y_low) or 1.0)


def _grid(
    frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_words: Callable[[float], str]
) -> list[str]:
    parts, end = [], _HEIGHT - _BOTTOM
    for tick in y_ticks:
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        if tick <= frame.x_high:
            x = frame.x(tick)
            parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{end}" y2="{end + 5}"/>')
            parts.append(f'<text x="{x:.1f}" y="{end + 19}" text-anchor="middle">{escape(x_words(tick))}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{end}" y2="{end}"/>')
    return parts


def _names(x_name: str, y_name: str) -> list[str]:
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return [
        f'<text class="title" x="{middle:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>',
        f'<text class="title" x="0" y="14">{escape(y_name)}</text>',
    ]


def _right_scale(frame: _Frame, name: str, to_y: Callable[[float], float], marks: Sequence[float]) -> list[str]:
    parts = [f'<text class="title" x="{_WIDTH}" y="14" text-anchor="end">{escape(name)}</text>']
    for mark in marks:
        if frame.y_low <= (value := to_y(mark)) <= frame.y_high:
            parts.append(f'<text x="{_WIDTH - _RIGHT + 8}" y="{frame.y(value) + 4:.1f}">{mark:,.0f}</text>')
    return parts


def _curve(frame: _Frame, line: Line, points: Sequence[Point]) -> str:
    places = [(frame.x(x), frame.y(y)) for x, y in spread(points, _POINTS)]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in places) if line.marks else ""
    return f'<polyline class="{line.colour}" points="{drawn}"/>{dots}'


def _legend(lines: Sequence[Line], reference: str) -> list[str]:
    parts, x, y = [], 190.0, 10
    for name, kind in [
        *((line.name, line.colour) for line in lines),
        *([(reference, "reference")] if reference else []),
    ]:
        parts.append(f'<line class="{kind}" x1="{x:.0f}" x2="{x + 22:.0f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{x + 28:.0f}" y="{y + 4}">{escape(name)}</text>')
        x += 28 + 6.6 * len(name) + 18
    return parts
