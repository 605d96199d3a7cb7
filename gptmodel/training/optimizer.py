"""AdamW or Muon with decay on matrices only, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from gptmodel.config import OptimizerConfig
from gptmodel.sharding import gathered, laid_out_like, own_part


def _bare(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of torch's optimizers without its decorator, which imports torch's compiler: 3 s of each start."""
    return getattr(method, "__wrapped__", method)


class _Light(torch.optim.Optimizer):
    """An optimizer that leaves torch's compiler alone; what it computes is the same."""

    state_dict = _bare(torch.optim.Optimizer.state_dict)
    load_state_dict = _bare(torch.optim.Optimizer.load_state_dict)
    add_param_group = _bare(torch.optim.Optimizer.add_param_group)
    zero_grad = _bare(torch.optim.Optimizer.zero_grad)


class AdamW(_Light, torch.optim.AdamW):
    step = torch.no_grad()(_bare(torch.optim.AdamW.step))


class Muon(_Light, torch.optim.Muon):
    step = torch.no_grad()(_bare(torch.optim.Muon.step))


class MuonInParts(Muon):
    """The same update of matrices that are cut up between processes, each of which keeps its part of the momentum.

    Newton-Schulz needs the whole of a matrix: it is gathered once, in the bfloat16 that the products are of, where
    torch's own step on parts would send it for each of them.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = p.grad.lerp(state["momentum_buffer"], momentum)
                whole = gathered(update.bfloat16())
                whole = _zeropower_via_newtonschulz(whole, group["ns_coefficients"], group["ns_steps"], group["eps"])
                p.mul_(1 - rate * group["weight_decay"])
                p.add_(laid_out_like(whole, p), alpha=-_adjust_lr(rate, group["adjust_lr_fn"], p.shape))


class MuonAndAdamW(_Light):
    """Muon for matrices and AdamW for the rest, as one optimizer with one state."""

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})  # the same dicts: a rate set here counts there
        self._members = (muon, adamw)
        muon.state = adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for member in self._members:
            member.step()


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Tensors of two or more dimensions are decayed, biases and norms are not (as GPT-2 and GPT-3 did)."""
    named = [(name, p) for name, p in sorted(model.named_parameters()) if p.requires_grad]
    by_muon = {name for name, p in named if config.kind == "muon" and name.startswith("blocks.") and p.dim() == 2}
    rest = [p for name, p in named if name not in by_muon]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    # The fused kernel is 2 to 3 times the speed of the default one on a processor.
    adamw = AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
    if not by_muon:
        return adamw
    cut_up = own_part(named[0][1]) is not named[0][1]
    muon = (MuonInParts if cut_up else Muon)(
        [p for name, p in named if name in by_muon],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return MuonAndAdamW(muon, adamw)


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """Learning rate of update number `step`, counted from 0."""
    peak = config.learning_rate
    floor = peak * config.min_learning_rate_ratio
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return peak
    if config.schedule == "wsd":
        decay = config.decay_steps or max(1, max_steps // 5)
        left = max_steps - step
        return peak if left > decay else floor + (peak - floor) * left / decay
    done = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
