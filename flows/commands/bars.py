"""Progress on a terminal: bars on standard error, and a line now and then in a file or pipe."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from gptmodel.progress import Lines, Meter, watched

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_AFTER = 1.0  # seconds: what is over sooner has no bar
_PER_SECOND = 2.0  # redrawn: four times as often would take a percent of a processor


@contextmanager
def shown_progress() -> Iterator[None]:
    """Show what the body's work tells of its progress. Standard output is left alone."""
    if not sys.stderr.isatty():
        with watched(Lines(lambda line: click.echo(f"gptflow: {line}", err=True))):
            yield
        return
    bars = Bars()
    try:
        with watched(bars):
            yield
    finally:
        bars.close()


class Bars:
    """A bar for each meter, below the log's lines, gone when it ends."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._meters: dict[int, Meter] = {}
        self._bars: dict[int, Any] = {}
        self._progress: Progress | None = None
        self._timer: threading.Timer | None = None

    def begin(self, meter: Meter) -> None:
        with self._lock:
            self._meters[id(meter)] = meter
            if self._progress is not None:
                self._add(meter)
            elif self._timer is None:
                self._timer = threading.Timer(_AFTER, self._start)
                self._timer.daemon = True
                self._timer.start()

    def end(self, meter: Meter) -> None:
        with self._lock:
            del self._meters[id(meter)]
            if self._progress is not None and (number := self._bars.pop(id(meter), None)) is not None:
                self._progress.remove_task(number)
            if not self._meters:
                self.close()

    def close(self) -> None:
        """Take the bars away."""
        with self._lock:
            timer, self._timer = self._timer, None
            found, self._progress = self._progress, None
            self._bars.clear()
        if timer is not None:
            timer.cancel()
        if found is not None:
            found.stop()

    def _start(self) -> None:
        with self._lock:
            if self._timer is None or not self._meters or self._progress is not None:
                return
            self._progress = _progress()
            for meter in self._meters.values():
                self._add(meter)
            self._progress.start()

    def _add(self, meter: Meter) -> None:
        assert self._progress is not None
        self._bars[id(meter)] = self._progress.add_task(meter.what, total=None, meter=meter)


def _progress() -> Progress:
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    class Bar(ProgressColumn):
        def render(self, task: Task) -> ProgressBar:
            meter: Meter = task.fields["meter"]
            with suppress(Exception):  # what is shown is never a reason to fail
                meter.refresh()
            return ProgressBar(total=1.0, completed=meter.share, width=16)

    class Words(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.fields["meter"].line(), overflow="fold")

    columns = (SpinnerColumn("line"), Bar(), Words())
    return Progress(*columns, console=_console(), transient=True, refresh_per_second=_PER_SECOND)


def _console() -> Console:
    """The one that Prefect logs to, if it does: bars and lines would write over each other through two."""
    from rich.console import Console
    from rich.theme import Theme

    shared = (getattr(handler, "console", None) for handler in logging.getLogger().handlers)
    console = next((found for found in shared if isinstance(found, Console)), None) or Console(stderr=True)
    console.push_theme(Theme())  # Prefect's knows none of the bar's styles
    return console
