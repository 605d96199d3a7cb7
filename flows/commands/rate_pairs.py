"""Comparing at the keyboard: two texts side by side, one key, the next pair. Each answer is on disk before that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from flows.commands.rate_terminal import key_of, shown
from gptmodel.criteria import COMMENT, COMMENT_CHARS
from gptmodel.rating.journal import Journal
from gptmodel.rating.pairs import LEFT, QUESTION, RIGHT, TIE, Pair, comparison, pairs_in_order, sides
from gptmodel.rating.rounds import Item
from gptmodel.store.artifacts import Artifact, Store

_ANSWERS = {"a": LEFT, "b": RIGHT, "t": TIE}
_KEYS = "a or b for the one you prefer, t for a tie, c comments on this pair, s comes to it later, q leaves"
_SIDE_BY_SIDE = 80
"""Columns of a terminal that are enough for two texts beside each other; else B stands below A."""


def compare_pairs(store: Store, found: Artifact, name: str, pairs: Sequence[Pair]) -> None:
    """Ask a rater for all pairs that he has not compared, in his order, until he leaves or is done."""
    journal, console = Journal(store, found.path.name), Console(highlight=False)
    rater = journal.number_told(name)
    order = pairs_in_order(found, rater, pairs)
    console.print(f"{QUESTION}\n[dim]{_KEYS}")
    waiting = [pair for pair in order if (rater, pair.id) not in journal.comparisons()]
    while waiting:
        pair = waiting.pop(0)
        place = len(order) - len(waiting)
        console.rule(f"pair {place} of {len(order)}")
        console.print(Padding(f"[bold]{shown(pair.prompt)}", (1, 2)))
        console.print(_beside(sides(found, rater, pair), console.width))
        answer = _ask(console, journal, rater, pair)
        if answer == "q":
            console.print(f"Saved: {place - 1} of {len(order)} are compared. Run the same command to go on.")
            return
        if answer == "s":
            waiting.append(pair)  # asked again when the others are done
            continue
        said = comparison(found, rater, pair, _ANSWERS[answer], journal.draft(rater).get(pair.id, ""), "terminal")
        journal.compare([said] if said else [])
        console.print(f"  {_ANSWERS[answer]}")
    console.print(f"All {len(order)} pairs are compared. Thank you.")


def _ask(console: Console, journal: Journal, rater: int, pair: Pair) -> str:
    while (key := key_of(console, (*_ANSWERS, "c", "s", "q"), _KEYS)) == "c":
        comment = click.prompt(COMMENT, default="", show_default=False)[:COMMENT_CHARS]
        journal.save_draft(rater, {pair.id: comment})
    return key


def _beside(both: tuple[Item, Item], width: int) -> Any:
    texts = [shown(item.text) or "[dim](nothing)[/dim]" for item in both]
    table = Table(expand=True, show_header=width >= _SIDE_BY_SIDE, show_lines=True)
    if width >= _SIDE_BY_SIDE:
        for side in (LEFT, RIGHT):
            table.add_column(side, ratio=1)
        table.add_row(*texts)
    else:
        for side, text in zip((LEFT, RIGHT), texts, strict=True):
            table.add_row(side, text)
    return table
