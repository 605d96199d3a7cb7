"""A model in; its figures on standard tasks out."""

from __future__ import annotations

from prefect import task

from gptmodel.config import BenchmarkConfig
from gptmodel.judging.benchmark import benchmark
from gptmodel.store.artifacts import Artifact, open_store
from tasks.lineage.events import with_events
from tasks.pages import progress, show_table
from tasks.policy import STEP
from tasks.steps import figures_of, report


@task(name="benchmark", task_run_name="benchmark {model.label}", **STEP)
@with_events
def benchmark_model(model: Artifact, config: BenchmarkConfig, wait: bool = False) -> Artifact:
    """Run tasks of EleutherAI's harness, and log each metric with its standard error."""
    from tasks.tracking.syncing import settle, sync_evaluation

    store = open_store()
    with progress("answering") as update:
        artifact, reused = benchmark(store, model, config, wait=wait, progress=update)
    settle(lambda: sync_evaluation(store, artifact), artifact.label)
    show_table("benchmark", artifact.summary["figures"], f"{model.label} on {', '.join(artifact.summary['tasks'])}")
    return report(artifact, reused, figures_of(artifact, "harness", "limit"))
