"""A ladder of small models: which sizes, on how many operations each, and how a law is fitted to what they end at."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gptmodel.checked import STRICT, check


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """Every size is trained once on every budget: on so many tokens D that 6ND comes to it."""

    __pydantic_config__: ClassVar[Any] = STRICT

    sizes: tuple[str, ...] = ("2x64x2", "3x96x3", "4x128x4", "4x192x6")
    """Shapes of models as layers x width x heads, such as 4x192x6."""
    budgets: tuple[float, ...] = (5e11, 1.2e12, 3e12)
    """Operations of a training by the rule 6ND, N with embeddings."""
    warmup_share: float = 0.1
    """Share of the steps in which the learning rate rises, in place of train.optimizer.warmup_steps: short trainings
    would else end before it is up."""
    counts: Literal["all", "without-embeddings"] = "all"
    """What the law's N counts: all parameters, the tied head once (Hoffmann et al. 2022), or neither tokens nor
    positions (Kaplan et al. 2020)."""
    huber_delta: float = 1e-3
    """Where Huber's loss turns from squares to distances, in log loss."""
    resamples: int = 300
    """Times that the law is fitted to losses drawn anew, for its intervals."""
    confidence: float = 0.95
    """Share of such intervals that should hold the truth."""
    seed: int = 0
    """Seed of these draws."""

    def __post_init__(self) -> None:
        wrong = [size for size in self.sizes if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}x[1-9]\d{0,4}", size)]
        check(
            self,
            [
                (not self.sizes, "sizes names none; give shapes such as 2x64x2, 3x96x3, 4x128x4"),
                *(
                    (True, f"size {size!r} is no shape; give layers x width x heads, such as 4x192x6")
                    for size in wrong[:1]
                ),
                (len(set(self.sizes)) < len(self.sizes), "sizes names one twice; each is trained once a budget"),
                (not self.budgets, "budgets names none; give operations such as 1e12"),
                *(
                    (True, f"budget {budget:g} is not from 1e6 to 1e30 operations; give one such as 1e12")
                    for budget in self.budgets
                    if not 1e6 <= budget <= 1e30
                ),
                (
                    len(set(self.budgets)) < len(self.budgets),
                    "budgets names one twice; each size is trained once on it",
                ),
                (not 0 <= self.warmup_share < 1, f"warmup_share is {self.warmup_share}; give a share such as 0.1"),
                (not 0 < self.huber_delta < 10, f"huber_delta is {self.huber_delta}; give log loss such as 1e-3"),
                (not 50 <= self.resamples <= 10_000, f"resamples is {self.resamples}; give 50 to 10000"),
                (not 0 < self.confidence < 1, f"confidence is {self.confidence}; give a share such as 0.95"),
                (not 0 <= self.seed < 2**63, f"seed is {self.seed}; give a whole number from 0 up to 2^63 - 1"),
            ],
        )
