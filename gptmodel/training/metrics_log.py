"""The local, append-only log of a run: the truth that curves, pictures and the tracking server are made from.

One JSON object a line: step, tokens seen, time in milliseconds, `metrics` (name to number), and where there are any
`samples` and the `decision` taken about a spike.
Numbers are written so that they read back to the bit; NaN and infinities as Python writes them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# What depends on the machine and the hour, and so stays out of artifacts, whose bytes must be repeatable.
TELEMETRY = frozenset(
    {"tokens_per_second", "mfu", "peak_memory_bytes", "step_seconds", "validation_seconds", "elapsed_seconds"}
)


class MetricsLog:
    """Appends lines; `start(step)` first drops what came after `step`, which a resumed run will make again.

    `guard` raises if this run may no longer write.
    """

    def __init__(self, path: Path, guard: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._guard = guard

    def start(self, step: int) -> None:
        """Keep the lines of steps up to `step`; -1 keeps none."""
        self._guard()
        kept = [line for line in read_lines(self.path) if line["step"] <= step] if step >= 0 else []
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, *, tokens: int, **line: Any) -> None:
        """Append one line and hand it to the operating system, so that a kill of this process cannot lose it."""
        self._guard()
        now = time.time_ns() // 1_000_000
        text = json.dumps({"step": step, "tokens": tokens, "time": now, **line}, ensure_ascii=False)
        self._file.write(text + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Put the log on disk; called before a checkpoint that counts on it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a log; a last line torn by a kill or a full disk is left out. Nothing without a file."""
    if not path.exists():
        return
    with path.open("rb") as file:  # it may be torn inside a character
        for text in file:
            if not text.endswith(b"\n"):
                return
            yield json.loads(text)


def curve(path: Path) -> Iterator[dict[str, Any]]:
    """The log's metric lines and decisions, without telemetry: what a repeated run must give again to the bit."""
    for line in read_lines(path):
        kept = {name: value for name, value in line.get("metrics", {}).items() if name.split("/")[-1] not in TELEMETRY}
        if kept:
            decision = {"decision": line["decision"]} if "decision" in line else {}
            yield {"step": line["step"], "tokens": line["tokens"], "metrics": kept, **decision}
