"""What people's ratings must reach, as settings write it: `coherence>=3.0`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from gptmodel.criteria import NAMES, OVERALL
from gptmodel.errors import ConfigError

Bound = Literal["mean", "low"]


@dataclass(frozen=True)
class Requirement:
    """What must be reached: by the mean, or by the lower end of its 95 % interval, which is the stricter."""

    criterion: str
    at_least: float
    bound: Bound = "mean"

    def __str__(self) -> str:
        return f"{self.criterion}{'.low' if self.bound == 'low' else ''}>={self.at_least:g}"


def parse_requirement(text: str) -> Requirement:
    """`coherence>=3.0` (the mean), `coherence.low>=3.0` (the lower end); ConfigError for anything else."""
    names = (*NAMES, OVERALL)
    said = re.fullmatch(r"\s*([a-z_]+)(?:\.(mean|low))?\s*>=\s*([0-9]+(?:\.[0-9]+)?)\s*", text)
    if said is None or said[1] not in names:
        raise ConfigError(f"{text!r} is no requirement; write one as coherence>=3.0, with one of {', '.join(names)}")
    if not 1 <= float(said[3]) <= 5:
        raise ConfigError(f"{text!r} asks for {said[3]}, and points go from 1 to 5")
    return Requirement(said[1], float(said[3]), cast(Bound, said[2] or "mean"))
