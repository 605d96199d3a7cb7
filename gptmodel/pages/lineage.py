"""A lineage as one HTML page with its drawing inside: for a browser, a mail, or an artifact of an MLflow run.

It loads nothing and runs nothing. Every text of a node is escaped: names and figures come from manifests, which anybody
may have written. Kinds have colours, and each is written too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from gptmodel.lineage.graph import MODELS, Graph, Node
from gptmodel.lineage.layout import Slot, lay_out
from gptmodel.lineage.text import STATES, Line, date_of, digest_of, fitted, phrases, plain, short_name, trouble
from gptmodel.pages.frame import html_page, standalone

_COLOURS = {
    "source": "#7f7f7f",
    "corpus": "#0072b2",
    "data-check": "#999933",
    "weights": "#56b4e9",
    "shards": "#009e73",
    "checkpoint": "#e69f00",
    "evaluation": "#cc79a7",
    "benchmark": "#d55e00",
    "rating-round": "#b8a9c9",
    "comparison": "#117733",
    "scaling-law": "#332288",
    "ratings": "#882255",
    "version": "#f0e442",
}
_BOX, _LINE, _PAD, _STRIPE = 184, 16, 9, 6  # pixels
_GAP, _BETWEEN = 16, 44  # between boxes of a layer, and between layers
_MARGIN = 2  # half the stroke of a frame, and a little
_COLUMNS_OF_TEXT = {"name": 22}  # of its larger letters; 26 of the others
_MOST_PHRASES = 6
_NARROW, _ROWS_FIT = 1040, 740  # pixels: below the first a page has rows for layers, if their boxes fit in the second

_STYLE = """
svg text { fill: var(--ink); font-size: 12px; }
svg .kind { fill: var(--soft); font-size: 11px; letter-spacing: .06em; text-transform: uppercase; }
svg .name { font-weight: 600; font-size: 13px; }
svg .digest { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 11px; }
svg .digest, svg .date { fill: var(--soft); }
svg .bad { fill: var(--bad); font-weight: 600; }
svg rect.box { fill: var(--box); stroke: var(--line); }
svg .focus rect.box { stroke: var(--ink); stroke-width: 2.5; }
svg .troubled rect.box { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 6 4; }
svg path.edge { fill: none; stroke: var(--line); stroke-width: 1.6; }
svg .arrow { fill: var(--line); }
td.when { white-space: nowrap; }
td code { font-size: 11px; color: var(--soft); overflow-wrap: anywhere; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px;
  border: 1px solid var(--line); }
.rows { display: none; }
"""
_SWITCH = f"@media (max-width: {_NARROW}px) {{ .rows {{ display: block; }} .columns {{ display: none; }} }}"


def picture(graph: Graph) -> str:
    """The drawing alone, as an SVG file for light and for dark pages. The same graph gives the same text."""
    drawn, _ = _svg(graph, is_columns=True)
    return standalone(drawn, _STYLE)


def page(graph: Graph) -> str:
    """The whole page. The same graph gives the same text."""
    columns, _ = _svg(graph, is_columns=True)
    rows, width = _svg(graph, is_columns=False)
    has_rows = width <= _ROWS_FIT
    focus = next(node for node in graph.nodes if node.id == graph.focus)
    title = _title(focus)
    went = "Everything made from it" if graph.direction == "downstream" else "Everything it was made from"
    went += ", and how it was judged and registered" if focus.kind in MODELS and graph.direction == "upstream" else ""
    told = (
        f"{went}. Arrows run from what was used to what was made of it; each box bears the first digits of the sha256 "
        "of its bytes. The heavy frame is what was asked for; a broken frame is missing, damaged, or not what was used."
    )
    body = (
        f"<h1>Lineage of {escape(title)}</h1>\n<p>{told}</p>\n"
        f'<figure class="columns">\n{columns}</figure>\n'
        + (f'<figure class="rows">\n{rows}</figure>\n' if has_rows else "")
        + f'<div class="scroll">{_table(graph)}</div>\n'
    )
    return html_page(f"Lineage of {title}", body, style=_STYLE + (_SWITCH if has_rows else ""))


def _title(node: Node) -> str:
    return Line("", "", node, again=False, is_focus=False).title


def _texts(node: Node) -> list[tuple[str, str]]:
    """Class and text of each line of a box."""
    said = phrases(node)
    more = [f"and {len(said) - _MOST_PHRASES + 1} more"] if len(said) > _MOST_PHRASES else []
    figures = said[: _MOST_PHRASES - len(more)] + more
    lines = [("kind", plain(node.kind)), ("name", short_name(node)), *(("figure", each) for each in figures)]
    lines += [("bad", STATES[node.state])] if node.state in STATES else []
    return [*lines, ("digest", digest_of(node)), ("date", date_of(node))]


def _height(node: Node) -> int:
    return 2 * _PAD + _LINE * sum(bool(text) for _, text in _texts(node))


@dataclass(frozen=True)
class _Frame:
    """Where the layers begin and end, along the drawing, and how far along it each node reaches. Pixels."""

    kind: str
    """`columns` for layers from left to right, `rows` from top to bottom."""
    starts: list[float]
    ends: list[float]
    along: dict[str, float]

    @classmethod
    def of(cls, layers: list[list[Slot]], kind: str, along: dict[str, float]) -> _Frame:
        starts, ends, at = [], [], 0.0
        for layer in layers:
            starts.append(at)
            ends.append(at + max(along[slot.node_id] for slot in layer if slot.node_id))
            at = ends[-1] + _BETWEEN
        return cls(kind, starts, ends, along)

    def point(self, main: float, cross: float) -> str:
        x, y = (main, cross) if self.kind == "columns" else (cross, main)
        return f"{x + _MARGIN:.1f} {y + _MARGIN:.1f}"

    def path(self, route: list[Slot]) -> str:
        stops = [(self.starts[route[0].layer] + self.along[route[0].node_id], route[0].centre)]
        for corner in route[1:-1]:
            stops += [(self.starts[corner.layer], corner.centre), (self.ends[corner.layer], corner.centre)]
        stops.append((self.starts[route[-1].layer] - 3, route[-1].centre))  # 3: the arrow's tip is ahead of the line
        drawn = [f"M {self.point(*stops[0])}"]
        for (main, cross), (to_main, to_cross) in pairwise(stops):
            half = (main + to_main) / 2
            drawn.append(f"C {self.point(half, cross)}, {self.point(half, to_cross)}, {self.point(to_main, to_cross)}")
        return f'<path class="edge" d="{" ".join(drawn)}" marker-end="url(#arrow-{self.kind})"/>\n'


def _svg(graph: Graph, *, is_columns: bool) -> tuple[str, float]:
    """The drawing, with a column or a row for each layer, and its width in pixels."""
    nodes = {node.id: node for node in graph.nodes}
    heights, widths = {node.id: float(_height(node)) for node in graph.nodes}, dict.fromkeys(nodes, float(_BOX))
    layout = lay_out(graph, heights if is_columns else widths, _GAP)
    kind = "columns" if is_columns else "rows"
    frame = _Frame.of(layout.layers, kind, widths if is_columns else heights)
    boxes = [
        _box(nodes[slot.node_id], frame.point(frame.starts[slot.layer], slot.centre - slot.size / 2), graph.focus)
        for layer in layout.layers
        for slot in layer
        if slot.node_id
    ]
    length, breadth = frame.ends[-1] + 2 * _MARGIN, layout.breadth + 2 * _MARGIN
    width, height = (length, breadth) if is_columns else (breadth, length)
    # Shrinks with the page, and scrolls before it becomes too small to read.
    fit = f"width:100%;max-width:{width:.0f}px;min-width:{min(width, max(0.8 * width, 320)):.0f}px;height:auto"
    marker = (
        f'<defs><marker id="arrow-{kind}" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="8" markerHeight="8" '
        'markerUnits="userSpaceOnUse" orient="auto"><path class="arrow" d="M0 0 L8 4 L0 8 z"/></marker></defs>\n'
    )
    edges = "".join(frame.path(route) for route in layout.routes)
    opening = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="{fit}" role="img" aria-label="Lineage">\n'
    return f"{opening}{marker}{edges}{''.join(boxes)}</svg>\n", width


def _box(node: Node, corner: str, focus: str) -> str:
    x, y = corner.split()
    marks = " ".join(
        ["node", *(["focus"] if node.id == focus else []), *(["troubled"] if node.state in STATES else [])]
    )
    height, colour = _height(node), _COLOURS.get(node.kind, "#7f7f7f")
    lines = [(kind, text) for kind, text in _texts(node) if text]
    words = "".join(
        f'<text class="{kind}" x="{_STRIPE + _PAD}" y="{_PAD + 12 + number * _LINE}">'
        f"{escape(fitted(text, _COLUMNS_OF_TEXT.get(kind, 26)))}</text>"
        for number, (kind, text) in enumerate(lines)
    )
    # The inner drawing cuts off what would run out of the box.
    return (
        f'<g class="{marks}" transform="translate({x} {y})"><title>{escape(_hover(node))}</title>'
        f'<rect class="box" width="{_BOX}" height="{height}" rx="6"/>'
        f'<path d="M6 0 H{_STRIPE} V{height} H6 A6 6 0 0 1 0 {height - 6} V6 A6 6 0 0 1 6 0 z" fill="{colour}"/>'
        f'<svg width="{_BOX}" height="{height}" overflow="hidden">{words}</svg></g>\n'
    )


def _hover(node: Node) -> str:
    """What the pointer shows: all of it, digests whole."""
    named = {"sha256": node.digest, "fingerprint": node.fingerprint, "code": node.code, "finished": node.finished}
    lines = [_title(node), trouble(node), *phrases(node)]
    lines += [f"{name} {plain(value)}" for name, value in named.items() if value]
    return "\n".join(filter(None, lines))


def _table(graph: Graph) -> str:
    head = "<tr><th>What</th><th>Figures</th><th>Finished (UTC)</th></tr>"
    return f"<table>\n<thead>{head}</thead>\n<tbody>\n{''.join(_rows(graph))}</tbody>\n</table>"


def _rows(graph: Graph) -> Iterator[str]:
    for node in graph.nodes:
        title = escape(_title(node))
        dot = f'<span class="dot" style="background:{_COLOURS.get(node.kind, "#7f7f7f")}"></span>'
        name = f"<b>{title}</b>" if node.id == graph.focus else title
        bad = f'<div class="bad">{escape(trouble(node))}</div>' if trouble(node) else ""
        others = [f"also made from {plain(other)}" for other in node.left_out]
        figures = escape(", ".join((*phrases(node), *others)))
        digest = f"<br><code>{escape(plain(node.digest))}</code>" if node.digest else ""
        yield f'<tr><td>{dot}{name}{digest}{bad}</td><td>{figures}</td><td class="when">{date_of(node)}</td></tr>\n'
