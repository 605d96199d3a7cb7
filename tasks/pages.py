"""What a person sees of a run in the Prefect pages: tables, words, progress and links. Never a reason to fail."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.theme import Theme

from gptmodel.store.artifacts import Artifact

log = logging.getLogger(__name__)
Update = Callable[[int, int, str], None]
_STEP_PERCENT = 2.0  # between two updates of a progress artifact


def key_of(*parts: str) -> str:
    """An artifact key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def show_artifact(artifact: Artifact, reused: bool, figures: dict[str, Any]) -> None:
    """A page on one artifact: its figures, where it is, and by which digest."""
    said = "It was already there, made from the same inputs and settings." if reused else "Made by this run."
    rows = "\n".join(f"| {name} | {_text(value)} |" for name, value in figures.items())
    inputs = ", ".join(f"`{ref.kind} {ref.digest[:16]}`" for ref in artifact.request.inputs) or "none"
    words = (
        f"# {artifact.kind.capitalize()} {artifact.path.name}\n\n{said}\n\n| | |\n|---|---|\n{rows}\n\n"
        f"Content digest `{artifact.digest}`\n\nMade from {inputs}\n"
    )
    show_words(artifact.kind, words, said)


def show_words(key: str, words: str, description: str) -> None:
    """A page of Markdown."""
    _try(lambda: create_markdown_artifact(words, key=key_of(key), description=description))


def show_table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    _try(lambda: create_table_artifact(rows, key=key_of(key), description=description))


@contextmanager
def progress(what: str) -> Iterator[Update]:
    """A bar on a terminal, and a progress artifact in the pages, from the first call of the result on.

    Call it with (done, total, unit); a total of 0 is unknown.
    """
    artifact: UUID | None = None
    shown = 0.0
    run = copy_context()  # `update` may be called in another thread, and Prefect asks which run it belongs to
    with _bar() as bar:
        number = bar.add_task(what, total=None)

        def update(done: int, total: int, unit: str) -> None:
            nonlocal artifact, shown
            bar.update(number, completed=done, total=total or None, description=f"{what} ({unit})")
            percent = min(100.0, 100.0 * done / total) if total else 0.0
            if artifact is None:
                artifact = cast(UUID | None, _try(lambda: run.run(create_progress_artifact, percent, None, what)))
            elif percent - shown >= _STEP_PERCENT or percent == 100.0:
                shown = percent
                _try(lambda: run.run(update_progress_artifact, artifact, percent))

        yield update


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Through the console that Prefect logs to, or bar and lines would write over each other.
    shared = (getattr(handler, "console", None) for handler in logging.getLogger().handlers)
    console = next((found for found in shared if isinstance(found, Console)), None) or Console(stderr=True)
    console.push_theme(Theme())  # Prefect's console knows none of the bar's styles
    return Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _try(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # the pages are for people; the work stands without them
        log.warning("not shown in the Prefect pages: %s", error)
        return None
