"""Decay groups and learning-rate schedules."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gptmodel.config import ModelConfig, OptimizerConfig, TrainConfig, recipe
from gptmodel.errors import ConfigError
from gptmodel.model import GPT
from gptmodel.training.checkpoint import Checkpointer, TrainState
from gptmodel.training.optimizer import learning_rate, make_optimizer
from gptmodel.training.seen import clip_gradients

SMALL = ModelConfig(vocab_size=50, context_length=8, n_layer=1, n_head=1, n_embd=16)


def test_only_matrices_decay() -> None:
    model = GPT(ModelConfig(vocab_size=50, context_length=8, n_layer=1, n_head=1, n_embd=8))
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.1))
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert all(p.dim() >= 2 for p in decayed["params"])
    assert all(p.dim() < 2 for p in plain["params"])
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_cosine_warms_up_peaks_and_ends_at_its_floor() -> None:
    config = OptimizerConfig(learning_rate=1.0, min_learning_rate_ratio=0.1, warmup_steps=10)
    rates = [learning_rate(config, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_wsd_is_flat_then_falls_in_a_line() -> None:
    config = OptimizerConfig(
        learning_rate=1.0, min_learning_rate_ratio=0.0, warmup_steps=10, schedule="wsd", decay_steps=20
    )
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[10:81] == [1.0] * 71
    assert rates[90] == pytest.approx(0.5)
    assert rates[100] == 0.0


def test_a_decay_that_would_begin_before_the_warmup_ends_is_refused() -> None:
    """At step 30 the rate would fall from its peak to 0.7 of it."""
    long = OptimizerConfig(schedule="wsd", warmup_steps=30, decay_steps=400)
    told = "max_steps 300 is less than optimizer.warmup_steps 30 and optimizer.decay_steps 400 together"
    with pytest.raises(ConfigError, match=told):
        TrainConfig(max_steps=300, optimizer=long)
    for steps, fits in ((430, long), (300, replace(long, schedule="cosine")), (20, replace(long, decay_steps=0))):
        assert TrainConfig(max_steps=steps, optimizer=fits).max_steps == steps
    rates = [learning_rate(long, step, 430) for step in range(430)]
    assert rates[30] == pytest.approx(rates[29]) == pytest.approx(max(rates))


def test_constant_stays() -> None:
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=0, schedule="constant")
    assert {learning_rate(config, step, 50) for step in range(50)} == {0.5}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_training_does_not_import_the_compiler_which_takes_seconds(kind: str) -> None:
    program = (
        "import sys, torch\n"
        "from gptmodel.config import ModelConfig, OptimizerConfig, TrainConfig\n"
        "from gptmodel.device import set_up\n"
        "from gptmodel.model import GPT\n"
        "from gptmodel.training.optimizer import make_optimizer\n"
        "from gptmodel.training.loop import clip_gradients\n"
        "set_up(TrainConfig(deterministic=True, device='cpu', precision='float32'))\n"
        "assert torch.are_deterministic_algorithms_enabled()\n"
        "model = GPT(ModelConfig(vocab_size=50, context_length=8, n_layer=1, n_head=1, n_embd=16), seed=0)\n"
        f"optimizer = make_optimizer(model, OptimizerConfig(kind='{kind}'))\n"
        "model(torch.arange(8)[None], torch.arange(8)[None]).backward()\n"
        "clip_gradients(model, 1e-3)\n"
        "optimizer.step()\n"
        "optimizer.zero_grad()\n"
        "optimizer.load_state_dict(optimizer.state_dict())\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_adamw_is_torchs_own_to_the_bit() -> None:
    config = OptimizerConfig(learning_rate=0.01, weight_decay=0.1)
    found = []
    for ours in (True, False):
        model = GPT(SMALL, seed=3)
        optimizer = make_optimizer(model, config)
        if not ours:
            groups = [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in optimizer.param_groups]
            betas = (config.beta1, config.beta2)
            optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.eps, fused=True)
        for _ in range(3):
            model(torch.arange(8)[None], torch.arange(8)[None]).backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*found)


def test_clipping_scales_a_gradient_that_is_too_long_and_no_other() -> None:
    model = GPT(ModelConfig(vocab_size=50, context_length=8, n_layer=1, n_head=1, n_embd=8))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    length = model.num_parameters() ** 0.5
    assert clip_gradients(model, 2 * length) == pytest.approx(length)
    assert all(bool((p.grad == 1).all()) for p in model.parameters() if p.grad is not None)
    assert clip_gradients(model, 1.0) == pytest.approx(length)
    assert clip_gradients(model, math.inf) == pytest.approx(1.0)
    model.wte.weight.grad = torch.full_like(model.wte.weight, math.nan)
    assert math.isnan(clip_gradients(model, 1.0))


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = GPT(SMALL, seed=1)
    optimizer = make_optimizer(model, OptimizerConfig(kind="muon", learning_rate=0.1, weight_decay=0.0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer, range(1))
    for name, p in model.named_parameters():
        matrix = name.startswith("blocks.") and p.dim() == 2
        assert ("momentum_buffer" in optimizer.state[p], "exp_avg" in optimizer.state[p]) == (matrix, not matrix)
        if (
            matrix
        ):  # the update is near orthogonal: all its directions are of about one length, 0.2 * sqrt(width) * rate
            lengths = torch.linalg.svdvals(before[name] - p.detach()) / (0.09 * 0.2 * max(p.shape) ** 0.5)
            assert lengths.max() < 1.4
            assert lengths.median() > 0.5


def test_muon_goes_on_from_a_checkpoint_to_the_bit(tmp_path: Path) -> None:
    config = OptimizerConfig(kind="muon", learning_rate=0.01)
    whole = GPT(SMALL, seed=1)
    train(whole, make_optimizer(whole, config), range(4))
    first, second = GPT(SMALL, seed=1), GPT(SMALL, seed=2)
    optimizer, later = make_optimizer(first, config), make_optimizer(second, config)
    train(first, optimizer, range(2))
    checkpoints = Checkpointer(tmp_path, 1)
    checkpoints.save(first, optimizer, TrainState(step=2))
    checkpoints.close()
    assert checkpoints.load(2, second, later).step == 2
    train(second, later, range(2, 4))
    for name, p in whole.named_parameters():
        assert torch.equal(p, second.get_parameter(name)), name


def test_adamw_is_named_in_no_recipe_so_that_earlier_models_are_still_found() -> None:
    assert "kind" not in recipe(OptimizerConfig())
    assert recipe(OptimizerConfig(kind="muon"))["kind"] == "muon"


def train(model: GPT, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        ids = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(step))
        for group in optimizer.param_groups:
            group["lr"] = 0.9 ** (step + 1) * 0.1
        torch.autograd.backward(model.loss(ids[:, :-1], ids[:, 1:]))
        optimizer.step()
        optimizer.zero_grad()
