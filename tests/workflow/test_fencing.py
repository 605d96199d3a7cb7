"""A training that was stopped and taken for dead wakes up while another does its work: it may write nothing more."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from gptmodel.artifacts import Artifact, Store
from gptmodel.config import PipelineConfig
from gptmodel.errors import Interrupted
from gptmodel.pretraining import Training, plan_training, pretrain

# Trains, passes the child's lines on, and says how it ended.
TRAINER = """
import json, sys
from pathlib import Path
from gptmodel.artifacts import Store
from gptmodel.config import PipelineConfig
from gptmodel.errors import GptflowError
from gptmodel.pretraining import plan_training, pretrain
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
    return next(p for p in psutil.Process(pid).children() if "gptmodel.worker" in p.cmdline())


def files(root: Path) -> dict[str, tuple[int, int, int]]:
    """All files of a store, each with what a write to it would change."""
    found = {str(path): path.stat() for path in root.rglob("*") if path.is_file()}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def test_a_training_that_wakes_up_after_it_was_replaced_writes_nothing(
    tiny_data: tuple[Store, Artifact], tiny: Callable[..., PipelineConfig], tmp_path: Path
) -> None:
    shutil.copytree(tiny_data[0].root, tmp_path / "store")
    store = Store(tmp_path / "store")
    endless = tiny("train.max_steps=100000", "train.checkpoint_every=100000", "train.eval_every=100000")
    training = plan_training(store, endless, store.resolve(tiny_data[1].label))
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
