"""Ratings -> figures, as an artifact whose inputs are the rated models, so that lineage knows it.

Raters who do not read are found by the planted checks. All figures are given twice: without them, which are the ones
that count, and with them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from gptmodel.criteria import NAMES, OVERALL
from gptmodel.errors import DataError
from gptmodel.rating.deliveries import Comparison, Rating
from gptmodel.rating.pairs import LEAST_RIGHT, Pair, asked_preferences, checks_right, pairs_of
from gptmodel.rating.rounds import Item, models_of, read_items
from gptmodel.rating.statistics import Table, bootstrap_weights, krippendorff_alpha, mean_interval, preference
from gptmodel.store.artifacts import Artifact, Request, Store, write_atomic

KIND = "ratings"
RECIPE_VERSION = 2  # 1 had narrower intervals, and gave bounds from one rater
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
    compared: int | None = None
    """Pairs of models' texts; None where nobody was asked to compare."""
    checks_right: int | None = None
    checks_compared: int | None = None
    """In how many planted pairs he preferred the real passage, and how many he answered."""


def publish(
    store: Store,
    found: Artifact,
    ratings: Sequence[Rating],
    comparisons: Sequence[Comparison] = (),
    *,
    wait: bool = False,
) -> tuple[Artifact, bool]:
    """(ratings artifact, reused) of a round. The same words of raters give the same artifact.

    Files: `ratings.jsonl` (rater as a number, text, model, scores, comment), `comparisons.jsonl` if there are any
    (rater, pair, its two texts with their models, the one chosen, comment), `results.json`. Its inputs are the models
    in the round's order, and the round. DataError if nobody rated or compared a text of a model.
    """
    items = {item.id: item for item in read_items(found)}
    pairs = {pair.id: pair for pair in pairs_of(found, list(items.values()))}
    known = sorted((r for r in ratings if r.item in items), key=lambda r: (r.rater, r.item))
    compared = sorted((c for c in comparisons if c.pair in pairs), key=lambda c: (c.rater, c.pair))
    on_models = any(items[r.item].kind == "model" for r in known) or any(not pairs[c.pair].is_check for c in compared)
    if not on_models:
        raise DataError(f"no text of {found.label} is rated yet; see `gptflow rate status`")
    labels = models_of(found)
    text = _lines([_row(rating, items[rating.item], labels) for rating in known])
    config = {
        "ratings": hashlib.sha256(text.encode()).hexdigest(),
        "checked": list(CHECKED),
        "least_gap": LEAST_GAP,
        "samples": SAMPLES,
        "confidence": CONFIDENCE,
        "seed": SEED,
    }
    pairs_text = _lines([_pair_row(said, pairs[said.pair], labels) for said in compared])
    if compared:  # what was made before there were any keeps its fingerprint
        config |= {"comparisons": hashlib.sha256(pairs_text.encode()).hexdigest(), "least_right": LEAST_RIGHT}
    models = tuple(ref for ref in found.request.inputs if ref.kind in ("checkpoint", "weights"))
    request = Request(KIND, RECIPE_VERSION, config, (*models, found.ref))

    def build(directory: Path) -> dict[str, Any]:
        figures = figures_of(known, items, labels, compared, pairs)
        write_atomic(directory / "ratings.jsonl", text)
        if compared:
            write_atomic(directory / "comparisons.jsonl", pairs_text)
        write_atomic(directory / "results.json", json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
        return figures

    artifact, reused = store.produce(request, build, wait=wait)
    return artifact.verify(), reused


def figures_of(
    ratings: Sequence[Rating],
    items: dict[str, Item],
    labels: Sequence[str],
    comparisons: Sequence[Comparison] = (),
    pairs: Mapping[str, Pair] | None = None,
) -> dict[str, Any]:
    """All figures: of `models`, `alpha` and `preference` without flagged raters, and the same under `with_flagged`.

    `preference` is derived from points. `asked`, where raters compared texts, is what they said themselves.
    """
    pairs = pairs or {}
    raters = judge_raters(ratings, items, comparisons, pairs)
    flagged = {rater.rater for rater in raters if rater.flagged}
    kept = [rating for rating in ratings if rating.rater not in flagged]
    asked: dict[str, Any] = {}
    asked_with: dict[str, Any] = {}
    if comparisons:
        asked["asked"] = asked_preferences([c for c in comparisons if c.rater not in flagged], pairs, labels)
        asked_with["asked"] = asked_preferences(comparisons, pairs, labels)
    on_models = [items[r.item] for r in ratings if items[r.item].kind == "model"]
    return {
        "ratings": len(on_models),
        "prompts": len({item.passage for item in on_models}),
        "raters": len(raters),
        "raters_flagged": len(flagged),
        **({"comparisons": sum(not pairs[said.pair].is_check for said in comparisons)} if comparisons else {}),
        **_figures(kept, items, labels),
        **asked,
        "with_flagged": {**_figures(ratings, items, labels), **asked_with},
        "by_rater": [{name: value for name, value in asdict(r).items() if _is_told(name, value)} for r in raters],
    }


def preferences_of(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is shown of preference: for each two models what raters said when asked, else what their points say.

    Each has a `how`: asked or derived. Ratings from before raters were asked have the second kind alone.
    """
    asked = {(pair["a"], pair["b"]): pair for pair in summary.get("asked", [])}
    derived = {(pair["a"], pair["b"]): pair for pair in summary.get("preference", [])}
    return [
        {**asked[key], "how": "asked"} if key in asked else {**derived[key], "how": "derived"}
        for key in {**derived, **asked}
    ]


def comments_of(ratings: Artifact, label: str = "") -> list[str]:
    """What raters wrote about a model's texts, about pairs that it is in, or, without a label, about all of them."""
    said = []
    for name in ("ratings.jsonl", "comparisons.jsonl"):
        if name in ratings.names():
            rows = [json.loads(line) for line in ratings.file(name).read_bytes().splitlines()]
            said += [row["comment"] for row in rows if row.get("comment") and _is_about(row, label)]
    return said


def _is_about(row: Mapping[str, Any], label: str) -> bool:
    return not label or label in (row.get("model"), *row.get("models", ()))


def judge_raters(
    ratings: Sequence[Rating],
    items: dict[str, Item],
    comparisons: Sequence[Comparison] = (),
    pairs: Mapping[str, Pair] | None = None,
) -> list[Rater]:
    """How each rater did on the planted checks, in points and in comparisons; who answered none is not flagged."""
    found, pairs = [], pairs or {}
    for number in sorted({r.rater for r in ratings} | {c.rater for c in comparisons}):
        own = [rating for rating in ratings if rating.rater == number]
        real, salad = (_mean_points(own, items, kind) for kind in ("real", "salad"))
        flagged = real is not None and salad is not None and real - salad < LEAST_GAP
        rated = sum(items[rating.item].kind == "model" for rating in own)
        asked: tuple[int | None, ...] = (None, None, None)
        if comparisons:
            right, answered = checks_right(comparisons, pairs, number)
            flagged = flagged or right < LEAST_RIGHT * answered
            asked = (sum(c.rater == number and not pairs[c.pair].is_check for c in comparisons), right, answered)
        found.append(Rater(number, rated, real, salad, flagged, *asked))
    return found


def _is_told(name: str, value: Any) -> bool:
    """The fields about comparisons only where somebody compared: else results would differ from older ones."""
    return value is not None or name in ("real", "salad")


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


def _pair_row(said: Comparison, pair: Pair, labels: Sequence[str]) -> dict[str, Any]:
    texts = [pair.first.id, pair.second.id]
    wrote = {} if pair.is_check else {"models": [labels[pair.first.model], labels[pair.second.model]]}
    row = {"rater": said.rater, "pair": pair.id, "kind": "check" if pair.is_check else "model", "texts": texts, **wrote}
    return {**row, "chosen": said.chosen or None, **({"comment": said.comment} if said.comment else {})}


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
