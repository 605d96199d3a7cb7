"""How far the work is: told by who does it, shown by who knows a screen, a log or a page.

    with progress("hashing", total_bytes, "bytes") as meter:
        for path in paths:
            meter.add(hash_one(path))

To tell it is an assignment in memory: no word is made and nothing waits until a watcher looks, and that is done in a
thread of its own, some times a minute. Without a watcher nothing happens. Watchers are set with `watched`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from gptmodel.words import size

log = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]
"""Called with what is done, the total (0 is unknown) and their unit. A `Meter` is one."""
LINE_SECONDS = 15.0
_RATE_AFTER = 1.0  # seconds: before that a rate says nothing


class Meter:
    """One piece of work under way."""

    def __init__(
        self,
        what: str,
        total: int = 0,
        unit: str = "",
        *,
        tells_itself: bool = False,
        look: Callable[[Meter], None] | None = None,
    ) -> None:
        self.what, self.done, self.total, self.unit = what, 0, total, unit
        self.note = ""
        """Figures besides, such as `loss 5.12 · 3,100 tokens/s`."""
        self.tells_itself = tells_itself
        """Whether the work writes log lines of its own, so that none is made of this."""
        self._look = look
        self.succeeded: bool | None = None
        """How it ended; None while it goes on."""
        self.began = time.monotonic()
        self._first, self._since = 0, self.began
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int = 0, unit: str = "") -> None:
        """So much is done. A total or unit that is not given stays."""
        self.done, self.total, self.unit = done, total or self.total, unit or self.unit

    def add(self, n: int = 1) -> None:
        """So much more is done; from any thread."""
        with self._lock:
            self.done += n

    def go_on_from(self, done: int) -> None:
        """So much was done by an earlier attempt: the rate counts from here."""
        self.done, self._first, self._since = done, done, time.monotonic()

    def refresh(self) -> None:
        """Find out how far it is, where that is not told but looked up; a watcher calls it before it shows it."""
        if self._look is not None:
            self._look(self)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    @property
    def share(self) -> float:
        """From 0 to 1; 0 where the total is not known."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def per_second(self) -> float:
        """0 while too little is known."""
        seconds = time.monotonic() - self._since
        return (self.done - self._first) / seconds if seconds > _RATE_AFTER else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the mean rate so far; None while that is not known."""
        rate = self.per_second
        return max(0, self.total - self.done) / rate if self.total and rate > 0 else None

    def words(self) -> str:
        """Such as `1.20 of 2.71 GB · 31.4 MB/s · 0:49 left`, as far as it is known."""
        parts = [self._amount()] if self.done or self.total else []
        if self.unit == "bytes" and (rate := self.per_second) > 0:
            parts.append(f"{size(rate)}/s")
        parts += [self.note] if self.note else []
        if (left := self.seconds_left) is not None and self.done < self.total:
            parts.append(f"{clock(left)} left")
        return " · ".join(parts) or f"{clock(self.seconds)} so far"

    def line(self) -> str:
        """For a log: `tokenizing: 45 % · 1.2 of 2.7 GB · 31 MB/s · 0:49 left`."""
        share = f"{self.share:.0%} · ".replace("%", " %") if self.total else ""
        return f"{self.what}: {share}{self.words()}"

    def _amount(self) -> str:
        if self.unit == "bytes":
            done, total = size(self.done), size(self.total)
            of = f"{done.split()[0]} of {total}" if done.split()[1] == total.split()[1] else f"{done} of {total}"
            return of if self.total else done
        of = f" of {self.total:,}" if self.total else ""
        return f"{self.done:,}{of} {self.unit}".strip()


class Watcher(Protocol):
    """Who shows meters. Called in the thread that works, so it must be quick, and must not raise."""

    def begin(self, meter: Meter) -> None: ...
    def end(self, meter: Meter) -> None: ...


_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())


@contextmanager
def watched(*by: Watcher, instead_of: type[Watcher] | None = None) -> Iterator[None]:
    """Show the progress of the body to these watchers too; `instead_of` leaves out those of a kind that are there."""
    kept = tuple(w for w in _watchers.get() if instead_of is None or not isinstance(w, instead_of))
    token = _watchers.set((*kept, *by))
    try:
        yield
    finally:
        _watchers.reset(token)


def watchers() -> tuple[Watcher, ...]:
    """Those that are set here."""
    return _watchers.get()


@contextmanager
def progress(
    what: str,
    total: int = 0,
    unit: str = "",
    *,
    tells_itself: bool = False,
    look: Callable[[Meter], None] | None = None,
) -> Iterator[Meter]:
    """A meter for the body, shown to the watchers that are set. A total of 0 is unknown.

    `look` is for work in another process: a watcher calls it with the meter when it looks.
    """
    meter, seen_by = Meter(what, total, unit, tells_itself=tells_itself, look=look), _watchers.get()
    for watcher in seen_by:
        watcher.begin(meter)
    try:
        yield meter
        meter.succeeded = True
    except BaseException:
        meter.succeeded = False
        raise
    finally:
        for watcher in reversed(seen_by):
            watcher.end(meter)


class Looking:
    """A watcher that looks every so many seconds, in a thread that lives while there is something to see."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._meters: list[Meter] = []
        self._ended: list[Meter] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def look(self, meters: list[Meter]) -> None:
        """Show what is under way; the outermost is the first."""
        raise NotImplementedError

    def finish(self, meter: Meter) -> None:
        """Show how it ended, in the same thread; nothing if that is told elsewhere."""

    def begin(self, meter: Meter) -> None:
        with self._changed:
            self._meters.append(meter)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="progress")
                self._thread.start()

    def end(self, meter: Meter) -> None:
        with self._changed:
            self._meters.remove(meter)
            self._ended.append(meter)
            self._changed.notify()

    def close(self, patience: float) -> None:
        """Wait until what has ended is shown, but not longer than `patience` seconds."""
        if (thread := self._thread) is not None:
            thread.join(patience)

    def _run(self) -> None:
        at = time.monotonic() + self._seconds
        while True:
            with self._changed:
                while self._meters and not self._ended and (wait := at - time.monotonic()) > 0:
                    self._changed.wait(wait)
                meters, ended = list(self._meters), self._ended
                self._ended = []
                if not meters and not ended:
                    self._thread = None
                    return
            for meter in ended:
                self._try(self.finish, meter)
            if time.monotonic() >= at:
                for meter in meters:
                    self._try(Meter.refresh, meter)
                self._try(self.look, meters)
                at = time.monotonic() + self._seconds

    @staticmethod
    def _try(show: Callable[[Any], None], what: Any) -> None:
        try:
            show(what)
        except Exception as error:  # what is shown is never a reason to fail
            log.debug("progress is not shown: %s", error)


class Lines(Looking):
    """A line every so often, of what moved; where nothing can tell how far it is, of how long it has taken."""

    def __init__(self, say: Callable[[str], None], seconds: float = LINE_SECONDS) -> None:
        super().__init__(seconds)
        self._say = say
        self._told: dict[int, tuple[int, str]] = {}

    def look(self, meters: list[Meter]) -> None:
        silent = [meter for meter in meters if not meter.tells_itself]
        moved = [meter for meter in silent if self._told.get(id(meter)) != (meter.done, meter.note) and meter.done]
        self._told = {id(meter): (meter.done, meter.note) for meter in silent}
        for meter in moved or (silent[-1:] if len(silent) == len(meters) else []):
            self._say(meter.line())


def clock(seconds: float) -> str:
    """`0:49`, `1:02:03`, `2 d 1:02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}:{second:02}"
    return (f"{days} d " if days else "") + f"{hour}:{minute:02}:{second:02}"
