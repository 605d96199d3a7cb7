"""Large shards are hashed beside the first steps, and nothing is saved before they are known to be right."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import gptmodel.pretraining.replay as replay_module
import gptmodel.training.datacheck as module
from gptmodel.config import ModelConfig, OptimizerConfig, TrainConfig
from gptmodel.device import Machine
from gptmodel.errors import ArtifactError
from gptmodel.model import GPT
from gptmodel.pretraining.assembly import Job
from gptmodel.store.artifacts import Artifact, Request, Store
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.batches import Batches
from gptmodel.tokens.shards import open_split, shard_schema
from gptmodel.training.checkpoint import Checkpointer, TrainState
from gptmodel.training.datacheck import DataCheck
from gptmodel.training.loop import Trainer
from gptmodel.training.metrics_log import MetricsLog
from gptmodel.training.optimizer import make_optimizer
from gptmodel.training.seen import StopSignal, Validation

V, T = 60, 8


@pytest.fixture
def shards(tmp_path: Path) -> Artifact:
    def write(directory: Path) -> dict[str, Any]:
        for split in ("train", "validation"):
            tokens = pa.LargeListArray.from_arrays(pa.array([0, len(IDS)], pa.int64()), pa.array(IDS))
            columns = [pa.array(["a"]), pa.array([0], pa.int32()), tokens]
            batch = pa.record_batch(columns, schema=shard_schema(gpt2()))
            with (
                pa.OSFile(str(directory / f"{split}-00000.arrow"), "wb") as sink,
                pa.ipc.new_file(sink, batch.schema) as w,
            ):
                w.write_batch(batch)
        return {}

    return Store(tmp_path / "store").produce(Request("shards", 1, {}), write)[0]


IDS = np.arange(40 * T, dtype=np.uint16) % V


def damage(shards: Artifact, token: int = 8) -> None:
    """Every token of the training split becomes this one: the file keeps its size and its form."""
    path = shards.path / "train-00000.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(IDS.tobytes(), np.full_like(IDS, token).tobytes()))
    assert path.read_bytes() != whole


def trainer(shards: Artifact, directory: Path, data: DataCheck, **settings: Any) -> Trainer:
    config = TrainConfig(max_steps=4, batch_size=2, micro_batch_size=2, checkpoint_every=2, eval_every=100, **settings)
    model = GPT(ModelConfig(vocab_size=V, context_length=T, n_layer=1, n_head=1, n_embd=8), seed=1)
    return Trainer(
        model=model,
        optimizer=make_optimizer(model, OptimizerConfig(warmup_steps=0)),
        batches=Batches(
            open_split(shards, "train", check=False), context_length=T, batch_size=2, micro_batch_size=2, seed=1
        ),
        evaluate=lambda: Validation(1.0, 1.0),
        metrics=MetricsLog(directory / "metrics.jsonl"),
        checkpoints=Checkpointer(directory / "checkpoints", 2),
        config=config,
        machine=Machine(torch.device("cpu"), "float32", 1, "cpu", 1e9, "measured", "as configured"),
        byte_lengths=torch.ones(V, dtype=torch.int64),
        stop=StopSignal(),
        documents=lambda windows: [],
        replay="",
        data=data,
    )


def test_small_shards_are_checked_before_anything_else(shards: Artifact) -> None:
    DataCheck(shards).wait()
    damage(shards)
    with pytest.raises(ArtifactError, match=r"train-00000\.arrow is damaged: sha256"):
        DataCheck(shards)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """All shards count as large, and their check goes on when this is set."""
    go_on = threading.Event()

    def waiting(artifact: Artifact, split: str) -> Any:
        assert go_on.wait(60)
        return open_split(artifact, split)

    monkeypatch.setattr(module, "_AT_ONCE", 0)
    monkeypatch.setattr(module, "open_split", waiting)
    return go_on


def test_steps_are_made_while_large_shards_are_checked_but_nothing_is_saved(
    shards: Artifact, tmp_path: Path, slow: threading.Event
) -> None:
    damage(shards)
    training = trainer(shards, tmp_path, DataCheck(shards))
    training.metrics.start(-1)
    advance, made = training.advance, []

    def counted(state: TrainState) -> Any:
        made.append(state.step)
        if state.step == 1:  # the second step is made, and then its checkpoint is due
            threading.Timer(0.2, slow.set).start()
        return advance(state)

    training.advance = counted  # type: ignore[method-assign]
    with pytest.raises(ArtifactError, match=r"train-00000\.arrow is damaged"):
        training.fit(TrainState())
    training.checkpoints.close()
    training.metrics.close()
    assert made == [0, 1]
    assert not list((tmp_path / "checkpoints").iterdir())


def test_an_error_by_damaged_data_is_told_as_damage(shards: Artifact, tmp_path: Path, slow: threading.Event) -> None:
    damage(shards, 50_000)  # beyond the model's table: an IndexError deep in torch
    training = trainer(shards, tmp_path, DataCheck(shards))
    training.metrics.start(-1)
    threading.Timer(0.2, slow.set).start()
    with pytest.raises(ArtifactError, match=r"train-00000\.arrow is damaged"):
        training.fit(TrainState())
    training.checkpoints.close()
    training.metrics.close()


def test_sound_data_are_waited_for_and_trained_on(shards: Artifact, tmp_path: Path, slow: threading.Event) -> None:
    slow.set()
    training = trainer(shards, tmp_path, DataCheck(shards))
    training.metrics.start(-1)
    assert training.fit(TrainState()).step == 4
    training.checkpoints.close()
    training.metrics.close()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_step_is_not_shown_again_from_damaged_data(
    shards: Artifact, tmp_path: Path, slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(shards)
    training = trainer(shards, tmp_path, DataCheck(shards))
    monkeypatch.setattr(replay_module, "assemble", lambda *_: training)
    job = Job({"train": {"device": "cpu", "precision": "float32"}}, "", "", str(tmp_path), str(tmp_path))
    threading.Timer(0.2, slow.set).start()
    with pytest.raises(ArtifactError, match=r"train-00000\.arrow is damaged"):
        next(replay_module.replay(job, 1))
    training.checkpoints.close()
