"""What a training will take: counted from its settings, measured by a few steps here, reckoned for other hardware."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gptmodel.arithmetic import (
    Flops,
    Memory,
    Parameters,
    count_parameters,
    flops_per_token,
    largest_micro_batch,
    memory,
)
from gptmodel.config import PipelineConfig
from gptmodel.errors import ConfigError, GptflowError
from gptmodel.planning.rates import Bill, Hardware, Rates, bill
from gptmodel.planning.scaling import Expected, expected_loss
from gptmodel.progress import progress
from gptmodel.store.space import shards_bytes, training_bytes, weights_bytes
from gptmodel.training.launch import child_environment

log = logging.getLogger(__name__)
_TRIAL = "gptmodel.planning.trial"
_BYTES_A_TOKEN = 4.5  # of English text, by GPT-2's vocabulary; ours measured 4.4 to 4.6
_SPARE = 0.92  # share of a device's memory that a plan may fill


@dataclass(frozen=True)
class Trial:
    """What a few real steps on this machine showed."""

    step_seconds: float
    """Of a whole step, all its micro-batches."""
    validation_token_seconds: float
    sample_seconds: float
    """Of the samples of one evaluation."""
    save_seconds: float
    """That a checkpoint keeps the loop waiting."""
    start_seconds: float
    """From starting the process to the first step, and the first step."""
    peak_memory_bytes: int
    bytes_per_sequence: float
    """More of them in a micro-batch take this much each, as measured with another micro-batch."""
    free_memory_bytes: int
    precision: str
    choice: str
    device: str
    machine: str
    threads: int
    peak_flops: float
    peak_source: str

    def largest_micro_batch(self, micro_batch_size: int) -> int:
        """Sequences that would fit, going on in a straight line from what was measured."""
        room = self.free_memory_bytes * _SPARE - self.peak_memory_bytes
        return max(0, micro_batch_size + int(room // max(1.0, self.bytes_per_sequence)))


@dataclass(frozen=True)
class Offer:
    """The training on one kind of hardware."""

    key: str
    label: str
    devices: int
    hours: float
    mfu: float
    bill: Bill
    micro_batch: int
    """Most sequences that fit by the estimate; 0 where not even one does."""


@dataclass(frozen=True)
class Forecast:
    """All that can be said before a training starts."""

    name: str
    parameters: Parameters
    flops: Flops
    steps: int
    micro_batch_size: int
    tokens: int
    epochs: float
    """How often the data is read; 0 where it is not known."""
    evaluations: int
    checkpoints: int
    memory: Memory
    trial: Trial | None
    seconds: float
    """On this machine, from start to end; 0 without a trial."""
    here: Bill | None
    offers: tuple[Offer, ...]
    store_bytes: int
    """In the store while it trains."""
    model_bytes: int
    text_bytes: int
    """Of text that holds as many tokens."""
    shard_bytes: int
    """Of as many tokens."""
    expected: Expected
    correction: float = 1.0
    """That `seconds` were multiplied by, since past runs on this machine took so much more or less than foretold."""

    @property
    def total_flops(self) -> float:
        return float(self.flops.exact) * self.tokens

    @property
    def flops_by_rule(self) -> float:
        """6ND."""
        return 6.0 * self.parameters.total * self.tokens

    @property
    def mfu(self) -> float:
        """Share of this machine's peak that the measured step comes to; 0 without a trial."""
        if self.trial is None:
            return 0.0
        return self.total_flops / self.steps / self.trial.step_seconds / self.trial.peak_flops

    def plain(self) -> dict[str, Any]:
        """For machines."""
        derived = {"total_flops": self.total_flops, "flops_by_rule": self.flops_by_rule, "mfu": self.mfu}
        totals = {"parameters_total": self.parameters.total, "flops_per_token": self.flops.exact}
        return {**asdict(self), **derived, **totals, "memory_total": self.memory.total}


def forecast(
    config: PipelineConfig,
    rates: Rates,
    *,
    trial: Trial | None = None,
    train_tokens: int = 0,
    validation_tokens: int = 0,
    on: tuple[str, ...] = (),
    devices: int = 1,
    mfu: float = 0.0,
    grid: str = "world",
    correction: float = 1.0,
) -> Forecast:
    """The plan of a training. The tokens are how many the data has, if known; `on` names hardware of the table."""
    if devices < 1:
        raise ConfigError(f"devices is {devices}; give at least 1")
    if not 0 <= mfu <= 1:
        raise ConfigError(f"mfu is {mfu}; give a share above 0 and up to 1, or 0 for the table's")
    model, train = config.model, config.train
    parameters, flops = count_parameters(model), flops_per_token(model)
    tokens = train.max_steps * train.batch_size * model.context_length
    grams = rates.grid(grid)
    total = float(flops.exact) * tokens
    bf16 = trial.precision == "bfloat16" if trial else train.precision != "float32"
    keeps = bf16 and not model.dropout and (trial.device if trial else train.device) == "cpu"
    evaluations = _times(train.max_steps, train.eval_every)
    checkpoints = -(-train.max_steps // train.checkpoint_every)  # the last step always has one
    scored = min(train.eval_tokens or validation_tokens, validation_tokens or train.eval_tokens)
    seconds = _seconds(config, trial, evaluations, scored, checkpoints) * correction if trial else 0.0
    local = rates.this_machine["gpu" if trial and trial.device == "cuda" else "cpu"]
    return Forecast(
        name=config.name,
        parameters=parameters,
        flops=flops,
        steps=train.max_steps,
        micro_batch_size=train.micro_batch_size,
        tokens=tokens,
        epochs=tokens / train_tokens if train_tokens else 0.0,
        evaluations=evaluations,
        checkpoints=checkpoints,
        memory=memory(
            model,
            train.micro_batch_size,
            bfloat16=bf16,
            keeps_attention=keeps,
            muon=train.optimizer.kind == "muon",
        ),
        trial=trial,
        seconds=seconds,
        here=bill(seconds / 3600, local.watts, local.per_hour, rates.pue, grams) if trial else None,
        offers=tuple(_offer(key, rates, config, total, devices, mfu, grams) for key in on or tuple(rates.hardware)),
        store_bytes=training_bytes(model, train),
        model_bytes=weights_bytes(parameters.total),
        text_bytes=int(tokens * _BYTES_A_TOKEN),
        shard_bytes=shards_bytes(int(tokens * _BYTES_A_TOKEN)),
        expected=expected_loss(
            parameters.total,
            parameters.without_embeddings,
            tokens,
            model.vocab_size,
            tokens / train_tokens if train_tokens else 0.0,
        ),
        correction=correction,
    )


def _offer(
    key: str, rates: Rates, config: PipelineConfig, flops: float, devices: int, mfu: float, grams: float
) -> Offer:
    hardware: Hardware = rates.device(key)
    share = mfu or hardware.mfu
    device_hours = flops / (hardware.tflops * 1e12 * share) / 3600
    return Offer(
        key=key,
        label=hardware.label,
        devices=devices,
        hours=device_hours / devices,
        mfu=share,
        bill=bill(device_hours, hardware.watts, hardware.per_hour, rates.pue, grams),
        micro_batch=largest_micro_batch(config.model, hardware.memory_gb * 1e9 * _SPARE, bfloat16=True),
    )


def _times(steps: int, every: int) -> int:
    """Evaluations of a run: before the first step, at each multiple, and at the end."""
    return 1 + steps // every + (1 if steps % every else 0)


def _seconds(config: PipelineConfig, trial: Trial, evaluations: int, scored: int, checkpoints: int) -> float:
    train = config.train
    an_evaluation = scored * trial.validation_token_seconds + trial.sample_seconds
    return (
        trial.start_seconds
        + train.max_steps * trial.step_seconds
        + evaluations * an_evaluation
        + checkpoints * trial.save_seconds
    )


def measure(config: PipelineConfig, steps: int = 5) -> Trial:
    """Train a few steps on random tokens in processes of their own, and say what they took.

    GptflowError where they fail, as for want of memory.
    """
    if steps < 1:
        raise ConfigError(f"trial steps is {steps}; give at least 1")
    config = _with_data(config)
    started = time.perf_counter()
    with progress("trying some steps"):
        first = _run(config, steps)
    spent = time.perf_counter() - started
    train = config.train
    other = replace(train, micro_batch_size=_other(train.micro_batch_size), batch_size=_other(train.micro_batch_size))
    with progress("trying another size, for its memory"):
        second = _run(replace(config, train=other), 1, memory_only=True)
    a_sequence = (second["peak_memory_bytes"] - first["peak_memory_bytes"]) / (
        other.micro_batch_size - train.micro_batch_size
    )
    measured = first.pop("measured_seconds")
    return Trial(**first, start_seconds=max(0.0, spent - measured), bytes_per_sequence=max(0.0, a_sequence))


def _other(micro_batch_size: int) -> int:
    """Half of it, or 2 for 1: another point of the line, and never one that may not fit."""
    return micro_batch_size // 2 if micro_batch_size > 1 else 2


def _with_data(config: PipelineConfig) -> PipelineConfig:
    """Random tokens stand for the data, so nothing of it is needed; and a trial says what it takes, not whether."""
    return replace(config, init_from="", train=replace(config.train, on_spike="skip", max_spikes=1 << 30))


def _run(config: PipelineConfig, steps: int, *, memory_only: bool = False) -> dict[str, Any]:
    with TemporaryDirectory(prefix="gptflow-plan-") as folder:
        job = Path(folder) / "trial.json"
        job.write_text(json.dumps({"config": asdict(config), "steps": steps, "memory_only": memory_only}))
        done = subprocess.run(
            [sys.executable, "-m", _TRIAL, str(job)],
            capture_output=True,
            text=True,
            env=child_environment(config.train.threads),
            check=False,
        )
    if done.returncode == 0:
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told
    if done.returncode == -9:
        raise GptflowError(
            f"the trial steps were killed, as by want of memory, at micro_batch_size {config.train.micro_batch_size}; "
            "lower train.micro_batch_size, or plan without measuring (--no-measure)"
        )
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    raise GptflowError(f"the trial steps failed: {last}; plan without measuring with --no-measure")
