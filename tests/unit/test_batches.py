"""The data order: every window once an epoch, the same for any number of processes, and the same for ever."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptmodel.errors import ConfigError, DataError
from gptmodel.tokens.batches import Batches, count_windows, eval_windows, read_windows
from gptmodel.tokens.permutation import Permutation, _mix_int
from gptmodel.tokens.tokenstream import Shard, TokenStream

T = 8
# Never edit these: a run must find its data order again years later.
GOLDEN_10 = [6, 3, 5, 4, 7, 8, 0, 2, 1, 9]
GOLDEN_10_NEXT = [2, 8, 6, 3, 4, 1, 0, 5, 9, 7]
GOLDEN_LARGE = [771451724670, 959702425402, 133236170886]


def stream_of(n_tokens: int, *cuts: int) -> TokenStream:
    """Tokens 0, 1, 2, ... in shards cut at `cuts`."""
    tokens = np.arange(n_tokens, dtype=np.uint16)
    return TokenStream([Shard(None, part) for part in np.split(tokens, cuts)])


def batches(n_windows: int = 10, *, batch_size: int = 4, micro_batch_size: int = 1, seed: int = 1, **more) -> Batches:
    return Batches(
        stream_of(n_windows * T + 1, 13, 50),
        context_length=T,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        seed=seed,
        **more,
    )


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_a_permutation_takes_every_value_once_and_has_an_inverse(n, seed, epoch):
    order = Permutation(n, seed=seed, epoch=epoch)
    places = np.arange(n)
    elements = order.forward(places)
    assert sorted(elements.tolist()) == places.tolist()
    assert order.inverse(elements).tolist() == places.tolist()


def test_the_order_never_changes():
    assert Permutation(10, seed=1337, epoch=0).forward(np.arange(10)).tolist() == GOLDEN_10
    assert Permutation(10, seed=1337, epoch=1).forward(np.arange(10)).tolist() == GOLDEN_10_NEXT
    assert Permutation(10**12, seed=2**63, epoch=5).forward([0, 1, 10**12 - 1]).tolist() == GOLDEN_LARGE
    assert _mix_int(1234567) == 6457827717110365317  # splitmix64's first output for this seed, as published
    assert batches(10, seed=1337).windows(0).tolist() == GOLDEN_10[:4]
    assert batches(10, seed=1337).windows(2).tolist() == GOLDEN_10[8:] + GOLDEN_10_NEXT[:2]


def test_epochs_and_seeds_differ():
    orders = {
        tuple(Permutation(50, seed=seed, epoch=epoch).forward(np.arange(50)))
        for seed in range(20)
        for epoch in range(20)
    }
    assert len(orders) == 400


@pytest.mark.parametrize("n", [2, 3, 5, 16, 17, 40])
def test_every_window_is_as_likely_at_every_place(n):
    n_epochs = 1000
    counts = np.zeros((n, n))
    for epoch in range(n_epochs):
        counts[np.arange(n), Permutation(n, seed=7, epoch=epoch).forward(np.arange(n))] += 1
    chi_square = ((counts - n_epochs / n) ** 2 / (n_epochs / n)).sum()
    freedom = (n - 1) ** 2
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_neighbours_do_not_stay_together():
    steps = np.diff(Permutation(10_000, seed=7, epoch=0).forward(np.arange(10_000)))
    assert (np.abs(steps) == 1).sum() < 10  # 2 expected of a random order
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1] + 0.5) < 0.05  # what a random order gives


def test_values_outside_are_refused():
    with pytest.raises(ValueError, match=r"values must lie in 0..9, found 0..10"):
        Permutation(10, seed=1, epoch=0).forward([0, 10])
    with pytest.raises(ValueError, match="at least one element"):
        Permutation(0, seed=1, epoch=0)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 25])  # 10 windows: batches that end with the epoch, cross it, hold two
def test_each_window_is_seen_once_in_every_epoch(batch_size):
    data = batches(10, batch_size=batch_size)
    seen = np.concatenate([data.windows(step) for step in range(300 // batch_size)])
    assert len(seen) == 300
    for epoch in seen.reshape(30, 10):
        assert sorted(epoch) == list(range(10))


@pytest.mark.parametrize(("world", "micro_batch_size"), [(1, 1), (1, 12), (2, 3), (3, 2), (4, 1)])
def test_the_order_does_not_depend_on_processes_or_micro_batches(world, micro_batch_size):
    whole = batches(10, batch_size=12, micro_batch_size=12)
    ranks = [
        batches(10, batch_size=12, micro_batch_size=micro_batch_size, rank=rank, world=world) for rank in range(world)
    ]
    for step in range(7):
        assert np.concatenate([r.windows(step) for r in ranks]).tolist() == whole.windows(step).tolist()
        parts = [part for r in ranks for part in r.batch(step)]
        assert {len(inputs) for inputs, _ in parts} == {micro_batch_size}
        [(inputs_BT, targets_BT)] = whole.batch(step)
        assert torch.equal(torch.cat([inputs for inputs, _ in parts]), inputs_BT)
        assert torch.equal(torch.cat([targets for _, targets in parts]), targets_BT)


def test_inputs_are_the_window_and_targets_lie_one_further():
    data = batches(10, batch_size=4, micro_batch_size=2)
    rows = [row for inputs, targets in data.batch(3) for row in zip(inputs, targets, strict=True)]
    for window, (inputs, targets) in zip(data.windows(3), rows, strict=True):
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.tolist() == list(range(window * T, window * T + T))
        assert targets.tolist() == list(range(window * T + 1, window * T + T + 1))
    assert all(tensor.is_contiguous() for pair in data.batch(3) for tensor in pair)


def test_any_step_can_be_worked_out_alone():
    data = batches(10, batch_size=4)
    in_turn = [data.windows(step).tolist() for step in range(9)]
    assert batches(10, batch_size=4).windows(8).tolist() == in_turn[8]
    assert in_turn == [data.windows(step).tolist() for step in range(9)]


@pytest.mark.parametrize(("n_tokens", "n_windows"), [(T + 1, 1), (2 * T, 1), (2 * T + 1, 2)])
def test_a_window_needs_one_token_more_for_its_last_target(n_tokens, n_windows):
    assert count_windows(stream_of(n_tokens), T) == n_windows
    inputs, targets = read_windows(stream_of(n_tokens), [n_windows - 1], T)
    assert targets[0, -1] == n_windows * T
    assert inputs.shape == targets.shape == (1, T)


@pytest.mark.parametrize("n_tokens", [0, T])
def test_too_little_data_is_refused_with_both_numbers(n_tokens):
    with pytest.raises(DataError, match=rf"has {n_tokens} tokens and one window of context_length {T} needs {T + 1};"):
        Batches(stream_of(n_tokens), context_length=T, batch_size=1, micro_batch_size=1, seed=1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch_size": 5, "micro_batch_size": 2}, r"batch_size 5 is not a multiple of .* \(2 x 1\)"),
        ({"batch_size": 6, "micro_batch_size": 2, "world": 2}, r"batch_size 6 is not a multiple of .* \(2 x 2\)"),
        ({"batch_size": 4, "micro_batch_size": 0}, r"batch_size 4 is not a multiple of .* \(0 x 1\)"),
        ({"rank": 2, "world": 2}, "rank 2 of world 2"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        batches(10, **sizes)


@pytest.mark.parametrize(
    ("max_tokens", "windows"),
    [
        (0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (10_000, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (5 * T, [0, 2, 4, 6, 8]),
        (4 * T - 1, [0, 3, 6]),
        (1, [0]),
    ],
)
def test_evaluation_windows_are_spread_over_the_whole_stream(max_tokens, windows):
    assert eval_windows(stream_of(10 * T + 1), T, max_tokens).tolist() == windows
