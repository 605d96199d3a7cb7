"""What a training says of its steps: figures to the metrics log, and now and then a line to people."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import deque
from dataclasses import dataclass, field

from gptmodel.config import TrainConfig
from gptmodel.device import Machine, peak_memory_bytes
from gptmodel.loss import perplexity
from gptmodel.model import GPT
from gptmodel.progress import clock
from gptmodel.training.checkpoint import TrainState
from gptmodel.training.metrics_log import MetricsLog
from gptmodel.training.optimizer import learning_rate
from gptmodel.training.seen import Seen, Validation

log = logging.getLogger("gptmodel.training")
_LOG_LINE_SECONDS = 15.0


@dataclass
class Teller:
    """Rank 0's voice."""

    metrics: MetricsLog
    config: TrainConfig
    model: GPT
    machine: Machine
    world: int
    _step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    _last_line: float = 0.0

    def step(self, state: TrainState, seen: Seen, seconds: float) -> None:
        """A step that took so many seconds; told every `log_every` steps, and where something was decided."""
        self._step_seconds.append(seconds)
        step, config = state.step, self.config
        if step % config.log_every and step not in (1, config.max_steps) and not seen.decision:
            return
        n_tokens = config.batch_size * self.model.config.context_length
        speed = n_tokens / statistics.median(self._step_seconds)
        metrics = {
            "train/loss": seen.loss,
            "train/perplexity": perplexity(seen.loss),
            "train/bits_per_byte": seen.loss * n_tokens / math.log(2) / max(1, seen.n_bytes),
            "train/learning_rate": learning_rate(config.optimizer, step - 1, config.max_steps),
            "train/grad_norm": seen.grad_norm,
            "train/tokens": state.tokens,
            "speed/tokens_per_second": speed,
            "speed/step_seconds": seconds,
            "speed/elapsed_seconds": state.seconds,
            "speed/mfu": self._mfu(speed * self.model.flops_per_token() / self.world),
            "speed/peak_memory_bytes": peak_memory_bytes(self.machine.device),
        }
        decision = {"decision": seen.decision} if seen.decision else {}
        self.metrics.log(step, tokens=state.tokens, metrics=metrics, **decision)
        self._say(state, seen.loss, speed, metrics["speed/mfu"])

    def _mfu(self, flops: float) -> float:
        """Share of the peak that so many FLOP/s of one device are."""
        if flops > self.machine.peak_flops:
            self.machine = self.machine.faster(flops)
        return flops / self.machine.peak_flops

    def _say(self, state: TrainState, loss: float, speed: float, mfu: float) -> None:
        now, last = time.monotonic(), self.config.max_steps
        if now - self._last_line < _LOG_LINE_SECONDS and state.step not in (1, last):
            return
        self._last_line = now
        left = (last - state.step) * statistics.median(self._step_seconds)
        log.info(
            "step %d/%d  loss %.3f  perplexity %s  %s tokens/s  MFU %.0f %%  %s left",
            state.step,
            last,
            loss,
            f"{perplexity(loss):,.1f}",
            f"{speed:,.0f}",
            100 * mfu,
            clock(left),
        )

    def validation(self, state: TrainState, found: Validation, seconds: float, *, improved: bool) -> None:
        """An evaluation on the way."""
        metrics = {
            "validation/loss": found.loss,
            "validation/perplexity": perplexity(found.loss),
            "validation/bits_per_byte": found.bits_per_byte,
            "speed/validation_seconds": seconds,
        }
        self.metrics.log(state.step, tokens=state.tokens, metrics=metrics, samples=found.samples)
        log.info(
            "step %d  validation loss %.4f  perplexity %s%s",
            state.step,
            found.loss,
            f"{perplexity(found.loss):,.1f}",
            "" if improved else f"  (best {state.best_loss:.4f} at step {state.best_step})",
        )
