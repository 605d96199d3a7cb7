"""Does MLflow say what the store holds: tags, datasets, logged manifests, uploaded weights, and the registry."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from gptmodel.errors import TrackingError, first_line
from gptmodel.lineage.graph import COMPARISON, JUDGEMENTS, MODELS
from gptmodel.pretraining.step import RUNS
from gptmodel.store.artifacts import MANIFEST, Store
from gptmodel.store.hashing import hash_files
from gptmodel.store.manifests import Manifest
from gptmodel.upkeep.nodes import Node
from gptmodel.upkeep.verification import Difference
from tasks.tracking.runs import COMPLETE_TAG, FAILURES, FINGERPRINT_TAG, client

_ABSENT = "nothing"


def answers() -> None:
    """TrackingError if MLflow cannot be asked. A database that is not there is not made."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    where = urlsplit(uri)
    if where.scheme == "sqlite" and not Path(unquote(where.path)[1:]).exists():
        raise TrackingError(
            f"MLflow cannot be asked: there is no database {where.path[1:]}; set MLFLOW_TRACKING_URI to the one "
            "that knows"
        )
    try:
        client().search_experiments(max_results=1)
    except FAILURES as error:
        raise TrackingError(
            f"MLflow at {uri or 'its default place'} does not answer ({first_line(error)}); is it up (`make up`), and "
            "MLFLOW_TRACKING_URI right?"
        ) from None


def compare(store: Store, nodes: Iterable[Node], notes: list[str], known_there: list[str]) -> Iterator[Difference]:
    """All in MLflow that does not agree with these nodes; what it was not told of yet becomes a note.

    The labels of those that it was told of, and that were compared, are added to `known_there`. TrackingError if
    MLflow stops answering.
    """
    answers()
    known = {node.label: node for node in nodes if node.manifest is not None}
    try:
        for node in known.values():
            if _kind(node) in MODELS:
                yield from _compare_model(store, node, known, notes, known_there)
        for node in known.values():
            if _kind(node) == "ratings":
                yield from _compare_ratings(store, node, notes, known_there)
            elif _kind(node) in JUDGEMENTS:
                yield from _compare_judgement(store, node, _judged(node), notes, known_there)
            elif _kind(node) == COMPARISON:
                judged = [known[ref.label] for ref in _manifest(node).request.inputs[1:] if ref.label in known]
                yield from _compare_judgement(store, node, _judged(*judged), notes, known_there)
    except FAILURES as error:
        raise TrackingError(f"MLflow stopped answering ({first_line(error)}); run the same again") from None


def _kind(node: Node) -> str:
    return _manifest(node).request.kind


def _manifest(node: Node) -> Manifest:
    assert node.manifest is not None
    return node.manifest


def _compare_model(
    store: Store, node: Node, known: dict[str, Node], notes: list[str], known_there: list[str]
) -> Iterator[Difference]:
    run = find_run_of(store, _manifest(node).request.fingerprint)
    if run is None:
        notes.append(f"MLflow knows no run of {node.label}; `gptflow sync` tells it")
        return
    known_there.append(node.label)
    name, complete = f"MLflow run {run.info.run_id}", bool(run.data.tags.get(COMPLETE_TAG))
    if not complete:
        notes.append(f"{name} of {node.label} is not told all yet; `gptflow sync` sends the rest")
    for tag, expected in _expected_tags(node, known).items():
        found = run.data.tags.get(tag, _ABSENT)
        if found != expected and (complete or found != _ABSENT):
            yield Difference(name, "", f"tag {tag}", expected, found)
    if _kind(node) == "checkpoint":
        yield from _compare_datasets(name, run, _expected_tags(node, known), complete)
    if complete:
        yield from _compare_logged(name, run, node, known)
        yield from _compare_registry(run, node, notes)


def _expected_tags(node: Node, known: dict[str, Node]) -> dict[str, str]:
    manifest = _manifest(node)
    tags = {FINGERPRINT_TAG: manifest.request.fingerprint, "gptflow.model": manifest.digest}
    if manifest.request.kind != "checkpoint":
        return tags
    for ref in manifest.request.inputs:
        tags["gptflow.shards" if ref.kind == "shards" else "gptflow.init"] = ref.digest
        if ref.kind == "shards" and (shards := known.get(ref.label)) is not None:
            corpus = next((each for each in _manifest(shards).request.inputs if each.kind == "corpus"), None)
            tags |= {"gptflow.corpus": corpus.digest} if corpus else {}
    return tags


def _compare_datasets(name: str, run: Run, tags: dict[str, str], complete: bool) -> Iterator[Difference]:
    """The dataset inputs: one for each split, with the shards' digest, and what their sources name."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    datasets = {item.dataset.name: item.dataset for item in inputs if item.dataset.source_type == "gptflow.shards"}
    for split in ("train tokens", "validation tokens"):
        dataset = datasets.get(split)
        expected = tags["gptflow.shards"][:32]
        if dataset is None:
            if complete:
                yield Difference(name, "", f"dataset {split!r}", expected, _ABSENT)
            continue
        if dataset.digest != expected:
            yield Difference(name, "", f"digest of dataset {split!r}", expected, str(dataset.digest))
        source: Any = {}
        with suppress(ValueError):
            source = json.loads(dataset.source)
        for part in ("corpus", "shards"):
            stated = str(source.get(part, _ABSENT)) if isinstance(source, dict) else _ABSENT
            if stated != tags.get(f"gptflow.{part}", stated):
                yield Difference(name, "", f"{part} of dataset {split!r}", tags[f"gptflow.{part}"], stated)


def _compare_logged(name: str, run: Run, node: Node, known: dict[str, Node]) -> Iterator[Difference]:
    """The manifests of the chain, and the files that were uploaded with the model."""
    upstream = _upstream(node, known)
    with tempfile.TemporaryDirectory(prefix="gptflow-verify-") as folder:
        for each in upstream:
            where = f"lineage/{_kind(each)}-{each.path.name}/{MANIFEST}"
            expected = _manifest(each).stated[3]
            yield from _compare_file(name, run.info.artifact_uri, where, expected, Path(folder))
        outputs = run.outputs.model_outputs if run.outputs else []
        if not outputs:
            yield Difference(name, "", "logged model", "one", _ABSENT)
        for output in outputs:
            root = client().get_logged_model(output.model_id).artifact_location
            for entry in _manifest(node).files:
                where = f"artifacts/{node.path.name}/{entry.name}"
                yield from _compare_file(f"MLflow model {output.model_id}", root, where, entry.sha256, Path(folder))


def _upstream(node: Node, known: dict[str, Node]) -> list[Node]:
    found, open_ = {node.label: node}, [node]
    while open_:
        for ref in _manifest(open_.pop()).request.inputs:
            if (each := known.get(ref.label)) is not None and each.label not in found:
                found[each.label] = each
                open_.append(each)
    return [each for label, each in known.items() if label in found]


def _compare_file(name: str, root: str, where: str, expected: str, folder: Path) -> Iterator[Difference]:
    try:
        path = Path(download_artifacts(artifact_uri=f"{root}/{where}", dst_path=str(folder)))
    except FAILURES as error:
        if _is_missing(error):
            yield Difference(name, where, "file", f"sha256 {expected}", _ABSENT)
            return
        raise
    found = hash_files([(path, 0, True)])[0]
    path.unlink()
    if found.sha256 != expected:
        yield Difference(name, where, "sha256", expected, found.failure or found.sha256)


def _is_missing(error: BaseException) -> bool:
    """A file that is not there: MLflow's stores tell it in different ways, and none as a lost connection."""
    code = getattr(error, "error_code", "")
    gone = code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND") or isinstance(error, FileNotFoundError)
    return gone or bool(re.search(r"\b404\b|No such (file|artifact)", str(error)))


def _compare_registry(run: Run, node: Node, notes: list[str]) -> Iterator[Difference]:
    """Versions of this run. One with neither of our tags was registered in MLflow's pages: it states nothing."""
    manifest = _manifest(node)
    for version in client().search_model_versions(f"run_id = '{run.info.run_id}'"):
        name = f"registered {version.name}/{version.version}"
        expected = {"gptflow.model": manifest.digest, FINGERPRINT_TAG: manifest.request.fingerprint}
        if not version.tags.keys() & expected.keys():
            notes.append(f"{name} of {node.label} was registered by hand: no tag of it says which model it is")
            continue
        for tag, value in expected.items():
            if (found := version.tags.get(tag, _ABSENT)) != value:
                yield Difference(name, "", f"tag {tag}", value, str(found))


def _judged(*evaluations: Node) -> str:
    """The fingerprint of the model that was judged, in whose run the judgement is; empty if that is not known."""
    refs = [ref for node in evaluations for ref in _manifest(node).request.inputs if ref.kind in MODELS]
    return refs[0].fingerprint if refs else ""


def _compare_judgement(
    store: Store, node: Node, model: str, notes: list[str], known_there: list[str]
) -> Iterator[Difference]:
    run = find_run_of(store, model) if model else None
    tag = f"gptflow.{_kind(node)}.{node.path.name}"
    if run is None or tag not in run.data.tags:
        notes.append(f"MLflow was not told of {node.label} yet; `gptflow sync` tells it")
        return
    known_there.append(node.label)
    name, expected = f"MLflow run {run.info.run_id}", _manifest(node).digest
    if run.data.tags[tag] != expected:
        yield Difference(name, "", f"tag {tag}", expected, run.data.tags[tag])
    files = {entry.name: entry.sha256 for entry in _manifest(node).files}
    wanted = {
        name: files.get(name) for name in ("evaluation.json", "documents.parquet", "results.json", "comparison.json")
    }
    with tempfile.TemporaryDirectory(prefix="gptflow-verify-") as folder:
        for file, digest in {**wanted, MANIFEST: _manifest(node).stated[3]}.items():
            where = f"{_kind(node)}/{node.path.name}/{file}"
            if digest is not None:
                yield from _compare_file(name, run.info.artifact_uri, where, digest, Path(folder))


def _compare_ratings(store: Store, node: Node, notes: list[str], known_there: list[str]) -> Iterator[Difference]:
    """The tag and the files of people's ratings in the run of each model that they judge."""
    manifest, told = _manifest(node), 0
    tag, refs = f"gptflow.ratings.{node.path.name}", [ref for ref in manifest.request.inputs if ref.kind in MODELS]
    wanted = {entry.name: entry.sha256 for entry in manifest.files} | {MANIFEST: manifest.stated[3]}
    for run in (find_run_of(store, ref.fingerprint) for ref in refs):
        if run is None or tag not in run.data.tags:
            continue
        told += 1
        name = f"MLflow run {run.info.run_id}"
        if run.data.tags[tag] != manifest.digest:
            yield Difference(name, "", f"tag {tag}", manifest.digest, run.data.tags[tag])
        with tempfile.TemporaryDirectory(prefix="gptflow-verify-") as folder:
            for file, digest in wanted.items():
                where = f"ratings/{node.path.name}/{file}"
                yield from _compare_file(name, run.info.artifact_uri, where, digest, Path(folder))
    if told:
        known_there.append(node.label)
    if told < len(refs):
        notes.append(f"MLflow was told of {node.label} for {told} of {len(refs)} models; `gptflow sync` tells the rest")


def find_run_of(store: Store, fingerprint: str) -> Run | None:
    """The run of a model artifact, by the run's own record of it or by its tag. Changes nothing."""
    mlflow = client()
    run_id = told_run(store, fingerprint)
    if run_id:
        with suppress(MlflowException):
            run = mlflow.get_run(run_id)
            if run.info.lifecycle_stage == "active":
                return run
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    wanted = f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'"
    found = mlflow.search_runs(experiments, wanted, max_results=1, order_by=["attributes.start_time ASC"])
    return found[0] if found else None


def told_run(store: Store, fingerprint: str) -> str:
    """The id of the MLflow run that a run of the store was told to, from its journal; empty if it was never told."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((store.root / RUNS / fingerprint[:16] / "mlflow.json").read_text())["run_id"]
        if re.fullmatch(r"[0-9a-f]{32}", str(found)):
            return str(found)
    return ""
