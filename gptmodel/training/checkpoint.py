"""Training state on disk: written whole or not at all, checked before use, nothing unpickled.

A checkpoint is a directory `step-00000100` with `model.safetensors`, `optimizer.safetensors`, `state.json` and, last,
`checkpoint.json` with the sha256 of the others. Random numbers need no place in it: the generators are seeded anew at
every step from (seed, step, rank).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptmodel.errors import CheckpointError
from gptmodel.model import GPT
from gptmodel.sharding import gathered, laid_out_like, own_part
from gptmodel.store.artifacts import fsync_path, sha256_file, write_atomic
from gptmodel.weights import load_weights

log = logging.getLogger(__name__)
_INDEX = "checkpoint.json"
_MODEL = "model.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"


@dataclass
class TrainState:
    """Where a run stands, besides its tensors. The data position is the step: batches are a function of it."""

    step: int = 0
    """Updates done."""
    tokens: int = 0
    """Training tokens seen, over all devices."""
    best_step: int = -1
    """Step of the lowest validation loss so far; -1 before any."""
    best_loss: float = float("inf")
    """That loss in nats per token."""
    evals_since_best: int = 0
    """Evaluations since then, for early stopping."""
    seconds: float = 0.0
    """Time spent in steps, over all attempts."""
    elapsed: float = 0.0
    """Seconds from start to end of all attempts, evaluations and starts too: what a budget counts. What an attempt that
    was killed took after its last checkpoint is not in it."""
    stopped_early: bool = False
    """Early stopping has ended the run."""
    anchor: int = 0
    """Step of the newest checkpoint that every run of these settings has; a rollback goes there."""
    left_out: list[list[int]] = field(default_factory=list)
    """First and last step of each stretch of updates that a spike has kept out of the weights."""
    recent_losses: list[float] = field(default_factory=list)
    """Losses of the last updates, while spikes are watched for."""


class Checkpointer:
    """Keeps the newest `keep` checkpoints, the best one and the anchor in a directory. Writes in the background.

    `read_only` is for ranks that only restore. `guard` raises if this run may no longer write.
    """

    def __init__(
        self, directory: Path, keep: int, *, read_only: bool = False, guard: Callable[[], None] = lambda: None
    ) -> None:
        self.directory = directory
        self.keep = keep
        self.read_only = read_only
        self._guard = guard
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        if read_only:
            return
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(".*.tmp"):
            shutil.rmtree(leftover)

    def save(self, model: GPT, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
        """Copy everything now; write it while training goes on. Waits for the write before, and raises its error.

        Of a model that is cut up every process calls it, and the one that is not `read_only` gets and writes the whole.
        """
        self.wait()
        weights = self._copied({name: p.detach() for name, p in model.named_parameters()})
        moments = self._copied(_optimizer_tensors(model, optimizer))
        if self.read_only:
            return
        self._pending = self._pool.submit(self._write_or_remove, weights, moments, TrainState(**asdict(state)))

    def _copied(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole, in the host's memory; one that does not write gives its parts and keeps nothing."""
        copies = {}
        for name, tensor in tensors.items():
            found = gathered(tensor)
            if not self.read_only:
                copies[name] = found.to("cpu", copy=found is tensor)
        return copies

    def wait(self) -> None:
        """Until the last checkpoint is on disk; raises what its write raised."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def raise_failed(self) -> None:
        """Raise what a background write has raised by now, without waiting for one that goes on."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _write_or_remove(self, weights: dict[str, Tensor], moments: dict[str, Tensor], state: TrainState) -> None:
        try:
            self._write(weights, moments, state)
        except (OSError, SafetensorError):  # a full disk should not stay full of a half
            shutil.rmtree(self.path(state.step).with_name(f".step-{state.step:08d}.tmp"), ignore_errors=True)
            raise

    def _write(self, weights: dict[str, Tensor], moments: dict[str, Tensor], state: TrainState) -> None:
        self._guard()
        final = self.path(state.step)
        temporary = final.with_name(f".{final.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_file(weights, temporary / _MODEL)
        save_file(moments, temporary / _OPTIMIZER)
        (temporary / _STATE).write_text(json.dumps(asdict(state)))
        names = (_MODEL, _OPTIMIZER, _STATE)
        for name in names:
            fsync_path(temporary / name)
        write_atomic(temporary / _INDEX, json.dumps({name: sha256_file(temporary / name) for name in names}))
        self._guard()
        if final.exists():
            shutil.rmtree(final)  # a damaged one, or a resumed run at the same step
        os.replace(temporary, final)
        fsync_path(self.directory)
        self._prune(state)

    def _prune(self, state: TrainState) -> None:
        steps = self.steps()
        for step in set(steps[: -self.keep]) - {state.best_step, state.anchor}:
            shutil.rmtree(self.path(step))

    def path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.directory.glob("step-*"))

    def load_newest(
        self, model: GPT, optimizer: torch.optim.Optimizer, *, up_to: int | None = None
    ) -> TrainState | None:
        """Restore the newest valid checkpoint (of a step not past `up_to`) and return its state; None without one.

        A damaged one is named in the log, set aside as `.damaged-step-…`, and the one before it is used.
        """
        for step in reversed(self.steps()):
            if up_to is not None and step > up_to:
                continue
            try:
                return self.load(step, model, optimizer)
            except CheckpointError as error:
                log.warning("%s; going back to the checkpoint before it", error)
                if not self.read_only:
                    self._set_aside(step)
        return None

    def _set_aside(self, step: int) -> None:
        path = self.path(step)
        aside = path.with_name(f".damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)

    def load(self, step: int, model: GPT, optimizer: torch.optim.Optimizer) -> TrainState:
        """Restore the checkpoint of this step. CheckpointError naming the file that is damaged."""
        path = _verified(self.path(step))
        load_weights(model, path / _MODEL)
        _restore_optimizer(model, optimizer, load_file(path / _OPTIMIZER))
        return TrainState(**json.loads((path / _STATE).read_text()))

    def weights_file(self, step: int) -> Path:
        """The verified weights of one step."""
        return _verified(self.path(step)) / _MODEL


def cost_of_a_copy(model: GPT, optimizer: torch.optim.Optimizer) -> tuple[float, int]:
    """Seconds (by a copy of the largest tensor) and bytes of what `Checkpointer.save` copies before it writes."""
    tensors = [p.detach() for p in model.parameters()]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    largest = own_part(max(tensors, key=Tensor.numel))
    if largest.is_cuda:
        torch.cuda.synchronize(largest.device)  # or the copy would wait for the update before it
    started = time.perf_counter()
    largest.to("cpu", copy=True)
    seconds, n_bytes = time.perf_counter() - started, sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return seconds * n_bytes / largest.nbytes, n_bytes


def _verified(path: Path) -> Path:
    try:
        index: dict[str, str] = json.loads((path / _INDEX).read_text())
        damaged = [name for name, digest in index.items() if sha256_file(path / name) != digest]
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path.name} is damaged ({error})") from None
    if damaged or set(index) != {_MODEL, _OPTIMIZER, _STATE}:
        raise CheckpointError(f"checkpoint {path.name} is damaged: {', '.join(damaged) or _INDEX} has other bytes")
    return path


def _optimizer_tensors(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{field}:{names[p]}": value.detach()
        for p, fields in optimizer.state.items()
        for field, value in fields.items()
    }


def _restore_optimizer(model: GPT, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    states: dict[str, dict[str, Any]] = {name: {} for name in parameters}
    for key, value in tensors.items():
        field, _, name = key.partition(":")
        if name not in states:
            raise CheckpointError(f"the optimizer state names {name}, which the model does not have")
        states[name][field] = laid_out_like(value, parameters[name])
    for name, fields in states.items():
        optimizer.state[parameters[name]] = fields
