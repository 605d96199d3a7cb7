"""Verify and collect with a real MLflow: what it holds otherwise is named, what it names is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from benchmarks.mlflow_server import Server, free_port
from gptmodel.config import PipelineConfig
from gptmodel.errors import ArtifactError, TrackingError
from gptmodel.judging.evaluation import evaluate
from gptmodel.pretraining.step import plan_training, pretrain
from gptmodel.store.artifacts import Artifact, Store
from tasks.tracking.cards import save_card, training_card
from tasks.tracking.keeping import wanted_by_mlflow
from tasks.tracking.runs import COMPLETE_TAG, FINGERPRINT_TAG, find_run
from tasks.tracking.syncing import sync_store

Tiny = Callable[..., PipelineConfig]


@pytest.fixture(scope="module")
def own_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for this file alone: what other tests register in theirs would be wanted here too."""
    with Server(tmp_path_factory.mktemp("own-mlflow")) as server:
        yield server


@pytest.fixture(scope="module")
def model(
    tiny_data: tuple[Store, Artifact], tiny: Tiny, tmp_path_factory: pytest.TempPathFactory, own_mlflow: Server
) -> Iterator[Artifact]:
    """A model that was trained and judged, and of which MLflow was told all."""
    store = Store(tmp_path_factory.mktemp("verify") / "store")
    for kind in ("corpus", "shards"):  # other tests train in that store, as far as they get, and tell MLflow so
        shutil.copytree(tiny_data[0].root / kind, store.root / kind)
    shards = store.resolve(tiny_data[1].label)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", own_mlflow.url)
        patch.setenv("GPTFLOW_STORE", str(store.root))
        training = plan_training(store, tiny("train.max_steps=3", "name=verified"), shards)
        save_card(training.run_dir, training_card(training, store.input_of(shards, "corpus")))
        made, _ = pretrain(store, training, on_line=lambda _: None)
        evaluate(store, made, shards, tiny().evaluate)
        assert {outcome.what for outcome in sync_store(store)} == {"sent"}
        yield made


def gptflow(*words: str) -> Result:
    from flows.commands.store import store
    from flows.commands.verify import verify

    return CliRunner().invoke({"verify": verify, "store": store}[words[0]], words[1:])


def run_of(model: Artifact) -> Any:
    run = find_run(model.fingerprint)
    assert run is not None
    return run


def test_a_run_by_its_id_agrees_with_mlflow(model: Artifact) -> None:
    found = gptflow("verify", run_of(model).info.run_id, "--mlflow", "required", "--json")
    told = json.loads(found.stdout)
    assert told["differences"] == []
    assert (found.exit_code, told["mlflow"], told["notes"]) == (0, "agrees", [])
    assert [label.split("/")[0] for label in told["nodes"]] == ["corpus", "shards", "checkpoint", "evaluation"]


@contextmanager
def tag(run_id: str, name: str, value: str) -> Iterator[None]:
    mlflow = MlflowClient()
    before = mlflow.get_run(run_id).data.tags[name]
    mlflow.set_tag(run_id, name, value)
    yield
    mlflow.set_tag(run_id, name, before)


@contextmanager
def flipped(path: Path) -> Iterator[None]:
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 4]))
    yield
    path.write_bytes(raw)


@contextmanager
def removed(path: Path) -> Iterator[None]:
    path.rename(path.with_name("aside"))
    yield
    path.with_name("aside").rename(path)


@contextmanager
def version_tag(name: str, value: str) -> Iterator[None]:
    mlflow = MlflowClient()
    (version,) = mlflow.search_model_versions("name = 'verified'")
    mlflow.set_model_version_tag("verified", version.version, name, value)
    yield
    mlflow.set_model_version_tag("verified", version.version, name, version.tags[name])


def test_whatever_mlflow_holds_otherwise_is_named(model: Artifact) -> None:
    mlflow, run = MlflowClient(), run_of(model)
    run_id, logs = run.info.run_id, Path(run.info.artifact_uri)
    model_id = run.outputs.model_outputs[0].model_id
    uploaded = Path(mlflow.get_logged_model(model_id).artifact_location) / "artifacts" / model.path.name
    shards = Store(model.path.parents[1]).input_of(model, "shards")
    evaluations = [path.name for path in (logs / "evaluation").iterdir()]
    manifest, figures = (
        f"lineage/shards-{shards.path.name}/manifest.json",
        f"evaluation/{evaluations[0]}/evaluation.json",
    )
    weights = f"artifacts/{model.path.name}/model.safetensors"
    for change, node, file, what in (
        (tag(run_id, "gptflow.fingerprint", "0" * 64), f"MLflow run {run_id}", "", "tag gptflow.fingerprint"),
        (tag(run_id, "gptflow.model", "0" * 64), f"MLflow run {run_id}", "", "tag gptflow.model"),
        (tag(run_id, "gptflow.corpus", "0" * 64), f"MLflow run {run_id}", "", "tag gptflow.corpus"),
        (
            tag(run_id, f"gptflow.evaluation.{evaluations[0]}", "0"),
            f"MLflow run {run_id}",
            "",
            "tag gptflow.evaluation",
        ),
        (flipped(logs / manifest), f"MLflow run {run_id}", manifest, "sha256"),
        (removed(logs / manifest), f"MLflow run {run_id}", manifest, "file"),
        (flipped(logs / figures), f"MLflow run {run_id}", figures, "sha256"),
        (flipped(uploaded / "model.safetensors"), f"MLflow model {model_id}", weights, "sha256"),
        (removed(uploaded / "model.safetensors"), f"MLflow model {model_id}", weights, "file"),
        (version_tag("gptflow.model", "0" * 64), "registered verified/1", "", "tag gptflow.model"),
    ):
        with change:
            found = gptflow("verify", model.label, "--no-sources", "--json")
        told = json.loads(found.stdout)
        assert (found.exit_code, told["mlflow"]) == (1, "differs"), what
        (difference,) = told["differences"]
        assert (difference["node"], difference["file"]) == (node, file)
        assert difference["what"].startswith(what)
    assert gptflow("verify", model.label).exit_code == 0, "all is as before"


def test_a_flipped_bit_in_the_log_of_a_training_is_named(model: Artifact) -> None:
    log = Store(model.path.parents[1]).root / ".runs" / model.path.name
    for name in ("metrics.jsonl", "job.json"):
        with flipped(log / name):
            (difference,) = json.loads(gptflow("verify", model.label, "--mlflow", "off", "--json").stdout)[
                "differences"
            ]
        assert (difference["node"], difference["what"]) == (model.label, "sha256")
        assert difference["file"] == f".runs/{model.path.name}/{name}"
        with removed(log / name):
            told = json.loads(gptflow("verify", model.label, "--mlflow", "off", "--json").stdout)
        assert told["ok"]
        assert [note for note in told["notes"] if f"{name} is missing" in note], "logs may be cleared away"


def test_mlflow_may_be_away(model: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for uri in (f"http://127.0.0.1:{free_port()}", f"sqlite:///{tmp_path / 'none.db'}"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        found = gptflow("verify", model.label)
        assert found.exit_code == 0
        assert len([line for line in found.stdout.splitlines() if line.startswith("MLflow: not compared")]) == 1
        with flipped(model.path / "model.safetensors"):  # what the files say is told all the same
            required = gptflow("verify", model.label, "--mlflow", "required")
            as_json = json.loads(gptflow("verify", model.label, "--mlflow", "required", "--json").stdout)
        assert isinstance(required.exception, TrackingError)
        assert f"first difference: {model.label}: model.safetensors: sha256" in required.stdout
        assert (as_json["ok"], as_json["first"]["file"]) == (False, "model.safetensors")
        refused = gptflow("store", "gc", "--keep-days", "0", "--yes").exception
        assert isinstance(refused, TrackingError)
        assert "--pins-only" in str(refused)
    assert not (tmp_path / "none.db").exists(), "asking makes no database"


def test_the_collector_keeps_what_mlflow_names(model: Artifact, tmp_path: Path) -> None:
    mlflow, store = MlflowClient(), Store(model.path.parents[1])
    run_id = run_of(model).info.run_id
    assert wanted_by_mlflow(store)[model.path.name] == "registered as verified/1"
    rows = json.loads(gptflow("store", "ls", "--json").stdout)["artifacts"]
    assert [row["label"] for row in rows if row["kept_by"] == "registered as verified/1"] == [model.label]
    asked = ("store", "gc", "--keep-days", "0", "--keep-newest", "0", "--json")
    assert json.loads(gptflow(*asked).stdout)["doomed"] == []
    (version,) = mlflow.search_model_versions("name = 'verified'")
    mlflow.delete_model_version("verified", version.version)
    mlflow.delete_tag(run_id, COMPLETE_TAG)
    assert "not told all yet" in wanted_by_mlflow(store)[model.path.name]
    mlflow.set_tag(run_id, COMPLETE_TAG, "true")
    assert wanted_by_mlflow(store) == {}
    by_hand = mlflow.create_model_version("verified", f"runs:/{run_id}/model", run_id=run_id)
    assert wanted_by_mlflow(store) == {model.path.name: f"registered as verified/{by_hand.version}"}
    told = json.loads(gptflow("verify", model.label, "--no-sources", "--json").stdout)
    assert (told["differences"], ["registered by hand" in note for note in told["notes"]]) == ([], [True])
    mlflow.delete_model_version("verified", by_hand.version)
    assert_unfinished_trainings_are_wanted(store, run_id)
    assert wanted_by_mlflow(store) == {}
    everything = {item["label"] for item in json.loads(gptflow(*asked).stdout)["doomed"]}
    assert everything == {artifact.label for artifact in store.artifacts()}
    with Elsewhere(tmp_path), pytest.raises(ArtifactError, match="knows none of the 1 runs of this store"):
        wanted_by_mlflow(store)
    done = json.loads(gptflow(*asked, "--yes").stdout)
    assert {item["label"] for item in done["deleted"]} == everything
    assert not store.directories()


def assert_unfinished_trainings_are_wanted(store: Store, run_id: str) -> None:
    """Of three that were stopped: MLflow has one as killed, one as deleted, and was never told of the third."""
    mlflow = MlflowClient()
    experiment = mlflow.get_run(run_id).info.experiment_id
    made = {}
    for name in ("a" * 16, "b" * 16, "c" * 16):
        (store.root / "checkpoint" / f".building-{name}").mkdir()
        if name[0] != "c":
            run = mlflow.create_run(experiment, tags={FINGERPRINT_TAG: name * 4})
            mlflow.set_terminated(run.info.run_id, "KILLED")
            made[name] = run.info.run_id
    mlflow.delete_run(made["b" * 16])
    assert wanted_by_mlflow(store) == {"a" * 16: "its run in MLflow is KILLED and may go on"}
    mlflow.delete_run(made["a" * 16])
    for building in store.root.glob("checkpoint/.building-*"):
        building.rmdir()


class Elsewhere:
    """Another MLflow, which knows nothing of the store."""

    def __init__(self, folder: Path) -> None:
        self._patch = pytest.MonkeyPatch()
        self._uri = f"sqlite:///{folder / 'other.db'}"

    def __enter__(self) -> None:
        self._patch.setenv("MLFLOW_TRACKING_URI", self._uri)
        MlflowClient().search_experiments()  # makes the database

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
