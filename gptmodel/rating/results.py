"""Ratings -> figures, as an artifact whose inputs are the rated models, so that lineage knows it.

Raters who do not read are found by the planted checks. All figures are given twice: without them, which are the ones
that count, and with them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from gptmodel.artifacts import Artifact, Request, Store, write_atomic
from gptmodel.errors import DataError
from gptmodel.rating.criteria import NAMES
from gptmodel.rating.journal import Rating
from gptmodel.rating.rounds import Item, models_of, read_items
from gptmodel.rating.statistics import Table, bootstrap_weights, krippendorff_alpha, mean_interval, preference

KIND = "ratings"
RECIPE_VERSION = 1
OVERALL = "overall"
"""The mean of the four criteria."""
CHECKED = ("coherence", "fluency", "relevance")
"""What a word salad must lose on. A salad may be called true by someone who reads it."""
LEAST_GAP = 1.5
"""A rater is flagged whose real passages are not this many points above his salads, on average of CHECKED."""
SAMPLES, CONFIDENCE, SEED = 2_000, 0.95, 0


@dataclass(frozen=True)
class Rater:
    """How one rater did on the planted checks."""

    rater: int
    rated: int
    """Texts of models."""
    real: float | None
    salad: float | None
    """Mean points of the real passages and of the salads that he rated; None if he rated none."""
    flagged: bool


def publish(store: Store, found: Artifact, ratings: Sequence[Rating], *, wait: bool = False) -> tuple[Artifact, bool]:
    """(ratings artifact, reused) of a round. The same ratings give the same artifact.

    Files: `ratings.jsonl` (rater as a number, text, model, scores, comment), `results.json`. Its inputs are the models
    in the round's order, and the round. DataError if nobody rated a text of a model.
    """
    items = {item.id: item for item in read_items(found)}
    known = sorted((r for r in ratings if r.item in items), key=lambda r: (r.rater, r.item))
    if not any(items[rating.item].kind == "model" for rating in known):
        raise DataError(f"no text of {found.label} is rated yet; see `gptflow rate status`")
    labels = models_of(found)
    rows = [_row(rating, items[rating.item], labels) for rating in known]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    config = {
        "ratings": hashlib.sha256(text.encode()).hexdigest(),
        "checked": list(CHECKED),
        "least_gap": LEAST_GAP,
        "samples": SAMPLES,
        "confidence": CONFIDENCE,
        "seed": SEED,
    }
    models = tuple(ref for ref in found.request.inputs if ref.kind in ("checkpoint", "weights"))
    request = Request(KIND, RECIPE_VERSION, config, (*models, found.ref))

    def build(directory: Path) -> dict[str, Any]:
        figures = figures_of(known, items, labels)
        write_atomic(directory / "ratings.jsonl", text)
        write_atomic(directory / "results.json", json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
        return figures

    artifact, reused = store.produce(request, build, wait=wait)
    return artifact.verify(), reused


def figures_of(ratings: Sequence[Rating], items: dict[str, Item], labels: Sequence[str]) -> dict[str, Any]:
    """All figures: of `models`, `alpha` and `preference` without flagged raters, and the same under `with_flagged`."""
    raters = judge_raters(ratings, items)
    flagged = {rater.rater for rater in raters if rater.flagged}
    kept = [rating for rating in ratings if rating.rater not in flagged]
    return {
        "ratings": sum(items[rating.item].kind == "model" for rating in ratings),
        "prompts": len({items[r.item].passage for r in ratings if items[r.item].kind == "model"}),
        "raters": len(raters),
        "raters_flagged": len(flagged),
        **_figures(kept, items, labels),
        "with_flagged": _figures(ratings, items, labels),
        "by_rater": [asdict(rater) for rater in raters],
    }


def judge_raters(ratings: Sequence[Rating], items: dict[str, Item]) -> list[Rater]:
    """Each rater's points for real passages and for salads; who rated none of one kind is not flagged."""
    found = []
    for number in sorted({rating.rater for rating in ratings}):
        own = [rating for rating in ratings if rating.rater == number]
        real, salad = (_mean_points(own, items, kind) for kind in ("real", "salad"))
        flagged = real is not None and salad is not None and real - salad < LEAST_GAP
        rated = sum(items[rating.item].kind == "model" for rating in own)
        found.append(Rater(number, rated, real, salad, flagged))
    return found


def _mean_points(ratings: Sequence[Rating], items: dict[str, Item], kind: str) -> float | None:
    points = [r.scores[name] for r in ratings if items[r.item].kind == kind for name in CHECKED]
    return sum(points) / len(points) if points else None


def _figures(ratings: Sequence[Rating], items: dict[str, Item], labels: Sequence[str]) -> dict[str, Any]:
    tables = _tables(ratings, items, len(labels))
    n_raters, n_prompts = tables[0][OVERALL].shape
    weights = bootstrap_weights(n_raters, n_prompts, SAMPLES, SEED)
    models = {
        label: {name: _figure(tables[index][name], weights) for name in (*NAMES, OVERALL)}
        for index, label in enumerate(labels)
    }
    alpha = {name: krippendorff_alpha(np.concatenate([t[name] for t in tables], axis=1)) for name in NAMES}
    pairs = [
        {"a": labels[a], "b": labels[b], **preference(tables[a][OVERALL], tables[b][OVERALL])}
        for a, b in combinations(range(len(labels)), 2)
    ]
    return {"models": models, "alpha": alpha, "preference": pairs}


def _figure(table_RP: Table, weights: Any) -> dict[str, Any]:
    found = mean_interval(table_RP, weights, CONFIDENCE)
    mean, low, high = found or (None, None, None)
    return {"mean": mean, "low": low, "high": high, "ratings": int((~np.isnan(table_RP)).sum())}


def _tables(ratings: Sequence[Rating], items: dict[str, Item], n_models: int) -> list[dict[str, Table]]:
    """Of each model x_RP for each criterion, and their mean."""
    own = [rating for rating in ratings if items[rating.item].kind == "model"]
    rows = {rater: row for row, rater in enumerate(sorted({rating.rater for rating in own}))}
    columns = {p: column for column, p in enumerate(sorted({items[rating.item].passage for rating in own}))}
    tables = [{name: np.full((len(rows), len(columns)), np.nan) for name in NAMES} for _ in range(n_models)]
    for rating in own:
        item = items[rating.item]
        for name in NAMES:
            tables[item.model][name][rows[rating.rater], columns[item.passage]] = rating.scores[name]
    return [{**table, OVERALL: np.mean([table[name] for name in NAMES], axis=0)} for table in tables]


def _row(rating: Rating, item: Item, labels: Sequence[str]) -> dict[str, Any]:
    wrote = {"model": labels[item.model]} if item.kind == "model" else {}
    asked = {"text": item.id, "kind": item.kind, "passage": item.passage, **wrote}
    said = {"rater": rating.rater, **asked, **{name: rating.scores[name] for name in NAMES}}
    return {**said, **({"comment": rating.comment} if rating.comment else {})}
