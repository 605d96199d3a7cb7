"""The page of `gptflow diff --html`: one file with both curves as SVG and all that differs in tables."""

from __future__ import annotations

import html
import math
from typing import Any

from gptmodel.lineage.differences import Change, Curve, Listing
from gptmodel.reproduction.comparing import Comparison
from gptmodel.reproduction.sides import Side

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } td, th { padding: .15rem .8rem; text-align: left }
td { border-top: 1px solid #ddd; overflow-wrap: anywhere; font-variant-numeric: tabular-nums }
h2 { font-size: 1.1rem; margin: 1.5rem 0 0 } .a { color: #0b62a8 } .b { color: #c2410c } svg { width: 100% }
"""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 300, 60, 30
_POINTS = 2_000  # of a curve: more would not be seen


def page_of(found: Comparison, a: Side, b: Side) -> str:
    """The whole page."""
    parts = [
        f"<h1>{'The same bytes' if found.same else 'What differs'}</h1>",
        f"<p><b class=a>a</b> {_text(found.a)} <code>{a.digest[:16]}</code><br>"
        f"<b class=b>b</b> {_text(found.b)} <code>{b.digest[:16]}</code></p>",
        "".join(f"<p>Note: {_text(note)}</p>" for note in found.notes),
        _plot(a.curve, b.curve, "train/loss"),
        _plot(a.curve, b.curve, "validation/loss"),
        _first(found),
        _table("Content digests", found.digests),
        _documents(found),
        _table("Settings", found.config),
        _table("Code", found.code),
        _table("Environment", found.environment),
        _table("Figures", found.results),
    ]
    title = f"{_text(found.a)} and {_text(found.b)}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _text(value: Any) -> str:
    return html.escape("–" if value is None else str(value))


def _first(found: Comparison) -> str:
    if not found.curves:
        return ""
    if (first := found.first_difference) is None:
        return "<p>The curves are the same to the bit at every step that both have.</p>"
    return f"<p>They first differ at step {first.step:,}: {_text(first.metric)} {first.a!r} and {first.b!r}.</p>"


def _table(title: str, changes: list[Change]) -> str:
    if not changes:
        return f"<h2>{title}</h2><p>The same.</p>"
    rows = "".join(f"<tr><td>{_text(c.name)}<td>{_text(c.a)}<td>{_text(c.b)}" for c in changes)
    return f"<h2>{title}</h2><table><tr><th><th class=a>a<th class=b>b{rows}</table>"


def _documents(found: Comparison) -> str:
    if (documents := found.documents) is None:
        return ""
    head = f"<h2>Documents</h2><p>{documents.same:,} in both, {documents.changed:,} with other text under one name.</p>"
    listings = (("Only in b", documents.added), ("Only in a", documents.removed), ("Moved", documents.moved))
    return head + "".join(_listing(title, listing) for title, listing in listings if listing.documents)


def _listing(title: str, listing: Listing) -> str:
    rows = "".join(
        f"<tr><td><code>{row['id'][:12]}</code><td>{_text(row['source'])}<td>{row['bytes']:,}<td>{row['split']}"
        for row in listing.first
    )
    more = listing.documents - len(listing.first)
    rest = f"<p>and {more:,} more</p>" if more else ""
    return f"<h3>{title}: {listing.documents:,} documents, {listing.bytes:,} bytes</h3><table>{rows}</table>{rest}"


def _plot(a: Curve, b: Curve, name: str) -> str:
    """Both curves of one figure, on one scale."""
    series = [[(s, m[name]) for s, m in sorted(c.items()) if math.isfinite(m.get(name, math.nan))] for c in (a, b)]
    points = [point for side in series for point in side]
    if not points:
        return ""
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high, last = min(values), max(values), max(steps)
    span = (high - low) or 1.0

    def place(step: int, value: float) -> str:
        x = _LEFT + (_WIDTH - _LEFT) * (step - min(steps)) / max(1, last - min(steps))
        y = (_HEIGHT - _BOTTOM) * (1 - (value - low) / span) + 5
        return f"{x:.1f},{y:.1f}"

    lines = []
    for css, side in zip("ab", series, strict=True):
        thin = side[:: max(1, len(side) // _POINTS)]
        drawn = " ".join(place(*point) for point in thin)
        lines.append(f'<polyline class={css} fill="none" stroke="currentColor" stroke-width="1.5" points="{drawn}"/>')
    words = (
        f'<text x="0" y="14">{high:.3f}</text><text x="0" y="{_HEIGHT - _BOTTOM + 5}">{low:.3f}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 5}">step {min(steps):,}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 5}" text-anchor="end">{last:,}</text>'
    )
    picture = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}" font-size="13">'
    return f"<h2>{name}</h2>{picture}{''.join(lines)}{words}</svg>"
