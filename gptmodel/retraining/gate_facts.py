"""What the gate looks at, read from evaluations of the store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from gptmodel.config import recipe
from gptmodel.config.retraining import GateConfig
from gptmodel.rating.gate import PeopleGate, decide
from gptmodel.retraining.gate import Pair, Scored
from gptmodel.store.artifacts import Artifact, Store, canonical
from gptmodel.text.names import file_of
from gptmodel.tokens.tokenstream import open_split


def scored(evaluation: Artifact) -> Scored:
    """Each document's tokens and loss, in the order of the stream."""
    names, numbers = ("document", "source", "parent"), ("n_tokens", "nats")
    table = pq.read_table(evaluation.file("documents.parquet"), columns=[*names, *numbers])
    ids, sources, parents = (table.column(name).to_pylist() for name in names)
    n_tokens, nats = (np.array(table.column(name).to_pylist(), np.float64) for name in numbers)
    return Scored(ids, [file_of(name) for name in sources], n_tokens, nats, parents)


def pair(champion: Artifact, challenger: Artifact) -> Pair:
    """Both on the same documents. ConfigError where they are not."""
    return Pair(scored(champion), scored(challenger))


def trained_ids(store: Store, model: Artifact) -> set[str]:
    """Ids of the documents that a model was trained on, and its forebears in the store; none for imported weights.

    ArtifactError where the shards of one are gone: nobody can tell then what it has seen.
    """
    found: set[str] = set()
    while True:
        refs = {ref.kind: ref for ref in model.request.inputs}
        if "shards" not in refs:
            return found
        found |= set(open_split(store.input_of(model, "shards"), "train", check=False).documents().ids)
        forebear = next((kind for kind in ("checkpoint", "weights") if kind in refs), "")
        if not forebear:
            return found
        model = store.input_of(model, forebear)


def split_ids(shards: Artifact, split: str = "validation") -> set[str]:
    """Ids of the documents of a split."""
    return set(open_split(shards, split, check=False).documents().ids)


def ratings_on(store: Store, model: Artifact, asked: Sequence[str]) -> tuple[Artifact | None, Any]:
    """(newest ratings, what they say to each requirement as (words, met)).

    None, None where too few people rated the model, by the minima of `PeopleGate`.
    """
    if not asked:
        return None, None
    found = decide(store, model.digest, PeopleGate(requirements=tuple(asked)))
    if found.outcome == "not enough ratings":
        return None, None
    kind, name = found.ratings.split("/")
    return store.at(kind, name), [(str(verdict), verdict.met) for verdict in found.verdicts]


def question(
    config: GateConfig,
    champion: Artifact | None,
    challenger: Artifact,
    evaluations: Mapping[str, Artifact | None],
    ratings: Artifact | None,
) -> str:
    """Hex sha256 of all that a decision depends on: asked again, it has been answered."""
    refs = {name: each.digest if each else "" for name, each in evaluations.items()}
    told = {
        "gate": recipe(config),
        "champion": champion.digest if champion else "",
        "challenger": challenger.digest,
        "evaluations": refs,
        "ratings": ratings.digest if ratings else "",
    }
    return hashlib.sha256(canonical(told).encode()).hexdigest()
