"""Trainings whose MLflow server is dead, killed, broken or stuck: the same model, and all of it told once, later."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import tasks.tracking.feed
from benchmarks.mlflow_server import Answer, Forward, Proxy, Server, free_port, plainly
from gptmodel.config import EvaluateConfig, PipelineConfig
from gptmodel.errors import LockHeldError, LockLostError
from gptmodel.judging.evaluation import evaluate
from gptmodel.overrides import PipelineOverrides
from gptmodel.pretraining.step import plan_training, pretrain, run_dir_of
from gptmodel.settings import merge_layers
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.store.locks import exclusive
from gptmodel.training.metrics_log import read_lines
from tasks.tracking.cards import model_card, save_card, training_card
from tasks.tracking.feed import LOCK_FILE, followed
from tasks.tracking.runs import client, find_run
from tasks.tracking.syncing import settle, sync_run, sync_store

Tiny = Callable[..., PipelineConfig]


PICTURES = ("loss", "optimizer", "throughput", "corpus-lengths", "corpus-sources")


@pytest.fixture
def proxy(mlflow_server: Server, monkeypatch: pytest.MonkeyPatch, undisturbed: Artifact) -> Iterator[Proxy]:
    """A server that knows nothing yet of the training."""
    monkeypatch.setattr(tasks.tracking.feed, "_SEND_SECONDS", 0.02)  # a tiny training is over in a second
    with Proxy(mlflow_server.port) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        if (known := find_run(undisturbed.fingerprint)) is not None:
            MlflowClient().delete_run(known.info.run_id)
        yield proxy


def train(
    store: Store, shards: Artifact, config: PipelineConfig, on_line: Callable[[str], None] = lambda _: None
) -> Artifact:
    """What the task does, without Prefect."""
    training = plan_training(store, config, shards)
    card = training_card(training, store.input_of(shards, "corpus"))
    save_card(training.run_dir, card)
    artifact, _ = pretrain(store, training, on_line=on_line, watch=lambda t: followed(card, t.run_dir))
    settle(lambda: sync_run(store, training.run_dir), artifact.label)
    return artifact


def assert_told_once(model: Artifact, name: str) -> Any:
    mlflow, found = MlflowClient(), find_run(model.fingerprint)
    assert found is not None
    runs = mlflow.search_runs([found.info.experiment_id], f"tags.`gptflow.fingerprint` = '{model.fingerprint}'")
    assert len(runs) == 1
    run_id = found.info.run_id
    log = list(read_lines(run_dir_of(Store(model.path.parents[1]), model.fingerprint) / "metrics.jsonl"))
    for key in {key for line in log for key in line["metrics"]}:
        told = [(p.timestamp, p.step, p.value) for p in mlflow.get_metric_history(run_id, key)]
        assert told == [(x["time"], x["step"], x["metrics"][key]) for x in log if key in x["metrics"]], key
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED"
    names = {f"{name}{dark}" for name in PICTURES for dark in ("", "-dark")}
    assert {f.path for f in mlflow.list_artifacts(run_id, "plots")} == {
        "plots/lineage.svg",
        *(f"plots/{name}.png" for name in names),
    }
    kept = {f.path for f in mlflow.list_artifacts(run_id, "lineage")} - {"lineage/code.patch"}  # if the code is dirty
    assert len(kept) == 5
    samples = mlflow.load_table(run.info.experiment_id, "samples/training.json", run_ids=[run_id])
    assert list(samples["step"]) == [0, 6, 12]
    (output,) = run.outputs.model_outputs
    assert str(mlflow.get_logged_model(output.model_id).status) == "READY"
    (registered,) = mlflow.search_model_versions(f"name = '{name}'")
    assert registered.tags["gptflow.model"] == model.digest
    return run


def never(method: str, path: str, body: bytes, forward: Forward) -> Answer:
    threading.Event().wait(60)
    return 500, b"{}"


def ten_seconds(method: str, path: str, body: bytes, forward: Forward) -> Answer:
    threading.Event().wait(10)
    return forward(body)


def broken(method: str, path: str, body: bytes, forward: Forward) -> Answer:
    return 500, b"{}"


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        pytest.param("stuck", never, marks=pytest.mark.slow),
        pytest.param("broken", broken, marks=pytest.mark.slow),
        pytest.param("late", ten_seconds, marks=pytest.mark.slow),
    ],
)
def test_a_training_beside_a_bad_server_is_the_same_and_told_later(
    data: tuple[Store, Artifact],
    tiny: Tiny,
    undisturbed: Artifact,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    rule: Callable[..., Answer],
) -> None:
    if name == "stuck":  # the bound itself is 15 s, twice
        monkeypatch.setattr(tasks.tracking.feed, "FLUSH_SECONDS", 0.1)
        monkeypatch.setattr("tasks.tracking.syncing.FLUSH_SECONDS", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30" if name == "late" else "3")
    proxy.rule = rule
    store, shards = data
    model = train(store, shards, tiny(f"name={name}"))
    assert model.digest == undisturbed.digest
    assert proxy.seen, "it was asked"
    proxy.rule = plainly
    with exclusive(run_dir_of(store, model.fingerprint) / LOCK_FILE, "the feed", wait=True):
        pass  # what was still waiting for an answer has given up
    assert [outcome.what for outcome in sync_store(store)] == ["sent"]
    assert_told_once(model, name)
    assert [outcome.what for outcome in sync_store(store)] == ["current"]


@pytest.mark.slow
def test_a_server_that_is_killed_meanwhile_and_comes_back(
    data: tuple[Store, Artifact], tiny: Tiny, undisturbed: Artifact, proxy: Proxy, mlflow_server: Server
) -> None:
    told = threading.Event()

    def note(method: str, path: str, body: bytes, forward: Forward) -> Answer:
        answer = forward(body)
        if b'"metrics"' in body and answer[0] == 200:
            told.set()
        return answer

    def kill(line: str) -> None:
        if line.startswith("step 6 "):
            assert told.wait(60)
            mlflow_server.kill()

    proxy.rule = note
    store, shards = data
    try:
        model = train(store, shards, tiny("name=killed-server"), on_line=kill)
    finally:
        mlflow_server.start()
    assert told.is_set()
    assert model.digest == undisturbed.digest
    assert client().search_experiments() is not None
    assert [outcome.what for outcome in sync_store(store)] == ["sent"]
    assert_told_once(model, "killed-server")


@pytest.mark.parametrize(
    "lost",
    [
        "logged-models",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("log-batch", "model-versions/c", "registered-models/c")),
    ],
)
def test_what_was_half_recorded_is_recorded_once(
    data: tuple[Store, Artifact], tiny: Tiny, undisturbed: Artifact, proxy: Proxy, lost: str
) -> None:
    """The training is another's, put into this store; of each kind of request the first answer is lost."""
    store, shards = data
    model = adopt(store, undisturbed, shards, tiny(f"name=lost-{lost.replace('/', '-')}"))
    losses: set[str] = set()

    def lose_first(method: str, path: str, body: bytes, forward: Forward) -> Answer:
        status, answer = forward(body)
        call = f"{method} {path.split('?')[0]}"
        if lost not in path or method == "GET" or call in losses:
            return status, answer
        losses.add(call)
        return 500, b"{}"

    proxy.rule = lose_first
    while [outcome.what for outcome in sync_store(store)] == ["failed"]:
        assert len(losses) < 20
    assert losses
    proxy.rule = plainly
    MlflowClient().delete_tag(find_run(model.fingerprint).info.run_id, "gptflow.complete")  # type: ignore[union-attr]
    assert [outcome.what for outcome in sync_store(store)] == ["sent"]
    assert_told_once(model, f"lost-{lost.replace('/', '-')}")


def adopt(store: Store, model: Artifact, shards: Artifact, config: PipelineConfig) -> Artifact:
    """The same model in another store, as if it was trained there with no tracker."""
    shutil.copytree(model.path, store.root / "checkpoint" / model.path.name)
    shutil.copytree(run_dir_of(Store(model.path.parents[1]), model.fingerprint), run_dir_of(store, model.fingerprint))
    training = plan_training(store, config, shards)
    save_card(training.run_dir, training_card(training, store.input_of(shards, "corpus")))
    return store.resolve(model.label)


def test_evaluations_and_weights_are_told_from_the_store_alone(
    data: tuple[Store, Artifact], tiny: Tiny, undisturbed: Artifact, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.commands.terminal import sync

    store, shards = data
    model = adopt(store, undisturbed, shards, tiny("name=judged"))
    judged = [evaluate(store, model, shards, EvaluateConfig(max_tokens=n))[0] for n in (256, 512)]
    weights = run_dir_of(store, "0123456789abcdef")
    card = model_card(model, "theirs")
    save_card(weights, card.__class__(**{**vars(card), "fingerprint": "0123456789abcdef", "kind": "weights"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTFLOW_STORE", str(store.root))
        sync(as_json=True)
        outcomes = {o["label"]: o["what"] for o in json.loads(capsys.readouterr().out)["outcomes"]}
    assert outcomes == {model.label: "sent", "weights/0123456789abcdef": "sent"} | {e.label: "sent" for e in judged}
    run = assert_told_once(model, "judged")
    points = MlflowClient().get_metric_history(run.info.run_id, "evaluation/validation/loss")
    assert sorted(p.value for p in points) == sorted(e.summary["loss"] for e in judged)
    for evaluation in judged:  # an attempt that was killed before its last call
        MlflowClient().delete_tag(run.info.run_id, f"gptflow.evaluation.{evaluation.path.name}")
    assert [o.what for o in sync_store(store)].count("sent") == 2
    assert len(MlflowClient().get_metric_history(run.info.run_id, "evaluation/validation/loss")) == 2
    rows = MlflowClient().load_table(run.info.experiment_id, f"evaluation/{judged[0].path.name}/samples.json")
    assert len(rows) == len(judged[0].file("samples.jsonl").read_text().splitlines())


def test_gptflow_sync_without_a_server_is_one_line_and_exit_code_1(
    data: tuple[Store, Artifact], tiny: Tiny, tmp_path: Path
) -> None:
    store, shards = data
    training = plan_training(store, tiny(), shards)
    save_card(training.run_dir, training_card(training, store.input_of(shards, "corpus")))
    env = {**os.environ, "GPTFLOW_STORE": str(store.root), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    command = [sys.executable, "-m", "flows", "sync", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert [o["what"] for o in json.loads(done.stdout)["outcomes"]] == ["failed"]
    assert len(done.stderr.strip().splitlines()) == 1
    assert "run `gptflow sync` again" in done.stderr


def test_the_end_of_a_step_waits_no_longer_than_stated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tasks.tracking.syncing.FLUSH_SECONDS", 0.1)
    free, done = threading.Event(), threading.Event()
    settle(lambda: free.wait(60), "it")
    assert not free.is_set()
    assert "it" in [thread.name.removeprefix("settle ") for thread in threading.enumerate()], "it goes on alone"
    assert "what it lacks there is sent by `gptflow sync`" in caplog.text
    free.set()
    settle(lambda: threading.Event().wait(0.5) or done.set(), "a large model", n_bytes=1_200_000_000)
    assert done.is_set(), "more bytes, more time"


def test_a_sync_that_was_replaced_meanwhile_registers_nothing(
    data: tuple[Store, Artifact], tiny: Tiny, undisturbed: Artifact, proxy: Proxy
) -> None:
    store, shards = data
    model = adopt(store, undisturbed, shards, tiny("name=revived"))
    lock, asked = run_dir_of(store, model.fingerprint) / LOCK_FILE, list[str]()

    def replace(method: str, path: str, body: bytes, forward: Forward) -> Answer:
        asked.append(f"{method} {path}")
        if method == "PATCH" and "logged-models" in path:  # the end of its upload
            lock.unlink()
        return forward(body)

    proxy.rule = replace
    with pytest.raises(LockLostError, match="its lock file is gone"):
        sync_run(store, lock.parent)
    assert asked[-1].startswith("PATCH"), "the last that it sent"
    proxy.rule = plainly
    assert [outcome.what for outcome in sync_store(store)] == ["sent"]
    assert_told_once(model, "revived")


def test_a_training_that_goes_on_is_left_to_itself(data: tuple[Store, Artifact], tiny: Tiny, proxy: Proxy) -> None:
    store, shards = data
    training = plan_training(store, tiny(), shards)
    save_card(training.run_dir, training_card(training, store.input_of(shards, "corpus")))
    with exclusive(training.run_dir / LOCK_FILE, "the MLflow run of it"):
        with pytest.raises(LockHeldError, match="is being written by"):
            sync_run(store, training.run_dir)
        assert [outcome.what for outcome in sync_store(store)] == ["in use"]


def test_the_next_run_tells_what_the_last_could_not(
    workplace: Path, tiny_sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.pretrain import pretrain as flow

    _, merged = merge_layers("smoke", None, [*tiny_sets, "name=untracked", "train.seed=3"])
    overrides = PipelineOverrides.model_validate(merged)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        first = flow(preset="smoke", overrides=overrides)
    assert find_run(first["model"].fingerprint) is None
    again = flow(preset="smoke", overrides=overrides)
    assert again["model"].digest == first["model"].digest
    assert_told_once(again["model"], "untracked")
