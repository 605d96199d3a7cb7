"""Pretraining as a step of the chain: shards (and weights to start from) in, a checkpoint artifact out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gptmodel.config import ModelConfig, PipelineConfig, recipe
from gptmodel.errors import ConfigError, DataError
from gptmodel.planning.budget import measured_forecast, rates_of, refuse_over_budget
from gptmodel.planning.forecast import Forecast, forecast
from gptmodel.planning.own_law import law_for
from gptmodel.planning.past import past
from gptmodel.planning.score import PLAN_FILE, save_plan, seal_plan
from gptmodel.pretraining.watching import LogEnd
from gptmodel.progress import progress
from gptmodel.settings import parse_config
from gptmodel.store.artifacts import SCRATCH, Artifact, Request, Store, sha256_file, write_atomic
from gptmodel.store.provenance import provenance
from gptmodel.store.space import training_bytes
from gptmodel.training.launch import run_child

log = logging.getLogger(__name__)
KIND = "checkpoint"
# 1 had torch's own attention in bfloat16 on a processor, 2 other chunks of logits; 3 drew dropout once for a step, and
# otherwise in each process. The data is in the same order.
RECIPE_VERSION = 4
RUNS = ".runs"  # in the store: the log of each training, by fingerprint
LOG_HASHES = "run_log"  # in a manifest's provenance: name and sha256
SEALED = ("metrics.jsonl", "job.json")  # they are written no more once the model is published


@dataclass(frozen=True)
class Training:
    """A training that was asked for: its request, and where its log lies while it runs and after."""

    request: Request
    config: PipelineConfig
    shards: Artifact
    init: Artifact | None
    run_dir: Path

    @property
    def metrics_file(self) -> Path:
        return self.run_dir / "metrics.jsonl"


def run_dir_of(store: Store, fingerprint: str) -> Path:
    """Where the log and the card of a run lie."""
    return store.root / RUNS / fingerprint[:16]


def plan_training(store: Store, config: PipelineConfig, shards: Artifact, init: Artifact | None = None) -> Training:
    """Check that the parts fit, and name what is asked. ConfigError or DataError where they do not."""
    if init is not None:
        config = replace(config, model=_model_of(init, config.model))
    _check_fit(config, shards)
    inputs = (shards.ref,) if init is None else (shards.ref, init.ref)
    asked = {"model": recipe(config.model), "train": recipe(config.train)}
    request = Request(KIND, _recipe_version(config), asked, inputs)
    return Training(request, config, shards, init, run_dir_of(store, request.fingerprint))


def _recipe_version(config: PipelineConfig) -> int:
    """What 4 changed is dropout in all micro-batches but the first: nothing else is trained anew for it."""
    several = config.train.batch_size > config.train.micro_batch_size
    return RECIPE_VERSION if config.model.dropout and several else 3


def pretrain(
    store: Store,
    training: Training,
    *,
    on_line: Callable[[str], None] = log.info,
    watch: Callable[[Training], AbstractContextManager[Any]] = nullcontext,
    on_plan: Callable[[Forecast], None] = lambda _: None,
    wait: bool = False,
) -> tuple[Artifact, bool]:
    """Return (checkpoint artifact, reused). Trains in a child process; goes on from its newest valid checkpoint.

    `on_line` gets the child's log lines; `watch` is entered while it trains, and only by the one that does train.
    `on_plan` gets the forecast before anything is started, or refused.
    LockHeldError if another run trains the same (or waits for it, if `wait`); whatever the child could not do comes
    back as its own error. ConfigError, and nothing is begun, where the forecast is above the budget of the settings;
    BudgetError, with all saved, where the training itself goes above it.
    """
    config, summary = training.config, training.shards.summary
    data: dict[str, Any] = {name: summary[name] for name in ("train_tokens", "validation_tokens")}
    data["own"] = law_for(store, config)
    plan = None
    if config.train.budget.is_set and not spent_seconds(store, training) and store.find(training.request) is None:
        plan = measured_forecast(config, store, **data)
        on_plan(plan)
        refuse_over_budget(config, plan)

    def build(building: Path) -> dict[str, Any]:
        made = plan or forecast(config, rates_of(config), past=past(store, config), **data)
        if plan is None:
            on_plan(made)
        if plan or not (training.run_dir / PLAN_FILE).exists():  # one that goes on is held to its first forecast
            save_plan(made, training.run_dir)
        with watch(training):
            return run_training(training, building, on_line=on_line)

    needed = training_bytes(training.config.model, training.config.train)
    return store.produce(
        training.request,
        build,
        wait=wait,
        needed=needed,
        seal=lambda: {**seal_log(training.run_dir), **seal_plan(training.run_dir)},
    )


def spent_seconds(store: Store, training: Training) -> float:
    """What earlier attempts took up to their newest checkpoint; 0 where there is none to go on from.

    Above 0, the clock says what a forecast could only guess.
    """
    kept = sorted((store.building_path(training.request) / SCRATCH).glob("checkpoints/step-*[1-9]*/state.json"))
    try:
        return float(json.loads(kept[-1].read_text())["elapsed"]) if kept else 0.0
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def seal_log(run_dir: Path) -> dict[str, Any]:
    """The hashes of a run's log and settings, which lie outside the artifact since they hold times and paths."""
    found = {name: run_dir / name for name in SEALED}
    return {LOG_HASHES: {name: sha256_file(path) for name, path in found.items() if path.is_file()}}


def run_training(
    training: Training, building: Path, *, on_line: Callable[[str], None] = log.info, until: int = 0
) -> dict[str, Any]:
    """Train in a child process that leaves its product in `building`; what it says of it.

    With `until` only up to that step, and there is no product: the log is what is left.
    """
    training.run_dir.mkdir(parents=True, exist_ok=True)
    job = training.run_dir / "job.json"
    told = {
        "config": asdict(training.config),
        "shards": str(training.shards.path.resolve()),
        "shards_digest": training.shards.digest,
        "building": str(building.resolve()),
        "run_dir": str(training.run_dir.resolve()),
        "init_from": str(training.init.path.resolve()) if training.init else "",
        "init_digest": training.init.digest if training.init else "",
        "until": until,
        "provenance": provenance(training.run_dir.parent.parent),  # all that is known of one that never publishes
    }
    write_atomic(job, json.dumps(told, indent=2))
    threads = training.config.train.threads
    steps, seen = until or training.config.train.max_steps, LogEnd(training.metrics_file)
    with progress("training", steps, "steps", tells_itself=True, look=seen):
        run_child(job, processes=processes_of(training.config), threads=threads, on_line=on_line)
    summary: dict[str, Any] = json.loads((building / SCRATCH / "summary.json").read_text())
    return summary


def _model_of(init: Artifact, asked: ModelConfig) -> ModelConfig:
    """The architecture of the weights; only dropout, which they do not fix, is taken from the config."""
    found = parse_config(json.loads(init.file("config.json").read_text()), ModelConfig)
    model = replace(found, dropout=asked.dropout)
    if model != asked:
        log.info(
            "init_from decides the architecture: %d layers, %d wide, context %d",
            *(model.n_layer, model.n_embd, model.context_length),
        )
    return model


def _check_fit(config: PipelineConfig, shards: Artifact) -> None:
    summary, needed = shards.summary, config.model.context_length + 1
    vocab_size = summary["tokenizer"]["vocab_size"]
    if vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"the shards' tokenizer has {vocab_size:,} tokens and the model only {config.model.vocab_size:,}; "
            f"train from weights of that vocabulary, or set model.vocab_size={vocab_size}"
        )
    # On the training side of a retraining the corpus's own fraction is held out, and stays as it is.
    is_side = shards.request.config.get("side") == "training"
    fraction = "retrain.selection_fraction" if is_side else "corpus.validation_fraction"
    for split, change in (("train", "lower"), ("validation", "raise")):
        if (found := summary[f"{split}_tokens"]) < needed:
            raise DataError(
                f"the {split} split has {found:,} tokens and one window of context {needed - 1} needs {needed:,}; "
                f"add text, {change} {fraction}, or lower model.context_length"
            )


def processes_of(config: PipelineConfig) -> int:
    """One for each GPU, or one on a processor, unless the config says."""
    if config.train.processes or config.train.device == "cpu":
        return config.train.processes or 1
    import torch  # late: a flow must import fast

    count = max(1, torch.cuda.device_count())
    per_step = config.train.micro_batch_size * count
    if config.train.batch_size % per_step:
        raise ConfigError(
            f"train.batch_size {config.train.batch_size} is not a multiple of micro_batch_size x GPUs "
            f"({config.train.micro_batch_size} x {count}); change one of them, or set train.processes"
        )
    return count
