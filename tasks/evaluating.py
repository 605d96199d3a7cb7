"""A model and shards in; its figures, each document's loss, and samples out."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
from prefect import task

from gptmodel.config import EvaluateConfig
from gptmodel.judging.comparison import compare
from gptmodel.judging.evaluation import evaluate
from gptmodel.judging.units import TOLD, resampled_words
from gptmodel.store.artifacts import Artifact, open_store
from tasks.lineage.events import with_events
from tasks.pages import show_table, shown
from tasks.policy import STEP
from tasks.report_pages import show_report_links
from tasks.steps import figures_of, report

_MOST_SOURCES = 50


@task(name="evaluate", task_run_name="evaluate {model.label} on {config.split}", **STEP)
@with_events
def evaluate_model(
    model: Artifact, shards: Artifact, config: EvaluateConfig, wait: bool = False, since: Artifact | None = None
) -> Artifact:
    """Score every token of a split, or of what is not in `since`, and write samples with each decoding."""
    from tasks.tracking.syncing import settle, sync_evaluation

    store = open_store()
    with shown():
        artifact, reused = evaluate(store, model, shards, config, since=since, wait=wait)
    settle(lambda: sync_evaluation(store, artifact), artifact.label)
    figures = figures_of(artifact, *TOLD)
    show_table("evaluation", _rows(artifact), f"{model.label} on {shards.label}: {resampled_words(artifact.summary)}")
    if "sources.parquet" in artifact.names():
        sources = pq.read_table(artifact.file("sources.parquet")).slice(0, _MOST_SOURCES)
        show_table("sources", sources.to_pylist(), "By source, the hardest first")
    columns = ("prompt", "decoding", "text", "overlap_tokens", "overlap_text")
    rows = [{name: sample.get(name) for name in columns} for sample in artifact.summary["samples"]]
    show_table("samples", rows, f"Text by {model.label}")
    show_report_links(artifact)
    return report(artifact, reused, figures)


@task(name="compare", task_run_name="compare {challenger.label} with {champion.label}", **STEP)
@with_events
def compare_models(champion: Artifact, challenger: Artifact, config: EvaluateConfig, wait: bool = False) -> Artifact:
    """Is the challenger's evaluation better than the champion's? A paired bootstrap over the same documents."""
    from tasks.tracking.syncing import settle, sync_comparison

    store = open_store()
    artifact, reused = compare(store, champion, challenger, config, wait=wait)
    settle(lambda: sync_comparison(store, artifact), artifact.label)
    told = artifact.summary
    words = f"{told['challenger']} against {told['champion']}: {resampled_words({'resampling': told})}"
    show_table("comparison", told["differences"], words)
    return report(artifact, reused, figures_of(artifact, "champion", "challenger", "split", "unit", "units"))


def _rows(artifact: Artifact) -> list[dict[str, Any]]:
    summary, intervals = artifact.summary, artifact.summary.get("intervals", {})
    return [
        {"figure": name.replace("_", " "), "value": summary[name], "low": low, "high": high}
        for name in TOLD
        if name in summary
        for low, high in [intervals.get(name, (None, None))]
    ]
