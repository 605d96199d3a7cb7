"""How often a 95% interval holds the truth: `.venv/bin/python benchmarks/interval_coverage.py`, about a minute.

Documents with log-normal lengths (the spread of their logarithm is 1) and losses of their own are drawn again and
again, and the interval that an evaluation would give is held against the loss that such documents have on average.
"""

from __future__ import annotations

import numpy as np

from gptmodel.judging.bootstrap import effective_units, interval, resampled

TRIALS, RESAMPLES, LOSS, SPREAD = 1_000, 600, 5.0, 0.4


def main() -> None:
    print("documents  tied to length  interval  plain percentile")
    draw = np.random.default_rng(1)
    for documents in (5, 10, 24, 100):
        for tie in (0.0, 0.5):  # correlation of a document's loss with the logarithm of its length
            held = np.zeros(2)
            truth = LOSS + tie * SPREAD
            for trial in range(TRIALS):
                size = draw.normal(size=documents)
                own = tie * size + np.sqrt(1 - tie**2) * draw.normal(size=documents)
                tokens = np.exp(7 + size)
                loss = LOSS + SPREAD * own + 3 * draw.normal(size=documents) / np.sqrt(tokens)
                sums = resampled(np.stack([loss * tokens, tokens], axis=1), RESAMPLES, trial)
                values = sums[:, 0] / sums[:, 1]
                low, high = np.quantile(values, [0.025, 0.975])
                bounds = (interval(values, effective_units(tokens), 0.95), (low, high))
                held += [below <= truth <= above for below, above in bounds]
            ours, plain = held / TRIALS
            print(f"{documents:9} {tie:15.1f} {ours:9.1%} {plain:17.1%}", flush=True)


if __name__ == "__main__":
    main()
