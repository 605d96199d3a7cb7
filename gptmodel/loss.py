"""How wrong the model is: cross-entropy, and the same in other units. `docs/loss.md` explains it with numbers.

The head of a GPT-2 is a [V, C] matrix product whose output, B*T*V logits, is by far the largest tensor of a training
step. `linear_cross_entropy` takes it a few rows at a time and makes the gradients on the way, so that the whole of
it never exists.

Shapes: B batch, T tokens, C width, V vocabulary, N = B*T rows, R rows of one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_ELEMENTS = 1 << 25  # logits at a time: 128 MiB in float32, 667 rows of GPT-2's vocabulary


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats per token (a float32 scalar); `exp` of it is the perplexity."""
    return F.cross_entropy(logits_BTV.flatten(0, -2).float(), targets_BT.flatten())


def perplexity(loss: float | Tensor) -> float:
    """`exp(loss)`: how many equally likely tokens the model hesitates between. inf where that is past a float."""
    try:
        return math.exp(float(loss))
    except OverflowError:
        return math.inf


def bits_per_byte(total_nats: float, n_bytes: int) -> float:
    """Bits needed for each byte of text: a sum of losses in nats over the text's UTF-8 length; nan for no bytes.

    Unlike perplexity it does not depend on how the text was cut into tokens.
    """
    return float(total_nats) / math.log(2) / n_bytes if n_bytes else math.nan


def linear_cross_entropy(x_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor) -> Tensor:
    """`cross_entropy(x @ weight.T, targets)` without ever holding all logits; a float32 scalar.

    Gradients flow to x and weight (once: there is no second derivative). Under autocast the matrix products run in
    its dtype; softmax, the loss and the sum of the weight's gradient over chunks stay in float32.
    """
    x_NC, targets_N = x_BTC.flatten(0, -2), targets_BT.flatten()
    if torch.is_grad_enabled() and (x_NC.requires_grad or weight_VC.requires_grad):
        return cast(Tensor, _LinearCrossEntropy.apply(x_NC, weight_VC, targets_N))  # type: ignore[no-untyped-call]
    return token_losses(x_BTC, weight_VC, targets_BT).mean()


@torch.no_grad()
def token_losses(x_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor) -> Tensor:
    """Loss of every token in nats, float32 of the targets' shape, for evaluation; no gradients."""
    x_NC, targets_N = x_BTC.flatten(0, -2), targets_BT.flatten()
    losses_N = torch.empty(len(targets_N), dtype=torch.float32, device=x_NC.device)
    for rows, logprobs_RV, _, _ in _chunks(x_NC, weight_VC, targets_N):
        losses_N[rows] = -logprobs_RV.gather(1, targets_N[rows, None])[:, 0]
    return losses_N.view(targets_BT.shape)


class TokenScores(NamedTuple):
    """Of every token, in the targets' shape: its loss, its rank, and how probable the most probable one was."""

    nats: Tensor
    """float32"""
    rank: Tensor
    """int32: tokens at least as probable, itself counted; 1 is the one most probable."""
    top_probability: Tensor
    """float32"""


@torch.no_grad()
def token_scores(x_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor) -> TokenScores:
    """`token_losses` with what else an evaluation asks of the same logits; no gradients."""
    x_NC, targets_N = x_BTC.flatten(0, -2), targets_BT.flatten()
    kinds = (torch.float32, torch.int32, torch.float32)
    nats_N, rank_N, top_N = (torch.empty(len(targets_N), dtype=kind, device=x_NC.device) for kind in kinds)
    for rows, logprobs_RV, _, _ in _chunks(x_NC, weight_VC, targets_N):
        target_R1 = logprobs_RV.gather(1, targets_N[rows, None])
        nats_N[rows] = -target_R1[:, 0]
        rank_N[rows] = _at_least(logprobs_RV, target_R1)
        top_N[rows] = logprobs_RV.amax(1).exp()
    return TokenScores(*(scored_N.view(targets_BT.shape) for scored_N in (nats_N, rank_N, top_N)))


def _at_least(values_RV: Tensor, bound_R1: Tensor) -> Tensor:
    """How many of each row are at least its bound, int32 [R]."""
    if (
        values_RV.device.type == "cpu"
    ):  # torch sums booleans seven times as slowly, and this is on the way of each token
        counts = np.count_nonzero(values_RV.numpy() >= bound_R1.numpy(), axis=1)
        return torch.from_numpy(counts.astype(np.int32))
    return (values_RV >= bound_R1).sum(1, dtype=torch.int32)


class _LinearCrossEntropy(torch.autograd.Function):
    """The mean loss, with both gradients made while a chunk's probabilities are at hand."""

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor) -> Tensor:
        grad_x_NC = torch.empty_like(x_NC)
        grad_weight_VC = torch.zeros_like(weight_VC, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=x_NC.device)
        for rows, logprobs_RV, x_RC, weight in _chunks(x_NC, weight_VC, targets_N):
            targets_R1 = targets_N[rows, None]
            total -= logprobs_RV.gather(1, targets_R1).sum()
            # d loss / d logits is softmax minus one-hot; the mean's 1/N comes at the end, in float32
            grad_RV = logprobs_RV.exp_().scatter_add_(1, targets_R1, -torch.ones_like(logprobs_RV[:, :1]))
            grad_RV = grad_RV.to(weight.dtype)
            grad_x_NC[rows] = grad_RV @ weight
            if weight.dtype == torch.float32:
                grad_weight_VC.addmm_(grad_RV.T, x_RC)
            else:
                grad_weight_VC += grad_RV.T @ x_RC
        n = max(1, len(targets_N))
        ctx.save_for_backward(grad_x_NC.div_(n), grad_weight_VC.div_(n).to(weight_VC.dtype))
        return total / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x_NC, grad_weight_VC = ctx.saved_tensors
        return grad_x_NC * grad.to(grad_x_NC.dtype), grad_weight_VC * grad.to(grad_weight_VC.dtype), None


def _chunks(x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """For each chunk its rows, float32 log-probabilities, and x and weight in the dtype of the products."""
    device = x_NC.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VC.dtype
    x_NC, weight_VC = x_NC.detach().to(dtype), weight_VC.detach().to(dtype)
    step = max(1, _CHUNK_ELEMENTS // len(weight_VC))
    for start in range(0, len(targets_N), step):
        rows = slice(start, start + step)
        with torch.autocast(device, enabled=False):
            logits_RV = x_NC[rows] @ weight_VC.T
            logprobs_RV = torch.log_softmax(logits_RV, dim=-1, dtype=torch.float32)
        del logits_RV
        yield rows, logprobs_RV, x_NC[rows], weight_VC
