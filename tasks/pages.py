"""What a person sees of a run in the Prefect pages: tables, words, progress and links. Never a reason to fail."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from gptmodel.progress import Lines, Looking, Meter, clock, watched, watchers
from gptmodel.progress import progress as measured
from gptmodel.store.artifacts import Artifact

log = logging.getLogger(__name__)
_PAGE_SECONDS = 5.0  # between two looks at a step: what is over sooner has no progress artifact
_PATIENCE = 2.0  # seconds for the last word on a step


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
def shown() -> Iterator[None]:
    """Show what the body measures (`gptmodel.progress`): as progress artifacts in the pages, each renewed at most every
    few seconds, and as lines in the run's log where no terminal has bars."""
    pages = _Pages()
    on_terminal = any(not isinstance(watcher, Lines) for watcher in watchers())
    lines = [] if on_terminal else [Lines(get_run_logger().info)]
    with watched(pages, *lines, instead_of=Lines):
        try:
            yield
        finally:
            pages.close(_PATIENCE)


@contextmanager
def progress(what: str) -> Iterator[Meter]:
    """A meter that is `shown`; it may be passed on as a `Progress`."""
    with shown(), measured(what) as meter:
        yield meter


class _Pages(Looking):
    """Progress artifacts, of what takes longer than a moment. The step waits for none of it."""

    def __init__(self) -> None:
        super().__init__(_PAGE_SECONDS)
        self._shown: dict[int, tuple[UUID, float, str]] = {}
        self._run_context = copy_context()  # Prefect asks which run it belongs to

    def look(self, meters: list[Meter]) -> None:
        for meter in meters:
            percent, words = round(100 * meter.share, 1), f"{meter.what}: {meter.words()}"
            if (shown := self._shown.get(id(meter))) is None:
                made = self._ask(create_progress_artifact, percent, description=words)
                if made is not None:
                    self._shown[id(meter)] = (cast(UUID, made), percent, words)
            elif shown[1:] != (percent, words):
                self._shown[id(meter)] = (shown[0], percent, words)
                self._ask(update_progress_artifact, shown[0], percent, words)

    def finish(self, meter: Meter) -> None:
        if (shown := self._shown.pop(id(meter), None)) is not None:
            how = "done" if meter.succeeded else "broken off"
            percent = 100.0 if meter.succeeded else round(100 * meter.share, 1)
            self._ask(update_progress_artifact, shown[0], percent, f"{meter.what}: {how} after {clock(meter.seconds)}")

    def _ask(self, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        return _try(lambda: self._run_context.run(call, *args, **named))


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
