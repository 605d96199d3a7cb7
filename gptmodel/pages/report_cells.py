"""Figures, tables and foreign text as the report writes them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from gptmodel.lineage.text import plain

_SHARES = ("accuracy", "accuracy_at_5", "calibration_error")


FIGURES = {
    "loss": ("cross-entropy", "nats per token"),
    "perplexity": ("perplexity", "tokens that it hesitates between"),
    "plain_loss": ("cross-entropy in windows that do not overlap", "nats per token"),
    "plain_perplexity": ("perplexity in windows that do not overlap", "tokens"),
    "bits_per_byte": ("bits per byte", "comparable across tokenizers"),
    "bits_per_char": ("bits per character", "comparable across tokenizers"),
    "accuracy": ("first guess right", "share of tokens"),
    "accuracy_at_5": ("among its first five guesses", "share of tokens"),
    "calibration_error": ("calibration error", "how far its sureness is from how often it is right; too high near 0"),
    "unigram_loss": ("baseline: cross-entropy of guessing by frequency", "nats per token"),
    "unigram_perplexity": ("baseline: perplexity of guessing by frequency", "tokens"),
}
"""What the figures of an evaluation are called, and their units."""


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: set[int] | None = None) -> str:
    """Cells are escaped here; the columns in `numeric` stand flush right."""
    right = numeric or set()

    def cells(tag: str, row: Sequence[str]) -> str:
        kind = [' class="n"' if n in right else "" for n in range(len(row))]
        return "".join(f"<{tag}{k}>{safe(cell)}</{tag}>" for k, cell in zip(kind, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    top = f"<thead><tr>{cells('th', head)}</tr></thead>"
    return f'<div class="scroll"><table>\n{top}\n<tbody>\n{body}</tbody></table></div>\n'


def safe(value: Any, *, keep_lines: bool = False) -> str:
    return "\n".join(escape(plain(line)) for line in str(value).split("\n")) if keep_lines else escape(plain(value))


def html_prose(text: str) -> str:
    """Text of a model: its own line ends and tabs stay, what is not seen or turns a line around becomes U+FFFD."""
    return escape("".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text))


def written(name: str, value: float, sign: str = "") -> str:
    if name in _SHARES:
        return f"{100 * value:{sign}.2f} %"
    return f"{value:{sign}.4f}" if abs(value) < 100 else f"{value:{sign},.1f}"


def written_interval(name: str, bounds: Sequence[float | None] | None) -> str:
    if not bounds or bounds[0] is None or bounds[1] is None:
        return "–"
    return f"{written(name, bounds[0])} to {written(name, bounds[1])}"


def written_plainly(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if value <= 1 else f"{value:.1f}"
