"""A shape for a number of parameters, and the settings that train it on a budget.

The rule is that of GPT-2's four models (Radford et al. 2019): heads are 64 wide, and the width is 64 (124 M) to 33
(1,558 M) times the layers. Of such shapes the one whose count of parameters is nearest is taken, so the four come out
at their own counts. Shape matters little beside that count: the loss of 6 layers of 4,288 was within 3 % of that of 48
layers of 1,600 (Kaplan et al. 2020, arXiv:2001.08361, figure 5).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gptmodel.arithmetic import count_parameters
from gptmodel.config import ModelConfig, PipelineConfig
from gptmodel.planning.scaling import ASPECTS, Additive, Advice

HEAD_WIDTH = 64
RULE = "heads 64 wide, width 33 to 64 times the layers: as in GPT-2's four models (Radford et al. 2019)"
WARMUP_SHARE = 0.1
"""Of the steps, at most, as in a ladder: a short training would else end before its learning rate is up."""


@dataclass(frozen=True)
class Suggestion:
    """A model that can be built, near the advice, and a training of it that costs the budget."""

    shape: str
    """Layers x width x heads."""
    n_params: int
    """All of them, the tied head once."""
    n_blocks: int
    """Neither tokens nor positions."""
    n_tokens: int
    """In whole steps; 0 where the budget is less than half a step of these settings."""
    steps: int
    step_tokens: int
    loss: float
    """By the law, in nats per token, and never above that of guessing; that of the advice is lower by what the rounding
    to a shape costs."""
    sets: tuple[str, ...]
    """Settings that differ from those that were given, as `--set` takes them."""
    command: str
    """That trains it; empty where there is no whole step."""


def shape_for(n: float, base: ModelConfig, counts: str = "all") -> ModelConfig:
    """The shape by the rule whose N, as the law counts it, is nearest to `n` by ratio; vocabulary and context are
    `base`'s. The smallest is one layer of one head."""
    return min(_shapes(n, base, counts), key=lambda model: abs(math.log(_count(model, counts) / n)))


def _shapes(n: float, base: ModelConfig, counts: str) -> Iterator[ModelConfig]:
    """For each width the number of layers that is nearest; until even the fewest are too many."""
    heads = 1
    while True:
        width = HEAD_WIDTH * heads
        fewest, most = math.ceil(width / ASPECTS[1]), math.floor(width / ASPECTS[0])
        small = replace(base, n_layer=fewest, n_embd=width, n_head=heads)
        a_layer = _count(replace(small, n_layer=fewest + 1), counts) - _count(small, counts)
        more = round((n - _count(small, counts)) / a_layer)
        yield replace(small, n_layer=min(most, max(fewest, fewest + more)))
        if _count(small, counts) > n:
            return
        heads += 1


def _count(model: ModelConfig, counts: str) -> int:
    found = count_parameters(model)
    return found.total if counts == "all" else found.without_embeddings


def suggest(
    advice: Advice, law: Additive, base: PipelineConfig, given: Sequence[str], counts: str = "all"
) -> Suggestion:
    """A shape near the advice and its training, by the batch, learning rate and text of `base`.

    It is the nearest; where the law leaves the embeddings out, of the nearest of each width that with the lowest loss.
    `given` are the words of the command line that name `base`, such as `--preset quickstart`.
    """

    def by_law(model: ModelConfig) -> float:
        return law.loss(_count(model, counts), advice.flops / 6 / count_parameters(model).total)

    model = shape_for(advice.n_params, base.model, counts)
    if counts != "all":  # shapes about as near differ in what their embeddings cost: 4x256 a third more than 5x192
        model = min(_shapes(advice.n_params, base.model, counts), key=by_law)
    counted = count_parameters(model)
    a_step = base.train.batch_size * model.context_length
    steps = round(advice.flops / 6 / counted.total / a_step)
    sets = [f"model.{name}={getattr(model, name)}" for name in ("n_layer", "n_embd", "n_head")]
    sets.append(f"train.max_steps={steps}")
    most = max(1, round(WARMUP_SHARE * steps))
    if base.train.optimizer.warmup_steps > most:
        sets.append(f"train.optimizer.warmup_steps={most}")
    command = [".venv/bin/gptflow", "run", *given, *(word for each in sets for word in ("--set", each))]
    return Suggestion(
        shape=f"{model.n_layer}x{model.n_embd}x{model.n_head}",
        n_params=counted.total,
        n_blocks=counted.without_embeddings,
        n_tokens=steps * a_step,
        steps=steps,
        step_tokens=a_step,
        loss=min(math.log(model.vocab_size), by_law(model)),
        sets=tuple(sets),
        command=shlex.join(command) if steps else "",
    )
