"""Dropout is drawn by a micro-batch's place in the whole batch, so that any number of processes drops the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptmodel.device import set_up
from gptmodel.planning.trial import RandomTokens, trial_trainer
from gptmodel.settings import load_config
from gptmodel.tokens.batches import Batches

STEP = 3


def gradients(folder: Path, *, rank: int = 0, world: int = 1, dropout: float = 0.2) -> list[torch.Tensor]:
    """Of one process of so many, for its part of a batch of four sequences in micro-batches of one."""
    sets = ["model.n_embd=16", "model.n_layer=2", "model.context_length=8", f"model.dropout={dropout}"]
    sets += [
        "train.optimizer.grad_clip=0",
        "train.batch_size=4",
        "train.micro_batch_size=1",
        "train.device=cpu",
        "train.precision=float32",
    ]
    config = load_config("smoke", sets=sets)
    folder.mkdir()
    trainer = trial_trainer(config, set_up(config.train), folder, 4)
    trainer.batches = Batches(
        RandomTokens(4000, config.model.vocab_size),
        context_length=8,
        batch_size=4,
        micro_batch_size=1,
        seed=config.train.seed,
        rank=rank,
        world=world,
    )
    trainer.config, trainer.rank = config.train, rank
    trainer.model.train()
    trainer.gradients(STEP)
    trainer.metrics.close()
    trainer.checkpoints.close()
    return [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("world", [2, 4])
def test_the_average_over_processes_is_the_gradient_of_one(tmp_path: Path, world: int) -> None:
    one = gradients(tmp_path / "one")
    parts = [gradients(tmp_path / f"{rank}", rank=rank, world=world) for rank in range(world)]
    for whole, *shares in zip(one, *parts, strict=True):
        assert torch.allclose(whole, torch.stack(shares).mean(0), rtol=1e-4, atol=1e-7)


def test_each_micro_batch_of_a_step_drops_anew(tmp_path: Path) -> None:
    with_dropout, without = (gradients(tmp_path / str(share), dropout=share) for share in (0.2, 0.0))
    assert not any(torch.allclose(a, b, rtol=1e-2) for a, b in zip(with_dropout, without, strict=True))
    first, second = (gradients(tmp_path / f"of-{rank}", rank=rank, world=4) for rank in (0, 1))
    assert not torch.equal(first[0], second[0])
