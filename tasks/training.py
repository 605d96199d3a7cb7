"""Shards in, a trained model out, with its run in MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import get_run_logger, task

from gptmodel.artifacts import Artifact, open_store
from gptmodel.config import PipelineConfig
from gptmodel.pretraining import Training, plan_training, pretrain
from tasks.pages import progress
from tasks.policy import STEP
from tasks.steps import figures_of, report
from tasks.tail import Tail
from tasks.tracking import bounded, catch_up, followed, training_card


@task(name="pretrain", task_run_name="pretrain {config.name}", **STEP)
def pretrain_model(
    config: PipelineConfig, shards: Artifact, init: Artifact | None = None, wait: bool = False
) -> Artifact:
    """Pretrain in a child process; resumes by itself, and its MLflow run goes on with it."""
    from tasks.recording import record_model

    store, logger = open_store(), get_run_logger()
    training = plan_training(store, config, shards, init)
    corpus = store.input_of(shards, "corpus")
    card = training_card(training, corpus)

    @contextmanager
    def watch(_: Training) -> Iterator[None]:
        with progress("training") as update, followed(card, training.metrics_file):
            steps = config.train.max_steps
            with Tail(training.metrics_file, lambda lines: update(lines[-1]["step"], steps, "steps")):
                yield

    artifact, reused = pretrain(store, training, on_line=logger.info, watch=watch, wait=wait)
    if run_id := catch_up(card, training.metrics_file):
        with bounded("the model"):
            chain = [corpus, shards, *([init] if init else [])]
            record_model(run_id, artifact, chain, training.metrics_file, config.name)
    names = ("step", "tokens", "train_loss", "best_validation_loss", "best_validation_perplexity", "precision")
    return report(artifact, reused, figures_of(artifact, *names, "tokens_per_second", "seconds", "peak_memory_bytes"))
