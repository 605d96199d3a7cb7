"""Locks are held by one at a time, and one that was taken for dead can publish nothing any more. Real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptmodel.config import ModelConfig, OptimizerConfig
from gptmodel.errors import LockLostError, TransientError
from gptmodel.model import GPT
from gptmodel.store.artifacts import Request, Store
from gptmodel.store.locks import exclusive
from gptmodel.training.checkpoint import Checkpointer, TrainState
from gptmodel.training.metrics_log import MetricsLog, read_lines
from gptmodel.training.optimizer import make_optimizer

REQUEST = Request("thing", 1, {"number": 1})
# Holds a lock until its input ends. What it waits for is said in its output.
HOLDER = """
import logging, sys
from pathlib import Path
from gptmodel.store.locks import exclusive
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
with exclusive(Path(sys.argv[1]), "the thing", wait=True):
    print("held", flush=True)
    sys.stdin.read()
"""
# Builds an artifact, but waits for a line before it is done.
BUILDER = """
import sys
from pathlib import Path
from gptmodel.store.artifacts import Request, Store
from gptmodel.errors import GptflowError

def build(directory):
    (directory / "who").write_text("old")
    print("building", flush=True)
    sys.stdin.readline()
    return {}

try:
    Store(Path(sys.argv[1])).produce(Request("thing", 1, {"number": 1}), build)
    print("published", flush=True)
except GptflowError as error:
    print(type(error).__name__, error, flush=True)
"""


def begin(program: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def token(lock: Path) -> int:
    return int(json.loads(lock.read_text())["token"])


def test_tokens_grow_over_releases_deaths_and_removals(tmp_path: Path) -> None:
    lock, seen = tmp_path / "lock", []
    for _ in range(2):
        with exclusive(lock, "the thing") as hold:
            assert token(lock) == hold.token
        seen.append(token(lock))
    holder = begin(HOLDER, str(lock))
    assert said(holder) == "held"
    seen.append(token(lock))
    holder.kill()
    holder.communicate()
    with exclusive(lock, "the thing") as hold:
        seen.append(hold.token)
    lock.unlink()
    with exclusive(lock, "the thing") as hold:
        seen.append(hold.token)
    assert seen == sorted(set(seen))


def test_a_stopped_builder_that_wakes_up_publishes_nothing(tmp_path: Path) -> None:
    """Its lock is gone, as when another machine got it; the new builder is at work in the same directory."""
    store = Store(tmp_path)
    old = begin(BUILDER, str(tmp_path))
    assert said(old) == "building"
    os.kill(old.pid, signal.SIGSTOP)
    store.lock_path(REQUEST).unlink()
    last_words: list[str] = []

    def build(directory: Path) -> dict[str, Any]:
        (directory / "who").write_text("new")
        record = store.lock_path(REQUEST).read_text()
        os.kill(old.pid, signal.SIGCONT)
        last_words.append(old.communicate("\n")[0])
        assert store.lock_path(REQUEST).read_text() == record, "and it leaves the new holder's name alone"
        return {}

    artifact, reused = store.produce(REQUEST, build)
    assert not reused
    assert (artifact.path / "who").read_text() == "new"
    assert last_words[0].startswith("LockLostError thing ")
    assert f"it is now held by process {os.getpid()} on" in last_words[0]


def test_a_lock_given_to_another_in_the_same_file_is_lost(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with exclusive(lock, "the thing") as hold:
        hold.check()
        taken = json.dumps({"pid": 1, "host": "elsewhere", "since": "noon", "token": hold.token + 1})
        lock.write_text(taken)
        with pytest.raises(LockLostError, match=r"the thing: this run lost its lock.* process 1 on elsewhere"):
            hold.check()
    assert lock.read_text() == taken
    assert not issubclass(LockLostError, TransientError), "a retry would compete with the new holder"


def test_a_waiter_goes_on_waiting_when_the_file_was_replaced(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    first = begin(HOLDER, str(lock))
    assert said(first) == "held"
    waiter = begin(HOLDER, str(lock))
    assert said(waiter) == f"the thing: waiting for {_name(lock)}"
    lock.unlink()
    with exclusive(lock, "the thing"):
        first.communicate("")
        assert said(waiter) == f"the thing: waiting for {_name(lock)}", "it holds a file that nobody sees"
    assert waiter.communicate("")[0] == "held\n"


def _name(lock: Path) -> str:
    record = json.loads(lock.read_text())
    return f"process {record['pid']} on {record['host']}, since {record['since']}"


def test_without_its_lock_a_run_writes_neither_checkpoint_nor_metric(tmp_path: Path) -> None:
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=16))
    optimizer = make_optimizer(model, OptimizerConfig())
    with exclusive(tmp_path / "lock", "the training") as hold:
        checkpoints = Checkpointer(tmp_path / "checkpoints", 2, guard=hold.check)
        metrics = MetricsLog(tmp_path / "metrics.jsonl", hold.check)
        metrics.start(-1)
        metrics.log(1, tokens=8, metrics={"train/loss": 1.0})
        checkpoints.save(model, optimizer, TrainState(step=1))
        checkpoints.wait()
        (tmp_path / "lock").unlink()
        with pytest.raises(LockLostError, match="its lock file is gone"):
            metrics.log(2, tokens=16, metrics={"train/loss": 1.0})
        checkpoints.save(model, optimizer, TrainState(step=2))
        with pytest.raises(LockLostError):
            checkpoints.close()
    metrics.close()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
