"""How wrong the model is: cross-entropy, and the same in other units. `docs/loss.md` explains it with numbers.

The head of a GPT-2 is a [V, C] matrix product whose output, B*T*V logits, is by far the largest tensor of a training
step. `linear_cross_entropy` takes it a few rows at a time and makes the gradients on the way, so that the whole of
it never exists.

Shapes: B batch, T tokens, C width, V vocabulary, N = B*T rows, R rows of one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from gptmodel.padded_head import CHUNK_BYTES, few_logprobs, padded_cross_entropy, product_dtype


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats per token (a scalar of float32, or float64 for logits of float64).

    `exp` of it is the perplexity.
    """
    wide = logits_BTV if logits_BTV.dtype == torch.float64 else logits_BTV.float()
    return F.cross_entropy(wide.flatten(0, -2), targets_BT.flatten())


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
        return padded_cross_entropy(x_NC, weight_VC, targets_N)
    return token_losses(x_BTC, weight_VC, targets_BT).mean()


@torch.no_grad()
def token_losses(x_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor) -> Tensor:
    """Loss of every token in nats, float32 of the targets' shape, for evaluation; no gradients."""
    x_NC, targets_N = x_BTC.flatten(0, -2), targets_BT.flatten()
    losses_N = torch.empty(len(targets_N), dtype=torch.float32, device=x_NC.device)
    for rows, logits_RV in _logits(x_NC, weight_VC):
        for few, logprobs_FV in few_logprobs(logits_RV):
            losses_N[rows][few] = -logprobs_FV.gather(1, targets_N[rows][few, None])[:, 0]
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
    for rows, logits_RV in _logits(x_NC, weight_VC):
        for few, logprobs_FV in few_logprobs(logits_RV):
            target_F1 = logprobs_FV.gather(1, targets_N[rows][few, None])
            nats_N[rows][few] = -target_F1[:, 0]
            rank_N[rows][few] = _at_least(logprobs_FV, target_F1)
            top_N[rows][few] = logprobs_FV.amax(1).exp()
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


def _logits(x_NC: Tensor, weight_VC: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Each chunk's rows and logits, in the dtype of the products; how large a chunk is does not depend on the rows.

    Who has done with a chunk's logits must let go of them (`del`), or the next chunk is made beside them.
    """
    dtype = product_dtype(weight_VC)
    x_NC, weight_VC = x_NC.to(dtype), weight_VC.to(dtype)
    step = max(1, CHUNK_BYTES // (len(weight_VC) * dtype.itemsize))
    for start in range(0, len(x_NC), step):
        rows = slice(start, min(start + step, len(x_NC)))
        with torch.autocast(x_NC.device.type, enabled=False):
            logits_RV = x_NC[rows] @ weight_VC.T
        yield rows, logits_RV
        del logits_RV
