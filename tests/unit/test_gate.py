"""The gate by its rules, on made-up scores: what is promoted, what is kept, what waits, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gptmodel.config.retraining import GateConfig
from gptmodel.errors import ConfigError
from gptmodel.retraining.gate import Check, Decision, Pair, Scored, decide
from gptmodel.store.artifacts import canonical

SAMPLES = {"repeated_4": 0.2, "memorisation_rate": 0.0}
GATE = GateConfig()


def scores(difference: Any, *, documents: int = 120, sources: int = 4, seed: int = 1) -> Pair:
    """A champion, and a challenger whose loss differs by so many nats per token on each document."""
    draw = np.random.default_rng(seed)
    tokens = np.round(np.exp(draw.normal(6.0, 0.5, documents)))
    loss = 4.0 + 0.3 * draw.normal(size=documents)
    ids = [f"{n:04d}" for n in range(documents)]
    names = [f"file-{n % sources}" for n in range(documents)]
    changed = loss + difference + 0.02 * draw.normal(size=documents)
    return Pair(Scored(ids, names, tokens, loss * tokens), Scored(ids, names, tokens, changed * tokens))


def in_pieces(pair: Pair, texts: int) -> Pair:
    """The same documents as pieces of so many texts."""
    count = len(pair.champion.ids)
    parents = [f"book-{n * texts // count}.txt" for n in range(count)]
    return Pair(replace(pair.champion, parents=parents), replace(pair.challenger, parents=parents))


def check(decision: Decision, name: str) -> Check:
    return next(each for each in decision.checks if each.name == name)


def test_a_better_challenger_is_promoted_with_its_figures() -> None:
    decision = decide(GATE, scores(-0.05), scores(-0.05, seed=2), SAMPLES)
    assert decision.outcome == "promoted"
    figures = check(decision, "better").figures
    assert figures["difference"] < figures["high"] < 0
    assert figures["level"] == pytest.approx(0.05 / 7 / 4)
    assert {"source file-0", "longest documents", "arrivals"} <= {each.name for each in decision.checks}
    assert "better" in decision.said


@pytest.mark.parametrize("difference", [0.0, 0.05])
def test_what_is_not_better_stays_out(difference: float) -> None:
    decision = decide(GATE, scores(difference), None, SAMPLES)
    assert decision.outcome == "kept"
    assert "not shown to be better" in decision.said


def test_a_small_gain_counts_only_beyond_the_margin() -> None:
    assert decide(GATE, scores(-0.03), None, SAMPLES).outcome == "promoted"
    assert decide(GateConfig(margin=0.05), scores(-0.03), None, SAMPLES).outcome == "kept"


def test_few_documents_show_nothing() -> None:
    decision = decide(GATE, scores(-0.5, documents=20), None, SAMPLES)
    assert decision.outcome == "kept"
    assert "too few documents" in decision.said
    assert decide(GateConfig(min_documents=10), scores(-0.5, documents=20), None, SAMPLES).outcome == "promoted"


def test_a_worse_source_keeps_a_better_model_out() -> None:
    difference = np.where(np.arange(120) % 4 == 3, 0.08, -0.1)
    decision = decide(GATE, scores(difference), None, SAMPLES)
    assert check(decision, "better").passed
    assert decision.outcome == "kept"
    assert "source file-3" in decision.said
    assert decide(GateConfig(max_worse_source=0.2), scores(difference), None, SAMPLES).outcome == "promoted"


def test_sources_of_few_documents_do_not_decide() -> None:
    difference = np.where(np.arange(120) % 60 == 59, 0.5, -0.1)  # one source of two documents
    decision = decide(GATE, scores(difference, sources=60), None, SAMPLES)
    assert decision.outcome == "promoted"
    assert "60 sources have fewer than 5 documents" in check(decision, "sources").said


def test_the_longest_documents_are_guarded() -> None:
    pair = scores(0.0)
    longest = pair.champion.n_tokens >= np.quantile(pair.champion.n_tokens, 0.9)
    # Much better on the shorter ones, so that it is better over all tokens.
    worse = Scored(
        pair.challenger.ids,
        pair.challenger.sources,
        pair.challenger.n_tokens,
        pair.challenger.nats + np.where(longest, 0.6, -0.6) * pair.champion.n_tokens,
    )
    config = GateConfig(longest_share=0.1, max_worse_source=9.0)
    decision = decide(config, Pair(pair.champion, worse), None, SAMPLES)
    assert check(decision, "better").passed
    assert decision.outcome == "kept"
    assert check(decision, "longest documents").passed is False


def test_arrivals_are_guarded_and_may_be_absent_or_few() -> None:
    better = scores(-0.05)
    assert decide(GATE, better, scores(0.1, documents=30), SAMPLES).outcome == "kept"
    assert decide(GATE, better, scores(0.1, documents=4, sources=1), SAMPLES).outcome == "promoted"
    assert decide(GATE, better, None, SAMPLES).outcome == "promoted"


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ({**SAMPLES, "repeated_4": 0.95}, "repeated_4 is 0.950, ABOVE"),
        ({**SAMPLES, "memorisation_rate": 0.5}, "memorisation_rate is 0.500, ABOVE"),
        ({"repeated_4": 0.1}, "memorisation_rate was not measured"),
    ],
)
def test_samples_must_pass_and_be_measured(samples: dict[str, float], said: str) -> None:
    for pair in (scores(-0.05), None):  # the first model too
        decision = decide(GATE, pair, None, samples)
        assert decision.outcome == "kept"
        assert said in decision.said


def test_a_check_of_samples_can_be_left_out() -> None:
    config = GateConfig(max_memorised=1.0)
    assert decide(config, scores(-0.05), None, {"repeated_4": 0.1}).outcome == "promoted"


def test_the_first_model_is_promoted_or_waits_for_a_person() -> None:
    assert decide(GATE, None, None, SAMPLES).outcome == "promoted"
    decision = decide(GateConfig(first="wait"), None, None, SAMPLES)
    assert decision.outcome == "waiting"
    assert "gptflow promote" in decision.said


def test_asked_for_ratings_are_waited_for_and_then_decide() -> None:
    config, pair = GateConfig(ratings=("coherence>=3",)), scores(-0.05)
    assert decide(config, pair, None, SAMPLES).outcome == "waiting"
    assert decide(config, scores(0.1), None, SAMPLES).outcome == "kept"  # nobody needs to rate it
    assert decide(config, pair, None, SAMPLES, [("coherence>=3: met, 3.5", True)]).outcome == "promoted"
    assert decide(config, pair, None, SAMPLES, [("coherence>=3: NOT met, 2.5", False)]).outcome == "kept"


def test_scores_of_other_documents_cannot_be_paired() -> None:
    one, other = scores(0.0), scores(0.0, seed=3)
    with pytest.raises(ConfigError, match="max_tokens"):
        Pair(one.champion, other.champion)


def test_documents_that_a_model_knows_are_left_out() -> None:
    pair = scores(np.where(np.arange(120) < 60, -5.0, 0.3))
    rest = pair.without({f"{n:04d}" for n in range(60)})
    assert rest.champion.ids[0] == "0060"
    assert rest.difference() == pytest.approx(0.3, abs=0.02)


def test_a_challenger_that_scored_nan_is_kept_out() -> None:
    decision = decide(GATE, scores(float("nan")), None, SAMPLES)
    assert decision.outcome == "kept"
    assert canonical(decision.plain()), "the ledger takes no NaN"


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("alpha", 0.0, "alpha"),
        ("nights", 0, "nights"),
        ("resamples", 1000, "too few to see the tail"),
        ("min_documents", 1, "min_documents"),
        ("max_worse_source", -0.1, "max_worse_source"),
        ("max_repeated", 1.5, "max_repeated"),
        ("longest_share", 0.0, "longest_share"),
        ("ratings", ("beauty>=3",), "beauty"),
    ],
)
def test_wrong_settings_are_named(setting: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GateConfig(**{setting: value})  # type: ignore[arg-type]


def test_pieces_of_one_text_count_once() -> None:
    """What a model gains on a text it gains on all of its pieces: ten texts in ten pieces each tell what ten do."""
    gained = np.repeat(np.where(np.arange(10) < 7, -0.05, 0.01), 10)
    pair = scores(gained, documents=100)
    assert decide(GATE, pair, None, SAMPLES).outcome == "promoted"
    cut = in_pieces(pair, 10)
    decision = decide(GATE, cut, None, SAMPLES)
    assert decision.outcome == "kept"
    assert "too few documents to tell: 100 documents of 10 texts" in decision.said
    config = GateConfig(min_documents=5)
    decision = decide(config, cut, None, SAMPLES)
    assert "not shown to be better" in decision.said
    assert "on 100 documents of 10 texts" in decision.said
    assert check(decision, "better").figures["effective_documents"] <= 10
    assert decide(config, in_pieces(scores(-0.05, documents=100), 10), None, SAMPLES).outcome == "promoted"


def test_no_better_challenger_is_rarely_promoted() -> None:
    """300 nights of equal models at 1 in 560 each: four or more false promotions would come by chance once in 500."""
    config, draw = GateConfig(resamples=2_800), np.random.default_rng(4)
    false = 0
    for _ in range(300):
        pair = scores(0.04 * draw.normal(size=60), documents=60, seed=int(draw.integers(1 << 30)))
        if pair.difference() < 0:
            false += decide(config, pair, None, SAMPLES).outcome == "promoted"
    assert false <= 3
