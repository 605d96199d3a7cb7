"""From logits to a token: which may come next, how likely each is, and the draw.

The steps, in this order (the one of `transformers`): repetition penalty, temperature, top-k, top-p, min-p. Each works
on what the one before it left; probabilities are taken anew over what stays. At temperature 0 the likeliest token is
taken after the penalty, and the filters, which never drop it, do not matter.

Shapes: B rows, V vocabulary, K tokens that may come next, from the likeliest down wherever a filter sorted them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptmodel.config import DecodingConfig
from gptmodel.errors import DataError

_HEAD = 1024  # likeliest tokens that top-p looks at before it sorts the whole vocabulary, which costs 30 times as much


def penalize_repeated(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits of tokens that were read or written before, divided by the penalty if positive, multiplied if negative.

    Keskar et al. 2019 (CTRL), with the sign rule that `transformers` gave it; above 1 makes repetition less likely.
    """
    return torch.where(seen_BV, torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)


def choices(logits_V: Tensor, decoding: DecodingConfig) -> tuple[Tensor, Tensor]:
    """The tokens that may come next and how likely each is: (ids [K], float64 probabilities [K] that sum to 1).

    The logits are already penalized. Temperature 0 leaves the likeliest token alone.
    """
    if decoding.temperature == 0:
        return logits_V.argmax()[None], torch.ones(1, dtype=torch.float64)
    logits_V = logits_V.double()
    # the largest becomes 0 first: a tiny temperature then cannot make it inf
    values_K, ids_K = (logits_V - logits_V.max()) / decoding.temperature, torch.arange(len(logits_V))
    if 0 < decoding.top_k < len(values_K):
        values_K, ids_K = values_K.topk(decoding.top_k)  # exactly k stay, ties or not
    if decoding.top_p < 1:
        values_K, places = _nucleus(values_K, decoding.top_p)
        ids_K = ids_K[places]
    if decoding.min_p > 0:
        stay = values_K.exp() >= decoding.min_p  # the largest value is 0, so this is p / p_max
        values_K, ids_K = values_K[stay], ids_K[stay]
    return ids_K, torch.softmax(values_K, dim=-1)


def _nucleus(values_K: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The smallest set of largest values whose probabilities reach p (Holtzman et al. 2019), and their places.

    The largest always stays.
    """
    total = values_K.logsumexp(-1)
    for size in (min(_HEAD, len(values_K)), len(values_K)):
        ordered, places = values_K.topk(size) if size < len(values_K) else values_K.sort(descending=True, stable=True)
        probs = (ordered - total).exp()
        n = max(1, int(((probs.cumsum(-1) - probs) < p).sum()))  # those before which p is not yet reached
        if n < size:
            break
    return ordered[:n], places[:n]


def sample(logits_V: Tensor, decoding: DecodingConfig, generator: torch.Generator) -> int:
    """One token, drawn from `choices`; likeliest at temperature 0.

    The draw is a race: each token of the vocabulary gets an exponential time, divided by its probability, and the first
    to arrive wins (what `torch.multinomial` does). Filters thus do not change the time that a token drew, and a
    difference by rounding changes a draw only where two tokens arrive together.
    """
    ids_K, probs_K = choices(logits_V, decoding)
    if decoding.temperature == 0:
        return int(ids_K)
    # What `exponential_` makes of the same draws, with a logarithm for the tokens in question only.
    uniform_V = torch.empty(len(logits_V), dtype=torch.float64).uniform_(generator=generator)
    times_K = -torch.log1p(-uniform_V[ids_K])
    return int(ids_K[(probs_K / times_K).argmax()])


def sample_rows(logits_BV: Tensor, decoding: DecodingConfig, generators: list[torch.Generator]) -> list[int]:
    """One token for each row, each from its own generator. DataError where logits are nan or infinite."""
    if not logits_BV.isfinite().all():
        raise DataError("the model's logits are not numbers (nan or inf); its weights are damaged or training diverged")
    if decoding.temperature == 0:
        greedy: list[int] = logits_BV.argmax(dim=-1).tolist()
        return greedy
    return [sample(row_V, decoding, generator) for row_V, generator in zip(logits_BV, generators, strict=True)]
