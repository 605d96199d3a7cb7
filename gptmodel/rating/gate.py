"""Ratings as a gate: is a model good enough, by people's word, to go further?

The contract: give the ratings artifact, the model, and requirements; get one verdict for each, and the gate is passed
if all are met. What was not rated is not met. Flagged raters have no say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from gptmodel.artifacts import Artifact
from gptmodel.errors import ConfigError
from gptmodel.rating.criteria import NAMES
from gptmodel.rating.results import OVERALL
from gptmodel.rating.rounds import models_of

Bound = Literal["mean", "low"]


@dataclass(frozen=True)
class Requirement:
    """What must be reached: by the mean, or by the lower end of its 95 % interval, which is the stricter."""

    criterion: str
    at_least: float
    bound: Bound = "mean"

    def __str__(self) -> str:
        return f"{self.criterion}{'.low' if self.bound == 'low' else ''}>={self.at_least:g}"


@dataclass(frozen=True)
class Verdict:
    """A requirement, whether it is met, and the figures that decided; None where there is no rating."""

    requirement: Requirement
    met: bool
    mean: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.mean is None or self.low is None or self.high is None:
            return f"{self.requirement}: NOT met, no rating that counts"
        word = "met" if self.met else "NOT met"
        return f"{self.requirement}: {word}, {self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def parse_requirement(text: str) -> Requirement:
    """`coherence>=3.0` (the mean), `coherence.low>=3.0` (the lower end); ConfigError for anything else."""
    names = (*NAMES, OVERALL)
    said = re.fullmatch(r"\s*([a-z_]+)(?:\.(mean|low))?\s*>=\s*([0-9]+(?:\.[0-9]+)?)\s*", text)
    if said is None or said[1] not in names:
        raise ConfigError(f"{text!r} is no requirement; write one as coherence>=3.0, with one of {', '.join(names)}")
    if not 1 <= float(said[3]) <= 5:
        raise ConfigError(f"{text!r} asks for {said[3]}, and points go from 1 to 5")
    return Requirement(said[1], float(said[3]), cast(Bound, said[2] or "mean"))


def judge(ratings: Artifact, model: str, requirements: Sequence[Requirement]) -> list[Verdict]:
    """A verdict for each requirement on `model`, a label such as `checkpoint/1f2e3d4c5b6a7980`.

    An empty `model` is the first one of the round. ConfigError if the round has no such model.
    """
    rated = models_of(ratings)
    model = model or rated[0]
    if model not in rated:
        raise ConfigError(f"{ratings.label} rates {', '.join(rated)}, and not {model}")
    figures = ratings.summary["models"][model]
    verdicts = []
    for wanted in requirements:
        found = figures[wanted.criterion]
        value = found[wanted.bound]
        met = value is not None and value >= wanted.at_least
        verdicts.append(Verdict(wanted, met, found["mean"], found["low"], found["high"]))
    return verdicts
