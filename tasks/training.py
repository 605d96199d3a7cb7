"""Shards in, a trained model out, with its run in MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import get_run_logger, task

from gptmodel.config import PipelineConfig
from gptmodel.planning.forecast import Forecast
from gptmodel.pretraining.step import Training, plan_training, pretrain
from gptmodel.store.artifacts import Artifact, open_store
from tasks.holding import hold
from tasks.lineage.events import with_events
from tasks.operations.slots import slots, slots_wanted
from tasks.pages import shown
from tasks.plans import show_plan
from tasks.policy import STEP
from tasks.steps import figures_of, report
from tasks.tracking.cards import save_card, training_card


@task(name="pretrain", task_run_name="pretrain {config.name}", **STEP)
@with_events
def pretrain_model(
    config: PipelineConfig, shards: Artifact, init: Artifact | None = None, wait: bool = False
) -> Artifact:
    """Pretrain in a child process; resumes by itself, and its MLflow run goes on with it."""
    from tasks.tracking.syncing import settle, size_of, sync_run  # late: MLflow takes seconds to import

    store, logger = open_store(), get_run_logger()
    training = plan_training(store, config, shards, init)
    corpus = store.input_of(shards, "corpus")
    card = training_card(training, corpus)

    @contextmanager
    def watch(_: Training) -> Iterator[None]:
        from tasks.tracking.feed import followed

        save_card(training.run_dir, card)
        with slots(slots_wanted(config.train)), followed(card, training.run_dir), shown():
            yield

    def plan(found: Forecast) -> None:
        show_plan(store, training, found)

    artifact, reused = pretrain(store, training, on_line=logger.info, watch=watch, on_plan=plan, wait=wait)
    hold(artifact)  # before MLflow is told: that may take minutes
    save_card(training.run_dir, card, anew=False)
    settle(lambda: sync_run(store, training.run_dir), artifact.label, size_of(artifact))
    names = ("step", "tokens", "train_loss", "best_validation_loss", "best_validation_perplexity", "precision")
    return report(artifact, reused, figures_of(artifact, *names, "tokens_per_second", "seconds", "peak_memory_bytes"))
