"""How far a training is, read from the end of its log when somebody looks: the training itself does nothing for it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptmodel.progress import Meter

_END_BYTES = 1 << 16  # of the log: a line is some hundred bytes, and a few KB where samples stand in it


class LogEnd:
    """Sets a meter to the last step of a log, with loss, perplexity, speed and utilisation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._first = -1

    def __call__(self, meter: Meter) -> None:
        with suppress(OSError):  # not there yet, or being written anew
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if (seen := (found.st_ino, found.st_size)) == self._seen:
                    return
                file.seek(max(0, found.st_size - _END_BYTES))
                text = file.read()
            self._seen = seen
            if (line := _last_step(text)) is not None:
                self._tell(meter, line["step"], line["metrics"])

    def _tell(self, meter: Meter, step: int, metrics: dict[str, float]) -> None:
        if self._first < 0 or step < self._first:  # a resumed run drops the steps that it will make again
            meter.go_on_from(step)
            self._first = step
        meter(step)
        parts = [f"loss {metrics['train/loss']:.3f}"]
        with suppress(KeyError):
            parts.append(f"perplexity {metrics['train/perplexity']:,.1f}")
            parts.append(f"{metrics['speed/tokens_per_second']:,.0f} tokens/s")
            parts.append(f"MFU {100 * metrics['speed/mfu']:.0f} %")
        meter.note = " · ".join(parts)


def _last_step(text: bytes) -> dict[str, Any] | None:
    """The last whole line that tells of a training step; None if there is none."""
    for line in reversed(text[: text.rfind(b"\n") + 1].splitlines()):
        if b'"train/loss"' in line:
            with suppress(ValueError):  # cut off at its beginning
                found: dict[str, Any] = json.loads(line)
                return found
    return None
