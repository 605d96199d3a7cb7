"""The surprisal map as a picture: the beginning of a passage, each token in the colour of its loss, and the scale."""

from __future__ import annotations

from html import escape

from gptmodel.judging.pieces import pieces
from gptmodel.judging.surprisal import Passage
from gptmodel.lineage.text import plain
from gptmodel.markdown_text import number
from gptmodel.pages.frame import standalone
from gptmodel.pages.surprisal import STEPS, colour_style, step_of

_COLUMNS, _LINES = 88, 14  # characters of a line, and lines that are shown
_CHAR, _LINE = 8.4, 24  # pixels: letters of 14 px, all of one width
_TOP, _SCALE = 52, 78
_STYLE = """
text { fill: var(--ink); font-size: 14px; }
.t { font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre; }
.title { font-weight: 600; font-size: 15px; }
.soft { fill: var(--soft); font-size: 12px; }
"""


def surprisal_picture(passage: Passage) -> str:
    """An SVG file for light and for dark pages. The same passage gives the same text."""
    drawn, column, line = list[str](), 0, 0
    at = 0
    for piece in pieces(passage.tokens):
        nats = passage.nats[piece.first : piece.first + piece.count]
        step = step_of(sum(nats) / len(nats))
        for number_, part in enumerate(piece.text.split("\n")):
            if number_ and column:
                line, column = line + 1, 0
            if column and column + len(part) > _COLUMNS:
                line, column, part = line + 1, 0, part.lstrip(" ")
            if line < _LINES and part.strip("\r"):
                drawn.append(_tile(part[:_COLUMNS], step, column, line))
                at = line
            column += len(part)
        if line >= _LINES:
            break
    width = round(_COLUMNS * _CHAR)
    bottom = _TOP + (at + 1) * _LINE + 16
    figures = passage.figures
    told = f"mean loss {figures.loss:.2f} nats, perplexity {number(figures.perplexity)}, {figures.tokens:,} tokens"
    head = (
        f'<text class="title" x="0" y="16">{escape(plain(passage.name))}</text>\n'
        f'<text class="soft" x="0" y="36">Each token in the colour of its loss; {told}</text>\n'
    )
    svg = f'<svg viewBox="0 0 {width} {bottom + _SCALE}">\n{head}{"".join(drawn)}{_scale(bottom, width)}</svg>\n'
    return standalone(svg, _STYLE + colour_style())


def _tile(text: str, step: int, column: int, line: int) -> str:
    x, y, width = column * _CHAR, _TOP + line * _LINE, len(text) * _CHAR
    words = (
        f'<text class="t i{step}" x="{x:.1f}" y="{y + 16}" textLength="{width:.1f}" '
        f'lengthAdjust="spacingAndGlyphs" xml:space="preserve">{escape(text)}</text>'
    )
    box = f'<rect class="s{step}" x="{x:.1f}" y="{y}" width="{width - 0.8:.1f}" height="{_LINE - 3}" rx="2"/>'
    return f"{box}{words if text.strip() else ''}\n"


def _scale(top: int, width: int) -> str:
    each = width / STEPS
    boxes = "".join(
        f'<rect class="s{n}" x="{n * each:.1f}" y="{top}" width="{each:.1f}" height="18" stroke="var(--line)"/>'
        f'<text class="soft" x="{n * each:.1f}" y="{top + 34}">{n}{"+" if n == STEPS - 1 else ""}</text>'
        for n in range(STEPS)
    )
    return f'{boxes}\n<text class="soft" x="0" y="{top + 54}">loss of a token in nats: −ln of its probability</text>\n'
