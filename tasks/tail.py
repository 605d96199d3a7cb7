"""Follows a run's metrics log while it is written, in a thread of its own."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)
Lines = list[dict[str, Any]]


class Tail:
    """Calls `on_lines` every `seconds` with the new lines of finished steps; with the rest when the body ends.

    A resumed run writes its log anew and makes some steps again: lines of steps already handed over are left out. An
    error in `on_lines` is logged and ends the following, never the training.
    """

    def __init__(self, path: Path, on_lines: Callable[[Lines], None], seconds: float = 1.0) -> None:
        self._path, self._on_lines, self._seconds = path, on_lines, seconds
        self._seen, self._offset, self._inode = -1, 0, -1
        self._held: Lines = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name=f"tail-{path.parent.name}")

    def __enter__(self) -> Tail:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join(timeout=60)

    def _follow(self) -> None:
        try:
            ended = False
            while not ended:
                ended = self._end.wait(self._seconds)
                self._hand_over(last=ended)
        except Exception:
            log.exception("no longer following %s", self._path)

    def _hand_over(self, *, last: bool) -> None:
        new = self._read()  # first: it empties what is held when the log was written anew
        self._held += [line for line in new if line["step"] > self._seen]
        if not self._held:
            return
        # A step may have two lines, of training and of validation, so the newest step waits for the next.
        newest = self._held[-1]["step"]
        ready = [line for line in self._held if last or line["step"] < newest]
        if ready:
            self._held = self._held[len(ready) :]
            self._seen = ready[-1]["step"]
            self._on_lines(ready)

    def _read(self) -> Lines:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            inode = self._path.stat().st_ino
            if inode != self._inode:
                self._inode, self._offset, self._held = inode, 0, []
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
