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
from typing import TYPE_CHECKING, Any

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
from gptmodel.training.pace import Pace, evaluated, saved

if TYPE_CHECKING:
    from gptmodel.planning.own_law import OwnLaw
    from gptmodel.planning.past import Past

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
    end_seconds: float
    """Until a checkpoint is on disk."""
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
    processes: int = 1
    """That the training will have; one alone was measured."""

    def pace(self, scored: int) -> Pace:
        """Of a training that scores so many tokens at an evaluation."""
        return Pace(
            start_seconds=self.start_seconds,
            step_seconds=self.step_seconds,
            evaluation_seconds=scored * self.validation_token_seconds + self.sample_seconds,
            save_seconds=self.save_seconds,
            end_seconds=self.end_seconds,
            peak_memory_bytes=self.peak_memory_bytes,
        )

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
    past: Past | None
    """Runs of the same shape that tell the pace where there is no trial."""
    pace: Pace | None
    """By the trial, or by past runs."""
    seconds: float
    """On this machine, from start to end; 0 without a pace."""
    here: Bill | None
    offers: tuple[Offer, ...]
    store_bytes: int
    """Room in the store that is asked for while it trains."""
    kept_bytes: int
    """Of it in use at the end, where the best checkpoint is among the newest."""
    model_bytes: int
    text_bytes: int
    """Of text that holds as many tokens."""
    shard_bytes: int
    """Of as many tokens."""
    expected: Expected
    correction: float = 1.0
    """That `seconds` were multiplied by, since past runs on this machine took so much more or less than foretold."""
    corrected_by: int = 0
    """Past runs that there are to correct by; fewer than 3 correct nothing."""

    @property
    def basis(self) -> str:
        """What the time comes of: trial, past runs, or nothing."""
        return "trial" if self.trial else "past runs" if self.past else ""

    @property
    def device(self) -> str:
        """cpu or cuda, as measured; empty where nothing was."""
        found = self.trial or self.past
        return found.device if found else ""

    @property
    def processes(self) -> int:
        """Of the training on this machine: on GPUs, how many of them."""
        found = self.trial or self.past
        return found.processes if found else 1

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
        peak = self.trial.peak_flops * (self.trial.processes if self.trial.device == "cuda" else 1)
        return self.total_flops / self.steps / self.trial.step_seconds / peak

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
    past: Past | None = None,
    train_tokens: int = 0,
    validation_tokens: int = 0,
    on: tuple[str, ...] = (),
    devices: int = 1,
    mfu: float = 0.0,
    grid: str = "world",
    correction: tuple[float, int] = (1.0, 0),
    own: OwnLaw | None = None,
) -> Forecast:
    """The plan of a training. The tokens are how many the data has, if known; `on` names hardware of the table.

    A trial says more than past runs; `correction` is what it is multiplied by, and of how many runs that is known.
    """
    if devices < 1:
        raise ConfigError(f"devices is {devices}; give at least 1")
    if not 0 <= mfu <= 1:
        raise ConfigError(f"mfu is {mfu}; give a share above 0 and up to 1, or 0 for the table's")
    model, train = config.model, config.train
    parameters, flops = count_parameters(model), flops_per_token(model)
    tokens = train.max_steps * train.batch_size * model.context_length
    grams = rates.grid(grid)
    total = float(flops.exact) * tokens
    known = trial or past
    bf16 = known.precision == "bfloat16" if known else train.precision != "float32"
    on_gpu = known.device == "cuda" if known else _for_gpu(train.device, elsewhere=bool(on) or devices > 1)
    scored = min(train.eval_tokens or validation_tokens, validation_tokens or train.eval_tokens)
    pace = trial.pace(scored) if trial else past.pace if past else None
    seconds = pace.seconds(train) * (correction[0] if trial else 1.0) if pace else 0.0
    local = rates.this_machine["gpu" if on_gpu else "cpu"]
    device_hours = seconds / 3600 * (known.processes if known and on_gpu else 1)
    held = memory(
        model,
        train.micro_batch_size,
        bfloat16=bf16,
        on_cpu=not on_gpu,
        muon=train.optimizer.kind == "muon",
        accumulates=train.batch_size // train.micro_batch_size > (known.processes if known else 1),
    )
    return Forecast(
        name=config.name,
        parameters=parameters,
        flops=flops,
        steps=train.max_steps,
        micro_batch_size=train.micro_batch_size,
        tokens=tokens,
        epochs=tokens / train_tokens if train_tokens else 0.0,
        evaluations=len(evaluated(train)),
        checkpoints=len(saved(train)),
        memory=held,
        trial=trial,
        past=past,
        pace=pace,
        seconds=seconds,
        here=bill(device_hours, local.watts, local.per_hour, rates.pue, grams) if pace else None,
        offers=tuple(_offer(key, rates, config, total, devices, mfu, grams) for key in on or tuple(rates.hardware)),
        store_bytes=training_bytes(model, train),
        kept_bytes=held.weights + min(train.keep_checkpoints, len(saved(train))) * (held.weights + held.optimizer),
        model_bytes=weights_bytes(parameters.total),
        text_bytes=int(tokens * _BYTES_A_TOKEN),
        shard_bytes=shards_bytes(int(tokens * _BYTES_A_TOKEN)),
        expected=expected_loss(
            parameters.total,
            parameters.without_embeddings,
            tokens,
            model.vocab_size,
            tokens / train_tokens if train_tokens else 0.0,
            own,
        ),
        correction=correction[0],
        corrected_by=correction[1],
    )


def _for_gpu(device: str, *, elsewhere: bool) -> bool:
    """Whether memory is that of a GPU, as far as can be said without loading torch."""
    return device == "cuda" or (device == "auto" and (elsewhere or any(Path("/dev").glob("nvidia[0-9]*"))))


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
