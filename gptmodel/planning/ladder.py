"""The rungs of a ladder: for each size and budget the settings of an ordinary training."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gptmodel.arithmetic import count_parameters
from gptmodel.config import ModelConfig, PipelineConfig
from gptmodel.config.ladder import LadderConfig
from gptmodel.errors import ConfigError, DataError
from gptmodel.markdown_text import counted
from gptmodel.planning.law_fit import LEAST_POINTS, Point, check_points

LEAST_STEPS = 5


@dataclass(frozen=True)
class Rung:
    """A training of the ladder."""

    size: str
    budget: float
    config: PipelineConfig

    @property
    def n_params(self) -> int:
        return count_parameters(self.config.model).total

    @property
    def n_tokens(self) -> int:
        train = self.config.train
        return train.max_steps * train.batch_size * self.config.model.context_length

    @property
    def flops(self) -> float:
        """6ND."""
        return 6.0 * self.n_params * self.n_tokens

    def __str__(self) -> str:
        return f"{self.size} on {self.budget:g} FLOPs"


def rungs_of(base: PipelineConfig, ladder: LadderConfig) -> list[Rung]:
    """All trainings of a ladder, the cheapest budget first. ConfigError where nothing could be fitted to them.

    What is not size, steps and warm-up stands in `base`: data, batch, learning rate, judgement.
    """
    if base.init_from or base.retrain.active:
        what = f"init_from={base.init_from}" if base.init_from else "retrain.active"
        raise ConfigError(f"a ladder trains models from nothing, and the settings have {what}; leave it out")
    if base.train.early_stop_evals or base.train.publish != "last":
        raise ConfigError(
            "a ladder needs trainings that run to their last step, since their learning rate falls until there; set "
            "train.early_stop_evals=0 and train.publish=last"
        )
    rungs = [_rung(base, ladder, size, budget) for budget in sorted(ladder.budgets) for size in ladder.sizes]
    if few := [rung for rung in rungs if rung.config.train.max_steps < LEAST_STEPS]:
        a_step = base.train.batch_size * base.model.context_length
        raise ConfigError(
            f"{few[0]} is {counted(few[0].config.train.max_steps, 'step')} of {a_step:,} tokens, and a training needs "
            f"at least {LEAST_STEPS}; raise the budget, or leave the size out"
        )
    if len(rungs) < LEAST_POINTS:
        raise ConfigError(f"{len(rungs)} trainings are too few to fit 5 coefficients to; give {LEAST_POINTS} or more")
    try:
        check_points([Point(rung.n_params, rung.n_tokens, 1.0) for rung in rungs])
    except DataError as error:
        raise ConfigError(str(error)) from None
    return rungs


def _rung(base: PipelineConfig, ladder: LadderConfig, size: str, budget: float) -> Rung:
    n_layer, n_embd, n_head = (int(part) for part in size.split("x"))
    try:
        model: ModelConfig = replace(base.model, n_layer=n_layer, n_embd=n_embd, n_head=n_head)
    except ConfigError as error:
        raise ConfigError([f"size {size}: {problem.partition(': ')[2]}" for problem in error.problems]) from None
    a_step = 6.0 * count_parameters(model).total * base.train.batch_size * model.context_length
    steps = max(1, round(budget / a_step))
    optimizer = replace(base.train.optimizer, warmup_steps=max(1, round(ladder.warmup_share * steps)))
    return Rung(
        size, budget, replace(base, model=model, train=replace(base.train, max_steps=steps, optimizer=optimizer))
    )
