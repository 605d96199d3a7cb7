"""One side of a comparison: all that the store recorded of an artifact or a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gptmodel.config import PipelineConfig, with_later
from gptmodel.errors import ArtifactError
from gptmodel.judging.benchmark import asked_name
from gptmodel.lineage.differences import (
    Curve,
    Document,
    curve_of,
    flat,
)
from gptmodel.lineage.graph import MODELS
from gptmodel.lineage.lookup import evaluations_of
from gptmodel.lineage.walk import artifact_of
from gptmodel.pretraining.step import RUNS, run_dir_of
from gptmodel.reproduction.recorded import read_job, recorded_settings
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.tracing.trained import find_unfinished
from gptmodel.training.metrics_log import curve, read_lines

_NOT_FIGURES = frozenset(
    {
        "machine",
        "origin",
        "config",
        "files",
        "tokenizer",
        "samples",
        "left_out",
        "pace",
        "precision",
        "intervals",
        "resampling",
        "differences",
    }
)


@dataclass
class Side:
    """One of two things that are compared, with all that the store still has of what it was made from."""

    label: str
    kind: str
    digest: str = ""
    """Content digest; empty for a run that has published nothing."""
    digests: dict[str, str] = field(default_factory=dict)
    """Content digest of corpus, shards and weights to start from, as recorded, whether they are still there or not."""
    corpus: Artifact | None = None
    shards: Artifact | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    recipes: dict[str, int] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    curve: Curve = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    """What could not be looked at, in words."""


def documents_of(artifact: Artifact) -> dict[str, Document]:
    """The documents of a corpus by id, without their texts."""
    found: dict[str, Document] = {}
    for name in artifact.names(suffix=".parquet", prefix="documents-"):
        with pq.ParquetFile(artifact.file(name)) as file:
            for batch in file.iter_batches(columns=["id", "source", "n_bytes", "split"]):
                columns = (batch.column(column).to_pylist() for column in ("id", "source", "n_bytes", "split"))
                found |= {i: Document(source, n, split) for i, source, n, split in zip(*columns, strict=True)}
    return found


def count_documents(a: Artifact, b: Artifact) -> tuple[int, int, int]:
    """(only in b, only in a, on another side of the split) of two corpora, by id, in Arrow's memory alone."""
    ours, theirs = _ids(a), _ids(b)
    both, unmoved = (int(pc.sum(pc.is_in(theirs[i], value_set=ours[i])).as_py() or 0) for i in (0, 1))
    return len(theirs[0]) - both, len(ours[0]) - both, both - unmoved


def _ids(corpus: Artifact) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Each document's id, and its id with its side of the split."""
    files = [corpus.file(name) for name in corpus.names(suffix=".parquet", prefix="documents-")]
    table = pa.concat_tables([pq.read_table(file, columns=["id", "split"]) for file in files])
    return table["id"], pc.binary_join_element_wise(table["id"], table["split"], " ")


def documents_of_shards(shards: Artifact) -> dict[str, Document]:
    """The documents of shards by id: all that is known of them where their corpus is gone."""
    from gptmodel.tokens.tokenstream import open_split

    return {
        i: Document("", 0, split)
        for split in ("train", "validation")
        for i in open_split(shards, split).documents().ids
    }


def side_of(store: Store, artifact: Artifact, name: str = "") -> Side:
    """An artifact as one side; `name` is what a person called it."""
    side = Side(name or artifact.label, artifact.kind, artifact.digest, provenance=dict(artifact.provenance))
    if artifact.kind == "evaluation":
        model = _input(store, side, artifact, MODELS)
        _take_results(store, side, artifact, model)
    else:
        _take_results(store, side, artifact, None)
    if artifact.kind == "checkpoint":
        _take_run(store, side, artifact)
    side.shards = artifact if artifact.kind == "shards" else _input(store, side, artifact, ("shards",))
    side.corpus = artifact if artifact.kind == "corpus" else None
    if side.shards is not None:
        side.corpus = _input(store, side, side.shards, ("corpus",))
    if artifact.kind == "checkpoint":
        _input(store, side, artifact, MODELS)
    for node in (side.corpus, side.shards, artifact):
        if node is not None:
            _take_settings(side, node)
    return side


def _input(store: Store, side: Side, artifact: Artifact, kinds: tuple[str, ...]) -> Artifact | None:
    """The input of one of these kinds; its digest is noted, and that it is gone, if it is."""
    ref = next((ref for ref in artifact.request.inputs if ref.kind in kinds), None)
    if ref is None:
        return None
    side.digests["init" if artifact.kind == "checkpoint" and ref.kind in MODELS else ref.kind] = ref.digest
    try:
        found = artifact_of(store, ref)
    except ArtifactError as error:
        side.gone.append(f"{ref.kind}/{ref.fingerprint[:16]} of {side.label} is not there any more ({error})")
        return None
    if found.digest != ref.digest:
        side.gone.append(f"{found.label} is not what {side.label} was made from: it was made anew, with other bytes")
    return found


def _take_settings(side: Side, artifact: Artifact) -> None:
    side.settings |= flat(recorded_settings(artifact))
    side.settings.pop("corpus.source.paths", None)  # of files: the documents say it, and there may be very many
    side.recipes[artifact.kind] = artifact.request.recipe_version


def _take_run(store: Store, side: Side, checkpoint: Artifact) -> None:
    run_dir = run_dir_of(store, checkpoint.fingerprint)
    with suppress(ArtifactError):
        side.settings |= _of_job(read_job(run_dir))
    side.provenance["machine"] = {**checkpoint.summary.get("machine", {})}
    side.provenance["machine"].setdefault("precision", checkpoint.summary.get("precision"))
    try:
        side.curve = curve_of(read_lines(checkpoint.file("curve.jsonl")))
    except ArtifactError as error:
        side.gone.append(str(error))
        side.curve = curve_of(curve(run_dir / "metrics.jsonl"))


def _of_job(job: dict[str, Any]) -> dict[str, Any]:
    """A run's settings. Of the source only how it is read: which text it was, the corpus says. The gate comes after."""
    found = flat(with_later(job.get("config", {}), PipelineConfig))
    return {name: value for name, value in found.items() if not name.startswith(("corpus.source.", "retrain."))}


def _take_results(store: Store, side: Side, artifact: Artifact, judged: Artifact | None) -> None:
    model = judged or artifact
    if model.kind in (*MODELS, "corpus", "shards"):
        side.results |= _figures(model.summary)
    evaluations = [artifact] if judged else list(_evaluations(store, model)) if model.kind in MODELS else []
    for evaluation in sorted(evaluations, key=lambda e: str(e.provenance.get("finished", ""))):  # the newest last
        prefix = f"evaluation.{evaluation.summary.get('split', '?')}."
        side.results |= {f"{prefix}{name}": value for name, value in _figures(evaluation.summary).items()}
        side.results[f"{prefix}shards"] = evaluation.request.inputs[1].digest[:16]
    for made in evaluations_of(store, model.digest, "benchmark") if model.kind in MODELS else ():
        for row in made.summary["figures"]:
            side.results[f"benchmark.{asked_name(row, made.request.config)}.{row['metric']}"] = row["value"]


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in summary.items() if name not in _NOT_FIGURES}
    return {name: value for name, value in flat(kept).items() if isinstance(value, int | float | str | None)}


def _evaluations(store: Store, model: Artifact) -> Iterator[Artifact]:
    for path in store.directories():
        if path.parent.name != "evaluation":
            continue
        with suppress(ArtifactError):
            found = store.at(path.parent.name, path.name)
            if found.request.inputs[0].digest == model.digest:
                yield found


def mlflow_run_of(store: Store, fingerprint: str) -> str:
    """The id of the MLflow run that this store told of a model; empty if it told of none."""
    return _run_id(run_dir_of(store, fingerprint))


def _run_id(run_dir: Path) -> str:
    try:
        return str(json.loads((run_dir / "mlflow.json").read_text())["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def unfinished_run(store: Store, name: str) -> Path | None:
    """The directory of a run that has published no model: by its MLflow run id, or the start of its fingerprint."""
    journals = (store.root / RUNS).glob("*/mlflow.json")
    return find_unfinished(store, next((j.parent.name for j in journals if _run_id(j.parent) == name), name))


def side_of_run(store: Store, run_dir: Path, name: str) -> Side:
    """A run that has published nothing as one side: its settings, its data, and its curve as far as it came."""
    job = read_job(run_dir)
    side = Side(name, "checkpoint", settings=_of_job(job), curve=curve_of(curve(run_dir / "metrics.jsonl")))
    side.provenance = dict(job.get("provenance") or {})
    unknown = "" if side.provenance else ", and nothing is recorded of its code"
    side.gone.append(f"{name} has published no model; its log ends at step {max(side.curve, default=0):,}{unknown}")
    side.digests["shards"] = str(job.get("shards_digest", ""))
    try:
        place = Path(str(job.get("shards", "")))
        side.shards = store.at(place.parent.name, place.name)  # where this store has it now, if it was moved
    except ArtifactError as error:
        side.gone.append(f"the shards of {name} are not there any more ({error})")
        return side
    side.corpus = _input(store, side, side.shards, ("corpus",))
    for node in (side.corpus, side.shards):
        if node is not None:
            _take_settings(side, node)
    return side
