"""The card of a real training in a real MLflow, kept up with its evaluations; and its trace against a replay."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from benchmarks.mlflow_server import Server
from gptmodel.config import PipelineConfig
from gptmodel.judging.evaluation import evaluate
from gptmodel.pretraining.assembly import Job
from gptmodel.pretraining.replay import replay
from gptmodel.pretraining.step import plan_training, pretrain, run_dir_of
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.tracing.report import Asked, trace
from tasks.tracking.cards import save_card, training_card
from tasks.tracking.runs import find_run
from tasks.tracking.syncing import sync_evaluation, sync_run
from tasks.trainings import find_training

Tiny = Callable[..., PipelineConfig]


@pytest.fixture(scope="module")
def made(
    tiny_data: tuple[Store, Artifact], tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, Artifact, PipelineConfig]:
    """A trained model in a store of its own, of which MLflow was not told yet."""
    root, config = tmp_path_factory.mktemp("carded") / "store", tiny("name=carded", "train.seed=77")
    shutil.copytree(tiny_data[0].root, root)
    store = Store(root)
    shards = store.resolve(tiny_data[1].label)
    training = plan_training(store, config, shards)
    save_card(training.run_dir, training_card(training, store.input_of(shards, "corpus")))
    return store, pretrain(store, training, on_line=lambda _: None)[0], config


def version_of(model: Artifact) -> ModelVersion:
    (found,) = MlflowClient().search_model_versions(f"tags.`gptflow.fingerprint` = '{model.fingerprint}'")
    return found


def card_of(model: Artifact, tmp_path: Path) -> str:
    run = find_run(model.fingerprint)
    assert run is not None
    return Path(MlflowClient().download_artifacts(run.info.run_id, "model_card.md", str(tmp_path))).read_text()


def test_a_version_is_described_and_kept_up_to_date(
    made: tuple[Store, Artifact, PipelineConfig],
    mlflow_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    store, model, config = made
    run_dir = run_dir_of(store, model.fingerprint)
    shards = store.input_of(model, "shards")
    assert sync_run(store, run_dir).what == "sent"
    first = version_of(model)
    assert "# carded, version 1" in str(first.description)
    assert "Not evaluated yet" in str(first.description)
    assert card_of(model, tmp_path).startswith("---\npipeline_tag: text-generation")
    assert "![Loss against training tokens](plots/loss.png)" in card_of(model, tmp_path)

    assert sync_run(store, run_dir).what == "current"
    run = find_run(model.fingerprint)
    assert run is not None
    MlflowClient().delete_tag(run.info.run_id, "gptflow.card")  # as if this version of gptflow had not completed it
    assert sync_run(store, run_dir).what == "current"
    assert version_of(model).last_updated_timestamp == first.last_updated_timestamp, "nothing new was written"

    judged, _ = evaluate(store, model, shards, config.evaluate)
    assert sync_evaluation(store, judged).what == "sent"
    second = str(version_of(model).description)
    assert "Not evaluated yet" not in second
    assert f"{judged.summary['loss']:.4f}" in second
    assert f"{judged.summary['unigram_loss']:.4f}" in second
    assert judged.digest in card_of(model, tmp_path)

    MlflowClient().update_model_version("carded", "1", second.replace("# carded", "# Our best one: carded"))
    again, _ = evaluate(store, model, shards, replace(config.evaluate, split="train"))
    assert sync_evaluation(store, again).what == "sent"
    assert "# Our best one: carded" in str(version_of(model).description), "what a person changed is left alone"
    assert again.digest in card_of(model, tmp_path)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # the replay prints a loss
def test_a_trace_names_the_documents_that_a_replay_meets(made: tuple[Store, Artifact, PipelineConfig]) -> None:
    store, model, _ = made
    told = json.loads((run_dir_of(store, model.fingerprint) / "job.json").read_text())
    lines = list(replay(Job(**told), 5))
    met = [re.findall(r"[0-9a-f]{32}", line) for line in lines if line.startswith("micro-batch")]
    rows = trace(store, find_training(store, model.label), Asked(step=5))["rows"]
    traced = [[document["id"] for document in row["documents"]] for row in rows]
    assert len(rows) == 4
    assert met == [list(dict.fromkeys(traced[n] + traced[n + 1])) for n in (0, 2)], "micro-batches of two rows"
