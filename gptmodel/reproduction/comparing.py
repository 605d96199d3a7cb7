"""Two artifacts of a store, or two runs, beside each other: data, settings, code, environment, figures and curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gptmodel.errors import GptflowError
from gptmodel.lineage.differences import (
    Change,
    CurveRow,
    DocumentDifferences,
    FirstDifference,
    beside,
    changes,
    compare_documents,
    first_difference,
    provenance_changes,
)
from gptmodel.lineage.graph import MODELS
from gptmodel.reproduction.sides import Side, documents_of, documents_of_shards


@dataclass(frozen=True)
class Comparison:
    """What differs between `a` and `b`. Listings are capped; their counts are not."""

    a: str
    b: str
    same: bool
    """The bytes are the same; of runs that published nothing, nothing was found to differ."""
    digests: list[Change]
    documents: DocumentDifferences | None
    """None where documents are not compared: the data is the same, or one side's is gone."""
    config: list[Change]
    code: list[Change]
    environment: list[Change]
    results: list[Change]
    """All figures that either side has, the same ones too."""
    first_difference: FirstDifference | None
    curves: list[CurveRow]
    notes: list[str]


def compare(a: Side, b: Side) -> Comparison:
    """All that differs. GptflowError where the two are of kinds that have nothing in common."""
    if a.kind != b.kind and not {a.kind, b.kind} <= set(MODELS):
        raise GptflowError(f"{a.label} is a {a.kind} and {b.label} a {b.kind}; give two of a kind")
    if "" not in (a.digest, b.digest):
        digests = changes({**a.digests, a.kind: a.digest}, {**b.digests, b.kind: b.digest})
    else:
        digests = changes(a.digests, b.digests)
    documents, notes = _documents(a, b)
    records = [_with_recipes(side.provenance, side.recipes) for side in (a, b) if side.provenance]
    code, environment = provenance_changes(*records) if len(records) == 2 else ([], [])
    config = changes(a.settings, b.settings)
    first = first_difference(a.curve, b.curve)
    names = sorted(a.results.keys() | b.results.keys())
    return Comparison(
        *(a.label, b.label),
        same=a.digest == b.digest if a.digest and b.digest else not (digests or config or first),
        digests=digests,
        documents=documents,
        config=config,
        code=code,
        environment=environment,
        results=[Change(name, a.results.get(name), b.results.get(name)) for name in names],
        first_difference=first,
        curves=beside(a.curve, b.curve),
        notes=[*a.gone, *b.gone, *notes],
    )


def _with_recipes(provenance: dict[str, Any], recipes: dict[str, int]) -> dict[str, Any]:
    """With the recipe versions of the manifests, which count even where the code's own were not recorded."""
    return {**provenance, "recipes": {**provenance.get("recipes", {}), **recipes}}


def _documents(a: Side, b: Side) -> tuple[DocumentDifferences | None, list[str]]:
    """The documents of both sides, from their corpora, or by id alone from their shards."""
    if a.corpus is not None and b.corpus is not None:
        if a.corpus.digest == b.corpus.digest:
            return None, []
        found = compare_documents(documents_of(a.corpus), documents_of(b.corpus))
        if not (found.added.documents or found.removed.documents or found.moved.documents):
            return found, ["the corpora hold the same documents, in another order or form"]
        return found, []
    if a.shards is not None and b.shards is not None and a.shards.digest != b.shards.digest:
        found = compare_documents(documents_of_shards(a.shards), documents_of_shards(b.shards))
        return found, ["a corpus is gone: documents are compared by the ids in the shards, without names and bytes"]
    known = a.digests.get("shards", ""), b.digests.get("shards", "")
    if known[0] == known[1]:
        return None, []
    return None, ["the data of one side is gone: documents cannot be compared"]
