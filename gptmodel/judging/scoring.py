"""What a model thought of each token of a stream: its loss, its rank, and how sure the model was.

A window is as many tokens as the model's context holds. Plain windows lie end to end, so every token but the stream's
first is predicted once, the first of a window with next to no context. With a stride below the context the windows
slide: each goes `stride` tokens on, and only what no window before it reached is scored in it, so that a token has at
least context - stride tokens before it, or all there are. Where the stride divides the context this is the sliding
window that https://huggingface.co/docs/transformers/perplexity describes. The plain windows are among the sliding
ones, so the plain losses come along free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gptmodel.config import EvaluateConfig
from gptmodel.errors import ConfigError
from gptmodel.progress import Progress
from gptmodel.tokens.batches import Stream

if TYPE_CHECKING:  # a flow must import fast, and torch takes seconds
    from gptmodel.model import GPT


@dataclass(frozen=True)
class Scores:
    """The scored tokens [N], by their `positions` in the stream, rising."""

    positions: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    """The token at each position."""
    nats: npt.NDArray[np.float32]
    """Loss with the stride that was asked for."""
    plain_nats: npt.NDArray[np.float32]
    """Loss in windows that do not overlap; the same array where the stride is the context."""
    rank: npt.NDArray[np.int32]
    """Tokens that the model held at least as probable, itself counted: 1 is the one most probable. With the stride."""
    top_probability: npt.NDArray[np.float32]
    """Probability of the token that the model held most probable. With the stride."""

    def correct(self, k: int = 1) -> npt.NDArray[np.bool_]:
        """Whether the token was among the k that the model held most probable; a tie with the k-th is not."""
        return self.rank <= k


class Window(NamedTuple):
    """Inputs start to stop of the stream, which predict start + 1 to stop + 1."""

    start: int
    stop: int
    at: int
    """Where in the scores its last prediction goes, plus one."""
    fresh: int
    """How many of its last predictions are scored with the stride."""
    plain: bool
    """Whether all of its predictions are the plain ones."""

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def needed(self) -> int:
        """How many of its last predictions are looked at."""
        return self.length if self.plain else self.fresh


def score_tokens(model: GPT, stream: Stream, config: EvaluateConfig, progress: Progress | None = None) -> Scores:
    """Scores of stream tokens 1, 2, … in float32; with max_tokens, of plain windows spread evenly over the stream.

    ConfigError where the stride is longer than the context.
    """
    import torch

    context = model.config.context_length
    stride = stride_of(config, context)
    spans = plain_spans(stream.n_tokens, context, config.max_tokens)
    n = sum(stop - start for start, stop in spans)
    nats, top = np.empty(n, np.float32), np.empty(n, np.float32)
    plain = nats if stride == context else np.empty(n, np.float32)
    targets, rank = np.empty(n, np.int64), np.empty(n, np.int32)
    work = sum(window.length for window in windows_of(spans, context, stride))
    done = 0
    with torch.no_grad():
        for batch in _batches(windows_of(spans, context, stride), config.batch_size):
            rows = np.stack([stream.slice(w.start, w.stop + 1).astype(np.int64) for w in batch])
            needed = batch[0].needed
            found = _score(model, rows, needed)
            for row, window in enumerate(batch):
                place = slice(window.at - window.fresh, window.at)
                fresh = slice(needed - window.fresh, needed)
                targets[place] = rows[row, rows.shape[1] - window.fresh :]
                nats[place], rank[place], top[place] = (scored[row, fresh] for scored in found)
                if window.plain:
                    plain[window.at - needed : window.at] = found[0][row]
            done += sum(window.length for window in batch)
            if progress:
                progress(done, work, "tokens")
    positions = np.concatenate([np.arange(start + 1, stop + 1) for start, stop in spans])
    return Scores(positions, targets, nats, plain, rank, top)


def stride_of(config: EvaluateConfig, context: int) -> int:
    """The stride that a model of this context is scored with."""
    if config.stride > context:
        raise ConfigError(
            f"evaluate.stride is {config.stride:,} and the model's context {context:,}: tokens between the windows "
            f"would not be scored; give at most {context:,}, or 0 for windows that do not overlap"
        )
    return config.stride or context


def plain_spans(n_tokens: int, context: int, max_tokens: int) -> list[tuple[int, int]]:
    """The windows that lie end to end: all of a stream, or so many, spread evenly, as hold about max_tokens."""
    end = n_tokens - 1
    starts = np.arange(0, end, context)
    if max_tokens and len(starts) > (wanted := max(1, max_tokens // context)):
        starts = starts[np.arange(wanted) * len(starts) // wanted]
    return [(int(start), min(int(start) + context, end)) for start in starts]


def windows_of(spans: list[tuple[int, int]], context: int, stride: int) -> Iterator[Window]:
    """The windows that score every token of the plain ones with the stride, and these themselves among them."""
    at = 0
    for first, last in spans:
        at += last - first
        plain_fresh = 0
        # The stream's first window has nothing before it that could be slid over.
        for begin in range(first, last, context if first == 0 else stride):
            end = min(begin + (context if first == 0 else stride), first + context)
            start, stop = max(0, end - context), min(end, last)
            if (start, stop) == (first, last):
                plain_fresh = stop - begin
            else:
                yield Window(start, stop, at - (last - stop), stop - begin, plain=False)
        yield Window(first, last, at, plain_fresh, plain=True)


def _batches(windows: Iterator[Window], size: int) -> Iterator[list[Window]]:
    """Windows of one shape together, in order as far as that allows."""
    waiting: dict[tuple[int, int], list[Window]] = {}
    for window in windows:
        batch = waiting.setdefault((window.length, window.needed), [])
        batch.append(window)
        if len(batch) == size:
            yield batch
            del waiting[window.length, window.needed]
    yield from waiting.values()


def _score(model: GPT, rows: npt.NDArray[np.int64], needed: int) -> list[npt.NDArray[Any]]:
    """Nats, rank and top probability [rows, needed] of the last `needed` tokens of each row."""
    import torch

    ids = torch.from_numpy(rows).to(model.wte.weight.device)
    scored = model.token_scores(ids[:, :-1], ids[:, rows.shape[1] - needed :])
    return [part.cpu().numpy() for part in scored]
