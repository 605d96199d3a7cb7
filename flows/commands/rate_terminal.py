"""Rating at the keyboard: a text, four keys, the next text. Each key is on disk before the next is waited for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from gptmodel.criteria import COMMENT, COMMENT_CHARS, CRITERIA, HIGHEST, INTRODUCTION, LOWEST
from gptmodel.errors import DataError
from gptmodel.lineage.text import plain
from gptmodel.rating.deliveries import Rating
from gptmodel.rating.journal import Journal
from gptmodel.rating.rounds import Item, in_order, read_items
from gptmodel.store.artifacts import Artifact, Store

_POINTS = [str(point) for point in range(LOWEST, HIGHEST + 1)]
_KEYS = f"{LOWEST} to {HIGHEST} rates, b goes back, c comments on this text, s comes to it later, q leaves"


def rate_texts(store: Store, found: Artifact, name: str) -> bool:
    """Ask a rater for all texts that he has not rated, in his order, until he leaves or is done; whether he is done."""
    journal, console = Journal(store, found.path.name), Console(highlight=False)
    rater = journal.number_told(name)
    order = in_order(found, rater, read_items(found))
    _introduce(console)
    later: set[str] = set()
    while (item := _next(order, journal, rater, later)) is not None:
        place = sum((rater, each.id) in journal.ratings() for each in order)
        console.rule(f"text {place + 1} of {len(order)}")
        said = _ask(console, journal, rater, item)
        if said is None:
            console.print(f"Saved: {place} of {len(order)} are rated. Run the same command to go on.")
            return False
        if said == "later":
            later.add(item.id)
        if later and _next(order, journal, rater, later) is None:
            later.clear()  # now comes what was put off
    console.print(f"All {len(order)} texts are rated. Thank you.")
    return True


def _next(order: Sequence[Item], journal: Journal, rater: int, later: set[str]) -> Item | None:
    known = journal.ratings()
    return next((item for item in order if (rater, item.id) not in known and item.id not in later), None)


def _introduce(console: Console) -> None:
    console.print(INTRODUCTION)
    console.print(f"[dim]{_KEYS}")


def _ask(console: Console, journal: Journal, rater: int, item: Item) -> str | None:
    """Points for one text, to the journal: done, later, or None to leave."""
    draft: dict[str, Any] = journal.draft(rater)
    if draft.get("item") != item.id:
        draft = {"item": item.id, "scores": {}, "comment": ""}
    console.print(Padding(f"[bold]{shown(item.prompt)}[/bold] {shown(item.text) or '[dim](nothing)[/dim]'}", (1, 2)))
    scores: dict[str, int] = draft["scores"]
    while len(scores) < len(CRITERIA):
        criterion = CRITERIA[len(scores)]
        low, middle, high = criterion.anchors
        console.print(f"[bold]{criterion.title}[/bold]  {criterion.question}")
        console.print(f"[dim]  1 {low}; 3 {middle}; 5 {high}")
        key = _next_key(console)
        if key in _POINTS:
            scores[criterion.name] = int(key)
            console.print(f"  {key}")
        elif key == "b" and scores:
            scores.pop(CRITERIA[len(scores) - 1].name)
        elif key == "c":
            draft["comment"] = click.prompt(COMMENT, default="", show_default=False)[:COMMENT_CHARS]
        elif key == "s":
            return "later"
        elif key == "q":
            return None
        journal.save_draft(rater, draft)
    journal.add([Rating(rater, item.id, scores, draft["comment"], "terminal")])
    return "done"


def _next_key(console: Console) -> str:
    return key_of(console, (*_POINTS, "b", "c", "s", "q"), _KEYS)


def key_of(console: Console, keys: Sequence[str], words: str) -> str:
    """The next key that is one of these; any other one is answered with `words`. The end of input is q."""
    while True:
        try:
            key = click.getchar().lower()
        except EOFError:  # Ctrl-D
            return "q"
        except OSError:
            raise DataError(
                "there is no keyboard to rate at; run it in a terminal, or use `gptflow rate export`"
            ) from None
        if key in keys:
            return key
        console.print(f"[dim]  {words}")


def shown(text: str) -> str:
    """What cannot command the terminal, whoever wrote it."""
    return escape("\n".join(plain(line, 10_000) for line in text.strip("\n").split("\n")))
