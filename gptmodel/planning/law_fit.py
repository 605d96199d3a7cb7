"""L(N, D) = E + A / N^alpha + B / D^beta fitted to finished runs, as by Hoffmann et al. 2022 (arXiv:2203.15556, D.2).

The sum of Huber losses of log L is made least, from many starts. Around the geometric mean of N and of D, where
coefficients hang together least, a start needs no luck: for a pair of exponents the rest is a linear problem.

How sure it is: by the parametric bootstrap. Losses are drawn anew around the fitted law, with the scatter that the
points have around it, and the law is fitted to each draw. Few points leave few degrees of freedom, so intervals have
the tails of a t distribution (Hesterberg 2015, as in `gptmodel.judging.bootstrap`).

Symbols: P points, R resamples, K = 5 coefficients (log E, log A', log B', alpha, beta), A' and B' at the centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gptmodel.errors import DataError
from gptmodel.planning.scaling import Additive

Array = npt.NDArray[np.float64]
LEAST_POINTS = 7  # five coefficients, and two points more to say how far off they are
LEAST_VALUES = 3  # a power law with an offset has three coefficients, so two sizes or two lengths say nothing of it
LEAST_SPREAD = 1.5  # between the largest and the smallest
MOST_ALIKE = 0.98  # correlation of log N and log D above which nobody can tell whose power is whose
COEFFICIENTS = ("E", "A", "B", "alpha", "beta")
_EXPONENTS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.3)
SEARCHED = (0.01, 3.0)
"""Exponents from and to which are looked for; published ones lie between 0.07 and 0.5."""
_LOW = np.array([-12.0, -12.0, -12.0, SEARCHED[0], SEARCHED[0]])
_HIGH = np.array([4.0, 6.0, 6.0, SEARCHED[1], SEARCHED[1]])
_DIGITS = 9  # of what is kept: more than a fit knows, and fewer than another processor would round differently


@dataclass(frozen=True)
class Point:
    """A finished run: N as the law counts it, D training tokens, loss in nats per token on text that was held out."""

    n_params: float
    n_tokens: float
    loss: float


@dataclass(frozen=True)
class Fit:
    """The law, how far the points are off, and the laws of the resamples."""

    law: Additive
    residuals: tuple[float, ...]
    """Natural logarithm of measured over fitted loss, by point: 0.01 is one percent above."""
    scatter: float
    """Standard deviation of them, for the degrees of freedom that are left."""
    draws: Array
    """E, A, B, alpha, beta of each resample [R, K]."""
    freedom: int
    """Points less coefficients."""


def fit_law(
    points: Sequence[Point], *, delta: float, resamples: int, seed: int, name: str = "", source: str = ""
) -> Fit:
    """Fit to the points. DataError where they cannot tell the five coefficients.

    `delta` is where Huber's loss turns from squares to distances, in log L; Hoffmann et al. had 1e-3.
    """
    check_points(points)
    n, d, loss = (
        np.array([getattr(p, field) for p in points], np.float64) for field in ("n_params", "n_tokens", "loss")
    )
    at = _Centred(n, d)
    starts = at.starts(loss)
    tried = [at.refine(start, loss, delta, ways) for start in starts[:8] for ways in (("huber",), ("linear", "huber"))]
    best = min(tried, key=lambda found: found[1])[0]
    fitted = at.log_loss(best)
    residuals = np.log(loss) - fitted
    freedom = len(points) - len(best)
    scatter = float(np.sqrt((residuals**2).sum() / freedom))
    draw = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        again = np.exp(fitted + scatter * draw.standard_normal(len(points)))
        drawn.append(at.plain(at.refine(best, again, delta)[0]))
    kept = [[float(f"{value:.{_DIGITS}g}") for value in row] for row in (at.plain(best), *drawn)]
    law = Additive(name, source, **dict(zip(COEFFICIENTS, kept[0], strict=True)))
    return Fit(law, tuple(residuals.tolist()), scatter, np.array(kept[1:]).reshape(-1, 5), freedom)


def check_points(points: Sequence[Point]) -> None:
    """DataError where so few or such points cannot tell five coefficients; it says what to add."""
    wrong = [p for p in points if not all(math.isfinite(v) and v > 0 for v in (p.n_params, p.n_tokens, p.loss))]
    if wrong:
        raise DataError(
            f"a run of {wrong[0].n_params:g} parameters, {wrong[0].n_tokens:g} tokens and loss "
            f"{wrong[0].loss:g} is none that a law can be fitted to; leave it out"
        )
    if len(points) < LEAST_POINTS:
        raise DataError(f"{len(points)} runs are too few for a law of 5 coefficients; give at least {LEAST_POINTS}")
    for what, values in (("sizes", [p.n_params for p in points]), ("numbers of tokens", [p.n_tokens for p in points])):
        several = len({round(math.log(value), 2) for value in values})
        if several < LEAST_VALUES:
            raise DataError(
                f"the runs have {several} different {what}, and a law needs at least {LEAST_VALUES}; add some"
            )
        if max(values) < LEAST_SPREAD * min(values):
            raise DataError(
                f"the runs' {what} lie within a factor of {max(values) / min(values):.2f}; spread them wider"
            )
    logs = np.log([[p.n_params, p.n_tokens] for p in points]).T
    if abs(alike := float(np.corrcoef(logs)[0, 1])) > MOST_ALIKE:
        raise DataError(
            f"tokens grow with the size in all runs (correlation {alike:.3f}), so nobody can tell which of "
            "the two lowers the loss; train some sizes on more or fewer tokens"
        )


class _Centred:
    """The law around the centre of the points."""

    def __init__(self, n_P: Array, d_P: Array) -> None:
        self.n0, self.d0 = float(np.exp(np.log(n_P).mean())), float(np.exp(np.log(d_P).mean()))
        self.log_n, self.log_d = np.log(n_P / self.n0), np.log(d_P / self.d0)

    def terms(self, K: Array) -> Array:
        """Logarithms of the three terms [3, P]."""
        e, a, b, alpha, beta = K
        return np.stack([np.full_like(self.log_n, e), a - alpha * self.log_n, b - beta * self.log_d])

    def log_loss(self, K: Array) -> Array:
        terms = self.terms(K)
        top = terms.max(axis=0)
        found: Array = top + np.log(np.exp(terms - top).sum(axis=0))
        return found

    def slope(self, K: Array) -> Array:
        """Of log L by each coefficient [P, K]: the shares of the terms, and those times minus the distances."""
        share = np.exp(self.terms(K) - self.log_loss(K))
        return np.stack([*share, -self.log_n * share[1], -self.log_d * share[2]], axis=1)

    def starts(self, loss_P: Array) -> list[Array]:
        """For each pair of exponents the terms that fit best and are not negative, the best pair first."""
        from scipy.optimize import nnls

        found = []
        for alpha in _EXPONENTS:
            for beta in _EXPONENTS:
                columns = np.stack([np.ones_like(loss_P), np.exp(-alpha * self.log_n), np.exp(-beta * self.log_d)], 1)
                terms, off = nnls(columns / loss_P[:, None], np.ones_like(loss_P))
                logs = np.log(np.maximum(terms, 1e-3))
                found.append((off, np.array([*logs, alpha, beta])))
        return [start for _, start in sorted(found, key=lambda pair: pair[0])]

    def refine(
        self, start_K: Array, loss_P: Array, delta: float, ways: tuple[str, ...] = ("linear", "huber")
    ) -> tuple[Array, float]:
        """(coefficients, sum of Huber losses) of the least one near a start.

        By squares first: where distances count the steps are short, and from there few are left. But an outlier leads
        squares astray.
        """
        from scipy.optimize import least_squares

        aim, start = np.log(loss_P), np.clip(start_K, _LOW + 1e-6, _HIGH - 1e-6)
        for loss in ways:
            found = least_squares(
                lambda K: self.log_loss(K) - aim,
                start,
                self.slope,
                bounds=(_LOW, _HIGH),
                loss=loss,
                f_scale=delta,
                max_nfev=200,
            )
            start = found.x
        return start, float(found.cost)

    def plain(self, K: Array) -> list[float]:
        """E, A, B, alpha, beta as the law has them."""
        e, a, b, alpha, beta = (float(value) for value in K)
        return [math.exp(e), math.exp(a) * self.n0**alpha, math.exp(b) * self.d0**beta, alpha, beta]
