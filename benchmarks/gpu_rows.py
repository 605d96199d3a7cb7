"""The rows of one group of `benchmarks.gpu`, each printed as JSON as soon as it is there: a process of its own."""

from __future__ import annotations

import argparse
import gc
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu_parts import PARTS
from benchmarks.machine import spread
from gptmodel.config import ModelConfig, PipelineConfig
from gptmodel.device import Machine, peak_memory_bytes, set_up
from gptmodel.planning.trial import random_batches, trial_trainer
from gptmodel.presets import PRESETS
from gptmodel.training.checkpoint import TrainState
from gptmodel.training.loop import Trainer

Row = dict[str, Any]
_MOST_STEPS, _LEAST_STEPS, _STEP_SECONDS = 6, 2, 7.0
_TINY = ModelConfig(n_layer=1, n_head=2, n_embd=32, context_length=64)
SIZES = {"124m": (16, 32, 64, 128), "355m": (16, 32, 64), "774m": (8, 16, 32)}  # sequences of a micro-batch


@dataclass(frozen=True)
class Steps:
    """One row: a model trained in one way."""

    size: str
    micro_batch_size: int
    """0 takes the fastest of those measured before."""
    optimizer: str = "adamw"
    compile: bool = False

    @property
    def name(self) -> str:
        micro = f"micro-batch {self.micro_batch_size}" if self.micro_batch_size else "best micro-batch"
        return f"{micro}, {self.optimizer}{', compiled' if self.compile else ''}"


def rows_of(size: str) -> list[Steps]:
    """In the order of what is wanted most, should time run out; what compiles a deep model may take longest of all."""
    first, *larger = SIZES[size]
    more = [Steps(size, micro) for micro in larger]
    muon, compiled = Steps(size, 0, "muon"), Steps(size, 0, compile=True)
    if size == "124m":
        early = Steps(size, 32, compile=True)
        return [Steps(size, first), early, *more, muon, compiled, Steps(size, 0, "muon", compile=True)]
    return [Steps(size, first), more[0], muon, *more[1:], compiled]


def config_of(row: Steps, given: argparse.Namespace) -> PipelineConfig:
    """The preset's settings, on this device in bfloat16."""
    preset = PRESETS[f"gpt2-{row.size}"]()
    train = replace(
        preset.train,
        batch_size=8 if given.tiny else preset.train.batch_size,
        micro_batch_size=max(1, row.micro_batch_size // 16) if given.tiny else row.micro_batch_size,
        optimizer=replace(preset.train.optimizer, kind=row.optimizer),
        precision="bfloat16",
        compile=row.compile,
        device=given.device,
    )
    return replace(preset, model=_TINY if given.tiny else preset.model, train=train)


def speed(row: Steps, given: argparse.Namespace) -> Row:
    """Tokens a second of whole steps; the first one, of two micro-batches, warms up and compiles."""
    config = config_of(row, given)
    machine = set_up(config.train)
    on_gpu = machine.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with TemporaryDirectory() as folder:
        trainer = trial_trainer(config, machine, Path(folder), 2)
        trainer.model.train()
        state, began = TrainState(), time.perf_counter()
        trainer.advance(state)
        _wait(machine)
        first = time.perf_counter() - began
        waits = syncs(lambda: trainer.advance(state)) if on_gpu else None
        trainer.config, trainer.batches = config.train, random_batches(config.model, config.train)
        seconds = _timed_steps(trainer, state, machine)
    n_tokens = config.train.batch_size * config.model.context_length
    per_second = spread([n_tokens / s for s in seconds], 1)
    flops = per_second["median"] * trainer.model.flops_per_token()
    return {
        "parameters": trainer.model.num_parameters(),
        "micro_batch_size": config.train.micro_batch_size,
        "optimizer": row.optimizer,
        "compiled": row.compile,
        "tokens_a_step": n_tokens,
        "first_step_seconds": round(first, 2),
        "step_seconds": spread(seconds),
        "steps": len(seconds),
        "tokens_per_second": per_second,
        "model_flops_per_second": flops,
        **({"mfu_of_datasheet": round(flops / machine.peak_flops, 4)} if machine.peak_source == "datasheet" else {}),
        "peak_memory_bytes": peak_memory_bytes(machine.device),
        "waits_for_the_device_in_a_step": waits,
    }


def _timed_steps(trainer: Trainer, state: TrainState, machine: Machine) -> list[float]:
    """As in a training, each step goes on while the update before it is still under way; the last one is waited for."""
    _wait(machine)
    seconds: list[float] = []
    last = time.perf_counter()
    while len(seconds) < _LEAST_STEPS or (len(seconds) < _MOST_STEPS and sum(seconds) < _STEP_SECONDS):
        trainer.advance(state)
        last, before = time.perf_counter(), last
        seconds.append(last - before)
    _wait(machine)
    seconds[-1] += time.perf_counter() - last
    return seconds


def _wait(machine: Machine) -> None:
    if machine.device.type == "cuda":
        torch.cuda.synchronize()


def syncs(call: Callable[[], object]) -> dict[str, int]:
    """Places in the code where a call waited for the GPU, and how often, as torch tells."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            torch.cuda.set_sync_debug_mode("warn")  # tells in a warning that it is a prototype
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(w.filename).name}:{w.lineno}" for w in told if "called a synchronizing" in str(w.message)]
    return dict(Counter(places))


def training(size: str, given: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Each row's name, and the call that makes it."""
    fastest, full = (0.0, 0), 0

    def make(row: Steps) -> Row:
        nonlocal fastest, full
        if full and row.micro_batch_size >= full:
            return {"why": f"a micro-batch of {full} found no room in memory"}
        if not row.micro_batch_size:
            if not fastest[1]:
                return {"why": "no micro-batch was measured before it"}
            row = replace(row, micro_batch_size=fastest[1])
        _forget(compiled=False)  # what a row that failed had left
        try:
            found = speed(row, given)
        except torch.OutOfMemoryError:
            full = min(full or row.micro_batch_size, row.micro_batch_size) if not row.compile else full
            return {"why": f"out of GPU memory at a micro-batch of {row.micro_batch_size}"}
        finally:
            _forget(compiled=row.compile)
        if not row.compile and row.optimizer == "adamw":
            fastest = max(fastest, (found["tokens_per_second"]["median"], row.micro_batch_size))
        return found

    rows = rows_of(size)
    if given.tiny:
        rows = [row for row in rows if row.micro_batch_size in (0, SIZES[size][0]) and not row.compile]
        if size == "124m" and given.device == "cuda":  # half a minute on a processor
            rows.append(Steps(size, 32, compile=True))
    for row in rows:
        yield row.name, lambda row=row: make(row)  # type: ignore[misc]


def _forget(*, compiled: bool) -> None:
    if compiled:
        torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("group", choices=[*PARTS, *SIZES])
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    ends = time.monotonic() + given.seconds
    rows = list(training(given.group, given) if given.group in SIZES else PARTS[given.group](given))
    print(json.dumps({"planned": [name for name, _ in rows]}), flush=True)
    for name, call in rows:
        if time.monotonic() > ends:
            return
        began = time.monotonic()
        try:
            found = call()
        except Exception as error:  # one row's failure is none of the others'
            found = {
                "why": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            }
        print(json.dumps({"row": name, **found, "row_seconds": round(time.monotonic() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
