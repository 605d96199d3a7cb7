"""What MLflow can be asked of lineage: runs by their data, models by what they were judged on, and the patch."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from gptmodel.config import EvaluateConfig, PipelineConfig
from gptmodel.judging.evaluation import evaluate
from gptmodel.pretraining.step import plan_training, pretrain
from gptmodel.store import provenance
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.store.codestate import code_digest
from gptmodel.text.corpus import build_corpus
from gptmodel.tokens.shards import build_shards
from tasks.tracking.cards import Card, evaluation_dataset, save_card, training_card
from tasks.tracking.logged import log_table
from tasks.tracking.runs import find_or_create_run, find_run
from tasks.tracking.syncing import sync_evaluation, sync_run

Tiny = Callable[..., PipelineConfig]


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    return subprocess.run(["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class World:
    """A model that was trained by code with changes, its evaluation, and a run on another corpus that made no model."""

    store: Store
    checkout: Path
    corpus: Artifact
    shards: Artifact
    model: Artifact
    evaluation: Artifact
    other_corpus: Artifact
    run: Any
    other_run: Any


@pytest.fixture(scope="module")
def world(
    tiny: Tiny,
    tiny_data: tuple[Store, Artifact],
    fresh_mlflow: Callable[[Path], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    checkout = folder / "checkout"
    for name in ("flows", "gptmodel", "tasks"):
        (checkout / name).mkdir(parents=True)
        (checkout / name / "a.py").write_text("a = 1\n")
    git(folder, "init", "-q", "checkout")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "one")
    (checkout / "gptmodel/a.py").write_text("a = 2  # tried out\n")
    shutil.copytree(tiny_data[0].root, folder / "store")
    store = Store(folder / "store")
    shards = store.resolve(tiny_data[1].label)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", fresh_mlflow(folder / "mlflow.db"))
        patch.setattr(provenance, "_PROJECT", checkout)
        patch.chdir(folder)
        for known in (provenance._code, provenance._fixed):
            known.cache_clear()
        config = tiny("name=searched", "train.max_steps=3")
        training = plan_training(store, config, shards)
        corpus = store.input_of(shards, "corpus")
        save_card(training.run_dir, training_card(training, corpus))
        model, _ = pretrain(store, training, on_line=lambda _: None)
        sync_run(store, training.run_dir)
        evaluation, _ = evaluate(store, model, shards, EvaluateConfig(max_tokens=256))
        sync_evaluation(store, evaluation)
        other = tiny("name=searched", "train.max_steps=3", "corpus.split_key=another")
        other_corpus, _ = build_corpus(store, other.corpus)
        planned = plan_training(store, other, build_shards(store, other_corpus, other.shards)[0])
        save_card(planned.run_dir, training_card(planned, other_corpus))
        sync_run(store, planned.run_dir)
        runs = [find_run(t.request.fingerprint) for t in (training, planned)]
        yield World(store, checkout, corpus, shards, model, evaluation, other_corpus, *runs)
    for known in (provenance._code, provenance._fixed):
        known.cache_clear()


def found(world: World, wanted: str) -> set[str]:
    experiment = world.run.info.experiment_id
    return {run.info.run_id for run in MlflowClient().search_runs([experiment], wanted)}


@pytest.mark.parametrize("quoted", ['tags."gptflow.corpus"', "tags.`gptflow.corpus`"])
def test_runs_are_found_by_their_corpus(world: World, quoted: str) -> None:
    assert world.corpus.digest != world.other_corpus.digest
    assert found(world, f"{quoted} = '{world.corpus.digest}'") == {world.run.info.run_id}
    assert found(world, f"{quoted} = '{world.other_corpus.digest}'") == {world.other_run.info.run_id}
    assert found(world, f"{quoted} = '{'0' * 64}'") == set()


def test_runs_are_found_by_shards_model_code_and_dataset(world: World) -> None:
    one, both = {world.run.info.run_id}, {world.run.info.run_id, world.other_run.info.run_id}
    assert found(world, f"tags.\"gptflow.shards\" = '{world.shards.digest}'") == one
    assert found(world, f"tags.\"gptflow.model\" = '{world.model.digest}'") == one
    assert found(world, f"tags.\"gptflow.code\" = '{code_digest(world.checkout)}'") == both
    assert found(world, "tags.\"gptflow.git_dirty\" = 'true'") == both
    assert found(world, f"datasets.digest = '{world.shards.digest[:32]}'") == one
    assert found(world, "datasets.context = 'train'") == both
    assert found(world, "datasets.context = 'evaluation'") == one
    assert "gptflow.request" not in world.run.data.tags


def test_a_run_has_its_datasets_with_digest_and_profile(world: World) -> None:
    run = MlflowClient().get_run(world.run.info.run_id)
    inputs = {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}
    assert set(inputs) == {"train", "validation", "evaluation"}
    for context, split in (("train", "train"), ("validation", "validation"), ("evaluation", "validation")):
        assert inputs[context].digest == world.shards.digest[:32]
        profile = json.loads(inputs[context].profile)
        assert profile == {k: world.shards.summary[f"{split}_{k}"] for k in ("documents", "tokens", "bytes")}
        source = json.loads(inputs[context].source)
        assert (source["corpus"], source["split"]) == (world.corpus.digest, split)
    other = MlflowClient().get_run(world.other_run.info.run_id)
    assert {item.tags[0].value for item in other.inputs.dataset_inputs} == {"train", "validation"}


@pytest.mark.parametrize("listed", [112, 114], ids=["full", "cut by MLflow"])
def test_a_run_of_more_tables_than_mlflow_lists_has_the_newest(world: World, listed: int) -> None:
    client, name = MlflowClient(), f"with {listed} tables"
    run, _ = find_or_create_run(Card("full", name, name, {"a": 1}, {}))
    places = ["samples/training.json", *(f"evaluation/{n:016x}/samples.json" for n in range(116))]
    before = json.dumps([{"path": place, "type": "table"} for place in places[:listed]])
    client.set_tag(run.info.run_id, MLFLOW_LOGGED_ARTIFACTS, before)
    for place in places[-2:]:
        log_table(run, [{"text": place}], place)
        rows = client.load_table(run.info.experiment_id, place, run_ids=[run.info.run_id])
        assert list(rows["text"]) == [place]
    told = client.get_run(run.info.run_id).data.tags[MLFLOW_LOGGED_ARTIFACTS]
    there = [table["path"] for table in json.loads(told)]
    assert (there[0], there[-2:]) == (places[0], places[-2:])
    assert there == [place for place in places if place in there], "each once, in order"
    log_table(run, [{"text": "again"}], places[-1])
    assert client.get_run(run.info.run_id).data.tags[MLFLOW_LOGGED_ARTIFACTS] == told


def test_an_experiment_that_was_deleted_is_restored_with_its_runs(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = (Card("binned", name, f"fingerprint of {name}", {"a": 1}, {}) for name in ("one", "two"))
    before, _ = find_or_create_run(one)
    MlflowClient().delete_experiment(before.info.experiment_id)
    after, created = find_or_create_run(two)
    assert (created, after.info.experiment_id) == (True, before.info.experiment_id)
    assert "the experiment binned was deleted in MLflow" in caplog.text
    MlflowClient().delete_experiment(before.info.experiment_id)
    again, created = find_or_create_run(one)
    assert (created, again.info.run_id) == (False, before.info.run_id)


def test_mlflow_takes_a_dataset_of_more_files_than_it_can_name(world: World) -> None:
    names = [f"texts/2026/11/article-{number:06}.txt" for number in range(3_000)]
    asked = {"kind": "files", "paths": names, "sha256": []}
    of_few = evaluation_dataset(world.shards, "validation")
    source = json.loads(of_few["source"])
    of_many = {**of_few, "digest": "f" * 32, "source": json.dumps({**source, "source": asked})}
    run, _ = find_or_create_run(Card("many", "many", "many files", {"a": 1}, {}, [of_many]))
    (found,) = MlflowClient().get_run(run.info.run_id).inputs.dataset_inputs
    assert found.dataset.digest == of_many["digest"]
    counted = {**asked, "paths": "3000, see sources.jsonl of the corpus"}
    assert json.loads(found.dataset.source) == {**source, "source": counted}


def test_the_model_is_tied_to_run_datasets_and_figures(world: World) -> None:
    client, experiment = MlflowClient(), world.run.info.experiment_id
    digest, loss = world.shards.digest[:32], world.evaluation.summary["loss"]
    judged = {"dataset_name": "evaluated validation tokens", "dataset_digest": digest}
    wanted = f"metrics.`evaluation/validation/loss` <= {loss}"
    (logged,) = client.search_logged_models([experiment], wanted, datasets=[judged])
    assert logged.source_run_id == world.run.info.run_id
    assert not client.search_logged_models([experiment], wanted, datasets=[{**judged, "dataset_digest": "0" * 32}])
    assert not client.search_logged_models([experiment], f"metrics.`evaluation/validation/loss` < {loss}")
    assert [
        m.model_id
        for m in client.search_logged_models([experiment], f"tags.`gptflow.corpus` = '{world.corpus.digest}'")
    ] == [logged.model_id]
    tied = {metric.key: metric for metric in client.get_logged_model(logged.model_id).metrics}
    for figure, name in (("train_loss", "train tokens"), ("best_validation_loss", "validation tokens")):
        metric = tied[f"model/{figure}"]
        assert (metric.value, metric.step) == (world.model.summary[figure], 3)
        assert (metric.dataset_name, metric.dataset_digest) == (name, digest)


def test_the_registered_version_bears_the_tags(world: World) -> None:
    (version,) = MlflowClient().search_model_versions(f"tags.`gptflow.corpus` = '{world.corpus.digest}'")
    assert version.name == "searched"
    assert version.tags["gptflow.shards"] == world.shards.digest
    assert version.tags["gptflow.model"] == world.model.digest
    assert version.tags["gptflow.git_dirty"] == "true"


def test_the_patch_of_a_dirty_tree_is_in_the_run_and_restores_the_code(world: World, tmp_path: Path) -> None:
    uri = f"runs:/{world.run.info.run_id}/lineage/code.patch"
    patch = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path)))
    assert hashlib.sha256(patch.read_bytes()).hexdigest() == world.model.provenance["code_patch"]["sha256"]
    git(tmp_path, "clone", "-q", str(world.checkout), "again")
    git(tmp_path / "again", "checkout", "-q", world.run.data.tags["mlflow.source.git.commit"])
    git(tmp_path / "again", "apply", str(patch))
    assert code_digest(tmp_path / "again") == world.model.provenance["code_digest"] == code_digest(world.checkout)


def test_told_twice_it_is_there_once(world: World) -> None:
    client, run_id = MlflowClient(), world.run.info.run_id
    for tag in ("gptflow.complete", f"gptflow.evaluation.{world.evaluation.path.name}"):
        client.delete_tag(run_id, tag)
    sync_evaluation(world.store, world.evaluation)
    assert len(client.get_metric_history(run_id, "model/train_loss")) == 1
    assert len(client.get_run(run_id).inputs.dataset_inputs) == 3
