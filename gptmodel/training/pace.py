"""What the parts of a training take: by a trial, by past runs of the same shape, or by its own first steps.

Whichever it comes of, the whole is reckoned by one sum, `Pace.seconds`.
"""

from __future__ import annotations

import math
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
        evaluating = evaluations(train, done) * self.evaluation_seconds
        saving = saves(train, done) * self.save_seconds
        return (0.0 if done else self.start_seconds) + steps + evaluating + saving + self.end_seconds


def evaluations(train: TrainConfig, done: int = 0) -> int:
    """How often a run is evaluated from step `done` on: before the first step, at each multiple, and at the end."""
    return (done == 0) + _multiples(train.eval_every, train, done) + 1


def saves(train: TrainConfig, done: int = 0) -> int:
    """How often it is saved, each evaluation counted where the best is published: as if all got better."""
    first = done == 0 and (train.publish == "best" or train.on_spike == "rollback")
    between = _multiples(train.checkpoint_every, train, done)
    if train.publish == "best":
        both = math.lcm(train.checkpoint_every, train.eval_every)
        between += _multiples(train.eval_every, train, done) - _multiples(both, train, done)
    return first + between + 1


def saves_beside_steps(train: TrainConfig) -> bool:
    """Whether a checkpoint is written while steps go on, and not at the end alone."""
    every = min(train.checkpoint_every, train.eval_every) if train.publish == "best" else train.checkpoint_every
    return every < train.max_steps


def _multiples(every: int, train: TrainConfig, done: int) -> int:
    """How many steps from `done` on are multiples of `every`, without the first and the last."""
    return (train.max_steps - 1) // every - (max(1, done) - 1) // every


def first_steps(max_steps: int) -> int:
    """After how many of its own steps a run is forecast: a twentieth, from 3 to 20; 0 where it is over by then."""
    after = min(20, max(3, max_steps // 20))
    return after if after < max_steps else 0
