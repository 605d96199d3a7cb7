"""How often the gate promotes what is not better, and what is: `.venv/bin/python -m benchmarks.gate_simulation`.

A run is as many nights as share alpha. All nights look at the same documents; their lengths are log-normal. Each night
has a challenger of its own whose true advantage, per token over all such documents, is zero; what it gains on a single
document is drawn in one of the ways of `GAINS`. A run counts as false when any of its nights is promoted. Then the
power: how often a challenger that is better by so many nats per token is promoted in one night.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from benchmarks.machine import machine
from gptmodel.config.retraining import GateConfig
from gptmodel.retraining.gate import Pair, Scored, decide

Numbers = npt.NDArray[np.float64]
SPREAD = 0.04  # nats per token: how differently two trainings of one setting fare on a document
TOKEN_NOISE = 0.6  # nats of one token, besides
LOG_LENGTH = (6.5, 0.8)
SAMPLES = {"repeated_4": 0.1, "memorisation_rate": 0.0}

GAINS: dict[str, Callable[[np.random.Generator, Numbers], Numbers]] = {
    "normal": lambda draw, size: draw.normal(size=len(size)),
    "heavy tails (t, 3 degrees)": lambda draw, size: draw.standard_t(3, len(size)) / np.sqrt(3),
    "tied to length (0.3)": lambda draw, size: 0.3 * (size - LOG_LENGTH[1]) + 0.95 * draw.normal(size=len(size)),
    "skewed (exponential)": lambda draw, size: draw.exponential(size=len(size)) - 1.0,
    "stress: tied to length (0.7)": lambda draw, size: 0.7 * (size - LOG_LENGTH[1] + draw.normal(size=len(size))),
    "stress: harm in 1 of 10": lambda draw, size: np.where(draw.random(len(size)) < 0.1, 3.0, -1.0 / 3.0),
}
"""Standardised difference in loss of each document, of mean zero over tokens, by the name of its distribution.
`size` is the standardised logarithm of the length; its mean over tokens is the spread of the logarithm."""


@dataclass(frozen=True)
class Row:
    """What became of one setting."""

    documents: int
    gains: str
    effect: float
    runs: int
    nights: int
    false_or_promoted: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        return self.false_or_promoted / self.runs


def night(draw: np.random.Generator, size: Numbers, effect: float, gains: str, config: GateConfig) -> bool:
    """Whether the gate promotes a challenger that is better by `effect` nats per token."""
    tokens = np.round(np.exp(LOG_LENGTH[0] + LOG_LENGTH[1] * size)) + 8
    own = SPREAD * GAINS[gains](draw, size) + TOKEN_NOISE * draw.normal(size=len(size)) / np.sqrt(tokens)
    names = [f"{n:05d}" for n in range(len(size))]
    champion = Scored(names, names, tokens, 4.0 * tokens)
    challenger = Scored(names, names, tokens, (4.0 - effect + own) * tokens)
    if challenger.loss() >= champion.loss():
        return False  # it cannot be promoted, and the draws are what takes time
    return decide(config, Pair(champion, challenger), None, SAMPLES).outcome == "promoted"


def runs(task: tuple[int, str, float, int, int, int, GateConfig]) -> Row:
    """Count the runs with a promotion in any of their nights."""
    documents, gains, effect, count, nights, seed, config = task
    draw = np.random.default_rng([seed, documents, int(effect * 1e6), list(GAINS).index(gains)])
    hits = 0
    for _ in range(count):
        size = draw.normal(size=documents)
        hits += any(night(draw, size, effect, gains, config) for _ in range(nights))
    low, high = beta.ppf([0.025, 0.975], [hits or 1e-9, hits + 1], [count - hits + 1, (count - hits) or 1e-9])
    return Row(documents, gains, effect, count, nights, hits, float(low), float(high))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--runs", type=int, default=300, help="of the false promotions, for each line")
    asked.add_argument("--alpha", type=float, default=GateConfig().alpha)
    asked.add_argument("--nights", type=int, default=GateConfig().nights)
    asked.add_argument("--documents", type=int, nargs="+", default=[100, 200])
    asked.add_argument("--resamples", type=int, default=4_000, help="fewer than the gate's own, to be done sooner")
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--out", type=Path, default=Path("benchmarks/results/gate_simulation.json"))
    given = asked.parse_args()
    config = GateConfig(alpha=given.alpha, nights=given.nights, resamples=given.resamples)
    effects = [0.005, 0.01, 0.02, 0.03, 0.05, 0.08]
    false = [(n, gains, 0.0, given.runs, given.nights, given.seed, config) for n in given.documents for gains in GAINS]
    power = [(n, "normal", effect, given.runs, 1, given.seed, config) for n in given.documents for effect in effects]
    began = time.monotonic()
    with ProcessPoolExecutor() as pool:
        rows = list(pool.map(runs, [*false, *power]))
    print(f"{given.runs} runs of {given.nights} nights without a better challenger; alpha {given.alpha:g}")
    print(f"{'documents':>9}  {'gains':28} {'runs with a false promotion':>28}")
    for row in rows[: len(false)]:
        print(f"{row.documents:9}  {row.gains:28} {row.rate:8.1%}  [{row.low:.1%}, {row.high:.1%}]")
    print("\npower: promoted in one night, by how much better the challenger is (nats per token)")
    print(f"{'documents':>9}  " + "".join(f"{effect:>8}" for effect in effects))
    for n in given.documents:
        found = [row.rate for row in rows[len(false) :] if row.documents == n]
        print(f"{n:9}  " + "".join(f"{rate:8.0%}" for rate in found))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    told = {"machine": machine(), "config": asdict(config), "seconds": round(time.monotonic() - began, 1)}
    given.out.write_text(json.dumps({**told, "rows": [asdict(r) for r in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
