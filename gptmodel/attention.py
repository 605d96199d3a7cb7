"""Causal self-attention for training on a processor: few large matrix products in place of torch's small tiles.

torch's fused kernel (`F.scaled_dot_product_attention`) saves memory in exchange for small tiles, and on a processor its
backward takes three times as long as the products that it is made of (docs/performance.md). Here the queries go in
blocks, each sees the keys up to its own end, and its probabilities are kept for the backward: half of B*H*T*T numbers
in the dtype of qkv, less than the block's other activations at GPT-2's lengths.

Shapes: B batch, T tokens, C width, H heads, D head width (C = H * D), N = B*H, Q queries of one block, K keys it sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 256  # queries; 64 and 128 were no faster, and all 1,024 at once would compute what causality hides


def causal_attention(qkv_BTC3: Tensor, n_head: int) -> Tensor:
    """Attention of each token over itself and those before it, [B, T, 3C] to [B, T, C]; no dropout.

    Products and probabilities are in the dtype of qkv; softmax works in float32 inside, forward and backward.
    """
    return cast(Tensor, _CausalAttention.apply(qkv_BTC3, n_head))  # type: ignore[no-untyped-call]


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_BTC3: Tensor, n_head: int) -> Tensor:
        B, T, C3 = qkv_BTC3.shape
        D = C3 // 3 // n_head
        with torch.autocast(qkv_BTC3.device.type, enabled=False):
            qkv_3BHTD = qkv_BTC3.view(B, T, 3, n_head, D).permute(2, 0, 3, 1, 4).contiguous()
            q_NTD, k_NTD, v_NTD = qkv_3BHTD.view(3, B * n_head, T, D).unbind(0)
            q_NTD = q_NTD * D**-0.5  # exact where it is a power of two, as in GPT-2
            y_BHTD = qkv_BTC3.new_empty(B, T, n_head, D).transpose(1, 2)
            kept = []
            for queries, keys in _blocks(T):
                scores_NQK = q_NTD[:, queries] @ k_NTD[:, keys].transpose(1, 2)
                scores_NQK[:, :, queries].masked_fill_(_future(queries, y_BHTD.device), -torch.inf)
                kept.append(torch.softmax(scores_NQK, dim=-1))
                y_BHTD[:, :, queries] = (kept[-1] @ v_NTD[:, keys]).view(B, n_head, -1, D)
        ctx.save_for_backward(q_NTD, k_NTD, v_NTD, *kept)
        return y_BHTD.transpose(1, 2).reshape(B, T, n_head * D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTC: Tensor) -> tuple[Tensor, None]:
        q_NTD, k_NTD, v_NTD, *kept = ctx.saved_tensors
        B, T, C = grad_BTC.shape
        N, _, D = q_NTD.shape
        grad_NTD = grad_BTC.view(B, T, N // B, D).transpose(1, 2).reshape(N, T, D)
        # Keys and values get a share from every block of queries: summed in float32.
        dq_NTD = torch.empty_like(q_NTD)
        dk_NTD, dv_NTD = (torch.zeros(N, T, D, dtype=torch.float32, device=q_NTD.device) for _ in range(2))
        for (queries, keys), p_NQK in zip(_blocks(T), kept, strict=True):
            g_NQD = grad_NTD[:, queries]
            dv_NTD[:, keys] += p_NQK.transpose(1, 2) @ g_NQD
            dp_NQK = g_NQD @ v_NTD[:, keys].transpose(1, 2)
            ds_NQK = torch._softmax_backward_data(dp_NQK, p_NQK, -1, p_NQK.dtype)
            dq_NTD[:, queries] = ds_NQK @ k_NTD[:, keys]
            dk_NTD[:, keys] += ds_NQK.transpose(1, 2) @ q_NTD[:, queries]
        dq_NTD.mul_(D**-0.5)
        grad_BT3HD = grad_BTC.new_empty(B, T, 3, N // B, D)
        for number, part_NTD in enumerate((dq_NTD, dk_NTD, dv_NTD)):
            grad_BT3HD[:, :, number] = part_NTD.view(B, N // B, T, D).transpose(1, 2)
        return grad_BT3HD.view(B, T, 3 * C), None


def _blocks(T: int) -> Iterator[tuple[slice, slice]]:
    """Queries of each block, and the keys that they may see."""
    for start in range(0, T, _BLOCK):
        stop = min(start + _BLOCK, T)
        yield slice(start, stop), slice(0, stop)


def _future(queries: slice, device: torch.device) -> Tensor:
    """Which keys of its own block a query may not see: bool [Q, Q]."""
    size = queries.stop - queries.start
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(1)
