"""Scores summed over what is drawn again by the bootstrap, and the figures that follow from such sums.

The unit is the document; documents that were cut from one text count as that text, since they are alike. Where only one
text was scored, its pieces are the units, or blocks of the tokens of its only one: their intervals then tell how the
figures would vary over text like this one, not over others. Neighbouring tokens are alike, so blocks are long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gptmodel.judging.bootstrap import Sums, effective_units, grouped
from gptmodel.judging.scoring import Scores
from gptmodel.store.artifacts import Artifact
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.tokenstream import DocumentIndex

UNITS = "units.parquet"
_COLUMNS = ("n_tokens", "n_bytes", "n_chars", "nats", "plain_nats", "unigram_nats", "correct", "correct_at_5")
_BINS = ("bin_tokens", "bin_probability", "bin_correct")
_BLOCKS, _SHORTEST_BLOCK = 100, 64
_LOG_2 = math.log(2)
TOLD = (
    *("loss", "perplexity", "plain_perplexity", "bits_per_byte", "bits_per_char"),
    *("accuracy", "accuracy_at_5", "calibration_error", "unigram_loss", "unigram_perplexity", "stride", "tokens"),
    *("distinct_2", "self_bleu", "memorisation_rate", "overlap_tokens_max", "unseen_overlap_tokens_max"),
)
"""The figures of an evaluation that people are shown first, at the terminal and in the Prefect pages, in this order."""


@dataclass(frozen=True)
class Units:
    """D units, in the order of the stream."""

    kind: str
    """`document`, `text` where some were cut, `piece of one text`, or `block of 640 tokens`."""
    ids: list[str]
    """Ids of the documents, names of texts that were cut, or where in the stream the blocks begin."""
    columns: dict[str, Sums]
    """Sums [D] of `_COLUMNS`, and [D, bins] of `_BINS`. Evaluations of recipe 1 had some of them."""

    @property
    def effective(self) -> float:
        """How many of equal length they are worth."""
        return effective_units(self.columns["n_tokens"])

    def flat(self) -> Sums:
        """All columns side by side, [D, K]."""
        n = len(self.ids)
        return np.concatenate([part.reshape(n, -1) for part in self.columns.values()], axis=1)

    def figures_of(self, sums_XK: Sums) -> dict[str, npt.NDArray[np.float64]]:
        """Every figure [X] that follows from sums [X, K] of the columns as `flat` has them."""
        widths = [part[0].size for part in self.columns.values()]
        cuts = np.cumsum(widths)[:-1]
        parts = np.split(sums_XK, cuts, axis=1)
        sums = {name: part if name in _BINS else part[:, 0] for name, part in zip(self.columns, parts, strict=True)}
        return {name: make(sums) for name, (needed, make) in _FIGURES.items() if set(needed) <= sums.keys()}

    def figures(self) -> dict[str, float]:
        """Every figure, over all units."""
        return {name: float(value[0]) for name, value in self.figures_of(self.flat().sum(0)[None]).items()}


def units_of(
    scores: Scores, index: DocumentIndex, unigram_nats: Sums, n_bins: int, parents: Mapping[str, str] | None = None
) -> Units:
    """The units of scored tokens: documents, texts of which `parents` tells the pieces, or blocks of the only one."""
    owner = np.searchsorted(index.starts, scores.positions, side="right") - 1
    scored, place = np.unique(owner, return_inverse=True)
    if len(scored) > 1:
        ids = [index.ids[i] for i in scored]
        texts, text_of = grouped((parents or {}).get(i, i) for i in ids)
        if 1 < len(texts) < len(ids):
            return _sum("text", texts, text_of[place], scores, unigram_nats, n_bins)
        kind = "document" if len(texts) > 1 else "piece of one text"
        return _sum(kind, ids, place, scores, unigram_nats, n_bins)
    n = len(scores.positions)
    size = max(_SHORTEST_BLOCK, math.ceil(n / _BLOCKS))
    starts = scores.positions[::size]
    ids = [f"{start}" for start in starts]
    return _sum(f"block of {size:,} tokens", ids, np.arange(n) // size, scores, unigram_nats, n_bins)


def _sum(
    kind: str, ids: list[str], owner: npt.NDArray[np.int64], scores: Scores, unigram_nats: Sums, n_bins: int
) -> Units:
    n = len(ids)
    right = scores.correct().astype(np.float64)
    # Guo et al. 2017, arXiv:1706.04599: bins of equal width, each with its upper bound
    bins = np.clip(np.ceil(scores.top_probability * np.float32(n_bins)).astype(np.int64) - 1, 0, n_bins - 1)
    cell = owner * n_bins + bins

    def total(values: npt.NDArray[Any] | None) -> Sums:
        return np.bincount(owner, values, minlength=n).astype(np.float64)

    def binned(values: npt.NDArray[Any] | None) -> Sums:
        return np.bincount(cell, values, minlength=n * n_bins).reshape(n, n_bins).astype(np.float64)

    values = (
        total(None),
        total(gpt2().byte_lengths[scores.targets]),
        total(gpt2().char_counts[scores.targets]),
        total(scores.nats),
        total(scores.plain_nats),
        total(unigram_nats),
        total(right),
        total(scores.correct(5)),
    )
    spread = (binned(None), binned(np.minimum(scores.top_probability, 1)), binned(right))
    return Units(kind, ids, dict(zip((*_COLUMNS, *_BINS), (*values, *spread), strict=True)))


def calibration_bins(units: Units) -> list[dict[str, Any]]:
    """Tokens by their top probability: of each bin how many, how probable on average, and how often it was right."""
    tokens, probability, right = (units.columns[name].sum(0) for name in _BINS)
    n = len(tokens)
    return [
        {
            "above": i / n,
            "to": (i + 1) / n,
            "tokens": int(tokens[i]),
            "probability": float(probability[i] / tokens[i]) if tokens[i] else None,
            "accuracy": float(right[i] / tokens[i]) if tokens[i] else None,
        }
        for i in range(n)
    ]


FEWEST = 10
TOO_FEW = f"of fewer than {FEWEST} they are too narrow"  # benchmarks/interval_coverage.py


def resampled_words(summary: dict[str, Any]) -> str:
    """How the intervals of an evaluation or a comparison were drawn, in words."""
    told = summary.get("resampling", {})
    if not told.get("resamples") or told["units"] < 2:
        return "without intervals"
    return (
        f"{told['confidence']:.0%} intervals from {told['resamples']:,} draws of "
        f"{counted_units(told['units'], told['unit'])}, worth {told['effective_units']:.1f} of equal length"
        f"{'; ' + TOO_FEW if told['units'] < FEWEST else ''}"
    )


def counted_units(n: int, unit: str) -> str:
    """Such as `35 documents` or `16 blocks of 64 tokens`."""
    first, _, rest = unit.partition(" ")
    return f"{n:,} {first}{'' if n == 1 else 's'} {rest}".rstrip()


def save_units(units: Units, path: Path) -> None:
    """One row a unit; the bins as lists."""
    columns = {name: part if part.ndim == 1 else list(part) for name, part in units.columns.items()}
    table = pa.table({"unit": pa.array(units.ids, pa.string()), **columns})
    pq.write_table(table.replace_schema_metadata({"unit": units.kind}), path)


def load_units(evaluation: Artifact) -> Units:
    """The units of an evaluation. One of recipe 1 has those sums that its table of documents holds."""
    old = evaluation.request.recipe_version < 2
    table = pq.read_table(evaluation.file("documents.parquet" if old else UNITS))
    names = ("n_tokens", "n_bytes", "nats") if old else (*_COLUMNS, *_BINS)
    columns = {name: np.array(table.column(name).to_pylist(), np.float64) for name in names}
    kind = "document" if old else table.schema.metadata[b"unit"].decode()
    return Units(kind, table.column("document" if old else "unit").to_pylist(), columns)


def _mean(of: str, by: str, unit: float = 1.0) -> tuple[tuple[str, ...], Callable[[dict[str, Sums]], Sums]]:
    return (of, by), lambda sums: _ratio(sums[of] / unit, sums[by])


def _perplexity(of: str) -> tuple[tuple[str, ...], Callable[[dict[str, Sums]], Sums]]:
    return (of, "n_tokens"), lambda sums: _exp(_ratio(sums[of], sums["n_tokens"]))


def _ratio(part: Sums, whole: Sums) -> Sums:
    found: Sums = part / np.maximum(whole, 1)
    return found


def _exp(loss: Sums) -> Sums:
    found: Sums = np.exp(np.minimum(loss, 700.0))
    return found


def _calibration_error(sums: dict[str, Sums]) -> Sums:
    return _ratio(np.abs(sums["bin_probability"] - sums["bin_correct"]).sum(1), sums["bin_tokens"].sum(1))


_FIGURES: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Sums]], Sums]]] = {
    "loss": _mean("nats", "n_tokens"),
    "perplexity": _perplexity("nats"),
    "plain_loss": _mean("plain_nats", "n_tokens"),
    "plain_perplexity": _perplexity("plain_nats"),
    "bits_per_byte": _mean("nats", "n_bytes", _LOG_2),
    "bits_per_char": _mean("nats", "n_chars", _LOG_2),
    "accuracy": _mean("correct", "n_tokens"),
    "accuracy_at_5": _mean("correct_at_5", "n_tokens"),
    "calibration_error": (_BINS, _calibration_error),
    "unigram_loss": _mean("unigram_nats", "n_tokens"),
    "unigram_perplexity": _perplexity("unigram_nats"),
}
HIGHER_IS_BETTER = frozenset({"accuracy", "accuracy_at_5"})
OF_THE_TEXT = frozenset({"unigram_loss", "unigram_perplexity"})
"""Figures that no model has a part in."""
