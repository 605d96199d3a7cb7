"""The gate: does a challenger take the champion's place? A pure function of what both scored, and of the settings.

*Better* is shown by a paired bootstrap over documents, or whole texts where long ones were cut: the upper end of a
one-sided interval of the difference in loss must lie below minus the margin. Nights share alpha (Bonferroni: it holds
whatever they have to do with each other, and they look at the same documents). So far out no interval is exact where
documents are few and differences skewed, so the highest of three is taken (`upper_bound`), and the level is divided by
`config.retraining.CAUTION` besides.
`benchmarks/gate_simulation.py` measures what is left of it.

*Not worse* is looked at slice by slice (each source, the arrivals, the longest documents), by the measured difference
against a bound: a slice is guarded against harm, and proof of harm would come too late.

What was not measured does not pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gptmodel.config.retraining import GateConfig
from gptmodel.errors import ConfigError
from gptmodel.judging.bootstrap import effective_units, interval, resampled, summed
from gptmodel.rating.gate import PeopleGate

Outcome = Literal["promoted", "kept", "waiting"]
Numbers = npt.NDArray[np.float64]
_SAMPLE_CHECKS = (("repeated_4", "max_repeated"), ("memorisation_rate", "max_memorised"))


@dataclass(frozen=True)
class Scored:
    """What one model scored on D documents, in one order."""

    ids: Sequence[str]
    sources: Sequence[str]
    """The file or dataset of each, without the number of a row."""
    n_tokens: Numbers
    """Scored tokens [D]."""
    nats: Numbers
    """Their summed loss [D]."""
    parents: Sequence[str] = ()
    """The text that each is a piece of, or its own id; empty where none was cut."""

    def loss(self, picked: npt.NDArray[np.bool_] | None = None) -> float:
        """Nats per token over the picked documents, or over all."""
        which = slice(None) if picked is None else picked
        return float(self.nats[which].sum() / self.n_tokens[which].sum())

    def only(self, keep: npt.NDArray[np.bool_]) -> Scored:
        kept = np.flatnonzero(keep).tolist()
        ids, sources, parents = ([n[i] for i in kept] if n else [] for n in (self.ids, self.sources, self.parents))
        return Scored(ids, sources, self.n_tokens[kept], self.nats[kept], parents)


@dataclass(frozen=True)
class Pair:
    """Champion and challenger on the same documents."""

    champion: Scored
    challenger: Scored

    def __post_init__(self) -> None:
        ours, theirs = self.champion, self.challenger
        if list(ours.ids) != list(theirs.ids) or not np.array_equal(ours.n_tokens, theirs.n_tokens):
            raise ConfigError(
                "champion and challenger were not scored on the same tokens of the same documents, as models of "
                "different contexts are not under evaluate.max_tokens; set evaluate.max_tokens=0"
            )

    def difference(self, picked: npt.NDArray[np.bool_] | None = None) -> float:
        """The challenger's loss minus the champion's, in nats per token."""
        return self.challenger.loss(picked) - self.champion.loss(picked)

    def without(self, ids: set[str]) -> Pair:
        """Without documents that one of the two knows from training."""
        if not ids:
            return self
        keep = np.array([each not in ids for each in self.champion.ids], bool)
        return Pair(self.champion.only(keep), self.challenger.only(keep))


@dataclass(frozen=True)
class Check:
    """One thing that was asked, and the figures that answered."""

    name: str
    passed: bool | None
    """None where it does not decide: shown only, or still to come."""
    said: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What the gate says, and why."""

    outcome: Outcome
    checks: tuple[Check, ...]

    @property
    def said(self) -> str:
        """In one line: the outcome and what decided it."""
        failed = [check for check in self.checks if check.passed is False]
        why = failed or [check for check in self.checks if check.name in ("better", "first", "ratings")]
        return f"{self.outcome}: {'; '.join(check.said for check in why)}"

    def plain(self) -> dict[str, Any]:
        """As the ledger holds it: a figure that is no finite number is None there."""
        checks = [asdict(check) for check in self.checks]
        for check in checks:
            check["figures"] = {k: v if math.isfinite(v) else None for k, v in check["figures"].items()}
        return {"outcome": self.outcome, "said": self.said, "checks": checks}


def decide(
    config: GateConfig,
    frozen: Pair | None,
    arrivals: Pair | None,
    samples: Mapping[str, Any],
    ratings: Sequence[tuple[str, bool]] | None = None,
) -> Decision:
    """The decision on a challenger.

    `frozen` is None where there is no champion yet, `arrivals` where nothing that is held out arrived. `samples` are
    the figures of the challenger's samples. `ratings` are (what people said, whether it is met) for each requirement,
    None where too few have rated the challenger.
    """
    checks = list(_checks(config, frozen, arrivals, samples))
    if config.ratings:
        checks += _ratings(ratings)
    failed = any(check.passed is False for check in checks)
    waits = config.ratings and ratings is None
    if frozen is None and config.first == "wait" and not failed:
        outcome: Outcome = "waiting"
    else:
        outcome = "kept" if failed else "waiting" if waits else "promoted"
    return Decision(outcome, tuple(checks))


def _checks(
    config: GateConfig, frozen: Pair | None, arrivals: Pair | None, samples: Mapping[str, Any]
) -> Iterator[Check]:
    if frozen is None:
        said = "there is no champion yet"
        by_hand = "; `gptflow promote` makes this one it" if config.first == "wait" else ""
        yield Check("first", None if by_hand else True, f"{said}{by_hand}")
    else:
        yield better(config, frozen)
        yield from _sources(config, frozen)
        yield _longest(config, frozen)
        yield _arrivals(config, arrivals)
    for figure, bound in _SAMPLE_CHECKS:
        yield _sample(figure, samples.get(figure), getattr(config, bound))


def better(config: GateConfig, pair: Pair) -> Check:
    """Is the challenger better, beyond doubt?"""
    ours, count = pair.champion, len(pair.champion.ids)
    # Pieces of one text are alike: as units of their own they would make chance look like proof.
    columns = np.stack([ours.n_tokens, pair.challenger.nats - ours.nats], axis=1)
    tokens, nats = (summed(columns, ours.parents) if ours.parents else columns).T
    units = effective_units(tokens)
    counted = f"{count:,} documents" + (f" of {len(tokens):,} texts" if len(tokens) < count else "")
    if len(tokens) < 2 or units < config.min_documents:
        said = (
            f"too few documents to tell: {counted}, worth {units:.1f} of equal length, and "
            f"gate.min_documents is {config.min_documents}; hold more out, or bring more text"
        )
        return Check("better", False, said, {"documents": count, "effective_documents": units})
    values, high = upper_bound(tokens, nats, config)
    passed = high < -config.margin
    figures = {
        "champion": pair.champion.loss(),
        "challenger": pair.challenger.loss(),
        "difference": pair.difference(),
        "high": high,
        "p_better": float((values < 0).mean() + (values == 0).mean() / 2),
        "level": config.level,
        "margin": config.margin,
        "documents": float(count),
        "effective_documents": units,
    }
    word = "better" if passed else "not shown to be better"
    beyond = f" by {config.margin:g}" if config.margin else ""
    said = (
        f"{word}{beyond}: loss {figures['challenger']:.4f} after {figures['champion']:.4f} on {counted}, "
        f"difference {figures['difference']:+.4f}, at most {high:+.4f} at level {config.level:.2g}"
    )
    return Check("better", bool(passed), said, figures)


def upper_bound(tokens: Numbers, nats: Numbers, config: GateConfig) -> tuple[Numbers, float]:
    """(difference in each draw, upper end at the config's level) of summed differences `nats` [D] per token.

    The highest of three: the percentile interval of `judging.bootstrap`; the bootstrap-t (Efron and Tibshirani 1993,
    ch. 12), which follows skewness; and Student's own, which does not shrink where draws repeat themselves.
    """
    from scipy.special import stdtrit

    units, difference = effective_units(tokens), float(nats.sum() / tokens.sum())
    columns = np.stack([tokens, nats, nats * nats, nats * tokens, tokens * tokens], axis=1)
    sums = resampled(columns, config.resamples, config.bootstrap_seed)
    values: Numbers = sums[:, 1] / sums[:, 0]
    error = _standard_error(columns.sum(0)[None], np.array([difference]))[0]
    drawn_errors = _standard_error(sums, values)
    pivots = (values - difference) / np.maximum(drawn_errors, 1e-300)
    ends = (
        interval(values, units, 1.0 - 2.0 * config.level)[1],
        difference - float(np.quantile(pivots, config.level)) * error,
        difference - float(stdtrit(units - 1.0, config.level)) * error,
    )
    return values, float(max(ends))


def _standard_error(sums_R5: Numbers, ratios_R: Numbers) -> Numbers:
    """Of a ratio of sums, linearised: from sums of tokens, nats, nats², nats · tokens, tokens²."""
    tokens, _, squares, crossed, lengths = sums_R5.T
    found: Numbers = np.sqrt(np.maximum(squares - 2.0 * ratios_R * crossed + ratios_R**2 * lengths, 0.0)) / tokens
    return found


def _sources(config: GateConfig, pair: Pair) -> Iterator[Check]:
    """A check for each source with documents enough, and one line on the others."""
    names, owner = np.unique(np.array(list(pair.champion.sources), dtype=object), return_inverse=True)
    unguarded = 0
    for number, name in enumerate(names):
        picked = owner == number
        if int(picked.sum()) < config.min_slice_documents:
            unguarded += 1
            continue
        yield _slice(f"source {name}", pair, picked, config.max_worse_source)
    if unguarded:
        said = f"{unguarded:,} sources have fewer than {config.min_slice_documents} documents each and decide nothing"
        yield Check("sources", None, said, {"sources": float(unguarded)})


def _longest(config: GateConfig, pair: Pair) -> Check:
    tokens = pair.champion.n_tokens
    count = max(1, round(len(tokens) * config.longest_share))
    picked = np.zeros(len(tokens), bool)
    picked[np.argsort(-tokens, kind="stable")[:count]] = True
    if count < config.min_slice_documents:
        return _too_few("longest documents", pair, picked)
    return _slice("longest documents", pair, picked, config.max_worse_longest)


def _arrivals(config: GateConfig, pair: Pair | None) -> Check:
    if pair is None or not len(pair.champion.ids):
        return Check("arrivals", None, "nothing that is held out has arrived since the champion was trained")
    picked = np.ones(len(pair.champion.ids), bool)
    if len(picked) < config.min_slice_documents:
        return _too_few("arrivals", pair, picked)
    return _slice("arrivals", pair, picked, config.max_worse_arrivals)


def _slice(name: str, pair: Pair, picked: npt.NDArray[np.bool_], bound: float) -> Check:
    difference = pair.difference(picked)
    passed = bool(difference <= bound)  # a NaN does not pass
    figures = {
        "champion": pair.champion.loss(picked),
        "challenger": pair.challenger.loss(picked),
        "difference": difference,
        "bound": bound,
        "documents": float(picked.sum()),
    }
    word = "within" if passed else "WORSE than"
    said = f"{name}: {difference:+.4f} on {int(picked.sum()):,} documents, {word} the bound of {bound:+g}"
    return Check(name, passed, said, figures)


def _too_few(name: str, pair: Pair, picked: npt.NDArray[np.bool_]) -> Check:
    difference = pair.difference(picked)
    said = f"{name}: {difference:+.4f} on {int(picked.sum()):,} documents, too few to decide"
    return Check(name, None, said, {"difference": difference, "documents": float(picked.sum())})


def _sample(figure: str, value: Any, bound: float) -> Check:
    if bound >= 1:
        return Check(figure, None, f"samples: {figure} is not asked for")
    if not isinstance(value, int | float):
        said = f"samples: {figure} was not measured (too few or too short samples); lengthen evaluate.decodings"
        return Check(figure, False, said)
    passed = bool(value <= bound)
    said = f"samples: {figure} is {value:.3f}, {'within' if passed else 'ABOVE'} the bound of {bound:g}"
    return Check(figure, passed, said, {"value": float(value), "bound": bound})


def _ratings(ratings: Sequence[tuple[str, bool]] | None) -> Iterator[Check]:
    if ratings is None:
        said = f"{PeopleGate.least_ratings} ratings by {PeopleGate.least_raters} people are not in yet"
        yield Check("ratings", None, f"{said}; `gptflow rate start` asks for them")
        return
    for said, met in ratings:
        yield Check("ratings", met, f"ratings: {said}")
