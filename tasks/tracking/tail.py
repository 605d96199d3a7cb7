"""Follows a run's metrics log while it is written, in a thread of its own."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)
Lines = list[dict[str, Any]]
_PORTION_BYTES = 1 << 18
_BEFORE_BYTES = 256  # more than a line of the smallest log, with its time


class LogReader:
    """Reads a log in bounded portions: `portion` gives what follows the mark, `accept` sets the mark behind it.

    What nobody can take yet stays in the file, so a reader that waits for hours holds no line in memory. A log that
    was written anew (a resumed run drops the steps that it will make again) is another file, or has other bytes before
    the mark, and is read from its beginning.
    """

    def __init__(self, path: Path, offset: int = 0, before: str = "") -> None:
        self._path, self.offset, self._before = path, offset, bytes.fromhex(before)
        self._inode = 0
        self._taken = b""

    @property
    def before(self) -> str:
        """The bytes before the mark, as hex: with `offset` all that another reader needs to go on from here."""
        return self._before.hex()

    def portion(self) -> Lines:
        """The next whole lines after the mark, at most a quarter of a MB (or one longer line); [] if there are none."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            file.seek(self.offset - len(self._before))
            if self._inode not in (0, inode) or file.read(len(self._before)) != self._before:
                self.rewind()
                file.seek(0)
            self._inode = inode
            text = file.read(_PORTION_BYTES)
            while b"\n" not in text and (more := file.read(_PORTION_BYTES)):
                text += more
        self._taken = text[: text.rfind(b"\n") + 1]
        return [json.loads(line) for line in self._taken.splitlines()]

    def accept(self) -> None:
        """Set the mark behind the last portion."""
        self.offset += len(self._taken)
        self._before = (self._before + self._taken)[-_BEFORE_BYTES:]
        self._taken = b""

    def rewind(self) -> None:
        """Set the mark to the beginning."""
        self.offset, self._before, self._taken = 0, b"", b""


class Ticker:
    """Calls `call(last)` in a thread every `seconds` while the body runs, and a last time when it ends.

    The end waits for the last call, but not longer than `patience` seconds: the thread then goes on alone. An error
    in `call` is logged and ends the calls, never the body.
    """

    def __init__(self, call: Callable[[bool], None], seconds: float, name: str, patience: float) -> None:
        self._call, self._seconds, self._patience = call, seconds, patience
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join(self._patience)

    @property
    def running(self) -> bool:
        """Whether the last call has not returned yet."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            last = False
            while not last:
                last = self._end.wait(self._seconds)
                self._call(last)
        except Exception:
            log.exception("%s: no longer following", self._thread.name)
