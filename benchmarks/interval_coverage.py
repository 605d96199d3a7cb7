"""How often a 95% interval holds the truth: `.venv/bin/python -m benchmarks.interval_coverage`, minutes.

Documents with log-normal lengths (the spread of their logarithm is 1) are drawn again and again, and the interval that
an evaluation or a comparison would give, by the same code, is held against what such documents have on average:

- `loss`: each document has a loss of its own, which may be tied to its length.
- `difference`: of two models on the same documents, equally good on the whole. A document is hard for both, and one
  model does a little better or worse on it, which may be tied to its length too. An interval that misses 0 claims that
  one is better. (Another true difference would only shift all by as much.)
- `calibration error`: the right guesses fall short of the probabilities by a gap that varies from document to document,
  about 0 (a calibrated model) or about 0.05.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from gptmodel.config import EvaluateConfig
from gptmodel.judging.bootstrap import interval, resampled
from gptmodel.judging.units import Units

RESULTS = Path(__file__).with_name("results") / "interval_coverage.json"
DOCUMENTS = (5, 10, 24, 100)
RESAMPLES, CONFIDENCE = 600, 0.95
LOSS, SPREAD = 5.0, 0.4  # nats: the mean, and how much documents differ
OWN = 0.1  # nats: how much two equally good models differ on a document
GAP_SPREAD = 0.03
BINS = EvaluateConfig().calibration_bins
MIDDLES = (np.arange(BINS) + 0.5) / BINS
SHARES = np.exp(-3 * MIDDLES) / np.exp(-3 * MIDDLES).sum()  # most top probabilities of a language model are small
Draw = np.random.Generator
Trial = Callable[[Draw, int, int], tuple[float, float, float]]
"""(draw, documents, seed) -> (low, high, the figure itself)."""


def _units(**columns: Any) -> Units:
    n = len(columns["n_tokens"])
    return Units("document", [str(i) for i in range(n)], columns)


def _tied(draw: Draw, size: Any, tie: float) -> Any:
    """Standard normal, with this correlation to the standardised logarithm of the length."""
    return tie * size + np.sqrt(1 - tie**2) * draw.normal(size=len(size))


def loss_trial(tie: float) -> Trial:
    def trial(draw: Draw, documents: int, seed: int) -> tuple[float, float, float]:
        size = draw.normal(size=documents)
        tokens = np.exp(7 + size)
        loss = LOSS + SPREAD * _tied(draw, size, tie) + 3 * draw.normal(size=documents) / np.sqrt(tokens)
        units = _units(n_tokens=tokens, nats=loss * tokens)
        drawn = units.figures_of(resampled(units.flat(), RESAMPLES, seed))["loss"]
        return *interval(drawn, units.effective, CONFIDENCE), units.figures()["loss"]

    return trial


def difference_trial(tie: float) -> Trial:
    def trial(draw: Draw, documents: int, seed: int) -> tuple[float, float, float]:
        size = draw.normal(size=documents)
        tokens = np.exp(7 + size)
        hard = LOSS + SPREAD * draw.normal(size=documents)
        # tied to length the mean over tokens moves by tie * spread: taken off, so that the truth is 0
        change = OWN * (_tied(draw, size, tie) - tie)
        noise = draw.normal(size=(2, documents)) / np.sqrt(tokens)
        was, now = (
            _units(n_tokens=tokens, nats=(hard + shift + noise[i]) * tokens) for i, shift in enumerate((0, change))
        )
        # as `gptmodel.judging.comparison` draws: the same documents for both
        sums = resampled(np.concatenate([was.flat(), now.flat()], axis=1), RESAMPLES, seed)
        drawn = now.figures_of(sums[:, 2:])["loss"] - was.figures_of(sums[:, :2])["loss"]
        found = now.figures()["loss"] - was.figures()["loss"]
        return *interval(drawn, was.effective, CONFIDENCE), found

    return trial


def calibration_trial(gap: float) -> Trial:
    def trial(draw: Draw, documents: int, seed: int) -> tuple[float, float, float]:
        tokens = np.maximum(np.exp(7 + draw.normal(size=documents)), 16).astype(np.int64)
        counts = np.stack([draw.multinomial(n, SHARES) for n in tokens]).astype(np.float64)
        sure = _right(gap + GAP_SPREAD * draw.normal(size=documents))
        right = draw.binomial(counts.astype(np.int64), sure).astype(np.float64)
        columns = {"bin_tokens": counts, "bin_probability": counts * MIDDLES, "bin_correct": right}
        units = _units(n_tokens=tokens.astype(np.float64), **columns)
        drawn = units.figures_of(resampled(units.flat(), RESAMPLES, seed))["calibration_error"]
        return *interval(drawn, units.effective, CONFIDENCE), units.figures()["calibration_error"]

    return trial


def _right(gaps: Any) -> Any:
    """How often the guess is right, [documents, bins]."""
    return np.clip(MIDDLES[None] - gaps[:, None], 0, 1)


def true_calibration_error(gap: float) -> float:
    """Of all such documents together."""
    gaps = gap + GAP_SPREAD * np.random.default_rng(0).normal(size=400_000)
    return float((SHARES * np.abs(MIDDLES - _right(gaps).mean(0))).sum())


def cases() -> Iterator[tuple[str, str, float, Trial]]:
    """Figure, setting, truth and how to draw it. Tokens that are drawn by length make the mean of a tied normal `tie`:
    for log-normal lengths with a spread of 1, E[tokens * size] / E[tokens] = 1."""
    for tie in (0.0, 0.5):
        yield "loss", f"tied to length {tie}", LOSS + tie * SPREAD, loss_trial(tie)
    for tie in (0.0, 0.5):
        yield "difference", f"tied to length {tie}", 0.0, difference_trial(tie)
    for gap in (0.0, 0.05):
        yield "calibration error", f"gap {gap}", true_calibration_error(gap), calibration_trial(gap)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=4_000)
    trials = parser.parse_args().trials
    rows = []
    heads = ("documents", "truth", "mean", "held", "too low", "too high")
    print(f"{'figure':18} {'setting':20} {' '.join(f'{head:>9}' for head in heads)}")
    for figure, setting, truth, trial in cases():
        for documents in DOCUMENTS:
            draw = np.random.default_rng(1)
            found = np.array([trial(draw, documents, seed) for seed in range(trials)])
            below, above = float((found[:, 1] < truth).mean()), float((found[:, 0] > truth).mean())
            row = {"figure": figure, "setting": setting, "documents": documents, "truth": truth}
            row |= {"mean": float(found[:, 2].mean()), "held": 1 - below - above, "below": below, "above": above}
            rows.append(row)
            print(
                f"{figure:18} {setting:20} {documents:9} {truth:9.4f} {row['mean']:9.4f} {row['held']:9.1%} "
                f"{below:9.1%} {above:9.1%}",
                flush=True,
            )
    asked = {"trials": trials, "resamples": RESAMPLES, "confidence": CONFIDENCE}
    told = {"machine": machine(), **asked, "rows": rows}
    RESULTS.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
