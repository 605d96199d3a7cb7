"""A few real steps of a planned training on this machine: what they took, and what follows from them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gptmodel.config import PipelineConfig
from gptmodel.errors import ConfigError, GptflowError
from gptmodel.progress import progress
from gptmodel.training.launch import child_environment
from gptmodel.training.pace import Pace

_TRIAL = "gptmodel.planning.trial"
SPARE = 0.92  # share of a device's memory that a plan may fill


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
        room = self.free_memory_bytes * SPARE - self.peak_memory_bytes
        return max(0, micro_batch_size + int(room // max(1.0, self.bytes_per_sequence)))


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
