"""A training job, and the parts of the loop put together from it: for the run itself, and for a replay of a step."""

from __future__ import annotations

import logging
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from gptmodel.config import PipelineConfig, TrainConfig
from gptmodel.device import Machine
from gptmodel.errors import ArtifactError
from gptmodel.model import GPT
from gptmodel.planning.budget import limit_of
from gptmodel.sharding import own_part, shard
from gptmodel.store.artifacts import Artifact, load_artifact
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.batches import Batches
from gptmodel.tokens.shards import open_split
from gptmodel.training.checkpoint import Checkpointer
from gptmodel.training.datacheck import DataCheck
from gptmodel.training.loop import Trainer
from gptmodel.training.metrics_log import MetricsLog
from gptmodel.training.optimizer import make_optimizer
from gptmodel.training.seen import StopSignal
from gptmodel.training.spikes import documents_of
from gptmodel.training.stopwatch import FIRST_STEPS_FILE, Stopwatch
from gptmodel.training.validation import SplitEvaluator
from gptmodel.weights import WEIGHTS_FILE, load_weights, untrained_model

log = logging.getLogger(__name__)
CHECKPOINTS = "checkpoints"  # in the `.work` of the directory being built
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Job:
    """What the child is told: paths and the whole config."""

    config: dict[str, Any]
    shards: str
    """Directory of the shards artifact."""
    shards_digest: str
    """What it held when this run was planned."""
    building: str
    """Directory to leave the product in; its `.work` holds checkpoints."""
    run_dir: str
    """Directory of the run's log, kept after publication."""
    init_from: str = ""
    """Directory of the weights or checkpoint artifact to start from."""
    init_digest: str = ""
    """What that held."""
    until: int = 0
    """Leave off after this step, with the schedule of the whole run, and leave no product; 0 trains to the end."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Code and machine when the child was started; for readers of the run, not for the child."""


def assemble(
    job: Job,
    config: PipelineConfig,
    machine: Machine,
    checkpoints: Checkpointer,
    metrics: MetricsLog,
    stop: StopSignal,
    *,
    rank: int = 0,
    world: int = 1,
) -> Trainer:
    """The trainer of this job with its initial weights. ArtifactError where an input is not what was planned with."""
    model = untrained_model(config)
    if job.init_from:
        load_weights(model, _as_planned(job.init_from, job.init_digest).file(WEIGHTS_FILE))
    _place(model, config.train, machine, rank, world)
    shards = _as_planned(job.shards, job.shards_digest)
    checked = DataCheck(shards)
    stream = open_split(shards, "train", check=False)
    budget = config.train.budget
    return Trainer(
        model=model,
        optimizer=make_optimizer(model, config.train.optimizer),
        batches=Batches(
            stream,
            context_length=model.config.context_length,
            batch_size=config.train.batch_size,
            micro_batch_size=config.train.micro_batch_size,
            seed=config.train.seed,
            rank=rank,
            world=world,
        ),
        evaluate=SplitEvaluator(
            model, open_split(shards, "validation", check=False), config.train, machine, rank, world
        ),
        metrics=metrics,
        checkpoints=checkpoints,
        config=config.train,
        machine=machine,
        byte_lengths=torch.from_numpy(gpt2().byte_lengths.copy()),
        stop=stop,
        documents=lambda windows: documents_of(stream, windows, model.config.context_length),
        replay=f"python -m gptmodel.pretraining.replay {shlex.quote(str(Path(job.run_dir) / 'job.json'))}",
        rank=rank,
        world=world,
        until=job.until,
        data=checked,
        over_budget=limit_of(budget, machine.device.type, world).over if budget.is_set else None,
        began=_began(),
        clock=Stopwatch(Path(job.run_dir) / FIRST_STEPS_FILE),
    )


def _place(model: GPT, train: TrainConfig, machine: Machine, rank: int, world: int) -> None:
    """To the device; of a model that is cut up only a part, so that the whole never lies there."""
    if world == 1 or train.sharding == "none":
        model.to(machine.device)
        return
    shard(model, machine.device, machine.precision, compiled=train.compile)
    if rank == 0:
        own = sum(own_part(parameter).numel() for parameter in model.parameters())
        log.info(
            "cut up between %d processes: %s of %s parameters in this one",
            world,
            f"{own:,}",
            f"{model.num_parameters():,}",
        )


def _began() -> float:
    """When this process started, by `time.perf_counter`: importing torch is part of what a run takes."""
    return time.perf_counter() - max(0.0, time.time() - psutil.Process().create_time())


def _as_planned(directory: str, digest: str) -> Artifact:
    """The artifact, if it still holds what it held when this run's name was taken from its digest."""
    artifact = load_artifact(Path(directory))
    if artifact.digest != digest:
        raise ArtifactError(
            f"{artifact.label} now holds {artifact.digest[:16]}…, and this run was begun with {digest[:16]}…; "
            "put the old files back, or start the flow again for a run of its own on the new ones"
        )
    return artifact
