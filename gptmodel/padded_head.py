"""Head and cross-entropy for training: gradients made on the way, and a vocabulary padded inside to whole tiles.

GPT-2 has 50,257 tokens, an odd number: rows of so many logits start at addresses that the fast products of a GPU do not
take, and that a processor's weight gradient takes slowly (docs/performance.md). Here the weights are padded with zero
rows to a multiple of 128 as they are cast for the product, and the padding has no part in the softmax: every gradient
through it is exactly 0. Nothing outside sees it; parameters, files and logits keep their vocabulary.

Two ways to the same sums. On a GPU chunks are large, since it has the memory, and a chunk's softmax is one expression
without writes in place, so that `torch.compile` makes one or two kernels of it. On a processor a chunk's softmax is
taken a few rows at a time, while they are in its cache, and its gradient takes the place of the logits.

Shapes: C width, V vocabulary, P the same padded, N rows, R rows of one chunk, F few of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE = 128  # tokens that the vocabulary is padded to a multiple of
_CHUNK_ROWS = 8192  # on a GPU: 0.8 GB of GPT-2's logits in 16 bits
CHUNK_BYTES = 1 << 27  # of logits at a time on a processor, or without gradients: 667 rows of GPT-2's in float32
_CACHED_ELEMENTS = 1 << 19  # log-probabilities at a time on a processor: 2 MiB

Sums = tuple[Tensor, Tensor, Tensor]  # of the losses, its gradient to x [N, C], and to the weights [P, C] in float32


def padded_cross_entropy(x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor) -> Tensor:
    """Mean of `cross_entropy(x @ weight.T, targets)`, a float32 scalar with gradients to x and weight.

    Under autocast the products run in its dtype; softmax, the loss and sums over chunks stay in float32. There is no
    second derivative.
    """
    return cast(Tensor, _PaddedCrossEntropy.apply(x_NC, weight_VC, targets_N))  # type: ignore[no-untyped-call]


class _PaddedCrossEntropy(torch.autograd.Function):
    """The mean loss, with both gradients made while a chunk's probabilities are at hand."""

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor) -> Tensor:
        device, n, n_tokens = x_NC.device.type, max(1, len(targets_N)), len(weight_VC)
        sums = _in_cache if device == "cpu" else _in_large_chunks
        dtype = product_dtype(weight_VC)
        with torch.autocast(device, enabled=False):
            weight_PC = _padded(weight_VC, dtype)
            total, grad_x_NC, grad_weight_PC = sums(x_NC.to(dtype), weight_PC, targets_N, n_tokens)
        # The mean's 1/N comes at the end, in float32 and so without loss.
        grad_weight_VC = grad_weight_PC[:n_tokens].div_(n).to(weight_VC.dtype)
        ctx.save_for_backward((grad_x_NC.float() / n).to(x_NC.dtype), grad_weight_VC)
        return total / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x_NC, grad_weight_VC = ctx.saved_tensors
        return grad_x_NC * grad.to(grad_x_NC.dtype), grad_weight_VC * grad.to(grad_weight_VC.dtype), None


def product_dtype(weight_VC: Tensor) -> torch.dtype:
    """What matrix products with these weights are made in: autocast's dtype where that is on, else their own."""
    device = weight_VC.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VC.dtype


def _padded(weight_VC: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast, with rows of zeros up to whole tiles, in one way through the memory: [P, C]."""
    V, C = weight_VC.shape
    weight_PC = weight_VC.new_empty(V + -V % _TILE, C, dtype=dtype)
    weight_PC[:V] = weight_VC
    weight_PC[V:] = 0
    return weight_PC


def _in_large_chunks(x_NC: Tensor, weight_PC: Tensor, targets_N: Tensor, n_tokens: int) -> Sums:
    total = torch.zeros((), dtype=torch.float32, device=x_NC.device)
    grad_weight_PC = torch.zeros(weight_PC.shape, dtype=torch.float32, device=x_NC.device)
    grads_x = []
    for start in range(0, len(targets_N), _CHUNK_ROWS):
        x_RC, targets_R = x_NC[start : start + _CHUNK_ROWS], targets_N[start : start + _CHUNK_ROWS]
        loss, grad_RP = _softmax_loss(x_RC @ weight_PC.T, targets_R, n_tokens)
        total = total + loss
        grads_x.append(grad_RP @ weight_PC)
        grad_weight_PC = grad_weight_PC + grad_RP.T @ x_RC
    return total, torch.cat(grads_x), grad_weight_PC


def _softmax_loss(logits_RP: Tensor, targets_R: Tensor, n_tokens: int) -> tuple[Tensor, Tensor]:
    """Sum of the losses over the first `n_tokens` columns (float32), and its gradient in the dtype of the logits."""
    columns_P = torch.arange(logits_RP.shape[1], device=logits_RP.device)
    wide_RP = torch.where(columns_P < n_tokens, logits_RP.float(), -torch.inf)
    total_R1 = torch.logsumexp(wide_RP, dim=1, keepdim=True)
    loss = (total_R1 - wide_RP.gather(1, targets_R[:, None])).sum()
    grad_RP = torch.exp(wide_RP - total_R1) - (columns_P == targets_R[:, None]).float()
    return loss, grad_RP.to(logits_RP.dtype)


def _in_cache(x_NC: Tensor, weight_PC: Tensor, targets_N: Tensor, n_tokens: int) -> Sums:
    total = torch.zeros((), dtype=torch.float32)
    grad_x_NC = torch.empty_like(x_NC)
    # Made before the logits: after them it would leave a hole of their size in the heap, 0.1 GB more at the peak.
    grad_weight_PC = torch.empty(weight_PC.shape, dtype=torch.float32)
    if not len(x_NC):
        grad_weight_PC.zero_()
    for rows in _even_chunks(len(x_NC), len(weight_PC) * weight_PC.dtype.itemsize):
        logits_RP, targets_R1 = x_NC[rows] @ weight_PC.T, targets_N[rows, None]
        for few, logprobs_FV in few_logprobs(logits_RP[:, :n_tokens]):
            targets_F1 = targets_R1[few]
            total -= logprobs_FV.gather(1, targets_F1).sum()
            # d loss / d logits is softmax minus one-hot; it takes the place of logits that nobody needs any more.
            # Those of the padding are 0, as its weights are, and stay so.
            grad_FV = logprobs_FV.exp_().scatter_add_(1, targets_F1, -torch.ones_like(logprobs_FV[:, :1]))
            logits_RP[few, :n_tokens] = grad_FV
        grad_x_NC[rows] = logits_RP @ weight_PC
        _add_product(grad_weight_PC, logits_RP.T, x_NC[rows], first=rows.start == 0)
        del logits_RP  # or the next chunk is made beside it
    return total, grad_x_NC, grad_weight_PC


def _add_product(sum_PC: Tensor, a_PR: Tensor, b_RC: Tensor, *, first: bool) -> None:
    """In float32; the first product takes the place of what is there."""
    if a_PR.dtype == torch.float32:
        sum_PC.addmm_(a_PR, b_RC, beta=0 if first else 1)
    elif first:
        sum_PC.copy_(a_PR @ b_RC)
    else:
        sum_PC += a_PR @ b_RC


def _even_chunks(n_rows: int, row_bytes: int) -> Iterator[slice]:
    """Of nearly the same size, which makes better products than a small rest does."""
    at_most = max(1, CHUNK_BYTES // row_bytes)
    step = math.ceil(n_rows / max(1, math.ceil(n_rows / at_most))) or 1
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def few_logprobs(logits_RV: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """float32 log-probabilities a few rows at a time, with the numbers of those rows.

    On a processor, few enough for its cache: what is then done with them costs no way to memory and back.
    """
    R, V = logits_RV.shape
    step = max(1, _CACHED_ELEMENTS // V) if logits_RV.device.type == "cpu" else max(1, R)
    for start in range(0, R, step):
        few = slice(start, min(start + step, R))
        yield few, torch.log_softmax(logits_RV[few], dim=-1, dtype=torch.float32)
