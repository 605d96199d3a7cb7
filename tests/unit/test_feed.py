"""A GPU's batches, read a step ahead: the same ones, whatever was read before."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from gptmodel.tokens.batches import Batches
from gptmodel.training.feed import Feed


class Ids:
    n_tokens = 1000

    def __init__(self, first: int) -> None:
        self.first, self.n_reads = first, 0

    def slice(self, start: int, stop: int) -> npt.NDArray[np.uint16]:
        self.n_reads += 1
        return (np.arange(start, stop) + self.first).astype(np.uint16)


def batches(first: int) -> tuple[Batches, Ids]:
    ids = Ids(first)
    return Batches(ids, context_length=8, batch_size=4, micro_batch_size=2, seed=1), ids


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)  # which only a machine with a GPU can
    return torch.device("cuda")


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def test_a_step_read_ahead_is_that_step_and_is_read_once(gpu: torch.device) -> None:
    source, ids = batches(0)
    plain, _ = batches(0)
    feed = Feed(gpu)
    for step in (0, 1, 2, 7, 3):  # 7: as after a resume; 3: as in a replay, where another was read ahead
        assert same(feed.take(source, step), plain.batch(step))
        feed.read_ahead(source, step + 1)
    read = ids.n_reads
    feed.take(source, 4)
    assert ids.n_reads == read


def test_other_batches_are_not_taken_for_those_read_ahead(gpu: torch.device) -> None:
    (one, _), (two, _) = batches(0), batches(500)
    feed = Feed(gpu)
    feed.read_ahead(one, 3)
    assert same(feed.take(two, 3), two.batch(3))
    assert not same(feed.take(one, 3), two.batch(3))


def test_a_processor_reads_nothing_ahead() -> None:
    source, ids = batches(0)
    feed = Feed(torch.device("cpu"))
    feed.read_ahead(source, 1)
    assert ids.n_reads == 0
