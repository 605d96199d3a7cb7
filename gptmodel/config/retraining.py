"""The settings of scheduled retraining: what makes a night train, what is held out, and what the gate asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gptmodel.checked import STRICT, check
from gptmodel.errors import ConfigError
from gptmodel.requirements import parse_requirement

CAUTION = 4.0
"""Divides the level once more: measured, since the tails of skewed differences are fatter than intervals know."""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """What a challenger must show before it becomes the champion. All of it, or the alias stays where it is."""

    __pydantic_config__: ClassVar[Any] = STRICT

    alpha: float = 0.05
    """Chance that in `nights` decisions with no better challenger among them, one at all is promoted."""
    nights: int = 7
    """Decisions that share alpha (Bonferroni), which holds though all nights look at the same documents."""
    margin: float = 0.0
    """Nats per token by which the challenger must be better, beyond doubt."""
    resamples: int = 10_000
    """Draws of the paired bootstrap: the tail that decides is alpha / nights / 4 of them."""
    bootstrap_seed: int = 0
    """Seed of these draws."""
    min_documents: int = 40
    """Documents, counted as the equally long ones that they are worth, below which nothing is called better. Pieces
    that were cut from one text count as one."""
    max_worse_source: float = 0.05
    """Nats per token by which the challenger may be worse on any one source."""
    max_worse_arrivals: float = 0.0
    """The same on documents that arrived since the champion was trained."""
    max_worse_longest: float = 0.05
    """The same on the longest documents."""
    longest_share: float = 0.25
    """Share of the documents that count as the longest."""
    min_slice_documents: int = 5
    """A slice of fewer documents is shown and does not decide: it would be noise."""
    max_repeated: float = 0.9
    """Largest share of a sample's 4-grams that it wrote before (`repeated_4`); 1 allows all."""
    max_memorised: float = 0.25
    """Largest share of samples with a long passage of the training text (`memorisation_rate`); 1 allows all."""
    ratings: tuple[str, ...] = ()
    """What people's ratings must reach, such as `coherence>=3.0`; until 10 by 2 raters are in the decision waits."""
    first: Literal["promote", "wait"] = "promote"
    """A model with no champion to beat: promoted if its samples and ratings pass, or left to a person."""

    def __post_init__(self) -> None:
        check(
            self,
            [
                (not 0 < self.alpha < 0.5, f"alpha is {self.alpha}; give a chance above 0 and below 0.5, such as 0.05"),
                *(
                    (getattr(self, name) < 1, f"{name} is {getattr(self, name)}; give a whole number of at least 1")
                    for name in ("nights", "min_slice_documents")
                ),
                *(
                    (not 0 <= getattr(self, name) < float("inf"), f"{name} is {getattr(self, name)}; give 0 or more")
                    for name in ("margin", "max_worse_source", "max_worse_arrivals", "max_worse_longest")
                ),
                (self.bootstrap_seed < 0, f"bootstrap_seed is {self.bootstrap_seed}; give 0 or more"),
                (
                    self.resamples < (least := int(5 * CAUTION * self.nights / max(self.alpha, 1e-9))),
                    f"resamples is {self.resamples:,}, too few to see the tail that decides; give {least:,} or more",
                ),
                (self.min_documents < 2, f"min_documents is {self.min_documents}; give at least 2"),
                (
                    not 0 < self.longest_share <= 1,
                    f"longest_share is {self.longest_share}; give a share above 0 and up to 1",
                ),
                *(
                    (not 0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}; give a share from 0 to 1")
                    for name in ("max_repeated", "max_memorised")
                ),
                *((True, problem) for problem in _wrong(self.ratings)),
            ],
        )

    @property
    def level(self) -> float:
        """At which one decision is made."""
        return self.alpha / self.nights / CAUTION


def _wrong(ratings: tuple[str, ...]) -> list[str]:
    found = []
    for text in ratings:
        try:
            parse_requirement(text)
        except ConfigError as error:
            found += error.problems
    return found


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """Training again when data has arrived, and putting the better model in the champion's place."""

    __pydantic_config__: ClassVar[Any] = STRICT

    active: bool = False
    """Whether `pipeline` retrains: looks for new data first, holds documents out, and ends with the gate."""
    when: Literal["new-data", "always"] = "new-data"
    """new-data: end at once where the source holds what the champion, or the last challenger, was trained on."""
    selection_fraction: float = 0.05
    """Share of the training documents that stop a training early and choose its best weights. The validation documents
    of the corpus are held out from that too: no model of this name is trained or selected on them."""
    gate: GateConfig = GateConfig()
    """What makes the alias move."""
    keep_versions: int = 30
    """Newest registered versions that are kept besides those with an alias or a tag `pinned`; 0 keeps all."""

    def __post_init__(self) -> None:
        check(
            self,
            [
                (
                    not 0 < self.selection_fraction < 1,
                    f"selection_fraction is {self.selection_fraction}; give a share between 0 and 1, such as 0.05",
                ),
                (self.keep_versions < 0, f"keep_versions is {self.keep_versions}; use 0 for all, or a positive number"),
            ],
        )
