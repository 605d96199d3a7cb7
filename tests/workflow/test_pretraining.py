"""Training as a step, through its real child process: resuming, stopping, refusing."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pytest
import torch

from gptmodel.config import PipelineConfig
from gptmodel.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    Interrupted,
    LockHeldError,
)
from gptmodel.pretraining.step import Training, plan_training, pretrain
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.training.metrics_log import read_lines

Tiny = Callable[..., PipelineConfig]


def child_pid(lines: list[str]) -> int:
    """Pid of this process's training child."""
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "gptmodel.pretraining.worker"], capture_output=True, text=True
    )
    return int(found.stdout.split()[0])


def signal_at_step(signum: int, step: int) -> tuple[list[str], Callable[[str], None]]:
    """An `on_line` that sends a signal to the child once its log says that a step is done."""
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if line.startswith(f"step {step} ") and not any(line.startswith("sent") for line in lines):
            os.kill(child_pid(lines), signum)
            lines.append("sent")

    return lines, on_line


@pytest.mark.parametrize("signum", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_so(
    data: tuple[Store, Artifact], tiny: Tiny, undisturbed: Artifact, signum: int
) -> None:
    store, shards = data
    training = plan_training(store, tiny("train.checkpoint_every=100"), shards)
    _, stop = signal_at_step(signum, 6)
    with pytest.raises(Interrupted, match=r"stopped after step \d+ of 12; saved") as told:
        pretrain(store, training, on_line=stop)
    assert told.value.exit_code == 128 + signum
    lines: list[str] = []
    artifact, _ = pretrain(store, training, on_line=lines.append)
    assert any(line.startswith("going on from the checkpoint of step") for line in lines)
    weights = {entry.name: entry.sha256 for entry in artifact.files}["model.safetensors"]
    assert weights == {entry.name: entry.sha256 for entry in undisturbed.files}["model.safetensors"]


def test_the_child_of_a_killed_parent_saves_and_ends(data: tuple[Store, Artifact], tiny: Tiny) -> None:
    store, shards = data
    training = plan_training(store, tiny("train.max_steps=100000", "train.checkpoint_every=100000"), shards)
    job = training.run_dir / "job.json"
    command = [sys.executable, "-c", _PARENT, str(store.root), shards.label, json.dumps(asdict(training.config))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            if line.startswith("step 1/"):
                break
        child = int(subprocess.run(["pgrep", "-f", str(job)], capture_output=True, text=True).stdout.split()[0])
        watch = os.pidfd_open(child)
        parent.kill()
    assert select.select([watch], [], [], 60)[0], "the child goes on without its parent"
    os.close(watch)
    checkpoints = store.building_path(training.request) / ".work" / "checkpoints"
    assert list(checkpoints.glob("step-*")), "and has not saved"


_PARENT = """
import json, sys
from pathlib import Path
from gptmodel.store.artifacts import Store
from gptmodel.config import PipelineConfig
from gptmodel.pretraining.step import plan_training, pretrain
from gptmodel.settings import parse_config
store = Store(Path(sys.argv[1]))
config = parse_config(json.loads(sys.argv[3]), PipelineConfig)
pretrain(store, plan_training(store, config, store.resolve(sys.argv[2])), on_line=lambda l: print(l, flush=True))
"""


@pytest.mark.slow
def test_two_processes_follow_the_same_curve_as_one(
    data: tuple[Store, Artifact], tiny: Tiny, undisturbed: Artifact
) -> None:
    store, shards = data
    one = plan_training(store, tiny(), shards)  # with dropout
    first, _ = pretrain(store, one, on_line=lambda _: None)
    shutil.rmtree(first.path)
    alone = _losses(one)
    two = plan_training(store, tiny("train.processes=2", "train.threads=1"), shards)
    assert two.request.fingerprint == one.request.fingerprint, "how many processes is not what is asked"
    pretrain(store, two, on_line=print)  # shown if it fails: torchrun's own summary says only which process died
    assert _losses(two) == pytest.approx(alone, abs=1e-4)


def _losses(training: Training) -> list[float]:
    lines = read_lines(training.metrics_file)
    return [v for line in lines for k, v in line["metrics"].items() if k in ("train/loss", "validation/loss")]


def test_best_weights_and_early_stop(data: tuple[Store, Artifact], tiny: Tiny) -> None:
    store, shards = data
    config = tiny(
        "train.publish=best",
        "train.early_stop_evals=2",
        "train.eval_every=1",
        "train.max_steps=60",
        "train.optimizer.learning_rate=3",
        "train.optimizer.grad_clip=0",
    )
    artifact, _ = pretrain(store, plan_training(store, config, shards), on_line=lambda _: None)
    summary = artifact.summary
    assert summary["stopped_early"]
    assert summary["steps_trained"] == summary["best_step"] + 2
    assert summary["step"] == summary["best_step"]


def test_a_second_run_of_the_same_is_refused_by_name(data: tuple[Store, Artifact], tiny: Tiny) -> None:
    store, shards = data
    training = plan_training(store, tiny(), shards)
    refused: list[BaseException] = []

    @contextmanager
    def watch(_: Training) -> Any:
        second = threading.Thread(target=lambda: refused.append(_error(lambda: pretrain(store, training))))
        second.start()
        second.join()
        raise KeyboardInterrupt  # what it would go on to is not looked at here
        yield

    with pytest.raises(KeyboardInterrupt):
        pretrain(store, training, on_line=lambda _: None, watch=watch)
    assert isinstance(refused[0], LockHeldError)
    assert f"is being written by process {os.getpid()} on" in str(refused[0])


def _error(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("it was not refused")


def test_parts_that_do_not_fit_are_refused_before_anything_starts(data: tuple[Store, Artifact], tiny: Tiny) -> None:
    store, shards = data
    with pytest.raises(DataError, match=r"split has [\d,]+ tokens and one window of context 100000 needs 100,001"):
        plan_training(store, tiny("model.context_length=100000"), shards)
    no_gpu = tiny("train.device=cuda")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            pretrain(store, plan_training(store, no_gpu, shards), on_line=lambda _: None)


def test_a_run_of_changed_shards_is_another_run(data: tuple[Store, Artifact], tiny: Tiny) -> None:
    store, shards = data
    training = plan_training(store, tiny(), shards)
    name = shards.names(".arrow")[0]
    damaged = bytearray((shards.path / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (shards.path / name).write_bytes(damaged)
    with pytest.raises(ArtifactError, match=rf"{name} is damaged"):
        pretrain(store, training, on_line=lambda _: None)


@pytest.mark.slow
def test_a_compiled_model_follows_the_same_curve(data: tuple[Store, Artifact], tiny: Tiny) -> None:
    store, shards = data
    plain = plan_training(store, tiny("model.dropout=0"), shards)
    pretrain(store, plain, on_line=lambda _: None)
    compiled = plan_training(store, tiny("model.dropout=0", "train.compile=true"), shards)
    pretrain(store, compiled, on_line=lambda _: None)
    assert _losses(compiled) == pytest.approx(_losses(plain), abs=1e-4)
