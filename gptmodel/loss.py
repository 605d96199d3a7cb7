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

from gptmodel.padded_head import padded_cross_entropy

_CHUNK_BYTES = 1 << 27  # of logits at a time: 667 rows of GPT-2's vocabulary in float32
_CACHED_ELEMENTS = 1 << 19  # log-probabilities at a time on a processor: 2 MiB


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
        if x_NC.device.type != "cpu":
            return padded_cross_entropy(x_NC, weight_VC, targets_N)
        return cast(Tensor, _LinearCrossEntropy.apply(x_NC, weight_VC, targets_N))  # type: ignore[no-untyped-call]
    return token_losses(x_BTC, weight_VC, targets_BT).mean()


@torch.no_grad()
def token_losses(x_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor) -> Tensor:
    """Loss of every token in nats, float32 of the targets' shape, for evaluation; no gradients."""
    x_NC, targets_N = x_BTC.flatten(0, -2), targets_BT.flatten()
    losses_N = torch.empty(len(targets_N), dtype=torch.float32, device=x_NC.device)
    for rows, logits_RV, _, _ in _logits(x_NC, weight_VC):
        for part, logprobs_PV in _logprobs(logits_RV, rows.start):
            losses_N[part] = -logprobs_PV.gather(1, targets_N[part, None])[:, 0]
        del logits_RV
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
    for rows, logits_RV, _, _ in _logits(x_NC, weight_VC):
        for part, logprobs_PV in _logprobs(logits_RV, rows.start):
            target_P1 = logprobs_PV.gather(1, targets_N[part, None])
            nats_N[part] = -target_P1[:, 0]
            rank_N[part] = _at_least(logprobs_PV, target_P1)
            top_N[part] = logprobs_PV.amax(1).exp()
        del logits_RV
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
        for rows, logits_RV, x_RC, weight in _logits(x_NC, weight_VC, evenly=True):
            for part, logprobs_PV in _logprobs(logits_RV, rows.start):
                targets_P1 = targets_N[part, None]
                total -= logprobs_PV.gather(1, targets_P1).sum()
                # d loss / d logits is softmax minus one-hot; the mean's 1/N comes at the end, in float32
                grad_PV = logprobs_PV.exp_().scatter_add_(1, targets_P1, -torch.ones_like(logprobs_PV[:, :1]))
                logits_RV[part.start - rows.start : part.stop - rows.start] = grad_PV  # which nobody needs any more
            grad_RV = logits_RV
            grad_x_NC[rows] = grad_RV @ weight
            if weight.dtype == torch.float32:
                grad_weight_VC.addmm_(grad_RV.T, x_RC)
            else:
                grad_weight_VC += grad_RV.T @ x_RC
            del logits_RV, grad_RV
        n = max(1, len(targets_N))
        ctx.save_for_backward(grad_x_NC.div_(n), grad_weight_VC.div_(n).to(weight_VC.dtype))
        return total / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x_NC, grad_weight_VC = ctx.saved_tensors
        return grad_x_NC * grad.to(grad_x_NC.dtype), grad_weight_VC * grad.to(grad_weight_VC.dtype), None


def _logits(x_NC: Tensor, weight_VC: Tensor, *, evenly: bool = False) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """For each chunk its rows, its logits, and x and weight, all in the dtype of the products.

    Who has done with a chunk's logits must let go of them (`del`), or the next chunk is made beside them. Even chunks
    make better products; the others are of a size that does not depend on how many rows there are.
    """
    device = x_NC.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VC.dtype
    x_NC, weight_VC = x_NC.detach().to(dtype), weight_VC.detach().to(dtype)
    step = max(1, _CHUNK_BYTES // (len(weight_VC) * dtype.itemsize))
    if evenly:
        step = math.ceil(len(x_NC) / max(1, math.ceil(len(x_NC) / step))) or 1
    for start in range(0, len(x_NC), step):
        rows = slice(start, min(start + step, len(x_NC)))
        with torch.autocast(device, enabled=False):
            logits_RV = x_NC[rows] @ weight_VC.T
        yield rows, logits_RV, x_NC[rows], weight_VC
        del logits_RV


def _logprobs(logits_RV: Tensor, start: int) -> Iterator[tuple[slice, Tensor]]:
    """float32 log-probabilities a few rows at a time, with the numbers of those rows, counted from `start`.

    On a processor, few enough for its cache: what is then done with them costs no way to memory and back.
    """
    R, V = logits_RV.shape
    step = max(1, _CACHED_ELEMENTS // V) if logits_RV.device.type == "cpu" else max(1, R)
    for first in range(0, R, step):
        few_PV = logits_RV[first : first + step]
        yield slice(start + first, start + first + len(few_PV)), torch.log_softmax(few_PV, dim=-1, dtype=torch.float32)
