"""What the parts of a training take: by a trial, by past runs of the same shape, or by its own first steps.

Whichever it comes of, the whole is reckoned by one sum, `Pace.seconds`.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptmodel.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of the parts, and the most memory."""

    start_seconds: float
    """From starting the process to the first evaluation."""
    step_seconds: float
    """Of a whole step, all its micro-batches."""
    evaluation_seconds: float
    """With its samples."""
    save_seconds: float
    """That a checkpoint keeps the loop waiting."""
    end_seconds: float
    """That the last one is waited for."""
    peak_memory_bytes: float
    """Of one process."""

    def seconds(self, train: TrainConfig, done: int = 0) -> float:
        """From start to end; with `done`, what is still to come after so many steps, whose evaluation is not made."""
        steps = (train.max_steps - done) * self.step_seconds
        evaluations = sum(step >= done for step in evaluated(train)) * self.evaluation_seconds
        saves = sum(step >= done for step in saved(train)) * self.save_seconds
        return (0.0 if done else self.start_seconds) + steps + evaluations + saves + self.end_seconds


def evaluated(train: TrainConfig) -> list[int]:
    """The steps after which a run is evaluated: before the first, at each multiple, and at the end."""
    return sorted({0, train.max_steps, *range(train.eval_every, train.max_steps, train.eval_every)})


def saved(train: TrainConfig) -> list[int]:
    """The steps after which it is saved, each evaluation counted where the best is published: as if all got better."""
    every = {train.max_steps, *range(train.checkpoint_every, train.max_steps, train.checkpoint_every)}
    if train.publish == "best":
        every |= set(evaluated(train))
    return sorted(every | {0} if train.on_spike == "rollback" else every)


def saves_beside_steps(train: TrainConfig) -> bool:
    """Whether a checkpoint is written while steps go on, and not at the end alone."""
    return any(0 < step < train.max_steps for step in saved(train))


def first_steps(max_steps: int) -> int:
    """After how many of its own steps a run is forecast: a twentieth, from 3 to 20; 0 where it is over by then."""
    after = min(20, max(3, max_steps // 20))
    return after if after < max_steps else 0
