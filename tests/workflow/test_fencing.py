"""A training that was stopped and taken for dead wakes up while another does its work: it may write nothing more."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

import tasks.tracking.feed
from gptmodel.config import PipelineConfig
from gptmodel.errors import ChildDiedError, Interrupted, LockLostError
from gptmodel.pretraining.step import Training, plan_training, pretrain
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.store.locks import exclusive
from gptmodel.training.metrics_log import MetricsLog
from tasks.tracking.cards import Card
from tasks.tracking.feed import LOCK_FILE, Feed, _Live, followed, note_state, noted_state
from tasks.tracking.runs import client, find_run

# Trains, passes the child's lines on, and says how it ended.
TRAINER = """
import json, sys
from pathlib import Path
from gptmodel.store.artifacts import Store
from gptmodel.config import PipelineConfig
from gptmodel.errors import GptflowError
from gptmodel.pretraining.step import plan_training, pretrain
from gptmodel.settings import parse_config
store = Store(Path(sys.argv[1]))
config = parse_config(json.loads(sys.argv[3]), PipelineConfig)
training = plan_training(store, config, store.resolve(sys.argv[2]))
try:
    pretrain(store, training, on_line=lambda line: print(line, flush=True))
except GptflowError as error:
    print("ended:", type(error).__name__, error, flush=True)
"""


def start_elsewhere(store: Store, training: Training) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A training in another process that is under way, and its child."""
    words = [str(store.root), training.shards.label, json.dumps(asdict(training.config))]
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, *words], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    for line in trainer.stdout:
        if line.startswith("step 1/"):
            break
    return trainer, child_of(trainer.pid)


def child_of(pid: int) -> psutil.Process:
    return next(p for p in psutil.Process(pid).children() if "gptmodel.pretraining.worker" in p.cmdline())


def endless(
    tiny_data: tuple[Store, Artifact], tiny: Callable[..., PipelineConfig], tmp_path: Path
) -> tuple[Store, Training]:
    """A store of its own, and a training in it that does not end by itself."""
    shutil.copytree(tiny_data[0].root, tmp_path / "store")
    store = Store(tmp_path / "store")
    config = tiny("train.max_steps=100000", "train.checkpoint_every=100000", "train.eval_every=100000")
    return store, plan_training(store, config, store.resolve(tiny_data[1].label))


def files(root: Path) -> dict[str, tuple[int, int, int]]:
    """All files of a store, each with what a write to it would change."""
    found = {str(path): path.stat() for path in root.rglob("*") if path.is_file()}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def test_a_training_that_wakes_up_after_it_was_replaced_writes_nothing(
    tiny_data: tuple[Store, Artifact], tiny: Callable[..., PipelineConfig], tmp_path: Path
) -> None:
    store, training = endless(tiny_data, tiny, tmp_path)
    old, old_child = start_elsewhere(store, training)
    for pid in (old.pid, old_child.pid):
        os.kill(pid, signal.SIGSTOP)
    # As when their machine was cut off, and the file system gave their locks away.
    store.lock_path(training.request).unlink()
    (store.building_path(training.request) / ".work" / "worker.lock").unlink()
    seen: list[object] = []

    def on_line(line: str) -> None:
        if seen or not line.startswith("step 1/"):
            return
        new_child = child_of(os.getpid())
        new_child.suspend()  # so that nobody but the old ones could write
        before = files(store.root)
        for pid in (old.pid, old_child.pid):
            os.kill(pid, signal.SIGCONT)
        try:
            seen.append(old.communicate(timeout=120)[0].splitlines()[-1])
        except subprocess.TimeoutExpired:
            seen.append("it goes on")
            old_child.kill()
            old.kill()
        seen.append({name for name, stat in files(store.root).items() if before.get(name) != stat})
        seen.append(old_child.is_running())
        new_child.resume()
        new_child.terminate()

    with pytest.raises(Interrupted):  # the new one is alive and can save
        pretrain(store, training, on_line=on_line)
    last_words, written, runs = seen
    assert str(last_words).startswith("ended: LockLostError this training: this run lost its lock")
    assert written == set()
    assert not runs


@pytest.mark.slow
def test_what_the_child_of_a_killed_run_has_to_say_is_not_taken_for_the_word_of_the_next_one(
    tiny_data: tuple[Store, Artifact], tiny: Callable[..., PipelineConfig], tmp_path: Path
) -> None:
    store, training = endless(tiny_data, tiny, tmp_path)
    old, orphan = start_elsewhere(store, training)
    orphan.suspend()  # a step that takes long
    old.kill()
    old.communicate()

    def on_line(line: str) -> None:
        if "waiting for process" in line:
            orphan.resume()  # it saves, and ends
        if line.startswith("going on from the checkpoint"):
            child_of(os.getpid()).kill()  # out of memory

    with pytest.raises(ChildDiedError, match="killed by SIGKILL"):
        pretrain(store, training, on_line=on_line)


@pytest.fixture(scope="module")
def database(fresh_mlflow: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return fresh_mlflow(tmp_path_factory.mktemp("fencing") / "mlflow.db")


@pytest.fixture
def log(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MetricsLog]:
    """The log of a run in `tmp_path`, fed to the database at every turn."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    monkeypatch.setattr(tasks.tracking.feed, "_SEND_SECONDS", 0.02)
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.start(-1)
    log.log(1, tokens=1, metrics={"train/loss": 1.0})
    yield log
    log.close()


def card(name: str) -> Card:
    return Card("fencing", name, f"fingerprint of {name}", {}, {})


def fed(card: Card) -> dict[str, int]:
    """How many points its run has of each metric."""
    if (found := find_run(card.fingerprint)) is None:
        return {}
    mlflow, run_id = MlflowClient(), found.info.run_id
    return {name: len(mlflow.get_metric_history(run_id, name)) for name in found.data.metrics}


def monitors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("lost", ["feed", "training"])
def test_a_feed_that_was_replaced_sends_no_number_and_does_not_end_the_run(
    log: MetricsLog, tmp_path: Path, lost: str
) -> None:
    ours, new = card(f"lost {lost}"), ExitStack()
    error: Exception = RuntimeError("it ends otherwise") if lost == "feed" else LockLostError("its training")

    def old_one() -> None:
        until(lambda: fed(ours).get("train/loss") == 1 and len(monitors()) == 1)
        if lost == "feed":
            (tmp_path / LOCK_FILE).unlink()
            new.enter_context(exclusive(tmp_path / LOCK_FILE, "the feed"))
            before = fed(ours)
            log.log(2, tokens=2, metrics={"train/loss": 1.0})
            until(lambda: not monitors())  # its turn comes each second
            assert fed(ours) == before
        note_state(tmp_path, "FINISHED")  # the new holder's word
        raise error

    with new, pytest.raises(type(error)), followed(ours, tmp_path):
        old_one()
    run = find_run(ours.fingerprint)
    assert run is not None
    assert run.info.status == "RUNNING"
    assert noted_state(tmp_path) == "FINISHED"
    until(lambda: not monitors())


@pytest.mark.parametrize("connected", [True, False])
def test_a_feed_that_wakes_up_at_its_last_turn_leaves_the_end_to_the_new_one(
    log: MetricsLog, tmp_path: Path, connected: bool
) -> None:
    ours = card(f"last turn {connected}")
    old = _Live(ours, tmp_path)
    old.tick(False)
    run = find_run(ours.fingerprint)
    assert run is not None
    (tmp_path / LOCK_FILE).unlink()
    with exclusive(tmp_path / LOCK_FILE, "the feed"):
        client().set_terminated(run.info.run_id, "FINISHED")
        old.status = "FAILED"
        assert old._feed is not None
        old._feed.connected = connected
        old.tick(True)
    assert client().get_run(run.info.run_id).info.status == "FINISHED"
    until(lambda: not monitors())


def test_a_feed_that_was_replaced_before_it_could_connect_makes_no_run(log: MetricsLog, tmp_path: Path) -> None:
    ours = card("not begun")
    with exclusive(tmp_path / LOCK_FILE, "the feed") as old:
        (tmp_path / LOCK_FILE).unlink()
        with exclusive(tmp_path / LOCK_FILE, "the feed") as new:
            with pytest.raises(LockLostError, match="it is now held by process"):
                Feed(ours, tmp_path, old.check).push()
            assert find_run(ours.fingerprint) is None
            assert Feed(ours, tmp_path, new.check).push() == 2
