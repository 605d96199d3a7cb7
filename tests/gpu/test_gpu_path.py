"""What only a GPU does: its head, its waits in a step, and the benchmark from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.gpu_rows import syncs
from gptmodel.config import GPT2_VOCAB_SIZE
from gptmodel.device import set_up
from gptmodel.loss import linear_cross_entropy
from gptmodel.planning.trial import trial_trainer
from gptmodel.settings import load_config
from gptmodel.training.checkpoint import TrainState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
ROOT = Path(__file__).resolve().parents[2]


def test_the_head_gives_the_plain_loss_and_gradients() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(9000, 64, generator=draw).cuda().requires_grad_()
    weight = (0.1 * torch.randn(GPT2_VOCAB_SIZE, 64, generator=draw)).cuda().requires_grad_()
    targets = torch.randint(GPT2_VOCAB_SIZE, (9000,), generator=draw).cuda()
    plain = F.cross_entropy(x @ weight.T, targets)
    ours = linear_cross_entropy(x, weight, targets)
    assert ours.item() == pytest.approx(plain.item(), abs=1e-3)
    for a, b in zip(torch.autograd.grad(ours, (x, weight)), torch.autograd.grad(plain, (x, weight)), strict=True):
        assert (a - b).norm() < 1e-3 * b.norm()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_waits_for_the_device_once(kind: str, tmp_path: Path) -> None:
    config = load_config("smoke", sets=["train.device=cuda", f"train.optimizer.kind={kind}"])
    trainer = trial_trainer(config, set_up(config.train), tmp_path, 2)
    trainer.model.train()
    state = TrainState()
    trainer.advance(state)
    found = syncs(lambda: trainer.advance(state))
    trainer.metrics.close()
    assert {place.split(":")[0]: count for place, count in found.items()} == {"loop.py": 1}


def test_the_benchmark_measures_each_group(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--minutes", "4", "--out", str(tmp_path / "gpu.json")]
    subprocess.run(command, check=True, cwd=ROOT)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["not_measured"] == []
