"""What `gptflow rate results` says."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from gptmodel.rating.gate import Verdict
    from gptmodel.store.artifacts import Artifact

_COMMENTS = 20


def tell(ratings: Artifact, verdicts: list[Verdict], *, as_json: bool) -> None:
    """Print the figures, or one JSON object."""
    from gptmodel.rating.results import comments_of, preferences_of

    told = ratings.summary
    if as_json:
        gate = [
            {"require": str(v.requirement), "met": v.met, "mean": v.mean, "low": v.low, "high": v.high}
            for v in verdicts
        ]
        click.echo(
            json.dumps(
                {
                    "ratings": ratings.label,
                    "digest": ratings.digest,
                    "gate": gate,
                    "summary": told,
                    "preference": preferences_of(told),
                }
            )
        )
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from gptmodel.lineage.text import plain
    from tasks.rating import figure_rows, preference_words

    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    rows = figure_rows(ratings)
    table = Table(*rows[0], box=None, title=f"[bold]{ratings.label}", title_justify="left")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    for line in preference_words(ratings):
        console.print(line)
    for rater in told["by_rater"]:
        marks = [f"{what} {rater[what]:.2f}" for what in ("real", "salad") if rater[what] is not None]
        if rater.get("checks_compared"):
            marks.append(f"real preferred in {rater['checks_right']} of {rater['checks_compared']} pairs")
        how = (
            "FLAGGED and left out"
            if rater["flagged"]
            else "not checked"
            if not _is_checked(rater)
            else "passed the checks"
        )
        console.print(f"rater-{rater['rater']}: {rater['rated']} texts, {how} ({', '.join(marks) or 'no check rated'})")
    comments = comments_of(ratings)
    for comment in comments[:_COMMENTS]:
        console.print(f"comment: {escape(plain(comment, 300))}")
    if len(comments) > _COMMENTS:
        console.print(f"and {len(comments) - _COMMENTS} more comments in {ratings.path}")
    for verdict in verdicts:
        console.print(f"[bold]{verdict}")


def _is_checked(rater: dict[str, Any]) -> bool:
    return bool(rater.get("checks_compared")) or None not in (rater["real"], rater["salad"])
