"""Writing text: tokens in, new tokens out, one at a time, with a cache of keys and values.

A row's window is what the model reads: its prompt and what it wrote. When a window outgrows the context, only its
last `context_length // 2` tokens are kept, re-read from position 0, and writing goes on. The repetition penalty counts
the whole text, with what fell out of the window. Each row draws from its own generator, seeded by (seed, row), so a
batch writes what its rows would write alone. Rows with the same window are read once: n samples of one prompt cost the
prompt once.

Shapes: B rows, T tokens, C width, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptmodel.config import GPT2_VOCAB_SIZE, DecodingConfig
from gptmodel.errors import DataError
from gptmodel.few_rows import FewRows, few_rows_linear, few_rows_of
from gptmodel.model import GPT, KVCache
from gptmodel.progress import Progress
from gptmodel.sampling import penalize_repeated, sample_rows

GPT2_END_TOKEN = GPT2_VOCAB_SIZE - 1


@overload
def generate(
    model: GPT,
    ids: Sequence[int] | NDArray[np.unsignedinteger],
    *,
    decoding: DecodingConfig = ...,
    end_token: int | None = ...,
    row: int = ...,
    use_cache: bool = ...,
) -> list[int]: ...
@overload
def generate(
    model: GPT,
    ids: Tensor | Sequence[Sequence[int]],
    *,
    decoding: DecodingConfig = ...,
    end_token: int | None = ...,
    row: int = ...,
    use_cache: bool = ...,
) -> list[int] | list[list[int]]: ...
def generate(
    model: GPT,
    ids: Sequence[int] | Sequence[Sequence[int]] | Tensor | NDArray[np.unsignedinteger],
    *,
    decoding: DecodingConfig = DecodingConfig(),  # noqa: B008 - frozen
    end_token: int | None = GPT2_END_TOKEN,
    row: int = 0,
    use_cache: bool = True,
) -> list[int] | list[list[int]]:
    """The new tokens only, without the prompt; an end token that stopped it is the last of them.

    `ids` is one prompt (list of ints, 1-D array or tensor: a list of ids comes back) or a batch of them (list of lists
    or 2-D tensor: a list of lists). An empty prompt starts from `end_token`. `row` is the number of the first row's
    generator, so that a single run can repeat row 3 of a batch. DataError for an id outside the vocabulary.
    """
    plain: list[Any] = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if plain and isinstance(plain[0], Sequence | Tensor):
        prompts = [list(prompt) for prompt in plain]
        return generate_batch(model, prompts, decoding=decoding, end_token=end_token, row=row, use_cache=use_cache)
    return list(stream(model, plain, decoding=decoding, end_token=end_token, row=row, use_cache=use_cache))


def stream(
    model: GPT,
    ids: Sequence[int],
    *,
    decoding: DecodingConfig = DecodingConfig(),  # noqa: B008 - frozen
    end_token: int | None = GPT2_END_TOKEN,
    row: int = 0,
    use_cache: bool = True,
) -> Iterator[int]:
    """The tokens of `generate`, each as soon as it is there. Errors come at the call, not at the first token."""
    writer = Writer(model, [list(ids)], decoding, end_token, row, use_cache)
    return (token for tokens in writer for token in tokens.values())


def generate_batch(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    decoding: DecodingConfig = DecodingConfig(),  # noqa: B008 - frozen
    end_token: int | None = GPT2_END_TOKEN,
    row: int = 0,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> list[list[int]]:
    """New tokens for each prompt, of whatever lengths: those of single runs, up to rounding between batch sizes."""
    new: list[list[int]] = [[] for _ in prompts]
    if not prompts:
        return new
    writer = Writer(model, [list(prompt) for prompt in prompts], decoding, end_token, row, use_cache)
    for done, tokens in enumerate(writer, start=1):
        for index, token in tokens.items():
            new[index].append(token)
        if progress is not None:
            progress(done, decoding.max_new_tokens, "tokens")
    return new


def window_of(ids: list[int], context: int) -> list[int]:
    """What is read of a text: all of it, or the last half of the context where it is longer than that."""
    return ids if len(ids) <= context else ids[-max(1, context // 2) :]


class Writer:
    """An iterator over steps: which token each row that is not finished wrote, by row. Arguments as of `generate`."""

    def __init__(
        self,
        model: GPT,
        prompts: list[list[int]],
        decoding: DecodingConfig,
        end_token: int | None,
        first_row: int,
        use_cache: bool,
        vocab_size: int = 0,
    ) -> None:
        """`vocab_size` is how many ids have a meaning, where the model's table was padded to more; 0 is all."""
        self._vocab_size = vocab_size or model.config.vocab_size
        self._model, self._decoding, self._use_cache = model, decoding, use_cache
        self._stop = end_token if decoding.stop_at_end_token else None
        self._context = model.config.context_length
        self._windows = [_checked(prompt, end_token, model.config.vocab_size) for prompt in prompts]
        self._generators = [_generator(decoding.seed, first_row + row) for row in range(len(prompts))]
        self._open = list(range(len(prompts)))  # rows that still write
        self._in_cache: list[int] = []  # rows that the cache holds, in its order
        self._cache: KVCache | None = None
        self._left = decoding.max_new_tokens
        self._weights: FewRows | None = None
        self._seen_BV: Tensor | None = None  # which tokens each row has read or written
        if decoding.repetition_penalty != 1:
            self._seen_BV = torch.zeros(len(prompts), self._vocab_size, dtype=torch.bool)
            for row, window in enumerate(self._windows):
                self._see(row, window)

    def _see(self, row: int, tokens: list[int]) -> None:
        if self._seen_BV is not None:
            self._seen_BV[row, [token for token in tokens if token < self._vocab_size]] = True

    def __iter__(self) -> Iterator[dict[int, int]]:
        return self

    def finish(self, row: int) -> None:
        """This row writes no more."""
        self._open = [other for other in self._open if other != row]

    @torch.no_grad()  # not around a yield: it would reach into the caller
    def __next__(self) -> dict[int, int]:
        if not self._open or self._left == 0:
            raise StopIteration
        with _evaluating(self._model), self._precision():
            logits_BV = self._next_logits()[:, : self._vocab_size].float().cpu()
        rows = self._in_cache
        if len(self._open) < len(rows):  # some have ended since the cache was filled
            logits_BV = logits_BV[[place for place, row in enumerate(rows) if row in self._open]]
            rows = self._open
        if self._seen_BV is not None:
            logits_BV = penalize_repeated(logits_BV, self._seen_BV[rows], self._decoding.repetition_penalty)
        tokens = sample_rows(logits_BV, self._decoding, [self._generators[row] for row in rows])
        drawn = dict(zip(rows, tokens, strict=True))
        for row, token in drawn.items():
            self._windows[row].append(token)
            self._see(row, [token])
        self._open = [row for row in self._open if self._stop is None or drawn[row] != self._stop]
        self._left -= 1
        return drawn

    def _next_logits(self) -> Tensor:
        """Logits after the last token of every row in the cache, [B, V]."""
        if self._weights is None:
            self._weights = few_rows_of(self._model, self._model.wte.weight, len(self._open), self._left)
        if self._weights is None:
            return self._model.logits(self._last_hidden())
        with self._weights.at_work():
            return few_rows_linear(self._last_hidden(), self._weights.head, None)

    def _last_hidden(self) -> Tensor:
        """The model's output after the last token of every row in the cache, [B, C]."""
        if self._cache is None or not self._use_cache or self._cache.length == self._cache.capacity:
            return self._read_windows()
        if 2 * len(self._open) <= len(self._in_cache):
            self._cache.take([place for place, row in enumerate(self._in_cache) if row in self._open])
            self._in_cache = self._open
        # a finished row goes on being fed its last token, unread, until half of the rows are finished
        last_B1 = self._tensor([[self._windows[row][-1]] for row in self._in_cache])
        return self._model.hidden(last_B1, self._cache)[:, -1]

    def _precision(self) -> AbstractContextManager[Any]:
        """Where the caller has set autocast already, float32 leaves it as it is."""
        if self._decoding.precision == "bfloat16":
            return torch.autocast(self._model.wte.weight.device.type, torch.bfloat16)
        return nullcontext()

    def _read_windows(self) -> Tensor:
        """Start the cache anew from the windows of the open rows, padded on the left to the longest.

        Rows with the same window share one reading.
        """
        self._in_cache = self._open
        for row in self._in_cache:
            self._windows[row] = window_of(self._windows[row], self._context)
        places: dict[tuple[int, ...], int] = {}
        of_row = [places.setdefault(tuple(self._windows[row]), len(places)) for row in self._in_cache]
        longest = max(map(len, places))
        padding = [longest - len(window) for window in places]
        self._cache = KVCache(
            capacity=min(self._context, longest + self._left - 1),
            padding_B=self._tensor(padding) if any(padding) else None,
        )
        ids_BT = self._tensor([[0] * gap + list(window) for gap, window in zip(padding, places, strict=True)])
        x_BC = self._model.hidden(ids_BT, self._cache)[:, -1]
        if len(places) == len(of_row):
            return x_BC
        self._cache.take(of_row)
        return x_BC[of_row]

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._model.wte.weight.device)


def _checked(prompt: list[int], end_token: int | None, vocab_size: int) -> list[int]:
    if not prompt:
        if end_token is None:
            raise DataError("the prompt is empty and there is no end token to start from; give at least one token")
        prompt = [end_token]
    for place, token in enumerate(prompt):
        if not 0 <= token < vocab_size:
            raise DataError(
                f"token {token} at place {place} of the prompt is outside the model's vocabulary of {vocab_size:,}; "
                "encode the prompt with the model's own tokenizer"
            )
    return [int(token) for token in prompt]


def _generator(seed: int, row: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {row}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextmanager
def _evaluating(model: GPT) -> Iterator[None]:
    """Dropout off while the body runs; what was training trains again after it."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
