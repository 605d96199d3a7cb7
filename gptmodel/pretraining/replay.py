"""Show one training step again: `python -m gptmodel.pretraining.replay RUN/job.json --step N`.

Goes from the newest checkpoint before the step, or from the initial weights, through the steps between, and then shows
loss, gradient norm and documents of each micro-batch. Steps are functions of (seed, step), so this is what the run
saw; of a run of several processes it differs by rounding and dropout. Nothing is written.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from gptmodel.config import PipelineConfig
from gptmodel.device import set_up
from gptmodel.errors import ConfigError, GptflowError
from gptmodel.pretraining.assembly import CHECKPOINTS, METRICS_FILE, Job, assemble
from gptmodel.settings import parse_config
from gptmodel.store.artifacts import SCRATCH
from gptmodel.training.checkpoint import Checkpointer, TrainState
from gptmodel.training.loop import Trainer
from gptmodel.training.metrics_log import MetricsLog
from gptmodel.training.seen import StopSignal, seed_dropout
from gptmodel.training.spikes import named


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gptmodel.pretraining.replay", description="Show one training step again."
    )
    parser.add_argument("job", type=Path, help="the run's job.json")
    parser.add_argument("--step", type=int, required=True, help="number of the step, counted from 1")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        for line in replay(_read(asked.job), asked.step):
            print(line, flush=True)
    except GptflowError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _read(path: Path) -> Job:
    try:
        return Job(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is no job of a training run ({error}); give the job.json of one, in .runs of the store"
        ) from None


def replay(job: Job, step: int) -> Iterator[str]:
    """Lines that tell the step. ConfigError if the run has no such step."""
    config = parse_config(job.config, PipelineConfig)
    if not 1 <= step <= config.train.max_steps:
        raise ConfigError(f"step {step} is not in this run; give 1 to {config.train.max_steps}")
    work = Path(job.building) / SCRATCH
    record = work / "machine.json"
    earlier = json.loads(record.read_text()) if record.exists() else {}
    machine = set_up(config.train, earlier.get("precision", ""))
    checkpoints = Checkpointer(work / CHECKPOINTS, config.train.keep_checkpoints, read_only=True)
    trainer = assemble(job, config, machine, checkpoints, MetricsLog(Path(job.run_dir) / METRICS_FILE), StopSignal())
    trainer.data.wait()  # what is shown is not saved, so nothing else would wait for it
    trainer.model.train()
    state = checkpoints.load_newest(trainer.model, trainer.optimizer, up_to=step - 1) or TrainState()
    start = f"the checkpoint of step {state.step}" if state.step else "the initial weights"
    yield f"from {start}, by way of {step - 1 - state.step} steps"
    while state.step < step - 1:
        trainer.advance(state)
    yield from _micro_batches(trainer, state.step)
    seen = trainer.gradients(state.step)
    yield f"step {step}: loss {seen.loss}, gradient norm {seen.grad_norm}"


def _micro_batches(trainer: Trainer, step: int) -> Iterator[str]:
    batches, size = trainer.batches, trainer.batches.micro_batch_size
    windows = batches.windows(step)
    for number, (ids_BT, targets_BT) in enumerate(batches.batch(step)):
        trainer.optimizer.zero_grad(set_to_none=True)
        seed_dropout(trainer.config.seed, step, batches.micro_batch_number(number))
        loss = trainer.loss(ids_BT, targets_BT)
        torch.autograd.backward(loss)
        norm = float(nn.utils.clip_grad_norm_(trainer.model.parameters(), math.inf))
        mine = windows[number * size : (number + 1) * size]
        documents = named(trainer.documents(mine))
        yield f"micro-batch {number + 1}: loss {float(loss.detach())}, gradient norm {norm}; documents {documents}"
    trainer.optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    sys.exit(main())
