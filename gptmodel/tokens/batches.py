"""Which tokens each optimizer step sees: a pure function of (seed, step, rank, world).

The stream is cut into windows of T tokens that do not overlap; window w covers inputs stream[w*T : w*T+T], and its
targets lie one token further. Sample number g = step * batch_size + j, for row j of the batch, is place g % n_windows
of epoch g // n_windows, and a permutation for that seed and epoch says which window stands there. So each window is
seen once in every epoch, and any step can be worked out alone.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from gptmodel.errors import ConfigError, DataError
from gptmodel.tokens.permutation import Numbers, Permutation

if TYPE_CHECKING:  # the order of the data is asked for without a model too, and torch takes seconds
    from torch import Tensor


_AHEAD = 64  # steps


class Stream(Protocol):
    """What is needed of a token stream; `gptmodel.tokens.shards.TokenStream` is one."""

    @property
    def n_tokens(self) -> int: ...

    def slice(self, start: int, stop: int) -> npt.NDArray[np.uint16]: ...


@dataclass(frozen=True)
class Sightings:
    """Rows in which windows stand, by step and row: arrays of one length. All count from 0."""

    steps: Numbers
    rows: Numbers
    """Of the whole batch, over all ranks."""
    epochs: Numbers
    windows: Numbers


class Batches:
    """Training batches of one rank. Steps count from 0; the order of the data depends on seed and batch_size alone.

    ConfigError where batch_size is not a multiple of micro_batch_size x world; DataError where the stream is shorter
    than one window.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        context_length: int,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        _check_sizes(batch_size, micro_batch_size, rank, world)
        self.n_windows = count_windows(stream, context_length)
        self.context_length = context_length
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self._stream = stream
        self._rows = range(rank * batch_size // world, (rank + 1) * batch_size // world)
        self._ahead_steps = range(0)  # whose windows `_ahead` holds, [steps, rows]
        self._ahead = np.empty((0, len(self._rows)), np.int64)

    def windows(self, step: int) -> Numbers:
        """Window numbers of this rank's rows at a step, in row order [batch_size / world]."""
        if step not in self._ahead_steps:  # a permutation of a few numbers costs as much as one of hundreds
            first = step - step % _AHEAD
            self._ahead_steps = range(first, first + _AHEAD)
            self._ahead = self._windows(self._ahead_steps, self._rows)
        found: Numbers = self._ahead[step - self._ahead_steps.start].copy()
        return found

    def micro_batch_number(self, number: int) -> int:
        """Counted over all ranks, that of this rank's micro-batch `number`, both from 0: the same for any `world`."""
        return self._rows.start // self.micro_batch_size + number

    def all_windows(self, step: int) -> Numbers:
        """Window numbers of all ranks' rows at a step, in row order [batch_size]."""
        found: Numbers = self._windows(range(step, step + 1), range(self.batch_size))[0]
        return found

    def all_epochs(self, step: int) -> Numbers:
        """Epoch of each of all ranks' rows at a step, in row order [batch_size]: an epoch may end within a batch."""
        return (step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)) // self.n_windows

    def sightings(self, windows: npt.ArrayLike, n_steps: int) -> Sightings:
        """Where the first `n_steps` steps have these windows: `all_windows` backwards, without going through steps."""
        asked = np.unique(np.asarray(windows, dtype=np.int64))
        n_samples = n_steps * self.batch_size
        found = [np.empty((2, 0), np.int64)]
        for epoch in range(-(-n_samples // self.n_windows)):
            numbers = epoch * self.n_windows + self._order(epoch).inverse(asked)
            seen = numbers < n_samples
            found.append(np.stack([numbers[seen], asked[seen]]))
        numbers, where = np.concatenate(found, axis=1)
        turn = np.argsort(numbers)
        steps, rows = np.divmod(numbers[turn], self.batch_size)
        return Sightings(steps, rows, numbers[turn] // self.n_windows, where[turn])

    def _windows(self, steps: range, rows: range) -> Numbers:
        """[steps, rows]"""
        starts = np.arange(steps.start, steps.stop, dtype=np.int64) * self.batch_size
        numbers = starts[:, None] + np.arange(rows.start, rows.stop, dtype=np.int64)
        epochs, places = np.divmod(numbers, self.n_windows)
        found = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = self._order(int(epoch)).forward(places[here])
        return found

    def _order(self, epoch: int) -> Permutation:
        return Permutation(self.n_windows, seed=self.seed, epoch=epoch)

    def batch(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """This rank's micro-batches at a step, in order: (inputs_BT, targets_BT), int64 on the CPU."""
        windows = self.windows(step)
        return [
            read_windows(self._stream, windows[i : i + self.micro_batch_size], self.context_length)
            for i in range(0, len(windows), self.micro_batch_size)
        ]


def count_windows(stream: Stream, context_length: int) -> int:
    """Whole windows in the stream; DataError if there is not even one."""
    if stream.n_tokens < context_length + 1:
        raise DataError(
            f"the data has {stream.n_tokens:,} tokens and one window of context_length {context_length:,} needs "
            f"{context_length + 1:,}; give more text, or lower context_length"
        )
    return (stream.n_tokens - 1) // context_length


def eval_windows(stream: Stream, context_length: int, max_tokens: int = 0) -> Numbers:
    """Window numbers, rising, of at most max_tokens target tokens spread evenly over the stream; 0 takes all windows.

    At least one window is given. DataError if the stream is shorter than one.
    """
    n_windows = count_windows(stream, context_length)
    n_taken = min(n_windows, max(1, max_tokens // context_length)) if max_tokens else n_windows
    return np.arange(n_taken, dtype=np.int64) * n_windows // n_taken


def read_windows(stream: Stream, windows: Iterable[int], context_length: int) -> tuple[Tensor, Tensor]:
    """(inputs_BT, targets_BT) of these windows, int64 and contiguous, on the CPU."""
    import torch

    starts = [int(w) * context_length for w in windows]
    tokens = np.empty((len(starts), context_length + 1), dtype=np.int64)
    for row, start in enumerate(starts):
        tokens[row] = stream.slice(start, start + context_length + 1)
    both = torch.from_numpy(tokens)
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def _check_sizes(batch_size: int, micro_batch_size: int, rank: int, world: int) -> None:
    if world < 1 or not 0 <= rank < world:
        raise ConfigError(f"rank {rank} of world {world}: rank must be 0 to world - 1")
    if micro_batch_size < 1 or batch_size < 1 or batch_size % (micro_batch_size * world):
        raise ConfigError(
            f"batch_size {batch_size} is not a multiple of micro_batch_size x processes "
            f"({micro_batch_size} x {world}); change one of them"
        )
