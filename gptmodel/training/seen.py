"""What the steps of a training show, and the pieces of a step that stand for themselves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gptmodel.sharding import gathered


@dataclass(frozen=True)
class Validation:
    """Figures of one evaluation during training."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    samples: list[dict[str, str]] = field(default_factory=list)


class Evaluator(Protocol):
    """Scores the model on validation data and writes samples. Every rank calls it; all get the same figures."""

    def __call__(self) -> Validation: ...


@dataclass
class Seen:
    """What one step showed."""

    loss: float
    """Mean over the batch, nats per token, before the update."""
    grad_norm: float
    """Before clipping."""
    n_bytes: int
    """UTF-8 bytes of the targets."""
    decision: dict[str, Any] = field(default_factory=dict)
    """What was done about a spike; empty for an ordinary step."""


@dataclass
class StopSignal:
    """Set by a signal handler; read between steps."""

    signum: int = 0


def clip_gradients(model: nn.Module, largest: float) -> Tensor:
    """Global gradient norm before clipping, a scalar on the device.

    On a processor gradients are scaled only where it is too large, since that costs a pass. A GPU would have to be
    waited for to know it, so there they always are, by 1 where it is not.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm: Tensor = gathered(nn.utils.get_total_norm(gradients))
    if norm.device.type != "cpu" or not norm <= largest:  # not finite too: who sees the norm decides what then happens
        nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)
    return norm


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Draw as for no other (seed, step, micro-batch of the whole batch).

    Dropout then depends neither on what was drawn before, or a resumed run would differ, nor on how many processes
    share the batch.
    """
    digest = hashlib.blake2b(f"{seed}:{step}:{micro_batch}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "big") >> 1)
