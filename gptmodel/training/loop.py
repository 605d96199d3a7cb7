"""The training loop. What it works with is passed in; what it does fits on one screen (`Trainer.fit`)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gptmodel.config import TrainConfig
from gptmodel.device import Machine, peak_memory_bytes
from gptmodel.errors import BudgetError, Interrupted, TrainingError
from gptmodel.model import GPT
from gptmodel.tokens.batches import Batches
from gptmodel.training.checkpoint import Checkpointer, TrainState, cost_of_a_copy
from gptmodel.training.datacheck import DataCheck, NothingToCheck
from gptmodel.training.feed import Feed
from gptmodel.training.metrics_log import MetricsLog
from gptmodel.training.optimizer import learning_rate
from gptmodel.training.pace import saves_beside_steps
from gptmodel.training.ranks import ranks_of
from gptmodel.training.seen import Evaluator, Seen, StopSignal, clip_gradients, seed_dropout
from gptmodel.training.spikes import named, remember, spike, told
from gptmodel.training.stopwatch import Stopwatch
from gptmodel.training.telling import Teller

log = logging.getLogger(__name__)


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
    documents: Callable[[Iterable[int]], list[str]]
    """Ids of the documents in these windows; asked only when something is wrong with them."""
    replay: str
    """Command that shows a step again, but for its number."""
    rank: int = 0
    world: int = 1
    until: int = 0
    """Leave off after this step; 0 goes on to the last. The schedule is that of all steps either way."""

    data: DataCheck | NothingToCheck = field(default_factory=NothingToCheck)
    """The check of the data, where it may still be under way."""
    over_budget: Callable[[float], str] | None = None
    """Which bounds so many seconds of all attempts are above, in words; none where there is no budget."""
    began: float = field(default_factory=time.perf_counter)
    """When this attempt began, by `time.perf_counter`."""
    clock: Stopwatch = field(default_factory=Stopwatch)
    """What the parts of this attempt take; makes a forecast after the first steps where it has a place for it."""

    def __post_init__(self) -> None:
        self._ranks = ranks_of(self.model, self.world, compiled=self.config.compile)
        self._feed = Feed(self.machine.device)
        self._teller = Teller(self.metrics, self.config, self.model, self.machine, self.world)
        self._earlier = 0.0

    def fit(self, state: TrainState) -> TrainState:
        """Train from `state` to the last step, or to `until`.

        After saving, Interrupted if a signal asks to stop, BudgetError if the attempts took more than the budget.
        """
        config = self.config
        self.model.train()
        self._earlier = state.elapsed
        self.clock.start = time.perf_counter() - self.began
        if state.step == 0:
            # Evaluated anew: what a checkpoint of step 0 knows of it would count twice.
            state = TrainState(elapsed=state.elapsed)
            self._validate(state)
            if config.publish == "best" or config.on_spike == "rollback":
                self._save(state)
        last = min(self.until or config.max_steps, config.max_steps)
        if state.step and state.step < last and not state.stopped_early and (over := self._over_budget(state)):
            self._stop(state, over)  # at once: an attempt that may do nothing should not do a step
        while state.step < last and not state.stopped_early:
            started = time.perf_counter()
            self.checkpoints.raise_failed()
            self.data.raise_failed()
            seen = self._advance_on_checked(state)
            self._record(state, seen, time.perf_counter() - started)
            if self.rank == 0 and self.clock.is_due(state.step, config.max_steps):
                self._foretell(state)
            finished = state.step == config.max_steps
            improved = self._validate(state) if finished or state.step % config.eval_every == 0 else False
            stopping = self._stopping()
            over = "" if finished or state.stopped_early else self._over_budget(state)
            if self._checkpoint_due(state, finished, improved):
                state.anchor = state.step
                self._save(state)
            elif stopping or over:  # no anchor: a run that was never stopped does not have this checkpoint
                self._save(state)
            if stopping or over:
                self._stop(state, over)
        self.data.wait()
        waiting = time.perf_counter()
        self.checkpoints.wait()
        self.clock.end = time.perf_counter() - waiting
        self._count_time(state)
        return state

    def _foretell(self, state: TrainState) -> None:
        self._count_time(state)
        seconds, n_bytes = cost_of_a_copy(self.model, self.optimizer)
        copies = 0.0
        if self.machine.device.type == "cpu" and self.config.checkpoint_every >= state.step:  # else there were some
            # At the end the last step's memory is free again, but in pieces: half of them found room, as measured.
            copies = n_bytes if saves_beside_steps(self.config) else n_bytes / 2
        self.clock.foretell(
            self.config,
            n_tokens=self.config.batch_size * self.model.config.context_length,
            elapsed=state.elapsed,
            save_seconds=seconds,
            peak_memory_bytes=peak_memory_bytes(self.machine.device) + copies,
        )

    def _advance_on_checked(self, state: TrainState) -> Seen:
        """`advance`, where an error that damaged data may have caused is told as what it is."""
        try:
            return self.advance(state)
        except (IndexError, RuntimeError, TrainingError):
            self.data.wait()
            raise

    def advance(self, state: TrainState) -> Seen:
        """One step: the update is made, or left out where it is a spike. TrainingError if that ends the run."""
        seen = self.gradients(state.step)
        if reason := spike(seen.loss, seen.grad_norm, state.recent_losses, self.config):
            seen.decision = self._leave_out(state, reason)
        else:
            rate = learning_rate(self.config.optimizer, state.step, self.config.max_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            remember(state.recent_losses, seen.loss, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.tokens += self.config.batch_size * self.model.config.context_length
        return seen

    def gradients(self, step: int) -> Seen:
        """Forward and backward over the batch of a step, counted from 0; clipped gradients are left in `.grad`."""
        config = self.config
        micro_batches = self._feed.take(self.batches, step)
        losses: list[Tensor] = []
        n_bytes = 0
        for number, (ids_BT, targets_BT) in enumerate(micro_batches):
            self._ranks.exchange(number == len(micro_batches) - 1)
            seed_dropout(config.seed, step, self.batches.micro_batch_number(number))
            loss = self.loss(ids_BT, targets_BT) / len(micro_batches)
            torch.autograd.backward(loss)
            losses.append(loss.detach())
            n_bytes += int(self.byte_lengths[targets_BT].sum())
        norm = clip_gradients(self.model, config.optimizer.grad_clip or math.inf)
        self._feed.read_ahead(self.batches, step + 1)
        # The step's one wait for the device: whether this is a spike must be known before the update.
        loss, grad_norm = torch.stack([torch.stack(losses).double().sum(), norm.double()]).tolist()
        total = torch.tensor([loss / self.world, n_bytes], dtype=torch.float64)
        if self.world > 1:
            dist.all_reduce(total)
        return Seen(float(total[0]), grad_norm, int(total[1]))

    def loss(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean loss of one micro-batch, on the device and in the precision of the run."""
        inputs, targets = (t.to(self.machine.device, non_blocking=True) for t in (ids_BT, targets_BT))
        with self.machine.autocast():
            loss: Tensor = self._ranks.module(inputs, targets)
        return loss

    def _leave_out(self, state: TrainState, reason: str) -> dict[str, Any]:
        """Do what `on_spike` says about the step that comes after `state`."""
        config, step = self.config, state.step + 1
        documents = self.documents(self.batches.all_windows(state.step))
        if config.on_spike == "stop" or len(state.left_out) >= config.max_spikes:
            raise TrainingError(told(step, reason, documents, self.replay, config, len(state.left_out)))
        first = self._go_back(state) + 1 if config.on_spike == "rollback" else step
        state.left_out.append([first, step])
        what = f"weights of step {first - 1} again" if config.on_spike == "rollback" else "its update is left out"
        log.warning("step %d: %s; %s. Documents %s", step, reason, what, named(documents))
        return {"on_spike": config.on_spike, "reason": reason, "left_out": [first, step], "documents": documents}

    def _go_back(self, state: TrainState) -> int:
        """Weights, moments and remembered losses as in the anchor, or before it if it is damaged; returns its step."""
        self.checkpoints.wait()
        if self.world > 1:
            dist.barrier()  # the others read what rank 0 wrote
        earlier = self.checkpoints.load_newest(self.model, self.optimizer, up_to=state.anchor)
        if earlier is None:
            raise TrainingError(
                f"a spike at step {state.step + 1}, and no valid checkpoint to go back to; lower the learning "
                "rate, or set train.on_spike=skip"
            )
        state.recent_losses = earlier.recent_losses
        return earlier.step

    def _record(self, state: TrainState, seen: Seen, seconds: float) -> None:
        state.seconds += seconds
        self.clock.steps.append(seconds)
        if self.rank == 0:
            self._teller.step(state, seen, seconds)

    def _validate(self, state: TrainState) -> bool:
        """Evaluate, log, and keep account of the best. True if this is the best so far."""
        started = time.perf_counter()
        self.model.eval()
        found = self.evaluate()
        self.model.train()
        self.clock.evaluations.append(time.perf_counter() - started)
        improved = found.loss < state.best_loss
        if improved:
            state.best_loss, state.best_step, state.evals_since_best = found.loss, state.step, 0
        else:
            state.evals_since_best += 1
        patience = self.config.early_stop_evals
        state.stopped_early = bool(patience) and state.evals_since_best >= patience
        if self.rank == 0:
            self._teller.validation(state, found, time.perf_counter() - started, improved=improved)
        return improved

    def _checkpoint_due(self, state: TrainState, last: bool, improved: bool) -> bool:
        keep_best = improved and self.config.publish == "best"
        return last or state.stopped_early or keep_best or state.step % self.config.checkpoint_every == 0

    def _save(self, state: TrainState) -> None:
        self.data.wait()  # nothing is kept that was learned from bytes which nobody checked
        if self.rank == 0:
            self._count_time(state)
            self.metrics.sync()
        if self.rank == 0 or self._ranks.shares:
            started = time.perf_counter()
            self.checkpoints.save(self.model, self.optimizer, state)
            self.clock.saves.append(time.perf_counter() - started)

    def _stopping(self) -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer."""
        if self.world == 1:
            return self.stop.signum != 0
        signum = torch.tensor(self.stop.signum)
        dist.all_reduce(signum, dist.ReduceOp.MAX)
        self.stop.signum = int(signum)
        return self.stop.signum != 0

    def _count_time(self, state: TrainState) -> None:
        state.elapsed = self._earlier + time.perf_counter() - self.began

    def _over_budget(self, state: TrainState) -> str:
        """Count the time, and say which bounds it is above; all ranks get the same answer."""
        self._count_time(state)
        if self.over_budget is None:
            return ""
        if self.world > 1:
            longest = torch.tensor(state.elapsed, dtype=torch.float64)
            dist.all_reduce(longest, dist.ReduceOp.MAX)
            state.elapsed = float(longest)
        return self.over_budget(state.elapsed)

    def _stop(self, state: TrainState, over: str) -> None:
        self.checkpoints.wait()
        if not self.stop.signum:
            raise BudgetError(
                f"over the budget after step {state.step} of {self.config.max_steps}: {over}; saved. Raise it and run "
                "the same command to go on"
            )
        raise Interrupted(
            f"stopped after step {state.step} of {self.config.max_steps}; saved. Run the same command to go on",
            self.stop.signum,
        )
