"""Surprisal: what each token of a passage cost the model, and what it held likely in its place.

The surprisal of a token is the loss of it alone, -ln p(token | what stands before it), in nats; its mean over a text is
the cross-entropy, and `exp` of that the perplexity (`docs/loss.md`). A passage is read alone: its first token is
predicted from the end-of-text token, which is all that GPT-2 knows of a beginning. One longer than the context is read
in windows that overlap by half, and each token is scored once, with at least half a context before it.

Shapes: T tokens of a window, R rows of one chunk, C width, V vocabulary, K candidates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptmodel.errors import ConfigError, DataError
from gptmodel.judging.pieces import whole
from gptmodel.markdown_text import spread
from gptmodel.store.artifacts import Artifact
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.tokenstream import TokenStream

if TYPE_CHECKING:  # a flow must import fast, and torch takes seconds
    from torch import Tensor

    from gptmodel.model import GPT

SURPRISAL_FILE = "surprisal.json"
_CANDIDATES = 8
_ROWS = 128  # logits at a time: 26 MB in float32


@dataclass(frozen=True)
class Passage:
    """A passage and what the model made of it; all lists are as long as it has tokens."""

    tokens: list[int]
    nats: list[float]
    """Loss of each token."""
    ranks: list[int]
    """Tokens that the model held at least as likely, itself counted: 1 is its first guess."""
    candidates: list[list[tuple[int, float]]]
    """The likeliest tokens at each place, with their probabilities."""
    document: str = ""
    """Id of the document that it begins, or nothing."""
    source: str = ""
    """Where that came from, if it is known."""
    is_cut: bool = False
    """Whether the text goes on after it."""

    @property
    def name(self) -> str:
        """For people."""
        if not self.document:
            return "The text"
        return f"The beginning of {self.source or 'document'} ({self.document[:12]})"

    @cached_property
    def figures(self) -> Figures:
        return Figures.of([self])


@dataclass(frozen=True)
class Figures:
    """A passage, or several, in numbers."""

    tokens: int
    loss: float
    """Mean loss in nats per token: the cross-entropy."""
    bits_per_byte: float
    """nan for a text without bytes."""
    accuracy: float
    """Share of tokens that the model held likeliest."""

    @classmethod
    def of(cls, passages: Sequence[Passage]) -> Figures:
        """ValueError for no token at all."""
        nats = [loss for passage in passages for loss in passage.nats]
        if not nats:
            raise ValueError("no token was scored")
        lengths = gpt2().byte_lengths
        n_bytes = sum(int(lengths[passage.tokens].sum()) for passage in passages)
        total = math.fsum(nats)
        hits = sum(rank == 1 for passage in passages for rank in passage.ranks)
        bits = total / math.log(2) / n_bytes if n_bytes else math.nan
        return cls(len(nats), total / len(nats), bits, hits / len(nats))

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits(self) -> float:
        """Bits per token."""
        return self.loss / math.log(2)


def read_text(model: GPT, text: str, *, max_tokens: int = 0) -> Passage:
    """What the model makes of a text; of its first `max_tokens` tokens if that is not 0.

    ConfigError for an empty text, and for a model that does not know GPT-2's tokens; DataError for invalid Unicode.
    """
    ids = gpt2().encode(text).tolist()
    if not ids:
        raise ConfigError("the text is empty, so there is no token to score; give some text")
    kept = whole(ids[:max_tokens]) if max_tokens else ids
    return read_tokens(model, kept, is_cut=len(kept) < len(ids))


def read_documents(
    model: GPT, stream: TokenStream, came_from: Mapping[str, str], *, passages: int, max_tokens: int
) -> list[Passage]:
    """The beginnings of documents that are spread evenly over a split: the same ones for every model.

    `came_from` names the sources of documents by their ids, as far as they are known.
    """
    index, found = stream.documents(), []
    for number in spread(range(len(index.ids)), max(2, passages))[:passages]:
        start, length = int(index.starts[number]), int(index.n_tokens[number])
        kept = stream.slice(start, start + min(length, max_tokens)).tolist()
        kept = whole(kept) if len(kept) < length else kept
        if kept:
            read = read_tokens(model, kept, is_cut=len(kept) < length)
            found.append(replace(read, document=index.ids[number], source=came_from.get(index.ids[number], "")))
    return found


def read_tokens(model: GPT, ids: Sequence[int], *, is_cut: bool = False) -> Passage:
    """What the model makes of these tokens, at least one. ConfigError if its vocabulary is smaller than GPT-2's."""
    import torch

    tokenizer = gpt2()
    if model.config.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"the model knows {model.config.vocab_size:,} tokens and GPT-2's vocabulary has {tokenizer.vocab_size:,}: "
            "what its tokens spell is not known here; take a model of GPT-2's vocabulary"
        )
    read = [tokenizer.end_token, *ids]
    nats, ranks, candidates = list[float](), list[int](), list[list[tuple[int, float]]]()
    with torch.no_grad():
        for start, skipped, stop in _windows(len(ids), model.config.context_length):
            window = torch.tensor([read[start : stop + 1]], device=model.wte.weight.device)
            x_TC = model.hidden(window[:, :-1])[0, skipped:]
            for losses, places, likeliest in _read_rows(model, x_TC, window[0, skipped + 1 :]):
                nats += losses
                ranks += places
                candidates += likeliest
    return Passage(list(ids), nats, ranks, candidates, is_cut=is_cut)


def _windows(n_tokens: int, context: int) -> Iterator[tuple[int, int, int]]:
    """Where each window begins, how many of its tokens were scored before, and where it ends."""
    start, done = 0, 0
    while done < n_tokens:
        stop = min(start + context, n_tokens)
        yield start, done - start, stop
        done, start = stop, stop - context // 2


Rows = tuple[list[float], list[int], list[list[tuple[int, float]]]]


def _read_rows(model: GPT, x_TC: Tensor, targets_T: Tensor) -> Iterator[Rows]:
    """Losses, ranks and candidates of the tokens that follow each place."""
    known = gpt2().vocab_size  # ids of a padded table stand for nothing, but take their share of the probability
    for start in range(0, len(targets_T), _ROWS):
        targets_R1 = targets_T[start : start + _ROWS, None]
        logits_RV = model.logits(x_TC[start : start + _ROWS]).float()
        logprobs_RV = logits_RV.log_softmax(-1)
        own_R1 = logprobs_RV.gather(1, targets_R1)
        ranks_R = (logits_RV[:, :known] >= logits_RV.gather(1, targets_R1)).sum(1)  # fewer ties than logprobs have
        best_RK, ids_RK = logprobs_RV[:, :known].topk(_CANDIDATES, dim=1)
        likeliest = [
            [(token, float(f"{p:.4g}")) for token, p in zip(*row, strict=True)]
            for row in zip(ids_RK.tolist(), best_RK.exp().tolist(), strict=True)
        ]
        yield [round(-loss, 5) for loss in own_R1[:, 0].tolist()], ranks_R.tolist(), likeliest


def as_json(passages: Sequence[Passage]) -> str:
    """For `from_json`, and for other programs."""
    return json.dumps({"passages": [asdict(passage) for passage in passages]}, separators=(",", ":")) + "\n"


def from_json(path: Path) -> list[Passage]:
    """Passages as `as_json` wrote them; DataError for what is none."""
    try:
        return [_passage(said) for said in json.loads(path.read_text(encoding="utf-8"))["passages"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not hold passages ({error}); evaluate the model again") from None


def passages_of(evaluation: Artifact) -> list[Passage]:
    """The passages that an evaluation kept; none of one that was made before it kept any."""
    if SURPRISAL_FILE not in evaluation.names():
        return []
    return from_json(evaluation.file(SURPRISAL_FILE))


def _passage(said: dict[str, Any]) -> Passage:
    candidates = [[(int(token), float(p)) for token, p in row] for row in said.pop("candidates")]
    found = Passage(candidates=candidates, **said)
    if len({len(found.tokens), len(found.nats), len(found.ranks), len(candidates)}) != 1:
        raise ValueError("lists of different lengths")
    return found
