"""Forecasts held against what the runs then took, from the manifests of the store; and what that corrects."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptmodel.planning.forecast import Forecast, Trial
from gptmodel.store.artifacts import Store, write_atomic

PLAN_FILE = "plan.json"  # beside a run's log
PROVENANCE = "plan"  # in the manifest of the model
_KIND = "checkpoint"
_ENOUGH = 3  # runs on this machine, before a forecast is corrected by them
_ACTUAL = {
    "seconds": "elapsed_seconds",
    "tokens_per_second": "tokens_per_second",
    "peak_memory_bytes": "peak_memory_bytes",
    "disk_bytes": "disk_bytes",
    "loss": "best_validation_loss",
}


@dataclass(frozen=True)
class Score:
    """One figure, foretold and found."""

    forecast: float
    actual: float

    @property
    def error(self) -> float:
        """Share by which the run took more than was foretold; negative for less."""
        return self.actual / self.forecast - 1


def save_plan(plan: Forecast, run_dir: Path) -> None:
    """Keep what was foretold of a run beside its log; time and memory only where they were measured."""
    told: dict[str, Any] = {"disk_bytes": plan.store_bytes, "loss": (plan.expected.low + plan.expected.high) / 2}
    if plan.trial is not None:
        told |= {
            "seconds": plan.seconds,
            "tokens_per_second": plan.tokens / plan.steps / plan.trial.step_seconds,
            "peak_memory_bytes": plan.trial.peak_memory_bytes,
            "correction": plan.correction,
            "machine": machine_of(plan.trial),
        }
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomic(run_dir / PLAN_FILE, json.dumps(told))


def seal_plan(run_dir: Path) -> dict[str, Any]:
    """What was foretold, for the manifest; nothing where there is no file or it cannot be read."""
    try:
        return {PROVENANCE: json.loads((run_dir / PLAN_FILE).read_text())}
    except (OSError, ValueError):
        return {}


def machine_of(trial: Trial) -> str:
    """What forecasts of time are compared within."""
    return f"{trial.device}, {trial.machine}, {trial.threads} threads, {trial.precision}"


def scores(provenance: dict[str, Any], summary: dict[str, Any]) -> dict[str, Score]:
    """By name, as far as it was foretold. A run that stopped early took less time for a reason of its own."""
    plan = provenance.get(PROVENANCE, {})
    found = {
        name: Score(float(plan[name]), float(summary[actual]))
        for name, actual in _ACTUAL.items()
        if plan.get(name) and actual in summary
    }
    if summary.get("stopped_early"):
        found.pop("seconds", None)
    return found


def past_scores(store: Store) -> dict[str, list[Score]]:
    """Of all trainings of the store."""
    found: dict[str, list[Score]] = {}
    for made in store.artifacts():
        if made.kind == _KIND:
            for name, score in scores(made.provenance, made.summary).items():
                found.setdefault(name, []).append(score)
    return found


def correction(store: Store, trial: Trial) -> float:
    """Median of time taken over time foretold (uncorrected) in this machine's runs; 1 with fewer than 3 of them."""
    ratios = []
    for made in store.artifacts():
        plan = made.provenance.get(PROVENANCE, {})
        if made.kind == _KIND and plan.get("machine") == machine_of(trial):
            score = scores(made.provenance, made.summary).get("seconds")
            ratios += [score.actual / score.forecast * plan["correction"]] if score else []
    return statistics.median(ratios) if len(ratios) >= _ENOUGH else 1.0


def median_and_worst(found: Iterable[Score]) -> tuple[float, float]:
    """Errors, with their signs."""
    errors = [score.error for score in found]
    return statistics.median(errors), max(errors, key=abs)
