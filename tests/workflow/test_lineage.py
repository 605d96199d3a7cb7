"""Names that MLflow gives, and the lineage command with its registered versions, on a real MLflow database."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from gptmodel.errors import ArtifactError, TrackingError
from gptmodel.pretraining.step import run_dir_of
from gptmodel.store.artifacts import Artifact, Ref, Request, Store
from tasks.tracking.mlflow_pages import address, briefly, page_of
from tasks.tracking.naming import find_artifact

HEX = "ab" * 32
WAYS = {
    "the run's id": lambda known: known.run_id,
    "a version": lambda known: "quick.start/1",
    "a version's address": lambda known: "models:/quick.start/1",
    "an alias": lambda known: "quick.start@champion",
    "an alias's address": lambda known: "models:/quick.start@champion",
    "a version registered by hand": lambda known: "by-hand/1",
    "the store's own name": lambda known: known.model.label,
}


@dataclass(frozen=True)
class Known:
    """A model in a store, and its run and versions in MLflow."""

    store: Store
    model: Artifact
    run_id: str
    environment: dict[str, str]


def make(store: Store, kind: str, name: str, *inputs: Ref) -> Artifact:
    def build(directory: Path) -> dict[str, Any]:
        (directory / "data").write_text(name)
        return {"step": 12}

    return store.produce(Request(kind, 1, {"name": name}, inputs), build)[0]


@pytest.fixture(scope="module")
def known(fresh_mlflow: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Known]:
    folder = tmp_path_factory.mktemp("lineage")
    store = Store(folder / "store")
    shards = make(store, "shards", "tokens", Ref("source", HEX, HEX))
    model = make(store, "checkpoint", "model", shards.ref)
    make(store, "evaluation", "judged", model.ref, shards.ref)
    environment = {"MLFLOW_TRACKING_URI": fresh_mlflow(folder / "mlflow.db"), "GPTFLOW_STORE": str(store.root)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        client = MlflowClient()
        experiment = client.create_experiment("lineage", artifact_location=str(folder / "mlruns"))
        run = client.create_run(experiment, tags={"gptflow.fingerprint": model.fingerprint})
        client.create_run(experiment, run_name="of another program")
        tags = {"gptflow.fingerprint": model.fingerprint, "gptflow.model": model.digest}
        for name, tagged in (("quick.start", tags), ("by-hand", {})):
            client.create_registered_model(name)
            client.create_model_version(name, str(folder), run.info.run_id, tags=tagged)
        client.create_model_version("quick.start", str(folder))  # of no run, and not ours
        client.set_registered_model_alias("quick.start", "champion", "1")
        journal = run_dir_of(store, model.fingerprint) / "mlflow.json"
        journal.parent.mkdir(parents=True)
        journal.write_text(json.dumps({"run_id": run.info.run_id}))
        yield Known(store, model, run.info.run_id, environment)


@pytest.fixture
def here(known: Known, monkeypatch: pytest.MonkeyPatch) -> Known:
    for name, value in known.environment.items():
        monkeypatch.setenv(name, value)
    return known


def lineage(*arguments: str) -> Result:
    from flows.__main__ import cli

    return CliRunner().invoke(cli, ["lineage", *arguments])


@pytest.mark.parametrize("way", WAYS)
def test_a_model_is_found_by_all_its_names(here: Known, way: str) -> None:
    name = WAYS[way](here)
    assert find_artifact(here.store, name).fingerprint == here.model.fingerprint
    assert find_artifact(here.store, name, "checkpoint").fingerprint == here.model.fingerprint
    with pytest.raises(ArtifactError, match="is of kind checkpoint, and shards is needed"):
        find_artifact(here.store, name, "shards")


def test_a_run_that_only_mlflow_knows_is_found(here: Known, tmp_path: Path) -> None:
    shutil.copytree(here.store.root, tmp_path / "copy", ignore=shutil.ignore_patterns(".runs"))
    assert find_artifact(Store(tmp_path / "copy"), here.run_id).label == here.model.label


@pytest.mark.parametrize(
    "name", ["0" * 32, "quick.start/9", "quick.start/2", "quick.start@nobody", "unknown/1", "unknown@champion"]
)
def test_what_mlflow_does_not_know_is_one_line(here: Known, name: str) -> None:
    with pytest.raises(ArtifactError, match=r"nor does MLflow know") as error:
        find_artifact(here.store, name)
    assert "\n" not in str(error.value)


def test_a_run_that_the_store_told_of_needs_no_mlflow(here: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert find_artifact(here.store, here.run_id).label == here.model.label
    with pytest.raises(TrackingError, match=r"quick\.start/1 and does not answer"):
        find_artifact(here.store, "quick.start/1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here.store.root / 'none.db'}")
    with pytest.raises(ArtifactError):
        find_artifact(here.store, "quick.start/1")
    assert not (here.store.root / "none.db").exists(), "asking makes no database"


def test_the_command_shows_chain_evaluations_and_versions(here: Known, tmp_path: Path) -> None:
    told = lineage("quick.start@champion", "--json", "--html", str(tmp_path / "page.html"))
    assert told.exit_code == 0, told.stderr
    graph = json.loads(told.stdout)
    kinds = [node["kind"] for node in graph["nodes"]]
    assert kinds == ["source", "shards", "checkpoint", "evaluation", "version", "version"]
    (champion,) = [node for node in graph["nodes"] if node["name"] == "quick.start/1"]
    assert champion["figures"] == {"aliases": ["champion"]}
    assert {"from": here.model.label, "to": champion["id"]} in graph["edges"]
    assert here.model.digest in (tmp_path / "page.html").read_text()
    downstream = lineage("shards", "--downstream")
    assert downstream.exit_code != 0
    tree = lineage(f"source/{HEX[:16]}").stdout
    assert [line.strip(" └─├│").split("  ")[0] for line in tree.splitlines()][2] == here.model.label
    assert "version quick.start/1" in tree


def test_the_command_goes_on_without_mlflow(here: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    told = lineage(here.model.label)
    assert told.exit_code == 0
    assert here.model.label in told.stdout
    assert "registered versions are left out" in told.stderr
    assert lineage(here.model.label, "--local").stderr == ""


def test_a_silent_mlflow_is_not_waited_for() -> None:
    never = threading.Event()
    with pytest.raises(TrackingError, match=r"nothing in 0\.05 s"):
        briefly(never.wait, 0.05)
    never.set()

    def broken() -> Callable[..., Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        briefly(broken)


def test_links_lead_to_the_training_view_and_hold_no_password(here: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    run = MlflowClient().get_run(here.run_id)
    assert page_of(run) == ("", ""), "a database shows no pages"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example:5000/base/")
    page, drawn = page_of(run)
    assert page.startswith(f"https://mlflow.example:5000/base/#/experiments/{run.info.experiment_id}/runs/")
    assert page.endswith(f"{here.run_id}?workflowType=machine_learning")
    assert f"{here.run_id}/artifacts/lineage/lineage.html?" in drawn
    assert "secret" not in drawn + page
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@db:5432/mlflow")
    assert address() == "postgresql://db:5432/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////a/mlflow.db")
    assert address() == "sqlite:////a/mlflow.db"
