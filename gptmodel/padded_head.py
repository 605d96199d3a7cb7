"""Head and cross-entropy for training on a GPU: large chunks, and a vocabulary padded inside to whole tiles.

GPT-2 has 50,257 tokens, an odd number: rows of so many logits start at addresses that the tensor cores' fast kernels do
not take. Here the weights are padded with zero rows to a multiple of 128 as they are cast for the product, and the
padding's logits are minus infinity before the softmax: their probability and every gradient through them are exactly
0. Nothing outside sees it; parameters, files and logits keep their vocabulary.

The softmax of a chunk is written as one expression without writes in place, so that `torch.compile` makes one or two
kernels of it. Chunks are large, since a GPU has the memory, and a compiled graph holds each chunk anew.

Shapes: C width, V vocabulary, P the same padded, N rows, R rows of one chunk.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE = 128  # tokens that the vocabulary is padded to a multiple of
_CHUNK_ROWS = 8192  # 0.8 GB of GPT-2's logits in 16 bits


def padded_cross_entropy(x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor) -> Tensor:
    """Mean of `cross_entropy(x @ weight.T, targets)`, a float32 scalar with gradients to x and weight.

    Under autocast the products run in its dtype; softmax, the loss and sums over chunks stay in float32.
    """
    return cast(Tensor, _PaddedCrossEntropy.apply(x_NC, weight_VC, targets_N))  # type: ignore[no-untyped-call]


class _PaddedCrossEntropy(torch.autograd.Function):
    """The mean loss, with both gradients made while a chunk's probabilities are at hand."""

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor) -> Tensor:
        device, n, n_tokens = x_NC.device.type, len(targets_N), len(weight_VC)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VC.dtype
        x_in, weight_PC = x_NC.to(dtype), F.pad(weight_VC.to(dtype), (0, 0, 0, -n_tokens % _TILE))
        total = torch.zeros((), dtype=torch.float32, device=x_NC.device)
        grad_weight_PC = torch.zeros(weight_PC.shape, dtype=torch.float32, device=x_NC.device)
        grads_x = []
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets_N), _CHUNK_ROWS):
                x_RC, targets_R = x_in[start : start + _CHUNK_ROWS], targets_N[start : start + _CHUNK_ROWS]
                loss, grad_RP = _softmax_loss(x_RC @ weight_PC.T, targets_R, n_tokens)
                total = total + loss
                grads_x.append(grad_RP @ weight_PC)
                grad_weight_PC = grad_weight_PC + grad_RP.T @ x_RC
        # The mean's 1/N comes at the end, in float32 and so without loss.
        grad_x_NC = (torch.cat(grads_x).float() / n).to(x_NC.dtype)
        ctx.save_for_backward(grad_x_NC, (grad_weight_PC[:n_tokens] / n).to(weight_VC.dtype))
        return total / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x_NC, grad_weight_VC = ctx.saved_tensors
        return grad_x_NC * grad.to(grad_x_NC.dtype), grad_weight_VC * grad.to(grad_weight_VC.dtype), None


def _softmax_loss(logits_RP: Tensor, targets_R: Tensor, n_tokens: int) -> tuple[Tensor, Tensor]:
    """Sum of the losses over the first `n_tokens` columns (float32), and its gradient in the dtype of the logits."""
    columns_P = torch.arange(logits_RP.shape[1], device=logits_RP.device)
    wide_RP = torch.where(columns_P < n_tokens, logits_RP.float(), -torch.inf)
    total_R1 = torch.logsumexp(wide_RP, dim=1, keepdim=True)
    loss = (total_R1 - wide_RP.gather(1, targets_R[:, None])).sum()
    grad_RP = torch.exp(wide_RP - total_R1) - (columns_P == targets_R[:, None]).float()
    return loss, grad_RP.to(logits_RP.dtype)
