"""One step of a model in numbers: what it gives each token that could come next, and what it gave those that came.

`docs/tutorial.md` walks through both. Texts here are read as they stand: the first token is read and not predicted, so
n tokens make n - 1 predictions, the targets being the tokens shifted by one. (`judging.surprisal` scores the first
token too, from the end-of-text token.)

Shapes: T tokens, V vocabulary, K tokens that may come next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from gptmodel.config import DecodingConfig
from gptmodel.errors import ConfigError, DataError
from gptmodel.tokenizer import gpt2

if TYPE_CHECKING:  # the command line must start fast, and torch takes seconds
    from torch import Tensor

    from gptmodel.model import GPT


@dataclass(frozen=True)
class Choice:
    """A token that could come next."""

    token: int
    logit: float
    probability: float
    """Softmax of the logits, over the whole vocabulary."""
    drawn_with: float
    """With which probability decoding takes it; 0 where a filter dropped it."""


@dataclass(frozen=True)
class Prediction:
    """A place in a text: the token read there last, the one that came, and what the model thought of it."""

    after: int
    target: int
    log_probability: float
    """ln of what the model gave the target, at most 0."""

    @property
    def probability(self) -> float:
        return math.exp(self.log_probability)


@dataclass(frozen=True)
class Loss:
    """All predictions of some texts, and their mean."""

    predictions: list[list[Prediction]]
    """Those of each text."""

    @property
    def mean_log_probability(self) -> float:
        found = [each.log_probability for text in self.predictions for each in text]
        return math.fsum(found) / len(found)

    @property
    def loss(self) -> float:
        """Cross-entropy in nats per token."""
        return -self.mean_log_probability

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))


def next_choices(model: GPT, text: str, decoding: DecodingConfig) -> tuple[list[Choice], int]:
    """Every token of GPT-2's vocabulary from the likeliest down, and how many of them decoding may take.

    An empty text is gone on with from the end-of-text token. Of a text longer than the context its end is
    read, as much as `generate` reads. ConfigError for a model of another vocabulary, DataError for text that is not
    valid Unicode.
    """
    import torch

    from gptmodel.generate import window_of
    from gptmodel.sampling import choices, penalize_repeated

    _check_vocabulary(model)
    ids = gpt2().encode(text).tolist() or [gpt2().end_token]
    logits_V = _logits(model, window_of(ids, model.config.context_length))[-1]
    probs_V = logits_V.double().softmax(-1)
    bent_V = logits_V[: gpt2().vocab_size]
    if decoding.repetition_penalty != 1:
        seen_V = torch.zeros(len(bent_V), dtype=torch.bool)
        seen_V[ids] = True
        bent_V = penalize_repeated(bent_V, seen_V, decoding.repetition_penalty)
    ids_K, probs_K = choices(bent_V, decoding)
    drawn_V = torch.zeros(len(bent_V), dtype=torch.float64).scatter_(0, ids_K, probs_K)
    order_V = logits_V[: len(bent_V)].argsort(descending=True, stable=True)
    columns = (order_V, logits_V[order_V], probs_V[order_V], drawn_V[order_V])
    return [Choice(*row) for row in zip(*(column.tolist() for column in columns), strict=True)], len(ids_K)


def loss_of(model: GPT, texts: Sequence[str]) -> Loss:
    """What the model gave each token of these texts but the first.

    ConfigError for a text of fewer than two tokens, and for a model of another vocabulary; DataError for a text of more
    tokens than the model's context and one.
    """
    _check_vocabulary(model)
    found = []
    for text in texts:
        ids = gpt2().encode(text).tolist()
        if len(ids) < 2:
            raise ConfigError(f"the text {text!r} has {len(ids)} token{'s'[: len(ids) != 1]}; give two or more")
        if len(ids) > model.config.context_length + 1:
            raise DataError(
                f"the text has {len(ids):,} tokens and the model reads {model.config.context_length:,}; give a shorter "
                "one, or use `gptflow surprise`, which reads in windows"
            )
        logprobs_TV = _logits(model, ids[:-1]).double().log_softmax(-1)
        rows = enumerate(pairwise(ids))
        found.append([Prediction(after, target, logprobs_TV[t, target].item()) for t, (after, target) in rows])
    return Loss(found)


def _logits(model: GPT, ids: list[int]) -> Tensor:
    """[T, V] in float32 on the processor. DataError where they are no numbers."""
    import torch

    model.eval()
    with torch.no_grad():
        logits_TV: Tensor = model(torch.tensor([ids], device=model.wte.weight.device))[0].float().cpu()
    if not logits_TV.isfinite().all():
        raise DataError("the model's logits are not numbers (nan or inf); its weights are damaged or training diverged")
    return logits_TV


def _check_vocabulary(model: GPT) -> None:
    if model.config.vocab_size < gpt2().vocab_size:
        raise ConfigError(
            f"the model knows {model.config.vocab_size:,} tokens and GPT-2's vocabulary has {gpt2().vocab_size:,}: "
            "what its tokens spell is not known here; take a model of GPT-2's vocabulary"
        )
