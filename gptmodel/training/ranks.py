"""How the processes of a training make one step together: what a step calls, and when gradients are exchanged."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from gptmodel.model import GPT
from gptmodel.sharding import is_sharded


class Alone:
    """One process, which exchanges nothing."""

    shares = False
    """Whether every process is needed for what one alone could do elsewhere, such as a checkpoint."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def exchange(self, now: bool) -> None:
        """Whether the backward pass that comes exchanges gradients: that of the last micro-batch, and of no other."""


class Averaging(Alone):
    """Every process holds all; gradients are averaged."""

    def __init__(self, module: nn.Module) -> None:
        # Gradients live in what is sent, not beside it: 4 bytes a parameter.
        super().__init__(nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True))

    def exchange(self, now: bool) -> None:
        cast(nn.parallel.DistributedDataParallel, self.module).require_backward_grad_sync = now


class Sharing(Alone):
    """Every process holds a part; each gets the average of its part's gradients.

    Until the last micro-batch whole gradients add up in each process: 4 bytes a parameter, for which nothing is sent.
    """

    shares = True

    def exchange(self, now: bool) -> None:
        cast(Any, self.module).set_requires_gradient_sync(now)


def ranks_of(model: GPT, world: int, *, compiled: bool) -> Alone:
    """What fits the model and the number of processes."""
    if is_sharded(model):
        return Sharing(model)  # its groups were compiled before they were cut up
    module: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
    return Averaging(module) if world > 1 else Alone(module)
