"""Tables, code and figures as Markdown. Text from outside goes into code, where no character of it means anything."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def code(text: str) -> str:
    """A code span that no character of the text can end, also within a table."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    plain = re.sub(r"\s+", " ", shown).replace("|", "¦")
    ticks = "`" * (max((len(run) for run in re.findall("`+", plain)), default=0) + 1)
    padding = " " if "`" in plain or not plain.strip() else ""
    return f"{ticks}{padding}{plain}{padding}{ticks}"


def fenced(text: str) -> str:
    # A NUL, which a model may well write, is more than some databases take.
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    fence = "`" * max(3, max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    return f"{fence}text\n{shown}\n{fence}"


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if not math.isfinite(value) else f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def counted(count: int, word: str) -> str:
    """Such as `1 layer` and `2 layers`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def short(count: int) -> str:
    """Such as 11.5 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
