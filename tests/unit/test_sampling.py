"""The samplers against plain computations of their own, and the draws against the distributions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptmodel.config import DecodingConfig
from gptmodel.errors import ConfigError
from gptmodel.sampling import choices, penalize_repeated, sample, sample_rows

PLAIN = DecodingConfig(temperature=1.0)
logits = st.lists(st.floats(-30, 30, width=32) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=40).map(torch.tensor)
examples = settings(deadline=None, max_examples=60)


def spread(logits_V: Tensor, decoding: DecodingConfig) -> np.ndarray[Any, Any]:
    """Probabilities over the whole vocabulary."""
    ids, probs = choices(logits_V, decoding)
    assert len({*ids.tolist()}) == len(ids)
    found = np.zeros(len(logits_V))
    found[ids.numpy()] = probs.numpy()
    assert found.sum() == pytest.approx(1)
    return found


def softmax(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def check(found: np.ndarray[Any, Any], before: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What stays keeps its proportions, and no likelier token was dropped for a less likely one; what stays."""
    stay = found > 0
    assert stay.any()
    np.testing.assert_allclose(found[stay], before[stay] / before[stay].sum(), rtol=1e-9)
    if not stay.all():
        assert before[stay].min() >= before[~stay].max()
    return stay


@examples
@given(logits, st.floats(0.1, 5.0), st.integers(0, 45))
def test_top_k_keeps_the_k_likeliest(logits_V: Tensor, temperature: float, k: int) -> None:
    before = softmax(logits_V.numpy().astype(np.float64) / temperature)
    stay = check(spread(logits_V, replace(PLAIN, temperature=temperature, top_k=k)), before)
    assert stay.sum() == (min(k, len(logits_V)) or len(logits_V))  # exactly k, ties or not


@examples
@given(logits, st.floats(1e-6, 1.0))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits_V: Tensor, p: float) -> None:
    before = softmax(logits_V.numpy().astype(np.float64))
    stay = check(spread(logits_V, replace(PLAIN, top_p=p)), before)
    assert before[stay].sum() >= p - 1e-9
    if p < 1:
        assert before[stay].sum() - before[stay].min() < p + 1e-9  # without its least likely it falls short


@examples
@given(logits, st.floats(0.0, 1.0))
def test_min_p_keeps_what_is_at_least_that_share_of_the_likeliest(logits_V: Tensor, p: float) -> None:
    before = softmax(logits_V.numpy().astype(np.float64))
    stay = check(spread(logits_V, replace(PLAIN, min_p=p)), before)
    share = before / before.max()
    sure = np.abs(share - p) > 1e-9
    assert (stay == (share >= p))[sure].all()


@examples
@given(logits, st.floats(0.1, 3.0), st.integers(1, 45), st.floats(0.05, 1.0), st.floats(0.0, 1.0))
def test_each_filter_works_on_what_the_one_before_it_left(
    logits_V: Tensor, temperature: float, k: int, top_p: float, min_p: float
) -> None:
    values = logits_V.numpy().astype(np.float64) / temperature
    order = np.argsort(-values, kind="stable")[:k]
    probs = softmax(values[order])
    before = np.cumsum(probs) - probs
    if top_p < 1 and np.abs(before - top_p).min() < 1e-9:
        return  # where the cut falls is a matter of rounding
    keep = (before < top_p) | (top_p == 1)
    keep[0] = True
    probs = probs[keep] / probs[keep].sum()
    if np.abs(probs / probs.max() - min_p).min() < 1e-9 and min_p < 1:
        return
    wanted = probs[probs >= min_p * probs.max()]
    found = spread(logits_V, DecodingConfig(temperature=temperature, top_k=k, top_p=top_p, min_p=min_p))
    np.testing.assert_allclose(np.sort(found[found > 0]), np.sort(wanted / wanted.sum()), rtol=1e-6)


@examples
@given(logits, st.integers(0, 2**40 - 1), st.floats(0.2, 5.0))
def test_the_penalty_divides_positive_logits_of_seen_tokens_and_multiplies_negative_ones(
    logits_V: Tensor, seen_bits: int, penalty: float
) -> None:
    seen = [bool(seen_bits >> n & 1) for n in range(len(logits_V))]
    wanted = [
        (value / penalty if value > 0 else value * penalty) if was else value
        for value, was in zip(logits_V.tolist(), seen, strict=True)
    ]
    found = penalize_repeated(logits_V, torch.tensor(seen), penalty)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6, atol=1e-40)  # below float32's normal numbers
    assert torch.equal(penalize_repeated(logits_V, torch.tensor(seen), 1.0), logits_V)


@examples
@given(logits, st.floats(0.1, 5.0))
def test_what_changes_nothing_changes_nothing(logits_V: Tensor, temperature: float) -> None:
    nothing = DecodingConfig(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    found = spread(logits_V, nothing)
    np.testing.assert_allclose(found, softmax(logits_V.numpy().astype(np.float64) / temperature), rtol=1e-9, atol=1e-12)
    for same in ({"top_k": len(logits_V)}, {"top_p": 1.0}, {"min_p": 1e-300}):
        assert (spread(logits_V, replace(nothing, **same)) == found).all()
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    drawn = [sample(logits_V, decoding, g) for decoding, g in zip((nothing, PLAIN), generators, strict=True)]
    assert temperature != 1 or drawn[0] == drawn[1]


@pytest.mark.parametrize("p", [0.3, 0.9, 0.999])
def test_top_p_over_a_large_vocabulary_is_right_whether_it_takes_few_or_most_of_it(p: float) -> None:
    for scale in (0.1, 3.0):  # nearly flat: tens of thousands stay; peaked: tens
        logits_V = scale * torch.randn(50_257, generator=torch.Generator().manual_seed(1))
        probs = np.sort(softmax(logits_V.numpy().astype(np.float64)))[::-1]
        n = int(np.searchsorted(np.cumsum(probs), p)) + 1
        found = spread(logits_V, replace(PLAIN, top_p=p))
        assert (found > 0).sum() == n
        np.testing.assert_allclose(np.sort(found)[::-1][:n], probs[:n] / probs[:n].sum(), rtol=1e-9)


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7, "top_k": 9}, {"top_p": 0.8}, {"min_p": 0.1}], ids=str)
def test_draws_are_those_of_multinomial_over_the_whole_vocabulary(changes: dict[str, Any]) -> None:
    decoding = replace(PLAIN, **changes)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    for number in range(50):
        logits_V = 2 * torch.randn(211, generator=torch.Generator().manual_seed(number))
        wanted = torch.multinomial(torch.from_numpy(spread(logits_V, decoding)), 1, generator=generators[0])
        assert sample(logits_V, decoding, generators[1]) == int(wanted)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.6849, 0.2466, 0.0616, 0.0068]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.9}, [0.5263, 0.3158, 0.1579, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
        ({"min_p": 0.2}, [0.5263, 0.3158, 0.1579, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0]),
        ({"temperature": 0.5, "min_p": 0.2}, [0.7353, 0.2647, 0, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
        ({"temperature": 5e-324}, [1, 0, 0, 0]),
    ],
)
def test_draws_follow_the_distribution(changes: dict[str, float], wanted: list[float]) -> None:
    """Chi-square with 3 degrees of freedom: 21.1 is passed once in 10,000 seeds; this seed is fixed."""
    decoding, n = replace(PLAIN, **changes), 1500
    generator, logits_V = torch.Generator().manual_seed(1), torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    counts = np.bincount([sample(logits_V, decoding, generator) for _ in range(n)], minlength=4)
    expected = n * np.array(wanted)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < 21.1
    if possible.sum() == 4:  # and not a distribution that is near it
        other = n * np.array([0.45, 0.33, 0.16, 0.06])
        assert ((counts - other) ** 2 / other).sum() > 10


def test_each_row_draws_alone_and_from_its_own_generator() -> None:
    logits_BV = torch.randn(4, 30, generator=torch.Generator().manual_seed(2))
    for decoding in (PLAIN, replace(PLAIN, temperature=0.0), replace(PLAIN, top_p=0.5, min_p=0.05)):
        seeds = [[torch.Generator().manual_seed(row) for row in range(4)] for _ in range(2)]
        alone = [sample(row, decoding, seed) for row, seed in zip(logits_BV, seeds[0], strict=True)]
        assert sample_rows(logits_BV, decoding, seeds[1]) == alone


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"min_p": -0.1}, "min_p is -0.1; give 0 for all, or a share up to 1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; give 1 for none, or a number from 1e-6 to 1e6"),
        ({"repetition_penalty": 1e308}, "repetition_penalty is 1e\\+308"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        DecodingConfig(**wrong)  # type: ignore[arg-type]
