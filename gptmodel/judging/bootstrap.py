"""Intervals by the bootstrap: the units that were judged are drawn again, with replacement, as often as there are.

Units are documents: tokens of one are alike, so that drawing tokens would give intervals far too narrow, and so are
pieces that were cut from one text, which are drawn together. Every figure is made from sums over the units, so drawing
is one matrix product, for all figures at once.

The interval is the percentile one, widened for few units as Hesterberg 2015 does ("expanded percentile",
doi:10.1080/00031305.2015.1089789): with the tails of a t distribution. Documents are of very unequal length, so they
count as the equally long ones that they are worth (Kish 1965). `benchmarks/interval_coverage.py` measures how often
such intervals hold the truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Sums = npt.NDArray[np.float64]
_DRAWS = 1 << 22  # units drawn at a time: 32 MiB of numbers


def resampled(sums_DK: Sums, resamples: int, seed: int) -> Sums:
    """Sums [resamples, K] over as many units as there are, drawn anew each time."""
    n = len(sums_DK)
    draw = np.random.default_rng(seed)
    found = np.empty((resamples, sums_DK.shape[1]))
    step = max(1, _DRAWS // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = draw.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        found[start : start + rows] = counts @ sums_DK
    return found


def grouped(names: Iterable[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """(different names in the order of their first, which of them each is)."""
    places: dict[str, int] = {}
    owner = [places.setdefault(name, len(places)) for name in names]
    return list(places), np.array(owner, np.int64)


def summed(sums_DK: Sums, parents: Iterable[str]) -> Sums:
    """Sums over the documents of each text, in the order of the texts' first ones."""
    texts, owner = grouped(parents)
    found = np.zeros((len(texts), sums_DK.shape[1]))
    np.add.at(found, owner, sums_DK)
    return found


def effective_units(weights_D: npt.ArrayLike) -> float:
    """How many units of equal weight so unequal ones are worth (Kish 1965): (sum w)^2 / sum w^2."""
    weights = np.asarray(weights_D, np.float64)
    return float(weights.sum() ** 2 / (weights**2).sum()) if weights.any() else 0.0


def interval(values_R: Sums, effective: float, confidence: float) -> tuple[float, float]:
    """(low, high) that a figure lies between with this confidence, from its values over the resamples."""
    from scipy.special import ndtr, stdtrit

    units = max(effective, 1.2)  # below, the t distribution has tails without end: the interval is all that was drawn
    tail = float(ndtr(math.sqrt(units / (units - 1)) * stdtrit(units - 1, (1 - confidence) / 2)))
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return float(low), float(high)
