"""What a finished model leaves in MLflow: pictures, samples, manifests, the model and its version in the registry."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run

from gptmodel.pages.gallery import text_pictures
from gptmodel.pictures.curves import training_pictures
from gptmodel.planning.score import bases, scores
from gptmodel.store.artifacts import MANIFEST, Artifact, Store
from gptmodel.training.metrics_log import read_lines
from tasks.tracking.logged import PLOTS, finished_ms, is_there, log_lineage, log_pictures, log_table
from tasks.tracking.model_links import link_model
from tasks.tracking.runs import FINGERPRINT_TAG, client, set_tags
from tasks.tracking.serving import save_served_model

log = logging.getLogger(__name__)
_RUN_TAG = "gptflow.run"


def record_model(
    run: Run,
    model: Artifact,
    chain: list[Artifact],
    metrics_file: Path,
    name: str,
    guard: Callable[[], object] = lambda: None,
) -> None:
    """Log a model artifact to its run, and register it. Done twice it leaves what it leaves once.

    `chain` is what it was made from; the manifests of all go along. `guard` raises if this process may no longer write.
    """
    run_id = run.info.run_id
    for artifact in (*chain, model):
        client().log_artifact(run_id, str(artifact.path / MANIFEST), f"lineage/{artifact.kind}-{artifact.path.name}")
    if metrics_file.exists():
        lines = list(read_lines(metrics_file))
        log_pictures(run_id, training_pictures(lines) | text_pictures(Store(model.path.parents[1]), model), PLOTS)
        rows = [{"step": line["step"], **sample} for line in lines for sample in line.get("samples", [])]
        log_table(run, rows, "samples/training.json")
    if "certificate" in model.summary:
        origin = {name: model.summary[name] for name in ("source", "revision", "dtype", "files")}
        client().log_dict(run_id, {**origin, **model.summary["certificate"]}, "certificate.json")
    guard()
    logged = _log_model(run, model)
    guard()  # an upload takes minutes
    registered = _register(run_id, logged, model, name) if name else ""
    link_model(run, logged, registered, model, chain)
    _record_gain(run_id, model)
    _record_score(run_id, model)
    log_lineage(run_id, model)
    set_tags(run_id, {"gptflow.model": model.digest, **({"gptflow.registered": registered} if registered else {})})


def _record_gain(run_id: str, model: Artifact) -> None:
    """How many nats the training took off the validation loss of the weights that it began with."""
    if "first_validation_loss" in model.summary:
        gain = model.summary["first_validation_loss"] - model.summary["best_validation_loss"]
        point = Metric("evaluation/training_gain", gain, finished_ms(model), model.summary["best_step"], run_id=run_id)
        client().log_batch(run_id, metrics=[] if is_there(run_id, point) else [point])


def _record_score(run_id: str, model: Artifact) -> None:
    """What was foretold of the run, what it took, and the error as a share; as tags, what the forecasts came of."""
    points = [
        Metric(f"plan/{name}/{part}", value, finished_ms(model), 0, run_id=run_id)
        for name, score in scores(model.provenance, model.summary).items()
        for part, value in (("forecast", score.forecast), ("actual", score.actual), ("error", score.error))
    ]
    client().log_batch(run_id, metrics=[point for point in points if not is_there(run_id, point)])
    set_tags(run_id, {f"gptflow.plan.{name}": said for name, said in bases(model.provenance).items()})


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
            save_served_model(Path(temporary) / "model", model, model_id=logged.model_id, run_id=run_id)
            mlflow_client.log_model_artifacts(logged.model_id, str(Path(temporary) / "model"))
        logged = mlflow_client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return logged


def _register(run_id: str, logged: LoggedModel, model: Artifact, name: str) -> str:
    if found := [v for v in client().search_model_versions(f"run_id = '{run_id}'") if v.name == name]:
        kept = min(found, key=lambda v: int(v.version))
        return f"{kept.name}/{kept.version}"
    tags = {"gptflow.model": model.digest, FINGERPRINT_TAG: model.fingerprint}
    made = mlflow.register_model(f"models:/{logged.model_id}", name, await_registration_for=0, tags=tags)
    log.info("registered as %s version %s (%s)", name, made.version, logged.model_uri)
    return f"{name}/{made.version}"
