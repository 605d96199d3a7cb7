"""What a report is made from: a model, the evaluation that it is about, and what stands beside them in the store."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptmodel.errors import ArtifactError, ConfigError
from gptmodel.judging.comparison import Comparison, compare_evaluations
from gptmodel.lineage.lookup import evaluations_of
from gptmodel.lineage.text import plain
from gptmodel.pages.card_facts import Facts, facts_of
from gptmodel.store.artifacts import Artifact, Store

log = logging.getLogger(__name__)
Row = dict[str, Any]


@dataclass(frozen=True)
class ReportFacts:
    """A model and how it was judged."""

    model: Facts
    evaluation: Artifact
    champion: Comparison | None = None
    """With the champion on the same documents; None where there is none to compare with."""
    champion_name: str = ""
    ratings: Artifact | None = None
    """The newest ratings of this model by people."""

    @property
    def title(self) -> str:
        return plain(self.model.title)

    @property
    def split(self) -> str:
        return str(self.evaluation.summary["split"])

    @property
    def written(self) -> Row:
        """What the evaluation wrote down, more than its manifest holds."""
        found = json.loads(self.evaluation.file("evaluation.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}

    def table(self, name: str) -> list[Row]:
        """The rows of a table of the evaluation; none where it has no such table."""
        import pyarrow.parquet as pq

        if name not in self.evaluation.names():
            return []
        rows: list[Row] = pq.read_table(self.evaluation.file(name)).to_pylist()
        return rows

    def lines(self, artifact: Artifact, name: str) -> Iterator[Row]:
        """The objects of a JSONL file; none where there is no such file."""
        if name in artifact.names():
            for line in artifact.file(name).read_bytes().splitlines():
                yield json.loads(line)


def report_facts(
    store: Store,
    model: Artifact,
    evaluation: Artifact | None = None,
    *,
    name: str = "",
    version: str = "",
    champion: Artifact | None = None,
    champion_name: str = "",
) -> ReportFacts:
    """Everything for a report on a model: on an evaluation of it, or on the newest one of the validation split.

    `champion` is a model to compare with. ArtifactError for what is no model, and for one that was never evaluated.
    """
    found = facts_of(store, model, name=name, version=version)
    if evaluation is None:
        if not found.evaluations:
            raise ArtifactError(
                f"{model.label} was not evaluated yet; run `gptflow evaluate --model {model.label}`, then ask again"
            )
        unseen = [each for each in found.evaluations if each.summary["split"] == "validation"]
        evaluation = (unseen or list(found.evaluations))[-1]
    rival = _compared(store, champion, evaluation) if champion and champion.digest != model.digest else None
    return ReportFacts(found, evaluation, rival, champion_name if rival else "", newest_ratings(store, model.digest))


def _compared(store: Store, champion: Artifact, evaluation: Artifact) -> Comparison | None:
    """With the champion's newest evaluation on the same tokens."""
    for other in reversed(evaluations_of(store, champion.digest)):
        try:
            return compare_evaluations(other, evaluation)
        except ConfigError as error:
            log.debug("%s", error)
    return None


def newest_ratings(store: Store, model_digest: str) -> Artifact | None:
    """The ratings by people that were gathered last on these weights."""
    found = []
    for path in store.directories("ratings"):
        try:
            ratings = store.at("ratings", path.name)
        except ArtifactError:
            continue  # `gptflow verify` tells of it
        if model_digest in (ref.digest for ref in ratings.request.inputs):
            found.append(ratings)
    return max(found, key=lambda a: (str(a.provenance.get("finished", "")), a.fingerprint), default=None)
