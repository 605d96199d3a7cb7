"""How likely a model finds given words after given words: what multiple-choice and cloze tasks ask of it.

The rules are those of the Hugging Face backend of EleutherAI's harness (lm-eval 0.4, `lm_eval/models/huggingface.py`),
so that its figures and ours can be compared: what does not fit the context is cut off at the left, batches are padded
at the right, and log-probabilities are float32 and in nats.

Shapes: B batch, T tokens, C width, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gptmodel.errors import DataError
from gptmodel.loss import token_scores
from gptmodel.model import GPT
from gptmodel.progress import Progress


@dataclass(frozen=True)
class Continuation:
    """Token ids that are scored, and those before them, which are only read."""

    context: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """Of a continuation: the sum of its tokens' log-probabilities, and whether greedy decoding would write it."""

    log_probability: float
    """Nats, at most 0."""
    greedy: bool


def score_continuations(
    model: GPT, wanted: Sequence[Continuation], *, batch_size: int, progress: Progress | None = None
) -> list[Likelihood]:
    """The likelihood of each, in order. The model reads what several share once: choices of a single token are free.

    DataError for a continuation or a context without tokens, and for a continuation that is longer than the context
    of the model: there is no rule by which it could be scored whole.
    """
    readers: dict[tuple[int, ...], list[int]] = {}
    for number, one in enumerate(wanted):
        readers.setdefault(_read(one, number, model.config.context_length), []).append(number)
    inputs = sorted(readers, key=lambda ids: (-len(ids), ids))  # the longest first: what does not fit fails at once
    found: dict[int, Likelihood] = {}
    for start in range(0, len(inputs), batch_size):
        rows = inputs[start : start + batch_size]
        places = [(row, number) for row, ids in enumerate(rows) for number in readers[ids]]
        for (_, number), likelihood in zip(places, _score(model, rows, places, wanted), strict=True):
            found[number] = likelihood
        if progress is not None:
            progress(len(found), len(wanted), "continuations")
    return [found[number] for number in range(len(wanted))]


def _read(one: Continuation, number: int, context_length: int) -> tuple[int, ...]:
    """What the model reads to score it: the tokens before its last one, the last `context_length` of them."""
    if not one.context or not one.ids:
        empty = "continuation" if one.context else "context"
        raise DataError(f"request {number} has a {empty} without tokens, so there is nothing to score; mend the task")
    if len(one.ids) > context_length:
        raise DataError(
            f"request {number} has a continuation of {len(one.ids):,} tokens, and the model reads {context_length:,} "
            "at a time; take a model with a longer context, or a task with shorter answers"
        )
    return (*one.context, *one.ids)[:-1][-context_length:]


@torch.no_grad()
def _score(
    model: GPT, rows: list[tuple[int, ...]], places: list[tuple[int, int]], wanted: Sequence[Continuation]
) -> Iterator[Likelihood]:
    device = model.wte.weight.device
    longest = max(map(len, rows))
    # What stands at the right of a token changes nothing for it.
    ids_BT = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    x_BTC = model.hidden(ids_BT)
    # The last token read has the logits of the continuation's last one.
    parts = [x_BTC[row, len(rows[row]) - len(wanted[number].ids) : len(rows[row])] for row, number in places]
    targets_N = torch.tensor([token for _, number in places for token in wanted[number].ids], device=device)
    scores = token_scores(torch.cat(parts), model.wte.weight, targets_N)
    start = 0
    for part in parts:
        scored = slice(start, start := start + len(part))
        total = -scores.nats[scored].sum(dtype=torch.float64)
        yield Likelihood(float(total), bool((scores.rank[scored] == 1).all()))
