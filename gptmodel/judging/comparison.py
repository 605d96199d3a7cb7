"""Is one model better than another on the same text? A paired bootstrap over two evaluations.

Documents differ far more among themselves than two models do on one document. So the same draw of documents is taken
for both, and the interval is that of the difference: much narrower than the two intervals beside each other suggest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptmodel.config import EvaluateConfig
from gptmodel.errors import ConfigError
from gptmodel.judging.bootstrap import interval, resampled
from gptmodel.judging.units import HIGHER_IS_BETTER, OF_THE_TEXT, Units, load_units
from gptmodel.lineage.graph import COMPARISON as KIND
from gptmodel.store.artifacts import Artifact, Request, Store, write_atomic

RECIPE_VERSION = 1
_MUST_AGREE = ("split", "max_tokens", "stride")


@dataclass(frozen=True)
class Difference:
    """One figure of two models. `difference` is the challenger's minus the champion's."""

    name: str
    champion: float
    challenger: float
    difference: float
    low: float
    high: float
    """The interval of the difference."""
    p_better: float
    """Share of the draws in which the challenger is better; one in which they are equal counts half."""


@dataclass(frozen=True)
class Comparison:
    """What a paired bootstrap found, and what it was drawn from."""

    differences: tuple[Difference, ...]
    unit: str
    units: int
    effective_units: float
    resamples: int
    confidence: float
    seed: int

    def of(self, name: str) -> Difference:
        """The difference of one figure, such as `loss`; KeyError if it has none."""
        return {found.name: found for found in self.differences}[name]


def compare_evaluations(
    champion: Artifact, challenger: Artifact, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Mean difference, interval and P(better) of every figure that both evaluations have.

    ConfigError unless both scored the same tokens of the same documents (shards by content digest, split, stride), and
    more than one unit of them. Evaluations of recipe 1 can be compared; they have fewer figures.
    """
    ours, theirs = _paired(champion, challenger)
    n_columns = ours.flat().shape[1]
    draws = resampled(np.concatenate([ours.flat(), theirs.flat()], axis=1), resamples, seed)
    before, after = ours.figures_of(draws[:, :n_columns]), theirs.figures_of(draws[:, n_columns:])
    was, now = ours.figures(), theirs.figures()
    found = []
    for name in was.keys() - OF_THE_TEXT:
        drawn = after[name] - before[name]
        low, high = interval(drawn, ours.effective, confidence)
        better = drawn > 0 if name in HIGHER_IS_BETTER else drawn < 0
        p_better = float(better.mean() + (drawn == 0).mean() / 2)
        found.append(Difference(name, was[name], now[name], now[name] - was[name], low, high, p_better))
    order = list(was)
    found.sort(key=lambda difference: order.index(difference.name))
    return Comparison(tuple(found), ours.kind, len(ours.ids), ours.effective, resamples, confidence, seed)


def compare(
    store: Store, champion: Artifact, challenger: Artifact, config: EvaluateConfig, *, wait: bool = False
) -> tuple[Artifact, bool]:
    """Return (comparison artifact, reused) of two evaluations. File: `comparison.json`. Errors as above."""
    asked: dict[str, Any] = {
        "resamples": config.resamples,
        "confidence": config.confidence,
        "seed": config.bootstrap_seed,
    }
    if not config.resamples:
        raise ConfigError("evaluate.resamples is 0, and a comparison is drawn from resamples; set it to 2000")
    _paired(champion, challenger)
    request = Request(KIND, RECIPE_VERSION, asked, (champion.ref, challenger.ref))

    def build(directory: Path) -> dict[str, Any]:
        told = asdict(compare_evaluations(champion, challenger, **asked))
        told["differences"] = list(told["differences"])
        write_atomic(directory / "comparison.json", json.dumps(told, indent=2) + "\n")
        models = {"champion": _model_of(champion), "challenger": _model_of(challenger)}
        return {**models, "split": challenger.summary["split"], **told}

    artifact, reused = store.produce(request, build, wait=wait)
    return artifact.verify(), reused


def _model_of(evaluation: Artifact) -> str:
    return evaluation.request.inputs[0].label


def _paired(champion: Artifact, challenger: Artifact) -> tuple[Units, Units]:
    """The units of both, with the columns that both have; ConfigError where they are not of the same tokens."""
    for evaluation in (champion, challenger):
        if evaluation.kind != "evaluation":
            raise ConfigError(f"{evaluation.label} is no evaluation; give two evaluations to compare")
    if wrong := next(_disagreements(champion, challenger), ""):
        raise ConfigError(f"{champion.label} and {challenger.label} cannot be compared: {wrong}")
    ours, theirs = load_units(champion), load_units(challenger)
    if {ours.kind, theirs.kind} in ({"document", "text"}, {"document", "piece of one text"}):
        old = champion if ours.kind == "document" else challenger
        raise ConfigError(f"{old.label} took pieces of one text for documents of their own; evaluate its model again")
    same = ours.ids == theirs.ids and all(
        np.array_equal(ours.columns[name], theirs.columns[name]) for name in ("n_tokens", "n_bytes")
    )
    if ours.kind != theirs.kind or not same:
        raise ConfigError(
            f"{champion.label} and {challenger.label} cannot be compared: they scored other tokens of the documents, "
            "as models of different contexts do under evaluate.max_tokens; evaluate both with max_tokens=0"
        )
    if len(ours.ids) < 2:
        raise ConfigError(f"{champion.label} has one {ours.kind} only, of which nothing can be drawn; score more text")
    common = [name for name in ours.columns if name in theirs.columns]
    common = [name for name in common if ours.columns[name].shape == theirs.columns[name].shape]  # bins are a setting
    return _only(ours, common), _only(theirs, common)


def _disagreements(champion: Artifact, challenger: Artifact) -> Iterator[str]:
    shards = [next((ref for ref in e.request.inputs if ref.kind == "shards"), None) for e in (champion, challenger)]
    if None in shards or shards[0].digest != shards[1].digest:  # type: ignore[union-attr]
        named = " and ".join(f"{ref.label} ({ref.digest[:16]}…)" if ref else "none" for ref in shards)
        yield f"their shards differ: {named}; evaluate both on the same"
    for name in _MUST_AGREE:
        was, now = (evaluation.request.config.get(name, 0) for evaluation in (champion, challenger))
        if was != now:
            yield f"evaluate.{name} was {was} and {now}; evaluate both with the same"


def _only(units: Units, names: list[str]) -> Units:
    return Units(units.kind, units.ids, {name: units.columns[name] for name in names})
