"""Ratings as a gate: is a model good enough, by people's word, to go further?

`judge` gives one verdict for each requirement on given ratings; what was not rated is not met. `decide` finds the
ratings of a model by its content digest, and tells too few of them from bad ones. Flagged raters have no say. Nothing
is asked, waited for or written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gptmodel.criteria import NAMES
from gptmodel.errors import ConfigError
from gptmodel.lineage.lookup import ratings_of
from gptmodel.rating.results import preferences_of
from gptmodel.rating.rounds import models_of
from gptmodel.rating.statistics import interval_words
from gptmodel.requirements import Requirement, parse_requirement
from gptmodel.store.artifacts import Artifact, Store

Outcome = Literal["pass", "fail", "not enough ratings"]


@dataclass(frozen=True)
class Verdict:
    """A requirement, whether it is met, and the figures that decided; None where there is no rating.

    The ends are None too where there are fewer than two raters or prompts.
    """

    requirement: Requirement
    met: bool
    mean: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.mean is None:
            return f"{self.requirement}: NOT met, no rating that counts"
        word = "met" if self.met else "NOT met"
        return f"{self.requirement}: {word}, {interval_words(self.mean, self.low, self.high)}"


def judge(ratings: Artifact, model: str, requirements: Sequence[Requirement]) -> list[Verdict]:
    """A verdict for each requirement on `model`, a label such as `checkpoint/1f2e3d4c5b6a7980`.

    An empty `model` is the first one of the round. ConfigError if the round has no such model.
    """
    rated = models_of(ratings)
    model = model or rated[0]
    if model not in rated:
        raise ConfigError(f"{ratings.label} rates {', '.join(rated)}, and not {model}; name one of them")
    figures = ratings.summary["models"][model]
    verdicts = []
    for wanted in requirements:
        found = figures[wanted.criterion]
        value = found[wanted.bound]
        met = value is not None and value >= wanted.at_least
        verdicts.append(Verdict(wanted, met, found["mean"], found["low"], found["high"]))
    return verdicts


@dataclass(frozen=True, kw_only=True)
class PeopleGate:
    """What people must have said of a model before it may go further."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    requirements: tuple[str, ...] = ()
    """As `coherence>=3.0`, the mean, or `coherence.low>=3.0`, the lower end of its interval; all must be met."""
    least_raters: int = 2
    """Raters who read, and rated a text of the model or of its round: with fewer nothing is decided."""
    least_ratings: int = 10
    """Ratings of the model's own texts, in each criterion."""
    alpha: float = 0.05
    """It fails if raters prefer the rival, and a sign test over prompts gives this p-value or less."""

    def __post_init__(self) -> None:
        problems = [
            (self.least_raters < 1, f"least_raters is {self.least_raters}; give at least 1"),
            (self.least_ratings < 1, f"least_ratings is {self.least_ratings}; give at least 1"),
            (not 0 < self.alpha < 1, f"alpha is {self.alpha:g}; give more than 0 and less than 1"),
        ]
        if found := [f"PeopleGate: {message}" for wrong, message in problems if wrong]:
            raise ConfigError(found)
        for text in self.requirements:
            parse_requirement(text)


@dataclass(frozen=True)
class Decision:
    """What a gate says, in one word and in words for people, and the figures that it says it by."""

    outcome: Outcome
    why: str
    ratings: str = ""
    """Label of the ratings that decided; empty if there are none."""
    raters: int = 0
    n_ratings: int = 0
    verdicts: tuple[Verdict, ...] = ()
    preference: dict[str, Any] | None = None
    """Model (a) against rival (b), asked or derived; None without a rival."""


def decide(store: Store, model: str, wanted: PeopleGate, rival: str = "") -> Decision:
    """Whether people's newest ratings of the model with the content digest `model` let it pass.

    With the digest of a rival, they are the newest in which both were rated, and the model fails if the rival is
    preferred (see `PeopleGate.alpha`): what raters said when asked, or else what their points say.
    """
    rated = [r for r in ratings_of(store, model) if not rival or rival in {ref.digest for ref in r.request.inputs}]
    if not rated:
        return Decision("not enough ratings", "nobody has rated it" + (" beside its rival" if rival else ""))
    # The figures of a round are made anew as words come in, and two may bear the same second.
    ratings = max(
        rated, key=lambda r: (r.provenance["finished"], r.summary["ratings"] + r.summary.get("comparisons", 0))
    )
    told, label = ratings.summary, _label(ratings, model)
    raters = sum(
        rater["rated"] + (rater.get("compared") or 0) > 0 and not rater["flagged"] for rater in told["by_rater"]
    )
    n_ratings = min(told["models"][label][name]["ratings"] for name in NAMES)
    verdicts = tuple(judge(ratings, label, [parse_requirement(text) for text in wanted.requirements]))
    preference = _from_the_side_of(label, _label(ratings, rival), told) if rival else None
    facts = (ratings.label, raters, n_ratings, verdicts, preference)
    if raters < wanted.least_raters or n_ratings < wanted.least_ratings:
        needed = f"{wanted.least_ratings} by {wanted.least_raters} are needed"
        why = f"{n_ratings} ratings by {raters} raters who read; {needed}"
        return Decision("not enough ratings", why, *facts)
    if missed := [str(verdict) for verdict in verdicts if not verdict.met]:
        return Decision("fail", "; ".join(missed), *facts)
    if preference is not None and _is_beaten(preference, wanted.alpha):
        why = f"its rival is preferred after {preference['b_wins']} prompts against {preference['a_wins']}"
        return Decision("fail", f"{why}, p = {preference['p_value']:.3g} ({preference['how']})", *facts)
    return Decision("pass", "; ".join(map(str, verdicts)) or "nothing was required but ratings", *facts)


def _label(ratings: Artifact, digest: str) -> str:
    return next(ref.label for ref in ratings.request.inputs if ref.digest == digest)


def _from_the_side_of(model: str, rival: str, told: dict[str, Any]) -> dict[str, Any] | None:
    for pair in preferences_of(told):
        if (pair["a"], pair["b"]) == (model, rival):
            return pair
        if (pair["a"], pair["b"]) == (rival, model):
            share = None if pair["share_a"] is None else 1 - pair["share_a"]
            turned = {"a": model, "b": rival, "a_wins": pair["b_wins"], "b_wins": pair["a_wins"], "share_a": share}
            if "answers_a" in pair:
                turned |= {"answers_a": pair["answers_b"], "answers_b": pair["answers_a"]}
            return {**pair, **turned}
    return None


def _is_beaten(preference: dict[str, Any], alpha: float) -> bool:
    lost = bool(preference["b_wins"] > preference["a_wins"])
    return lost and preference["p_value"] is not None and preference["p_value"] <= alpha
