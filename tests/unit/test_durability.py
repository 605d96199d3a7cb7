"""What a power failure must not lose: bytes and names are on disk before the rename that makes them count."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptmodel.config import ModelConfig, OptimizerConfig, TrainConfig
from gptmodel.device import Machine
from gptmodel.model import GPT
from gptmodel.store.artifacts import Request, Store
from gptmodel.tokens.batches import Batches
from gptmodel.tokens.tokenstream import Shard, TokenStream
from gptmodel.training.checkpoint import Checkpointer, TrainState
from gptmodel.training.loop import Trainer
from gptmodel.training.metrics_log import MetricsLog
from gptmodel.training.optimizer import make_optimizer
from gptmodel.training.seen import StopSignal, Validation

CONFIG = ModelConfig(vocab_size=60, context_length=8, n_layer=1, n_head=2, n_embd=16)


@dataclass(frozen=True)
class Synced:
    """An fsync: of which inode, and what it held then."""

    inode: int
    n_bytes: int
    names: frozenset[str]
    """Of a directory."""


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Synced | Path]:
    """All fsyncs, and the new names of all renames, in order."""
    done: list[Synced | Path] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        found = os.fstat(descriptor)
        names = os.listdir(descriptor) if stat.S_ISDIR(found.st_mode) else ()
        done.append(Synced(found.st_ino, found.st_size, frozenset(names)))

    def note_replace(source: Any, target: Any) -> None:
        replace(source, target)
        done.append(Path(target))

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    return done


def assert_on_disk(done: list[Synced | Path], directory: Path, *, new_parent: bool = False) -> None:
    """All of the directory before it got its name, and its name after that."""
    renamed = done.index(directory)
    before = {(s.inode, s.n_bytes, s.names) for s in done[:renamed] if isinstance(s, Synced)}
    for path in (directory, *directory.rglob("*")):
        found = path.stat()
        if path.is_dir():
            names = {child.name for child in path.iterdir()}
            assert any(inode == found.st_ino and names <= there for inode, _, there in before), path
        else:
            assert (found.st_ino, found.st_size, frozenset()) in before, path
    after = [entry for entry in done[renamed + 1 :] if isinstance(entry, Synced)]
    for path in (directory, directory.parent)[: 1 + new_parent]:
        assert any(s.inode == path.parent.stat().st_ino and path.name in s.names for s in after), path


def test_a_checkpoint_is_on_disk_before_it_counts(tmp_path: Path, done: list[Synced | Path]) -> None:
    model = GPT(CONFIG, seed=0)
    checkpoints = Checkpointer(tmp_path, keep=2)
    checkpoints.save(model, make_optimizer(model, OptimizerConfig()), TrainState(step=3))
    checkpoints.close()
    assert_on_disk(done, checkpoints.path(3))


def test_an_artifact_is_on_disk_before_it_counts(tmp_path: Path, done: list[Synced | Path]) -> None:
    def build(directory: Path) -> dict[str, Any]:
        (directory / "part").mkdir()
        (directory / "part" / "a.txt").write_text("a")
        (directory / "b.txt").write_text("b")
        return {}

    artifact, _ = Store(tmp_path).produce(Request("corpus", 1, {}), build)
    assert_on_disk(done, artifact.path, new_parent=True)


def test_the_numbers_up_to_a_checkpoint_are_on_disk_before_it_counts(tmp_path: Path, done: list[Synced | Path]) -> None:
    model = GPT(CONFIG, seed=0)
    checkpoints, metrics = Checkpointer(tmp_path / "checkpoints", keep=9), MetricsLog(tmp_path / "metrics.jsonl")
    tokens = TokenStream([Shard(None, np.arange(200, dtype=np.uint16) % 60)])
    trainer = Trainer(
        model=model,
        optimizer=make_optimizer(model, OptimizerConfig()),
        batches=Batches(tokens, context_length=8, batch_size=1, micro_batch_size=1, seed=1),
        evaluate=lambda: Validation(1.0, 1.0),
        metrics=metrics,
        checkpoints=checkpoints,
        config=TrainConfig(max_steps=6, checkpoint_every=2, eval_every=3, batch_size=1, micro_batch_size=1),
        machine=Machine(torch.device("cpu"), "float32", 1, "cpu", 1e9, "measured", "as configured"),
        byte_lengths=torch.ones(60, dtype=torch.int64),
        stop=StopSignal(),
        documents=lambda windows: [],
        replay="",
    )
    metrics.start(-1)
    trainer.fit(TrainState())
    checkpoints.close()
    metrics.close()
    assert checkpoints.steps() == [2, 4, 6]
    inode, lines = metrics.path.stat().st_ino, metrics.path.read_bytes().splitlines(keepends=True)
    for step in checkpoints.steps():
        counts = sum(len(line) for line in lines if json.loads(line)["step"] <= step)
        before = done[: done.index(checkpoints.path(step))]
        assert max(s.n_bytes for s in before if isinstance(s, Synced) and s.inode == inode) >= counts, step
