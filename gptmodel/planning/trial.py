"""A few steps of a training that is only planned, in a process of its own: `python -m gptmodel.planning.trial FILE`.

The real loop on random tokens: what a step, an evaluation, a sample and a checkpoint take, and the most memory used.
Reads `{"config": …, "steps": …, "memory_only": …}` and prints one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch

from gptmodel.config import ModelConfig, PipelineConfig, TrainConfig
from gptmodel.device import Machine, peak_memory_bytes, set_up
from gptmodel.model import GPT
from gptmodel.settings import parse_config
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.batches import Batches
from gptmodel.training.checkpoint import Checkpointer, TrainState
from gptmodel.training.loop import Trainer
from gptmodel.training.metrics_log import MetricsLog
from gptmodel.training.optimizer import make_optimizer
from gptmodel.training.pace import saves_beside_steps
from gptmodel.training.seen import StopSignal
from gptmodel.training.validation import SplitEvaluator

_EVAL_BATCHES = 4  # scored to time an evaluation; the rest is reckoned
_ENDLESS = 1 << 40  # tokens
_MICRO_BATCHES = 2  # that a step of many is cut down to; the rest is reckoned


@dataclass(frozen=True)
class RandomTokens:
    """A stream of any length, of which a slice is always the same."""

    n_tokens: int
    vocab_size: int

    def slice(self, start: int, stop: int) -> npt.NDArray[np.uint16]:
        drawn = np.random.default_rng(start).integers(0, min(self.vocab_size, 1 << 16), stop - start)
        return drawn.astype(np.uint16)


def main() -> int:
    """Run the trial that the file names."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    config = parse_config(asked["config"], PipelineConfig)
    machine = set_up(config.train)
    with TemporaryDirectory(dir=Path(sys.argv[1]).parent) as folder:
        told = try_out(config, machine, Path(folder), asked["steps"], memory_only=asked["memory_only"])
    print(json.dumps(told))
    return 0


def try_out(
    config: PipelineConfig, machine: Machine, folder: Path, steps: int, *, memory_only: bool = False
) -> dict[str, Any]:
    """Seconds and bytes, by name. With `memory_only`, one step and a checkpoint, and no seconds."""
    train = config.train
    processes = train.processes or (max(1, torch.cuda.device_count()) if machine.device.type == "cuda" else 1)
    micro_batches = max(1, train.batch_size // train.micro_batch_size // processes)
    trainer = trial_trainer(config, machine, folder, min(micro_batches, _MICRO_BATCHES))
    state = TrainState()
    told: dict[str, Any] = {}
    started = time.perf_counter()
    _validation(trainer.model, config, machine)  # as a training begins: what it leaves in memory is in the steps' way
    if not memory_only:
        told |= _validation(trainer.model, config, machine)
    trainer.model.train()
    # It fills caches, makes the optimizer's moments, and may compile: a part of the start.
    first_step = _timed(lambda: trainer.advance(state))
    if not memory_only:
        told["step_seconds"] = _step(trainer, state, steps, micro_batches)
    told["save_seconds"] = _timed(lambda: trainer.checkpoints.save(trainer.model, trainer.optimizer, state))
    if saves_beside_steps(train):
        trainer.advance(state)  # beside the writing, whose copies count as memory
        peak = peak_memory_bytes(
            machine.device
        )  # before a second save, whose copies can find the first one's in the way
        trainer.checkpoints.wait()
        trainer.checkpoints.save(trainer.model, trainer.optimizer, state)
    else:
        peak = peak_memory_bytes(machine.device)
    told["end_seconds"] = _timed(trainer.checkpoints.wait)
    return {
        **told,
        "measured_seconds": time.perf_counter() - started - first_step,
        "peak_memory_bytes": peak,
        "free_memory_bytes": _free(machine.device),
        "precision": machine.precision,
        "choice": machine.choice,
        "device": machine.device.type,
        "processes": processes,
        "machine": machine.name,
        "threads": machine.threads,
        "peak_flops": machine.peak_flops,
        "peak_source": machine.peak_source,
    }


def trial_trainer(config: PipelineConfig, machine: Machine, folder: Path, micro_batches: int) -> Trainer:
    """The trainer of these settings on random tokens, with steps of so many micro-batches."""
    train = replace(config.train, batch_size=config.train.micro_batch_size * micro_batches, processes=0)
    model = GPT(config.model, seed=train.seed).to(machine.device)
    stream = RandomTokens(_ENDLESS, config.model.vocab_size)
    metrics = MetricsLog(folder / "metrics.jsonl")
    metrics.start(-1)
    return Trainer(
        model=model,
        optimizer=make_optimizer(model, train.optimizer),
        batches=random_batches(config.model, train),
        evaluate=SplitEvaluator(model, stream, replace(train, eval_tokens=1), machine),
        metrics=metrics,
        checkpoints=Checkpointer(folder / "checkpoints", 1),
        config=train,
        machine=machine,
        byte_lengths=torch.ones(config.model.vocab_size, dtype=torch.int64),
        stop=StopSignal(),
        documents=lambda _: [],
        replay="",
    )


def random_batches(model: ModelConfig, train: TrainConfig) -> Batches:
    """Batches of these settings from an endless stream of random tokens."""
    return Batches(
        RandomTokens(_ENDLESS, model.vocab_size),
        context_length=model.context_length,
        batch_size=train.batch_size,
        micro_batch_size=train.micro_batch_size,
        seed=train.seed,
    )


def _step(trainer: Trainer, state: TrainState, steps: int, micro_batches: int) -> float:
    """Median seconds of a step; one of many micro-batches is reckoned from steps of one and of two."""
    measured = _median(lambda: trainer.advance(state), steps)
    if micro_batches <= _MICRO_BATCHES:
        return measured
    trainer.config = replace(trainer.config, batch_size=trainer.config.micro_batch_size)
    trainer.batches = random_batches(trainer.model.config, trainer.config)
    of_one = _median(lambda: trainer.advance(state), steps)
    another = min(measured, max(measured - of_one, measured / 4))
    return measured + (micro_batches - _MICRO_BATCHES) * another


def _validation(model: GPT, config: PipelineConfig, machine: Machine) -> dict[str, float]:
    """Seconds for each validation token, and for the samples of one evaluation."""
    train = config.train
    tokens = _EVAL_BATCHES * train.micro_batch_size * config.model.context_length
    stream = RandomTokens(tokens + 1, config.model.vocab_size)
    model.eval()
    score = SplitEvaluator(model, stream, replace(train, eval_tokens=0, sample_prompts=()), machine)
    seconds = _timed(score)
    samples = 0.0
    if train.sample_prompts and config.model.vocab_size >= gpt2().vocab_size:
        one_window = seconds / (_EVAL_BATCHES * train.micro_batch_size)
        samples = max(0.0, _timed(SplitEvaluator(model, stream, replace(train, eval_tokens=1), machine)) - one_window)
    return {"validation_token_seconds": seconds / tokens, "sample_seconds": samples}


def _median(call: Callable[[], object], times: int) -> float:
    return statistics.median(_timed(call) for _ in range(times))


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _free(device: torch.device) -> int:
    """Bytes that this process holds or could still take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + int(torch.cuda.memory_reserved(device))
    return int(psutil.virtual_memory().available) + int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    sys.exit(main())
