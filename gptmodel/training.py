"""The training loop. What it works with is passed in; what it does fits on one screen (`Trainer.fit`)."""

from __future__ import annotations

import hashlib
import logging
import math
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gptmodel.batches import Batches
from gptmodel.checkpoint import Checkpointer, TrainState
from gptmodel.config import TrainConfig
from gptmodel.device import Machine, peak_memory_bytes
from gptmodel.errors import Interrupted, TrainingError
from gptmodel.loss import perplexity
from gptmodel.metrics_log import MetricsLog
from gptmodel.model import GPT
from gptmodel.optimizer import learning_rate

log = logging.getLogger(__name__)
_LOG_LINE_SECONDS = 5.0


@dataclass(frozen=True)
class Validation:
    """Figures of one evaluation during training."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    samples: list[dict[str, str]] = field(default_factory=list)


class Evaluator(Protocol):
    """Scores the model on validation data and writes samples. Every rank calls it; all get the same figures."""

    def __call__(self) -> Validation: ...


@dataclass
class StopSignal:
    """Set by a signal handler; read between steps."""

    signum: int = 0


@dataclass
class Trainer:
    """One process of a run. With more than one, all step together and rank 0 alone writes."""

    model: GPT
    optimizer: torch.optim.Optimizer
    batches: Batches
    evaluate: Evaluator
    metrics: MetricsLog
    checkpoints: Checkpointer
    config: TrainConfig
    machine: Machine
    byte_lengths: Tensor
    """UTF-8 bytes of each token, [V], for bits per byte."""
    stop: StopSignal
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        self._step_module: nn.Module = self.model
        if self.config.compile:
            self._step_module = torch.compile(self.model)  # type: ignore[assignment]
        if self.world > 1:
            self._step_module = nn.parallel.DistributedDataParallel(self._step_module)
        self._step_seconds: deque[float] = deque(maxlen=50)
        self._last_line = 0.0

    def fit(self, state: TrainState) -> TrainState:
        """Train from `state` to the last step. Interrupted, after saving, if a signal asks to stop."""
        config = self.config
        self.model.train()
        if state.step == 0:
            self._validate(state)
            if config.publish == "best":
                self._save(state)
        while state.step < config.max_steps and not state.stopped_early:
            started = time.perf_counter()
            loss, grad_norm, n_bytes = self._update(state.step)
            state.step += 1
            state.tokens += config.batch_size * self.model.config.context_length
            self._record(state, loss, grad_norm, n_bytes, time.perf_counter() - started)
            finished = state.step == config.max_steps
            improved = self._validate(state) if finished or state.step % config.eval_every == 0 else False
            stopping = self._stopping()
            if self._checkpoint_due(state, finished or stopping, improved):
                self._save(state)
            if stopping:
                self._stop(state)
        self.checkpoints.wait()
        return state

    def _update(self, step: int) -> tuple[float, float, int]:
        """One optimizer update. Returns (mean loss in nats, gradient norm, UTF-8 bytes of the targets)."""
        config = self.config
        # Dropout must not depend on what was drawn before, or a resumed run would differ.
        torch.manual_seed(_step_seed(config.seed, step, self.rank))
        micro_batches = self.batches.batch(step)
        losses: list[Tensor] = []
        n_bytes = 0
        for number, (ids_BT, targets_BT) in enumerate(micro_batches):
            if isinstance(self._step_module, nn.parallel.DistributedDataParallel):
                self._step_module.require_backward_grad_sync = number == len(micro_batches) - 1
            inputs, targets = (t.to(self.machine.device, non_blocking=True) for t in (ids_BT, targets_BT))
            with self.machine.autocast():
                loss = self._step_module(inputs, targets) / len(micro_batches)
            loss.backward()
            losses.append(loss.detach())
            n_bytes += int(self.byte_lengths[targets_BT].sum())
        total = torch.stack([torch.stack(losses).double().sum().cpu() / self.world, torch.tensor(float(n_bytes))])
        if self.world > 1:
            dist.all_reduce(total)
        clip = config.optimizer.grad_clip or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), clip))
        mean_loss = float(total[0])
        if not (math.isfinite(mean_loss) and math.isfinite(norm)):
            raise TrainingError(self._not_finite(step, mean_loss, norm))
        rate = learning_rate(config.optimizer, step, config.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean_loss, norm, int(total[1])

    def _not_finite(self, step: int, loss: float, norm: float) -> str:
        windows = ", ".join(str(w) for w in self.batches.windows(step)[:8])
        return (
            f"loss {loss} and gradient norm {norm} at step {step + 1}, before its update; weights are as after step "
            f"{step}. Its batch holds windows {windows} of the training tokens. Lower train.optimizer.learning_rate "
            f"({self.config.optimizer.learning_rate}), lengthen warmup_steps, or set train.precision=float32"
        )

    def _record(self, state: TrainState, loss: float, norm: float, n_bytes: int, seconds: float) -> None:
        state.seconds += seconds
        self._step_seconds.append(seconds)
        step, config = state.step, self.config
        if self.rank != 0 or (step % config.log_every and step not in (1, config.max_steps)):
            return
        n_tokens = config.batch_size * self.model.config.context_length
        speed = n_tokens / statistics.median(self._step_seconds)
        flops = speed * self.model.flops_per_token()
        metrics = {
            "train/loss": loss,
            "train/perplexity": perplexity(loss),
            "train/bits_per_byte": loss * n_tokens / math.log(2) / max(1, n_bytes),
            "train/learning_rate": learning_rate(config.optimizer, step - 1, config.max_steps),
            "train/grad_norm": norm,
            "train/tokens": state.tokens,
            "speed/tokens_per_second": speed,
            "speed/step_seconds": seconds,
            "speed/elapsed_seconds": state.seconds,
            "speed/mfu": flops / (self.machine.peak_flops * self.world),
            "speed/peak_memory_bytes": peak_memory_bytes(self.machine.device),
        }
        self.metrics.log(step, tokens=state.tokens, metrics=metrics)
        self._say(state, loss, speed)

    def _say(self, state: TrainState, loss: float, speed: float) -> None:
        now, last = time.monotonic(), self.config.max_steps
        if now - self._last_line < _LOG_LINE_SECONDS and state.step not in (1, last):
            return
        self._last_line = now
        left = (last - state.step) * statistics.median(self._step_seconds)
        log.info(
            "step %d/%d  loss %.3f  perplexity %s  %s tokens/s  %s left",
            state.step,
            last,
            loss,
            f"{perplexity(loss):,.1f}",
            f"{speed:,.0f}",
            time.strftime("%H:%M:%S", time.gmtime(left)),
        )

    def _validate(self, state: TrainState) -> bool:
        """Evaluate, log, and keep account of the best. True if this is the best so far."""
        started = time.perf_counter()
        self.model.eval()
        found = self.evaluate()
        self.model.train()
        improved = found.loss < state.best_loss
        if improved:
            state.best_loss, state.best_step, state.evals_since_best = found.loss, state.step, 0
        else:
            state.evals_since_best += 1
        patience = self.config.early_stop_evals
        state.stopped_early = bool(patience) and state.evals_since_best >= patience
        if self.rank == 0:
            metrics = {
                "validation/loss": found.loss,
                "validation/perplexity": perplexity(found.loss),
                "validation/bits_per_byte": found.bits_per_byte,
                "speed/validation_seconds": time.perf_counter() - started,
            }
            self.metrics.log(state.step, tokens=state.tokens, metrics=metrics, samples=found.samples)
            log.info(
                "step %d  validation loss %.4f  perplexity %s%s",
                state.step,
                found.loss,
                f"{perplexity(found.loss):,.1f}",
                "" if improved else f"  (best {state.best_loss:.4f} at step {state.best_step})",
            )
        return improved

    def _checkpoint_due(self, state: TrainState, last: bool, improved: bool) -> bool:
        keep_best = improved and self.config.publish == "best"
        return last or state.stopped_early or keep_best or state.step % self.config.checkpoint_every == 0

    def _save(self, state: TrainState) -> None:
        if self.rank == 0:
            self.metrics.sync()
            self.checkpoints.save(self.model, self.optimizer, state)

    def _stopping(self) -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer."""
        if self.world == 1:
            return self.stop.signum != 0
        signum = torch.tensor(self.stop.signum)
        dist.all_reduce(signum, dist.ReduceOp.MAX)
        self.stop.signum = int(signum)
        return self.stop.signum != 0

    def _stop(self, state: TrainState) -> None:
        self.checkpoints.wait()
        raise Interrupted(
            f"stopped after step {state.step} of {self.config.max_steps}; saved. Run the same command to go on",
            self.stop.signum,
        )


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for each (seed, step, rank)."""
    digest = hashlib.blake2b(f"{seed}:{step}:{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
