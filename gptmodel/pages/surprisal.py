"""The surprisal map: passages with each token in the colour of its loss, and what the model expected instead.

The colours of a scale differ in lightness above all, so they keep their order for every kind of eyes and in print. Text
from outside is escaped, and what could turn a line around or hide is named. The script that shows the details reads
them as data and writes them as text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from gptmodel.judging.pieces import END, Piece, label_of, pieces, symbol_of
from gptmodel.judging.surprisal import Figures, Passage
from gptmodel.lineage.text import plain
from gptmodel.markdown_text import number
from gptmodel.pages.frame import html_page
from gptmodel.tokenizer import gpt2

# A step is a nat; the last is open above. Evenly spaced in OKLCH lightness, from the page's own colour on.
LIGHT = (
    "#ffffff", "#f4ead2", "#efd2a7", "#ecb881", "#e89c64", "#e08052",
    "#d3654b", "#c14d4c", "#aa394f", "#902950", "#751d4e", "#5a1348",
)  # fmt: skip
DARK = (
    "#14171c", "#341c30", "#52243f", "#722c46", "#923747", "#b04741",
    "#c95c36", "#dd762a", "#eb9328", "#f3b33c", "#f6d25d", "#f8f085",
)  # fmt: skip
INK_ON_LIGHT = ("#000000",) * 7 + ("#ffffff",) * 5
INK_ON_DARK = ("#ffffff",) * 6 + ("#000000",) * 6
STEPS = len(LIGHT)


def _style() -> str:
    def variables(colours: Sequence[str], inks: Sequence[str]) -> str:
        return " ".join(f"--s{n}: {c}; --i{n}: {i};" for n, (c, i) in enumerate(zip(colours, inks, strict=True)))

    steps = " ".join(f".s{n} {{ background: var(--s{n}); color: var(--i{n}); }}" for n in range(STEPS))
    return (
        f":root {{ {variables(LIGHT, INK_ON_LIGHT)} --bar: #0072b2; }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK, INK_ON_DARK)} --bar: #56b4e9; }} }}\n"
        f"{steps}\n{_HERE.joinpath('surprisal_map.css').read_text(encoding='utf-8')}"
    )


def colour_style() -> str:
    """The colours as classes of an SVG file: `s0` and so on for boxes, `i0` and so on for the text in them."""
    light, dark = (
        " ".join(f".s{n} {{ fill: {c}; }} .i{n} {{ fill: {i}; }}" for n, (c, i) in enumerate(zip(*pair, strict=True)))
        for pair in ((LIGHT, INK_ON_LIGHT), (DARK, INK_ON_DARK))
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n"


_HERE = Path(__file__).parent
MAP_STYLE = _style()
MAP_SCRIPT = _HERE.joinpath("surprisal_map.js").read_text(encoding="utf-8")


def surprisal_page(passages: Sequence[Passage], model: str, digest: str) -> str:
    """The whole page: at least one passage, and the model's name and content digest."""
    body = (
        f"<h1>Surprisal, token by token</h1>\n<p>{escape(model)} · sha256 <code>{escape(digest)}</code></p>\n"
        f"{map_section(passages)}"
    )
    return html_page(f"Surprisal by {model}", body, style=MAP_STYLE, script=MAP_SCRIPT)


def map_section(passages: Sequence[Passage]) -> str:
    """The map for a page of its own or as a part of one; that page needs MAP_STYLE and MAP_SCRIPT, and only one map."""
    together = Figures.of(passages)
    drawn = [(passage, pieces(passage.tokens)) for passage in passages]
    shown = "".join(_passage(*each) for each in drawn)
    data = json.dumps([_data(*each) for each in drawn], ensure_ascii=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c")  # so that nothing in it ends the element
    return (
        f"<p>{_explanation(together)}</p>\n{_scale(together.loss)}"
        f'<div class="map">\n<div>\n{shown}</div>\n<aside class="panel" id="panel" aria-live="polite">'
        "<p>Point at a token, or tap it, to see its loss and what the model expected. By keyboard: Tab to a passage, "
        "then the arrow keys.</p><noscript><p>(The details need scripts.)</p></noscript></aside>\n</div>\n"
        f'<script type="application/json" id="tokens">{data}</script>\n'
    )


def _explanation(figures: Figures) -> str:
    vocabulary = gpt2().vocab_size
    return (
        f"Before each token the model gave every one of the {vocabulary:,} tokens that it knows a probability, and the "
        "loss of the token that came is −ln of the probability that it had been given: a token without colour was "
        "expected, and the stronger its colour, the greater the surprise. The mean of these losses is the "
        f"cross-entropy, here <b>{number(figures.loss)} nats</b> per token, and e to the power of it is the "
        f"perplexity, <b>{number(figures.perplexity)}</b>: the model was as unsure as if it had to pick each token "
        "among that many equally likely ones."
    )


def _scale(loss: float) -> str:
    steps = "".join(f'<b class="s{n}"></b>' for n in range(STEPS))

    def mark(kind: str, nats: float, words: object) -> str:
        middle = " middle" if nats else ""
        return f'<span class="{kind}{middle}" style="left:{100 * nats / STEPS:.2f}%">{words}</span>'

    nats = "".join(mark("nats", n, n) for n in range(STEPS))
    odds = mark("odds", 0, "certain") + "".join(mark("odds", k * math.log(10), f"1 in {10**k:,}") for k in range(1, 5))
    mean = 100 * min(loss, STEPS) / STEPS
    line = (
        f'<i class="line" style="left:{mean:.2f}%"></i>'
        f'<span class="mean" style="left:{mean:.2f}%;transform:translateX(-{mean:.0f}%)">mean {loss:.2f}</span>'
    )
    return (
        f'<div class="scale" role="img" aria-label="Scale of the colours: loss from 0 to {STEPS - 1} nats and more">'
        f'<div class="steps">{steps}</div>{line}{nats}<span class="nats last">+</span>{odds}</div>\n'
        f'<p class="unit">Loss in nats (1 nat = {1 / math.log(2):.2f} bits), and the probability that it stands for. '
        f"Guessing evenly among all tokens costs {math.log(gpt2().vocab_size):.2f} nats each time.</p>\n"
    )


def _passage(passage: Passage, found: Sequence[Piece]) -> str:
    figures = passage.figures
    bytes_ = f" · {figures.bits_per_byte:.3f} bits per byte" if math.isfinite(figures.bits_per_byte) else ""
    told = (
        f"{figures.tokens:,} tokens · mean loss {figures.loss:.3f} nats ({figures.bits:.3f} bits) · perplexity "
        f"{number(figures.perplexity)}{bytes_} · first guess right for {figures.accuracy:.0%}"
        f"{' · the text goes on after them' if passage.is_cut else ''}"
    )
    tiles = "".join(_tile(piece, passage, is_first=place == 0) for place, piece in enumerate(found))
    return f'<h3>{escape(plain(passage.name))}</h3>\n<p>{told}</p>\n<div class="passage" dir="auto">{tiles}</div>\n'


def _tile(piece: Piece, passage: Passage, *, is_first: bool) -> str:
    steps = [step_of(loss) for loss in passage.nats[piece.first : piece.first + piece.count]]
    colour, style = f"s{steps[0]}", ""
    if piece.count > 1:
        share = 100 / piece.count
        stops = ",".join(f"var(--s{s}) {n * share:.4g}% {(n + 1) * share:.4g}%" for n, s in enumerate(steps))
        colour, style = "several", f' style="background-image:linear-gradient(90deg,{stops})"'
    text = "".join(_shown(character) for character in piece.text) if piece.text else f"<i>{END}</i>"
    return f'<span class="t {colour}"{style} tabindex="{0 if is_first else -1}">{text}</span>'


def step_of(nats: float) -> int:
    return max(0, min(int(nats), STEPS - 1))


def _shown(character: str) -> str:
    """A character as text, with a mark before a line end or a tab, and instead of one that is not seen."""
    mark = f"<i>{symbol}</i>" if (symbol := symbol_of(character)) else ""
    return mark + (character if character in "\n\t" else "" if mark else escape(character))


def _data(passage: Passage, found: Sequence[Piece]) -> list[list[list[object]]]:
    """For the script: of each piece each token's label, number, nats, rank, and the likeliest labels."""
    return [
        [
            [
                label_of(passage.tokens[n]),
                passage.tokens[n],
                passage.nats[n],
                passage.ranks[n],
                [[label_of(token), p] for token, p in passage.candidates[n]],
            ]
            for n in range(piece.first, piece.first + piece.count)
        ]
        for piece in found
    ]
