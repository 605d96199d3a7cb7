"""What a finished step leaves in MLflow: pictures, samples, manifests, the model and its version in the registry."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from gptmodel.judging.benchmark import RESULTS, asked_name
from gptmodel.judging.surprisal import passages_of
from gptmodel.lineage.graph import as_json
from gptmodel.lineage.walk import Lineage, artifact_of
from gptmodel.pages.gallery import evaluation_pictures, text_pictures
from gptmodel.pages.lineage import page as lineage_page
from gptmodel.pages.lineage import picture as lineage_picture
from gptmodel.pages.surprisal_picture import surprisal_picture
from gptmodel.pictures.curves import training_pictures
from gptmodel.pictures.style import Draw, save_all
from gptmodel.planning.score import bases, scores
from gptmodel.rating.results import preferences_of
from gptmodel.store.artifacts import MANIFEST, Artifact, Store
from gptmodel.training.metrics_log import read_lines
from tasks.tracking.cards import evaluation_dataset
from tasks.tracking.mlflow_pages import LINEAGE_JSON, LINEAGE_PAGE, versions_of
from tasks.tracking.model_links import link_model
from tasks.tracking.reporting import folder_of, record_pages
from tasks.tracking.runs import FINGERPRINT_TAG, client, dataset_input, set_tags
from tasks.tracking.serving import save_served_model

log = logging.getLogger(__name__)
_RUN_TAG = "gptflow.run"
PLOTS = "plots"
_BATCH = 500  # metrics in one call; MLflow takes 1,000


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
        _log_pictures(run_id, training_pictures(lines) | text_pictures(Store(model.path.parents[1]), model), PLOTS)
        rows = [{"step": line["step"], **sample} for line in lines for sample in line.get("samples", [])]
        _log_table(run, rows, "samples/training.json")
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
    _record_lineage(run_id, model)
    set_tags(run_id, {"gptflow.model": model.digest, **({"gptflow.registered": registered} if registered else {})})


def _record_gain(run_id: str, model: Artifact) -> None:
    """How many nats the training took off the validation loss of the weights that it began with."""
    if "first_validation_loss" in model.summary:
        gain = model.summary["first_validation_loss"] - model.summary["best_validation_loss"]
        point = Metric("evaluation/training_gain", gain, finished_ms(model), model.summary["best_step"], run_id=run_id)
        client().log_batch(run_id, metrics=[] if _is_there(run_id, point) else [point])


def _record_score(run_id: str, model: Artifact) -> None:
    """What was foretold of the run, what it took, and the error as a share; as tags, what the forecasts came of."""
    points = [
        Metric(f"plan/{name}/{part}", value, finished_ms(model), 0, run_id=run_id)
        for name, score in scores(model.provenance, model.summary).items()
        for part, value in (("forecast", score.forecast), ("actual", score.actual), ("error", score.error))
    ]
    client().log_batch(run_id, metrics=[point for point in points if not _is_there(run_id, point)])
    set_tags(run_id, {f"gptflow.plan.{name}": said for name, said in bases(model.provenance).items()})


def _record_lineage(run_id: str, model: Artifact) -> None:
    """The page and the graph of all that the model was made from, and of what its store has made of it by now."""
    store = Store(model.path.parent.parent)
    graph = Lineage(store).around(model.ref)
    graph = graph.with_versions(versions_of(store, graph))
    client().log_text(run_id, lineage_page(graph), LINEAGE_PAGE)
    client().log_text(run_id, lineage_picture(graph), f"{PLOTS}/lineage.svg")
    client().log_text(run_id, json.dumps(as_json(graph), indent=2), LINEAGE_JSON)


def _log_pictures(run_id: str, pictures: dict[str, Draw], where: str) -> None:
    """Each for light and for dark pages: the same numbers leave the same bytes, so an upload may be repeated."""
    with TemporaryDirectory() as folder:
        for path in save_all(pictures, Path(folder)):
            client().log_artifact(run_id, str(path), where)


def _log_table(run: Run, rows: list[dict[str, Any]], where: str) -> None:
    """A table as MLflow's pages show it. Its own `log_table` would append to what an earlier attempt left."""
    if not rows:
        return
    run_id = run.info.run_id
    client().log_text(run_id, pd.DataFrame(rows).to_json(orient="split", index=False, date_format="iso"), where)
    tables = json.loads(client().get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    if (table := {"path": where, "type": "table"}) not in tables:
        client().set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*tables, table]))


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
    found = client().search_model_versions(f"run_id = '{run_id}'")
    if found:
        kept = min(found, key=lambda v: int(v.version))
        return f"{kept.name}/{kept.version}"
    tags = {"gptflow.model": model.digest, FINGERPRINT_TAG: model.fingerprint}
    made = mlflow.register_model(f"models:/{logged.model_id}", name, await_registration_for=0, tags=tags)
    log.info("registered as %s version %s (%s)", name, made.version, logged.model_uri)
    return f"{name}/{made.version}"


def evaluation_tag(evaluation: Artifact) -> str:
    """The tag of a run that holds the evaluation or benchmark; its value is that one's digest."""
    return f"gptflow.{evaluation.kind}.{evaluation.path.name}"


def record_evaluation(run: Run, evaluation: Artifact, shards: Artifact) -> None:
    """Log an evaluation to its model's run, once: figures tied to model and dataset, tables, samples, pages."""
    run_id, split = run.info.run_id, evaluation.summary["split"]
    if run.data.tags.get(evaluation_tag(evaluation)) == evaluation.digest:
        return
    dataset = evaluation_dataset(shards, str(evaluation.request.config["split"]))
    client().log_inputs(run_id, datasets=[dataset_input(dataset)])
    models = run.outputs.model_outputs if run.outputs else []
    # The time of the evaluation itself, so that a repeated call is known by its points.
    finished = finished_ms(evaluation)
    metrics = [
        Metric(
            f"evaluation/{split}/{key}",
            float(value),
            finished,
            0,
            model_id=models[-1].model_id if models else None,
            dataset_name=dataset["name"],
            dataset_digest=dataset["digest"],
            run_id=run_id,
        )
        for key, value in (evaluation.summary | _bounds(evaluation.summary)).items()
        if isinstance(value, int | float)
    ]
    client().log_batch(run_id, metrics=[metric for metric in metrics if not _is_there(run_id, metric)])
    where = folder_of(evaluation)
    _log_pictures(run_id, evaluation_pictures(evaluation), where)
    if passages := passages_of(evaluation):
        client().log_text(run_id, surprisal_picture(passages[0]), f"{where}/surprisal.svg")
    for name in (*evaluation.names(), MANIFEST):
        client().log_artifact(run_id, str(evaluation.path / name), where)
    samples = [json.loads(line) for line in evaluation.file("samples.jsonl").read_text().splitlines()]
    _log_table(run, samples, f"{where}/samples.json")
    store = Store(evaluation.path.parent.parent)
    model = artifact_of(store, evaluation.request.inputs[0])
    record_pages(run_id, store, model, evaluation)
    _record_lineage(run_id, model)
    set_tags(run_id, {evaluation_tag(evaluation): evaluation.digest})


def record_benchmark(run: Run, made: Artifact) -> None:
    """Log a benchmark to its model's run, once: metrics with their errors, a table with versions, and the results.

    `benchmark/hellaswag/acc` is of the whole task as it comes; what was asked otherwise stands in the name, as in
    `benchmark/hellaswag 5-shot first 100/acc`: figures of one name can be compared.
    """
    run_id = run.info.run_id
    if run.data.tags.get(evaluation_tag(made)) == made.digest:
        return
    finished, rows = finished_ms(made), made.summary["figures"]
    metrics = [
        Metric(_metric_name(row, made.request.config) + part, value, finished, 0, run_id=run_id)
        for row in rows
        for part, value in (("", row["value"]), (" stderr", row["stderr"]))
        if value is not None
    ]
    for start in range(0, len(metrics), _BATCH):
        wanted = metrics[start : start + _BATCH]
        client().log_batch(run_id, metrics=[metric for metric in wanted if not _is_there(run_id, metric)])
    where = f"benchmark/{made.path.name}"
    for name in (RESULTS, MANIFEST):
        client().log_artifact(run_id, str(made.path / name), where)
    _log_table(run, [{**row, "harness": made.summary["harness"]} for row in rows], f"{where}/figures.json")
    _record_lineage(run_id, artifact_of(Store(made.path.parent.parent), made.request.inputs[0]))
    set_tags(run_id, {evaluation_tag(made): made.digest, "gptflow.harness": made.summary["harness"]})


def _metric_name(row: dict[str, Any], asked: dict[str, Any]) -> str:
    """With no character that MLflow does not take."""
    return re.sub(r"[^\w\-./ ]", "", f"benchmark/{asked_name(row, asked)}/{row['metric']}")


def _bounds(summary: dict[str, Any]) -> dict[str, float]:
    """The interval of each figure as two figures; evaluations of recipe 1 have none."""
    told: dict[str, list[float]] = summary.get("intervals", {})
    return {f"{name}_{side}": pair[i] for name, pair in told.items() for i, side in enumerate(("low", "high"))}


def record_comparison(run: Run, comparison: Artifact, model: Artifact) -> None:
    """Log a comparison to the run of the challenger, `model`, once: differences, intervals, P(better), and the file."""
    run_id, told = run.info.run_id, comparison.summary
    if run.data.tags.get(comparison_tag(comparison)) == comparison.digest:
        return
    where = f"evaluation/{told['split']}/against/{told['champion'].split('/')[1][:8]}"
    values = {
        f"{where}/{row['name']}{suffix}": row[kind]
        for row in told["differences"]
        for suffix, kind in (("", "difference"), ("_low", "low"), ("_high", "high"), ("_p_better", "p_better"))
    }
    finished = finished_ms(comparison)
    metrics = [Metric(key, float(value), finished, 0, run_id=run_id) for key, value in values.items()]
    client().log_batch(run_id, metrics=[metric for metric in metrics if not _is_there(run_id, metric)])
    for name in (*comparison.names(), MANIFEST):
        client().log_artifact(run_id, str(comparison.path / name), f"comparison/{comparison.path.name}")
    _record_lineage(run_id, model)
    set_tags(run_id, {comparison_tag(comparison): comparison.digest})


def comparison_tag(comparison: Artifact) -> str:
    """The tag of the challenger's run that holds the comparison; its value is the comparison's digest."""
    return f"gptflow.comparison.{comparison.path.name}"


def ratings_tag(ratings: Artifact) -> str:
    """The tag of a run that holds people's ratings; its value is their digest."""
    return f"gptflow.ratings.{ratings.path.name}"


def record_ratings(run: Run, ratings: Artifact, model: Artifact) -> None:
    """Log people's ratings to the run of one of their models, once: means with intervals, alpha, and the files."""
    run_id = run.info.run_id
    if run.data.tags.get(ratings_tag(ratings)) == ratings.digest:
        return
    told = ratings.summary
    values = {
        f"ratings/{name}/{part}": figure[part]
        for name, figure in told["models"][model.label].items()
        for part in ("mean", "low", "high")
    }
    values |= {f"ratings/{name}/alpha": alpha for name, alpha in told["alpha"].items()}
    values |= {f"ratings/{name}": told[name] for name in ("ratings", "raters", "raters_flagged")}
    for pair in preferences_of(told):
        if model.label in (pair["a"], pair["b"]) and pair["share_a"] is not None:
            first = model.label == pair["a"]
            over = f"ratings/{pair['how']}_over/{(pair['b'] if first else pair['a']).rpartition('/')[2][:8]}"
            values |= {f"{over}/share": pair["share_a"] if first else 1 - pair["share_a"], f"{over}/p": pair["p_value"]}
    models, finished = run.outputs.model_outputs if run.outputs else [], finished_ms(ratings)
    model_id = models[-1].model_id if models else None
    metrics = [
        Metric(name, float(value), finished, 0, model_id=model_id, run_id=run_id)
        for name, value in values.items()
        if value is not None
    ]
    client().log_batch(run_id, metrics=[metric for metric in metrics if not _is_there(run_id, metric)])
    where = f"ratings/{ratings.path.name}"
    for name in (*ratings.names(), MANIFEST):
        client().log_artifact(run_id, str(ratings.path / name), where)
    _record_lineage(run_id, model)
    set_tags(run_id, {ratings_tag(ratings): ratings.digest})


def finished_ms(artifact: Artifact) -> int:
    """When it was finished, with milliseconds of its own: MLflow takes one point of a metric for each time."""
    seconds = int(datetime.fromisoformat(artifact.provenance["finished"]).timestamp())
    return seconds * 1_000 + int(artifact.fingerprint[:8], 16) % 1_000


def _is_there(run_id: str, metric: Metric) -> bool:
    points = client().get_metric_history(run_id, metric.key)  # one for each evaluation of the model
    return any((point.timestamp, str(point.value)) == (metric.timestamp, str(metric.value)) for point in points)
