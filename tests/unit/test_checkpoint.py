"""Checkpoints: exact, whole, checked, pruned."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from gptmodel.config import ModelConfig, OptimizerConfig, TrainConfig
from gptmodel.device import Machine
from gptmodel.errors import CheckpointError
from gptmodel.model import GPT
from gptmodel.tokens.batches import Batches
from gptmodel.tokens.tokenstream import Shard, TokenStream
from gptmodel.training.checkpoint import Checkpointer, TrainState
from gptmodel.training.loop import Trainer
from gptmodel.training.metrics_log import MetricsLog, curve, read_lines
from gptmodel.training.optimizer import make_optimizer
from gptmodel.training.seen import StopSignal, Validation

CONFIG = ModelConfig(vocab_size=60, context_length=8, n_layer=1, n_head=2, n_embd=16)


def new(seed: int = 0) -> tuple[GPT, torch.optim.AdamW]:
    model = GPT(CONFIG, seed=seed)
    return model, make_optimizer(model, OptimizerConfig())


def step(model: GPT, optimizer: torch.optim.AdamW, number: int) -> None:
    ids = torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(number))
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_what_is_restored_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    model, optimizer = new()
    for number in range(6):
        if number == 3:
            checkpoints = Checkpointer(tmp_path, keep=2)
            checkpoints.save(model, optimizer, TrainState(step=3, tokens=48, best_loss=1.5, best_step=2))
        step(model, optimizer, number)  # while the write goes on: the copy must not see it
    checkpoints.close()
    other, other_optimizer = new(seed=99)
    state = Checkpointer(tmp_path, keep=2).load_newest(other, other_optimizer)
    assert state == TrainState(step=3, tokens=48, best_loss=1.5, best_step=2)
    for number in range(3, 6):
        step(other, other_optimizer, number)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    model, optimizer = new()
    checkpoints = Checkpointer(tmp_path, keep=2)
    step(model, optimizer, 0)
    for number in (1, 2, 3, 4, 5):
        checkpoints.save(model, optimizer, TrainState(step=number, best_step=2))
    checkpoints.close()
    assert checkpoints.steps() == [2, 4, 5]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "checkpoint.json"])
def test_a_damaged_newest_one_is_named_and_the_one_before_it_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    model, optimizer = new()
    checkpoints = Checkpointer(tmp_path, keep=2)
    for number in (1, 2):
        step(model, optimizer, number)
        checkpoints.save(model, optimizer, TrainState(step=number))
    checkpoints.close()
    file = checkpoints.path(2) / name
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        state = Checkpointer(tmp_path, keep=2).load_newest(*new())
    assert state is not None
    assert state.step == 1
    assert "step-00000002 is damaged" in caplog.text


def test_a_torn_write_is_not_a_checkpoint(tmp_path: Path) -> None:
    leftover = tmp_path / ".step-00000009.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    checkpoints = Checkpointer(tmp_path, keep=1)
    assert checkpoints.load_newest(*new()) is None
    assert not leftover.exists()


def test_another_model_is_refused(tmp_path: Path) -> None:
    model, optimizer = new()
    step(model, optimizer, 0)
    checkpoints = Checkpointer(tmp_path, keep=1)
    checkpoints.save(model, optimizer, TrainState(step=1))
    checkpoints.close()
    other = GPT(ModelConfig(vocab_size=61, context_length=8, n_layer=1, n_head=2, n_embd=16))
    with pytest.raises(CheckpointError, match=r"does not fit the model.*wte\.weight \[60, 16\], not \[61, 16\]"):
        checkpoints.load(1, other, make_optimizer(other, OptimizerConfig()))


def test_a_failed_write_is_told_at_the_next_save(tmp_path: Path) -> None:
    model, optimizer = new()
    checkpoints = Checkpointer(tmp_path / "sub", keep=1)
    (tmp_path / "sub").rmdir()
    (tmp_path / "sub").write_text("a file where the directory was")
    checkpoints.save(model, optimizer, TrainState(step=1))
    with pytest.raises(OSError, match="sub"):
        checkpoints.wait()


def test_a_failed_write_ends_the_training_long_before_the_next_save(tmp_path: Path) -> None:
    config = TrainConfig(
        max_steps=3_000,
        checkpoint_every=3_000,
        eval_every=3_000,
        batch_size=1,
        micro_batch_size=1,
        publish="best",  # the weights of the beginning are saved, as the best so far
    )
    model, optimizer = new()
    checkpoints, metrics = Checkpointer(tmp_path / "sub", keep=1), MetricsLog(tmp_path / "metrics.jsonl")
    (tmp_path / "sub").rmdir()
    (tmp_path / "sub").write_text("a file where the directory was")
    length = model.config.context_length
    tokens = TokenStream([Shard(None, np.arange(20 * length, dtype=np.uint16) % model.config.vocab_size)])
    trainer = Trainer(
        model=model,
        optimizer=optimizer,
        batches=Batches(tokens, context_length=length, batch_size=1, micro_batch_size=1, seed=1),
        evaluate=lambda: Validation(1.0, 1.0),
        metrics=metrics,
        checkpoints=checkpoints,
        config=config,
        machine=Machine(torch.device("cpu"), "float32", 1, "cpu", 1e9, "measured", "as configured"),
        byte_lengths=torch.ones(model.config.vocab_size, dtype=torch.int64),
        stop=StopSignal(),
        documents=lambda windows: [],
        replay="",
    )
    metrics.start(-1)
    with pytest.raises(OSError, match="sub"):
        trainer.fit(TrainState())
    metrics.close()
    assert len(list(read_lines(metrics.path))) < 1_500


@pytest.mark.parametrize("torn", [b'{"step": 6, "met', '{"step": 6, "samples": [{"text": "\ufffd'.encode()[:-1]])
def test_the_log_drops_what_a_resumed_run_makes_again(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.start(-1)
    for number in range(1, 6):
        log.log(number, tokens=number * 10, metrics={"train/loss": 0.1 + number, "speed/tokens_per_second": 3.0})
    log.close()
    with path.open("ab") as file:
        file.write(torn)  # by a kill or a full disk, perhaps inside a character
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3, 4, 5]
    log.start(3)
    log.log(4, tokens=40, metrics={"train/loss": float("nan")})
    log.close()
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3, 4]
    lines = list(curve(path))
    assert lines[0] == {"step": 1, "tokens": 10, "metrics": {"train/loss": 1.1}}
    assert json.dumps(lines[3]["metrics"]["train/loss"]) == "NaN"
