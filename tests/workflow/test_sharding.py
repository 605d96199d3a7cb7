"""A training that is cut up between two processes, through torchrun: its curve, its end, and going on after a stop."""

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
from safetensors.torch import load_file

from gptmodel.config import PipelineConfig
from gptmodel.errors import GptflowError, Interrupted
from gptmodel.pretraining.step import Training, plan_training, pretrain
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.training.metrics_log import read_lines
from tests.workflow.test_resume import PARENT

Tiny = Callable[..., PipelineConfig]
LONG = ("train.max_steps=24", "train.checkpoint_every=5")
TWO = ("train.processes=2", "train.sharding=full", "train.threads=1")
pytestmark = pytest.mark.slow


def losses(training: Training) -> list[float]:
    lines = read_lines(training.metrics_file)
    return [v for line in lines for k, v in line["metrics"].items() if k in ("train/loss", "validation/loss")]


def trained(store: Store, training: Training) -> tuple[Artifact, list[str]]:
    """The artifact, and what was said on the way."""
    lines: list[str] = []
    artifact, reused = pretrain(store, training, on_line=lines.append)
    assert not reused
    print("\n".join(lines))  # shown if the test fails
    return artifact, lines


def weights_digest(artifact: Artifact) -> str:
    return {entry.name: entry.sha256 for entry in artifact.files}["model.safetensors"]


def a_process() -> int:
    """Pid of one of this process's training processes: torchrun stands between where there are several."""
    child = _children(os.getpid())[0]
    return [child, *_children(child)][-1]


def _children(pid: int) -> list[int]:
    command = ["pgrep", "-P", str(pid), "-f", "gptmodel.pretraining.worker"]
    return [int(line) for line in subprocess.run(command, capture_output=True, text=True).stdout.split()]


def break_off(store: Store, training: Training, signum: int) -> None:
    """Train to about step 6, and then send a signal to one of the processes."""
    sent: list[int] = []

    def on_line(line: str) -> None:
        print(line)
        if not sent and line.startswith("step 6 "):
            sent.append(a_process())
            os.kill(sent[0], signum)

    with pytest.raises(Interrupted if signum == signal.SIGTERM else GptflowError):
        pretrain(store, training, on_line=on_line)
    assert sent


@pytest.mark.parametrize("publish", ["last", "best"])
def test_parts_follow_the_curve_of_the_whole_and_leave_the_same_kind_of_product(
    data: tuple[Store, Artifact], tiny: Tiny, publish: str
) -> None:
    store, shards = data
    sets = ("model.n_layer=2", f"train.publish={publish}")
    one = plan_training(store, tiny(*sets), shards)
    whole, _ = trained(store, one)
    alone, weights = losses(one), load_file(whole.path / "model.safetensors")
    shutil.rmtree(whole.path)
    two = plan_training(store, tiny(*sets, *TWO), shards)
    assert two.request.fingerprint == one.request.fingerprint, "how it is cut up is not what is asked"
    parts, lines = trained(store, two)
    assert losses(two) == pytest.approx(alone, abs=1e-4)
    assert {entry.name: entry.bytes for entry in parts.files if "model" in entry.name or "config" in entry.name} == {
        entry.name: entry.bytes for entry in whole.files if "model" in entry.name or "config" in entry.name
    }
    found = load_file(parts.path / "model.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in weights.items()}
    assert all(float((found[name] - weights[name]).abs().max()) < 1e-3 for name in weights)
    assert any(line.startswith("cut up between 2 processes: ") for line in lines)
    assert not any("Warning" in line for line in lines)
    assert (parts.summary["step"], parts.summary["pace"]["sharded"]) == (whole.summary["step"], True)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_parts_go_on_from_a_stop_or_a_kill_to_the_very_bits(
    data: tuple[Store, Artifact], tiny: Tiny, signum: int
) -> None:
    store, shards = data
    training = plan_training(store, tiny(*LONG, *TWO), shards)
    undisturbed, _ = trained(store, training)
    shutil.rmtree(undisturbed.path)
    shutil.rmtree(training.run_dir)
    break_off(store, training, signum)
    again, lines = trained(store, training)
    assert any(line.startswith("going on from the checkpoint of step") for line in lines)
    assert weights_digest(again) == weights_digest(undisturbed)


def test_parts_whose_parent_was_killed_save_and_end(data: tuple[Store, Artifact], tiny: Tiny) -> None:
    store, shards = data
    config = tiny("train.max_steps=100_000", "train.checkpoint_every=50_000", *TWO)
    training = plan_training(store, config, shards)
    told = [str(store.root), shards.label, json.dumps(asdict(config))]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parent = psutil.Popen([sys.executable, "-c", PARENT, *told], env=env, stdout=subprocess.PIPE, text=True)
    assert any(line.startswith("step 6 ") for line in parent.stdout), parent.wait()
    left = parent.children(recursive=True)
    parent.kill()
    parent.communicate()
    assert len(left) >= 3, "torchrun and two ranks"
    _, alive = psutil.wait_procs(left, timeout=60)
    for process in alive:
        process.kill()
    assert not alive
    saved = store.building_path(training.request) / ".work" / "checkpoints"
    assert [path.name for path in saved.iterdir() if path.name.startswith("step-")]
    assert not (training.run_dir / "error.json").read_text().strip(), "it may be another run's by then"


@pytest.mark.parametrize("first", ["parts", "whole"])
def test_what_parts_have_saved_goes_on_as_a_whole_and_the_other_way_round(
    data: tuple[Store, Artifact], tiny: Tiny, first: str
) -> None:
    store, shards = data
    whole = plan_training(store, tiny(*LONG), shards)
    undisturbed, _ = trained(store, whole)
    alone = losses(whole)
    shutil.rmtree(undisturbed.path)
    shutil.rmtree(whole.run_dir)
    parts = plan_training(store, tiny(*LONG, *TWO), shards)
    before, after = (parts, whole) if first == "parts" else (whole, parts)
    break_off(store, before, signal.SIGTERM)
    _, lines = trained(store, after)
    assert any(line.startswith("going on from the checkpoint of step") for line in lines)
    change = "world 2 -> 1" if first == "parts" else "world 1 -> 2"
    assert any(f"this run began otherwise ({change})" in line for line in lines)
    assert losses(after) == pytest.approx(alone, abs=1e-4)
