"""A model and shards in; its figures, each document's loss, and samples out."""

from __future__ import annotations

from prefect import task

from gptmodel.artifacts import Artifact, open_store
from gptmodel.config import EvaluateConfig
from gptmodel.evaluation import evaluate
from tasks.lineage_events import with_events
from tasks.pages import progress, show_table
from tasks.policy import STEP
from tasks.report_pages import show_report_links
from tasks.steps import figures_of, report


@task(name="evaluate", task_run_name="evaluate on {config.split}", **STEP)
@with_events
def evaluate_model(model: Artifact, shards: Artifact, config: EvaluateConfig, wait: bool = False) -> Artifact:
    """Score every token of a split, and write samples with each decoding."""
    from tasks.syncing import settle, sync_evaluation

    store = open_store()
    with progress("evaluating") as update:
        artifact, reused = evaluate(store, model, shards, config, wait=wait, progress=update)
    settle(lambda: sync_evaluation(store, artifact), artifact.label)
    figures = figures_of(artifact, "loss", "perplexity", "bits_per_byte", "unigram_perplexity", "tokens")
    show_table(
        "evaluation", [{"figure": k, "value": v} for k, v in figures.items()], f"{model.label} on {shards.label}"
    )
    rows = [{name: sample[name] for name in ("prompt", "decoding", "text")} for sample in artifact.summary["samples"]]
    show_table("samples", rows, f"Text by {model.label}")
    show_report_links(artifact)
    return report(artifact, reused, figures)
