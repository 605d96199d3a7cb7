"""Forecasts held against what the runs then took: kept beside a run, sealed in its manifest, and told of a store.

A run is forecast up to three times, and each is scored under its own basis: by its settings alone (disk, memory, loss:
every run), before the start (by trial steps where a budget is set, by past runs of the same shape where there are any),
and by itself after its first steps.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptmodel.planning.forecast import Forecast
from gptmodel.planning.past import machine_of, trainings
from gptmodel.store.artifacts import Store, write_atomic
from gptmodel.training.stopwatch import FIRST_STEPS_FILE

PLAN_FILE = "plan.json"  # beside a run's log
PROVENANCE = "plan"  # in the manifest of the model
FIRST_STEPS = "first_steps"  # in that
FIGURES = {
    "seconds": "time",
    "tokens_per_second": "tokens/s",
    "peak_memory_bytes": "peak memory",
    "disk_bytes": "disk",
    "loss": "loss",
}
BASES = {
    "settings": "from the settings alone",
    "trial": "by trial steps before the start",
    "past runs": "by past runs of the same shape",
    "first steps": "by the run's own first steps",
}
_ACTUAL = {
    "seconds": "elapsed_seconds",
    "tokens_per_second": "tokens_per_second",
    "peak_memory_bytes": "peak_memory_bytes",
    "disk_bytes": "disk_bytes",
    "loss": "best_validation_loss",
}
_COUNTED = "counted"  # what the settings alone say, where something was measured too


@dataclass(frozen=True)
class Score:
    """One figure, foretold and found."""

    forecast: float
    actual: float
    figure: str = "seconds"
    """A key of `FIGURES`."""
    basis: str = "trial"
    """What it was foretold by: a key of `BASES`."""

    @property
    def error(self) -> float:
        """Share by which the run came out above the forecast; negative for below."""
        return self.actual / self.forecast - 1


def save_plan(plan: Forecast, run_dir: Path) -> None:
    """Keep what was foretold of a run beside its log; time only where something was measured, now or in past runs."""
    told: dict[str, Any] = {"disk_bytes": plan.kept_bytes, "loss": plan.expected.middle}
    told[_COUNTED] = {"peak_memory_bytes": plan.memory.total}
    if plan.pace is not None:
        told |= {
            "basis": plan.basis,
            "seconds": plan.seconds,
            "tokens_per_second": plan.tokens / plan.steps / plan.pace.step_seconds,
            "peak_memory_bytes": plan.pace.peak_memory_bytes,
        }
    if plan.trial is not None:
        told |= {"correction": plan.correction, "machine": machine_of(plan.trial)}
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomic(run_dir / PLAN_FILE, json.dumps(told))


def seal_plan(run_dir: Path) -> dict[str, Any]:
    """What was foretold, for the manifest; nothing of a file that is not there or cannot be read."""
    plan, first = _read(run_dir / PLAN_FILE), _read(run_dir / FIRST_STEPS_FILE)
    told = plan | ({FIRST_STEPS: first} if first else {})
    return {PROVENANCE: told} if told else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def scores(provenance: dict[str, Any], summary: dict[str, Any]) -> dict[str, Score]:
    """By name, as far as it was foretold: `counted/…` by the settings alone, `first_steps/…` by the run's first steps.

    A run that stopped early took less time for a reason of its own.
    """
    plan = provenance.get(PROVENANCE, {})
    found = _scored("", plan, summary, plan.get("basis", "trial"))
    found |= _scored(f"{_COUNTED}/", plan.get(_COUNTED, {}), summary, "settings")
    found |= _scored(f"{FIRST_STEPS}/", plan.get(FIRST_STEPS, {}), summary, "first steps")
    early = summary.get("stopped_early")
    return {name: score for name, score in found.items() if not (early and score.figure == "seconds")}


def _scored(prefix: str, plan: dict[str, Any], summary: dict[str, Any], basis: str) -> dict[str, Score]:
    return {
        prefix + name: Score(
            *(float(plan[name]), float(summary[actual]), name), "settings" if name in ("disk_bytes", "loss") else basis
        )
        for name, actual in _ACTUAL.items()
        if plan.get(name) and actual in summary
    }


def bases(provenance: dict[str, Any]) -> dict[str, str]:
    """What a run's forecasts came of, in words: that before its start, and that after its first steps."""
    plan = provenance.get(PROVENANCE, {})
    before = {"before_start": BASES[plan.get("basis", "trial" if "seconds" in plan else "settings")]} if plan else {}
    first = plan.get(FIRST_STEPS, {})
    return before | ({FIRST_STEPS: f"after step {first['after_step']} of {first['of']}"} if first else {})


def past_scores(store: Store) -> dict[str, list[Score]]:
    """Of all trainings of the store, by figure and basis."""
    found: dict[str, list[Score]] = {}
    for made in trainings(store):
        for score in scores(made.provenance, made.summary).values():
            found.setdefault(f"{score.figure} {BASES[score.basis]}", []).append(score)
    return found


def median_and_worst(found: Iterable[Score]) -> tuple[float, float]:
    """Errors, with their signs."""
    errors = [score.error for score in found]
    return statistics.median(errors), max(errors, key=abs)
