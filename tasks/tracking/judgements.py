"""What was said of a model, in the MLflow run of that model: evaluations, benchmarks, comparisons, ratings."""

from __future__ import annotations

import json
import re
from typing import Any

from mlflow.entities import Metric, Run

from gptmodel.judging.benchmark import RESULTS, asked_name
from gptmodel.judging.surprisal import passages_of
from gptmodel.lineage.walk import artifact_of
from gptmodel.pages.gallery import evaluation_pictures
from gptmodel.pages.surprisal_picture import surprisal_picture
from gptmodel.rating.results import preferences_of
from gptmodel.store.artifacts import MANIFEST, Artifact, Store
from tasks.tracking.cards import evaluation_dataset
from tasks.tracking.logged import finished_ms, is_there, log_lineage, log_pictures, log_table
from tasks.tracking.reporting import folder_of, record_pages
from tasks.tracking.runs import client, dataset_input, set_tags

_BATCH = 500  # metrics in one call; MLflow takes 1,000


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
    client().log_batch(run_id, metrics=[metric for metric in metrics if not is_there(run_id, metric)])
    where = folder_of(evaluation)
    log_pictures(run_id, evaluation_pictures(evaluation), where)
    if passages := passages_of(evaluation):
        client().log_text(run_id, surprisal_picture(passages[0]), f"{where}/surprisal.svg")
    for name in (*evaluation.names(), MANIFEST):
        client().log_artifact(run_id, str(evaluation.path / name), where)
    samples = [json.loads(line) for line in evaluation.file("samples.jsonl").read_bytes().splitlines()]
    log_table(run, samples, f"{where}/samples.json")
    store = Store(evaluation.path.parent.parent)
    model = artifact_of(store, evaluation.request.inputs[0])
    record_pages(run_id, store, model, evaluation)
    log_lineage(run_id, model)
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
        client().log_batch(run_id, metrics=[metric for metric in wanted if not is_there(run_id, metric)])
    where = f"benchmark/{made.path.name}"
    for name in (RESULTS, MANIFEST):
        client().log_artifact(run_id, str(made.path / name), where)
    log_table(run, [{**row, "harness": made.summary["harness"]} for row in rows], f"{where}/figures.json")
    log_lineage(run_id, artifact_of(Store(made.path.parent.parent), made.request.inputs[0]))
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
    client().log_batch(run_id, metrics=[metric for metric in metrics if not is_there(run_id, metric)])
    for name in (*comparison.names(), MANIFEST):
        client().log_artifact(run_id, str(comparison.path / name), f"comparison/{comparison.path.name}")
    log_lineage(run_id, model)
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
    client().log_batch(run_id, metrics=[metric for metric in metrics if not is_there(run_id, metric)])
    where = f"ratings/{ratings.path.name}"
    for name in (*ratings.names(), MANIFEST):
        client().log_artifact(run_id, str(ratings.path / name), where)
    log_lineage(run_id, model)
    set_tags(run_id, {ratings_tag(ratings): ratings.digest})
