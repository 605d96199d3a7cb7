"""Training again as it was trained: the recorded precision, threads and device, and what this machine lacks for it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptmodel.config import BudgetConfig, PipelineConfig
from gptmodel.errors import ConfigError
from gptmodel.lineage.differences import Curve, curve_of
from gptmodel.pretraining.step import Training, plan_training, pretrain, run_training
from gptmodel.reproduction.recorded import Machine
from gptmodel.store.artifacts import SCRATCH, Artifact, Store, write_atomic
from gptmodel.store.provenance import provenance
from gptmodel.training.metrics_log import curve

_HIDE_GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a person wants otherwise than it was recorded. ConfigError for what cannot be."""

    steps: int = 0
    """Train only the first steps, with the schedule of all; 0 is all."""
    threads: int = 0
    """CPU threads; 0 is the recorded number."""
    precision: str = ""
    """float32 or bfloat16; "" is the recorded one."""

    def __post_init__(self) -> None:
        problems = [
            *([f"--steps is {self.steps}; give the number of first steps, or 0 for all"] if self.steps < 0 else []),
            *([f"--threads is {self.threads}; give 0 for the recorded number, or more"] if self.threads < 0 else []),
        ]
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Trained:
    """What a repeated training left: its curve, its record, and the artifact if it went to the end."""

    curve: Curve
    provenance: dict[str, Any]
    machine: dict[str, Any]
    artifact: Artifact | None
    reused: bool = False
    """Nothing was trained: an earlier attempt in the same store had finished it."""
    went_on: bool = False
    """An earlier attempt in the same store had made the first steps."""


def as_recorded(config: PipelineConfig, machine: Machine, wishes: Wishes) -> PipelineConfig:
    """The run's own config with the recorded threads, one process where it ran on a processor, and without its budget.

    Only settings that no fingerprint knows are changed; the precision is repeated by `train_again`. What the run might
    take on its own machine is no bound on a slower one.
    """
    threads = wishes.threads or machine.threads or config.train.threads
    one = machine.device == "cpu" and not config.train.processes
    processes = 1 if one else config.train.processes
    return replace(config, train=replace(config.train, threads=threads, processes=processes, budget=BudgetConfig()))


def lacking(config: PipelineConfig, machine: Machine, wishes: Wishes) -> list[str]:
    """What this machine cannot do as the first one did, a line each. ConfigError where it cannot train at all."""
    import torch

    found = []
    if (threads := wishes.threads or machine.threads) > (cores := os.cpu_count() or 1):
        found.append(f"{threads} threads, as recorded, on {cores} cores: slower than it was")
    if wishes.threads and machine.threads and wishes.threads != machine.threads:
        found.append(
            f"{wishes.threads} threads as asked, {machine.threads} as recorded: results may differ by rounding"
        )
    if wishes.precision and wishes.precision != machine.precision:
        found.append(f"{wishes.precision} as asked, {machine.precision or 'unknown'} as recorded: results will differ")
    if machine.device.startswith("cuda"):
        found += _lacking_gpu(config, machine)
    elif machine.name and machine.name != (here := torch.backends.cpu.get_cpu_capability()):
        found.append(f"trained with {machine.name}, and this processor does {here}: results may differ by rounding")
    if (wishes.precision or machine.precision) == "bfloat16" and not _has_bfloat16(machine):
        found.append("no bfloat16 instructions here: it is emulated, slowly, and may round otherwise")
    if not machine.precision:
        found.append("the precision was not recorded: it is chosen again")
    return found


def _lacking_gpu(config: PipelineConfig, machine: Machine) -> list[str]:
    import torch

    if not torch.cuda.is_available():
        if config.train.device == "cuda":
            raise ConfigError(
                f"the run asks for train.device=cuda ({machine.name}), and torch sees no GPU here; "
                "reproduce it on a machine with one"
            )
        return [f"trained on {machine.name}, and there is no GPU here: the processor trains, and rounds otherwise"]
    found = []
    if (here := torch.cuda.get_device_name()) != machine.name:
        found.append(f"trained on {machine.name}, and this is {here}: results may differ by rounding")
    if not config.train.deterministic:
        found.append("trained on a GPU without train.deterministic: sums may be taken in another order each time")
    return found


def _has_bfloat16(machine: Machine) -> bool:
    import torch

    if machine.device.startswith("cuda") and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def train_again(
    fresh: Store,
    config: PipelineConfig,
    shards: Artifact,
    init: Artifact | None,
    machine: Machine,
    wishes: Wishes,
    on_line: Callable[[str], None],
) -> Trained:
    """Train in a child process, all steps or the first ones; a fresh store that was interrupted goes on.

    ConfigError where all of the first steps that are asked for are already there.
    """
    training = plan_training(fresh, as_recorded(config, machine, wishes), shards, init)
    building = fresh.building_path(training.request)
    before = _saved(building)
    if wishes.steps and before >= wishes.steps:
        raise ConfigError(
            f"--steps is {wishes.steps:,}, and --store {fresh.root} already has {before:,} of an earlier attempt; "
            "give more, or an empty directory"
        )

    @contextmanager
    def as_it_was(_: Training) -> Iterator[None]:
        # The note that a resumed run finds of its first attempt: precision is repeated, and other differences are told.
        known = {"precision": wishes.precision or machine.precision, "threads": machine.threads, "device": machine.name}
        (building / SCRATCH).mkdir(parents=True, exist_ok=True)
        note = building / SCRATCH / "machine.json"
        if not note.exists():
            write_atomic(note, json.dumps({name: value for name, value in known.items() if value}))
        with _without_gpus(machine.device == "cpu"):
            yield

    if wishes.steps:
        with as_it_was(training):
            told = run_training(training, building, on_line=on_line, until=wishes.steps)
        figures = curve_of(curve(training.metrics_file))
        return Trained(figures, provenance(fresh.root), told["machine"], None, went_on=before > 0)
    made, reused = pretrain(fresh, training, on_line=on_line, watch=as_it_was)
    figures = curve_of(curve(training.metrics_file))
    return Trained(figures, made.provenance, made.summary["machine"], made, reused, went_on=before > 0 and not reused)


def _saved(building: Path) -> int:
    """The last step that an earlier attempt saved, from which the child goes on; 0 if it begins anew."""
    names = (path.name.removeprefix("step-") for path in (building / SCRATCH / "checkpoints").glob("step-*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


@contextmanager
def _without_gpus(hide: bool) -> Iterator[None]:
    """`device: auto` took the processor then, and must take it again where there is a GPU now."""
    before = os.environ.get(_HIDE_GPUS)
    if hide:
        os.environ[_HIDE_GPUS] = ""
    try:
        yield
    finally:
        if hide:
            os.environ.pop(_HIDE_GPUS)
            if before is not None:
                os.environ[_HIDE_GPUS] = before
