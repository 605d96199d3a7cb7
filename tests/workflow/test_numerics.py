"""A run whose numbers go wrong, through its real child: what it tells, what it leaves, and how to see it again."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptmodel.config import PipelineConfig
from gptmodel.errors import TrainingError
from gptmodel.pretraining.step import Training, plan_training, pretrain
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.tokens.batches import Batches
from gptmodel.tokens.shards import open_split
from gptmodel.training.checkpoint import Checkpointer
from gptmodel.training.metrics_log import read_lines

Tiny = Callable[..., PipelineConfig]


def own(tiny_data: tuple[Store, Artifact], root: Path) -> tuple[Store, Artifact]:
    shutil.copytree(tiny_data[0].root, root)
    store = Store(root)
    return store, store.resolve(tiny_data[1].label)


def documents_of_step(training: Training, step: int) -> set[str]:
    """Ids of the documents of a step (from 1), found token by token."""
    train = training.config.train
    stream = open_split(training.shards, "train")
    index = stream.documents()
    owner = np.repeat(np.array(index.ids), index.n_tokens)
    length = training.config.model.context_length
    batches = Batches(stream, context_length=length, batch_size=train.batch_size, micro_batch_size=1, seed=train.seed)
    return {str(name) for w in batches.windows(step - 1) for name in owner[w * length : w * length + length + 1]}


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_told_and_can_be_replayed(
    tiny_data: tuple[Store, Artifact], tiny: Tiny, tmp_path: Path
) -> None:
    store, shards = own(tiny_data, tmp_path / "a store")
    wild = tiny("train.optimizer.learning_rate=1e30", "train.optimizer.warmup_steps=0", "train.checkpoint_every=1")
    training = plan_training(store, wild, shards)
    with pytest.raises(TrainingError) as told:
        pretrain(store, training, on_line=lambda _: None)
    found = re.search(
        r"at step (\d+), before its update; weights are as after step \d+.*"
        r"holds documents (.+); to see it again: python (-m gptmodel\.pretraining\.replay .+ --step \d+)\. Lower",
        str(told.value),
    )
    assert found, str(told.value)
    step, documents = int(found[1]), set(found[2].split(", "))
    assert documents == documents_of_step(training, step)
    checkpoints = Checkpointer(store.building_path(training.request) / ".work" / "checkpoints", 2, read_only=True)
    assert checkpoints.steps()[-1] == step - 1
    checkpoints.weights_file(step - 1)  # checked against its sha256

    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    command = [sys.executable, *shlex.split(found[3])]
    again = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    first, *micro_batches, last = again.stdout.splitlines()
    assert first == f"from the checkpoint of step {step - 1}, by way of 0 steps"
    assert len(micro_batches) == 2
    assert {name for line in micro_batches for name in line.split("documents ")[1].split(", ")} == documents
    assert str(told.value).startswith(last.removeprefix(f"step {step}: ").replace(", gradient", " and gradient"))
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before, "a replay writes nothing"


def replayed(job: Path, step: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gptmodel.pretraining.replay", str(job), "--step", str(step)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])


@pytest.mark.slow
def test_a_replay_gives_the_logged_numbers_to_the_bit_even_after_publication(
    tiny_data: tuple[Store, Artifact], tiny: Tiny, tmp_path: Path
) -> None:
    store, shards = own(tiny_data, tmp_path / "store")
    # Steps so long that losses rise, each of them a spike: the replay has to leave updates out as the run did.
    watch = ("train.on_spike=skip", "train.spike_threshold=1e-9", "train.spike_window=1", "train.max_spikes=100")
    config = tiny(*watch, "train.optimizer.learning_rate=0.3", "train.optimizer.warmup_steps=0")
    training = plan_training(store, config, shards)
    artifact, _ = pretrain(store, training, on_line=lambda _: None)
    lines = {line["step"]: line for line in read_lines(training.metrics_file) if "train/loss" in line["metrics"]}
    left_out = [step for step, line in lines.items() if "decision" in line]
    assert left_out
    assert artifact.summary["left_out"] == [[step, step] for step in left_out]
    done = replayed(training.run_dir / "job.json", 12)
    assert done.stdout.splitlines()[0] == "from the initial weights, by way of 11 steps"
    figures = lines[12]["metrics"]
    assert done.stdout.splitlines()[-1] == (
        f"step 12: loss {figures['train/loss']}, gradient norm {figures['train/grad_norm']}"
    )
    beyond = replayed(training.run_dir / "job.json", 13)
    assert (beyond.returncode, beyond.stderr) == (2, "step 13 is not in this run; give 1 to 12\n")
