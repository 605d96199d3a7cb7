"""What past runs of a store say of the next: their pace, where machine and shape are alike, and how far trials err."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from gptmodel.config import PipelineConfig, recipe
from gptmodel.errors import ArtifactError
from gptmodel.planning.measuring import Trial
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.store.provenance import provenance
from gptmodel.training.pace import Pace

_KIND = "checkpoint"
_ENOUGH = 3  # runs on this machine, before a forecast is corrected by them
# Of a training's settings, those that decide what its parts take; how many parts there are is the plan's to count.
_SHAPE = (
    *("batch_size", "micro_batch_size", "precision", "compile", "deterministic"),
    *("eval_tokens", "sample_prompts", "sample"),
)


@dataclass(frozen=True)
class Past:
    """The pace of past runs of the same shape on this machine."""

    pace: Pace
    """Medians."""
    runs: int
    device: str
    """cpu or cuda."""
    precision: str
    processes: int


def trainings(store: Store) -> Iterator[Artifact]:
    """All finished trainings that can be read: one that is damaged is no reason to plan nothing."""
    for path in store.directories(_KIND):
        with suppress(ArtifactError):
            yield store.at(_KIND, path.name)


def past(store: Store, config: PipelineConfig) -> Past | None:
    """Of runs that were not stopped in between; None where there is none."""
    found = [made for made in trainings(store) if _is_alike(made, config)]
    paces = [{part.name: made.summary["pace"][part.name] for part in fields(Pace)} for made in found]
    if not paces:
        return None
    machine = found[-1].summary["machine"]
    return Past(
        Pace(**{name: statistics.median(pace[name] for pace in paces) for name in paces[0]}),
        len(paces),
        "cuda" if machine["device"].startswith("cuda") else "cpu",
        str(found[-1].summary["precision"]),
        int(found[-1].summary["pace"]["processes"]),
    )


def _is_alike(made: Artifact, config: PipelineConfig) -> bool:
    pace = made.summary.get("pace") or {}
    if any(part.name not in pace for part in fields(Pace)) or pace["resumed"]:
        return False
    asked, wanted = made.request.config, recipe(config.train)
    return (
        asked["model"] == recipe(config.model)
        and _shape(asked["train"]) == _shape(wanted)
        and config.train.processes in (0, pace["processes"])
        and (pace["processes"] == 1 or pace.get("sharded", False) == (config.train.sharding == "full"))
        and _is_here(made, config)
    )


def _is_here(made: Artifact, config: PipelineConfig) -> bool:
    """Whether it ran on a machine like this one, as far as can be said without loading torch."""
    here, machine, train = provenance(), made.summary["machine"], config.train
    on_gpu = machine["device"].startswith("cuda")
    names = ("cpu", "cpus", "host") if on_gpu else ("cpu", "cpus")  # which GPU this host has is not known here
    return (
        all(made.provenance.get(name) == here[name] for name in names)
        and int(machine["threads"]) == (train.threads or os.cpu_count() or 1)
        and train.device != ("cpu" if on_gpu else "cuda")
    )


def _shape(train: dict[str, Any]) -> dict[str, Any]:
    return {**{name: train.get(name) for name in _SHAPE}, "kind": train["optimizer"].get("kind")}


def machine_of(trial: Trial) -> str:
    """What forecasts of time are compared within."""
    return f"{trial.device}, {trial.machine}, {trial.threads} threads, {trial.precision}"


def correction(store: Store, trial: Trial) -> tuple[float, int]:
    """Median of time taken over time that a trial foretold (uncorrected) in this machine's runs, and of how many.

    1 with fewer than 3 of them. A run that went on after a stop took a second start, and is left out.
    """
    ratios = []
    for made in trainings(store):
        plan, pace = made.provenance.get("plan", {}), made.summary.get("pace", {})
        if plan.get("machine") != machine_of(trial) or made.summary.get("stopped_early") or pace.get("resumed"):
            continue
        ratios.append(made.summary["elapsed_seconds"] / plan["seconds"] * plan["correction"])
    return (statistics.median(ratios), len(ratios)) if len(ratios) >= _ENOUGH else (1.0, len(ratios))
