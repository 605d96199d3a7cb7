"""The clock of a training: what its parts took, and the forecast that it makes of itself after its first steps.

The forecast costs nothing that could be noticed: what it needs was timed anyway, but for one copy of a tensor.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gptmodel.config import TrainConfig
from gptmodel.store.artifacts import write_atomic
from gptmodel.training.pace import Pace, first_steps

FIRST_STEPS_FILE = "first_steps.json"  # beside a run's log


@dataclass
class Stopwatch:
    """Seconds of the parts of this attempt."""

    path: Path | None = None
    """Where the forecast goes; without, none is made."""
    start: float = 0.0
    steps: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    saves: list[float] = field(default_factory=list)
    end: float = 0.0

    def pace(self, peak_memory_bytes: float) -> dict[str, float]:
        """What the parts took on average, for forecasts of later runs of this shape; empty where no step was made.

        What the first step took beyond the others, as for compiling, counts as a part of the start.
        """
        if not self.steps:
            return {}
        step = statistics.fmean(self.steps[1:] or self.steps)
        found = Pace(
            start_seconds=self.start + max(0.0, self.steps[0] - step),
            step_seconds=step,
            evaluation_seconds=_mean(self.evaluations),
            save_seconds=_mean(self.saves),
            end_seconds=self.end,
            peak_memory_bytes=peak_memory_bytes,
        )
        return asdict(found)

    def is_due(self, step: int, max_steps: int) -> bool:
        """Whether the first steps are done just now."""
        return self.path is not None and step == first_steps(max_steps) and len(self.steps) == step

    def foretell(
        self, train: TrainConfig, *, n_tokens: int, elapsed: float, save_seconds: float, peak_memory_bytes: float
    ) -> None:
        """Write the forecast of the whole run: `elapsed` so far, and the rest at the pace of these steps.

        `n_tokens` are those of a step. The first step is no measure of the others: it fills caches, and may compile.
        """
        assert self.path is not None
        done, step = len(self.steps), statistics.median(self.steps[1:])
        pace = Pace(
            start_seconds=self.start,
            step_seconds=step,
            evaluation_seconds=_mean(self.evaluations),
            save_seconds=save_seconds,
            end_seconds=0.0,
            peak_memory_bytes=peak_memory_bytes,
        )
        told = {
            "after_step": done,
            "of": train.max_steps,
            "seconds": elapsed + pace.seconds(train, done),
            "tokens_per_second": n_tokens / step,
            "peak_memory_bytes": peak_memory_bytes,
        }
        write_atomic(self.path, json.dumps(told))


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else 0.0
