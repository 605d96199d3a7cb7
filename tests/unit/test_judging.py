"""Figures by hand, intervals against scipy's bootstrap, and the comparison of two models on the same documents."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats

from flows.commands.terminal import show
from gptmodel.config import EvaluateConfig, PipelineConfig
from gptmodel.errors import ConfigError
from gptmodel.judging.bootstrap import effective_units, interval, resampled
from gptmodel.judging.comparison import compare, compare_evaluations
from gptmodel.judging.evaluation import evaluate, figures
from gptmodel.judging.scoring import Scores
from gptmodel.judging.tables import source_table
from gptmodel.judging.units import UNITS, Units, calibration_bins, load_units, resampled_words, save_units, units_of
from gptmodel.model import GPT
from gptmodel.store.artifacts import Artifact, Ref, Request, Store
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.tokenstream import DocumentIndex
from gptmodel.weights import save_model


def scores_of(nats: list[float], rank: list[int], sure: list[float], text: str = "") -> Scores:
    n = len(nats)
    targets = gpt2().encode(text).astype(np.int64) if text else np.full(n, 11)
    one = np.array(nats, np.float32)
    return Scores(np.arange(1, n + 1), targets, one, one + 1, np.array(rank, np.int32), np.array(sure, np.float32))


def index_of(*lengths: int) -> DocumentIndex:
    starts = np.cumsum([0, *lengths[:-1]])
    return DocumentIndex([f"d{n}" for n in range(len(lengths))], starts, np.array(lengths))


def test_figures_by_hand() -> None:
    text = "日本 x"  # 6 bytes and 2 characters, over tokens that split them, and 2 of both
    n = len(gpt2().encode(text))
    scores = scores_of([1.0] * (n - 1) + [3.0], [1] * (n - 2) + [5, 6], [0.5] * n, text)
    unigram = np.full(n, 5.0)
    found = units_of(scores, index_of(3, n - 2), unigram, 10).figures()
    total = n + 2
    assert n > 4
    assert found == pytest.approx(
        {
            "loss": total / n,
            "perplexity": math.exp(total / n),
            "plain_loss": total / n + 1,
            "plain_perplexity": math.exp(total / n + 1),
            "bits_per_byte": total / math.log(2) / 8,
            "bits_per_char": total / math.log(2) / 4,
            "accuracy": (n - 2) / n,
            "accuracy_at_5": (n - 1) / n,
            "calibration_error": abs((n - 2) / n - 0.5),
            "unigram_loss": 5.0,
            "unigram_perplexity": math.exp(5.0),
        }
    )


def test_a_token_belongs_to_the_document_that_it_stands_in() -> None:
    units = units_of(scores_of([1.0, 2.0, 4.0, 8.0, 16.0], [1] * 5, [0.5] * 5), index_of(2, 3, 1), np.ones(5), 5)
    assert units.ids == ["d0", "d1", "d2"]
    assert units.columns["nats"].tolist() == [1.0, 14.0, 16.0], "the first token of the stream is not predicted"
    assert units.columns["n_tokens"].tolist() == [1, 3, 1]


def test_the_calibration_error_by_hand() -> None:
    # 0.5 belongs to (0.25, 0.5], 1.0 to the last bin, and rounding may take a probability past 1
    sure, right = [0.1, 0.3, 0.5, 0.9, 1.0, 1.0000001], [1, 0, 1, 1, 1, 0]
    units = units_of(scores_of([1.0] * 6, [2 - r for r in right], sure), index_of(3, 4), np.ones(6), 4)
    bins = calibration_bins(units)
    assert [found["tokens"] for found in bins] == [1, 2, 0, 3]
    assert [found["accuracy"] for found in bins] == [1.0, 0.5, None, pytest.approx(2 / 3)]
    assert bins[1]["probability"] == pytest.approx(0.4)
    assert (bins[1]["above"], bins[1]["to"]) == (0.25, 0.5)
    expected = 1 / 6 * abs(1 - 0.1) + 2 / 6 * abs(0.5 - 0.4) + 3 / 6 * abs(2 / 3 - 2.9 / 3)
    assert units.figures()["calibration_error"] == pytest.approx(expected, abs=1e-6)


def test_the_only_document_is_cut_into_blocks() -> None:
    n = 1000
    scores = scores_of(list(np.arange(n)), [1] * n, [0.5] * n)
    units = units_of(scores, index_of(n + 1), np.ones(n), 5)
    assert units.kind == "block of 64 tokens"
    assert units.ids[:3] == ["1", "65", "129"]
    assert units.columns["n_tokens"].tolist() == [64] * 15 + [40]
    assert units.columns["nats"][0] == sum(range(64))
    told = figures(units, EvaluateConfig())
    assert told["resampling"]["unit"] == "block of 64 tokens"
    assert told["intervals"]["loss"][0] < told["loss"] < told["intervals"]["loss"][1]
    assert figures(units, EvaluateConfig(resamples=0))["intervals"] == {}
    assert ", 2,000 draws of 16 blocks of 64 tokens, worth" in f", {resampled_words(told).partition(' from ')[2]}"
    assert resampled_words(told).endswith("of equal length")
    short = units_of(scores_of([1.0], [1], [0.5]), index_of(2), np.ones(1), 5)
    assert figures(short, EvaluateConfig())["intervals"] == {}, "of one unit nothing can be drawn"


def test_pieces_of_one_text_are_drawn_together() -> None:
    scores = scores_of([1.0, 2.0, 4.0, 8.0, 16.0], [1] * 5, [0.5] * 5)
    index, unigram = index_of(2, 1, 1, 2), np.ones(5)
    units = units_of(scores, index, unigram, 5, {"d0": "book.txt", "d2": "book.txt", "d3": "other.txt"})
    assert (units.kind, units.ids) == ("text", ["book.txt", "d1", "other.txt"])
    assert units.columns["nats"].tolist() == [5.0, 2.0, 24.0]
    lone = units_of(scores, index, unigram, 5, {"d0": "book.txt", "d3": "other.txt"})
    assert (lone.kind, lone.ids) == ("document", ["d0", "d1", "d2", "d3"]), "as before where each is alone"
    of_one = units_of(scores, index, unigram, 5, dict.fromkeys(lone.ids, "book.txt"))
    assert (of_one.kind, of_one.ids) == ("piece of one text", lone.ids)
    few = resampled_words(figures(of_one, EvaluateConfig()))
    assert "from 2,000 draws of 4 pieces of one text" in few
    assert few.endswith("; of fewer than 10 they are too narrow")


def test_intervals_hold_the_truth_for_texts_that_were_cut() -> None:
    draw, held, parents = np.random.default_rng(7), 0, {f"d{n}": f"{n // 10}.txt" for n in range(100)}
    for seed in range(300):
        loss = 5 + np.repeat(0.2 * draw.normal(size=10), 10) + 0.2 * draw.normal(size=100)
        scores = scores_of([0.0, *np.repeat(loss, 4)][1:], [1] * 400, [0.5] * 400)
        index = DocumentIndex([*parents], np.arange(100) * 4 + 1, np.full(100, 4))
        units = units_of(scores, index, np.ones(400), 5, parents)
        drawn = units.figures_of(resampled(units.flat(), 400, seed))["loss"]
        low, high = interval(drawn, units.effective, 0.95)
        held += low <= 5 <= high
    assert held >= 0.91 * 300, "with pieces as units it was 0.55"


def test_draws_are_those_of_scipy() -> None:
    draw = np.random.default_rng(5)
    sizes = draw.integers(100, 5000, 40).astype(float)
    nats = sizes * draw.normal(4.0, 0.5, 40)
    sums = resampled(np.stack([nats, sizes], axis=1), 20_000, seed=1)
    ratio = sums[:, 0] / sums[:, 1]
    theirs = scipy.stats.bootstrap(
        (nats, sizes),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=2,
    )
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert np.quantile(ratio, [0.025, 0.975]) == pytest.approx(list(theirs.confidence_interval), abs=width * 0.03)
    assert ratio.std() == pytest.approx(float(theirs.standard_error), rel=0.03)
    # for many units the interval is the percentile one, and it is wider for few
    assert interval(ratio, 1e9, 0.95) == pytest.approx(np.quantile(ratio, [0.025, 0.975]), abs=width * 1e-3)
    widths = [high - low for low, high in (interval(ratio, n, 0.95) for n in (1, 5, 20, 1000))]
    assert widths == sorted(widths, reverse=True)
    assert effective_units([3, 3, 3]) == pytest.approx(3)
    assert effective_units([100, 1, 1]) == pytest.approx(102**2 / 10_002)


@pytest.mark.parametrize("n", [5, 24])
def test_of_few_units_the_interval_is_the_one_of_students_t(n: int) -> None:
    # Means drawn anew from n normal units spread by sqrt((n - 1) / n) of the standard error that t goes by.
    means = scipy.stats.norm.ppf((np.arange(1_000_000) + 0.5) / 1_000_000) * math.sqrt((n - 1) / n)
    bound = scipy.stats.t.ppf(0.975, n - 1)
    assert interval(means, n, 0.95) == pytest.approx((-bound, bound), rel=2e-3)


def test_draws_do_not_depend_on_how_many_are_taken_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(30, 3))
    whole = resampled(rows, 200, seed=7)
    monkeypatch.setattr("gptmodel.judging.bootstrap._DRAWS", 100)
    np.testing.assert_allclose(resampled(rows, 200, seed=7), whole)
    assert not np.allclose(resampled(rows, 200, seed=8), whole)


def test_sources_are_files_whatever_the_piece() -> None:
    names = ["a.txt", "b.jsonl:1", "b.jsonl:2", "b.jsonl:12#3", "", "c#d"]
    n = np.array([10, 20, 20, 40, 5, 1])
    table = pa.table(
        {
            "document": [f"d{n}" for n in range(len(names))],
            "source": names,
            "parent": ["d0", "d1", "d2", "b.jsonl:12", "d4", "d5"],
            **dict.fromkeys(("n_tokens", "n_bytes", "n_chars"), n),
            "correct": n // 2,
            "nats": n * np.array([1.0, 2.0, 3.0, 4.0, 9.0, 7.0]),
            "plain_nats": n * 2.0,
        }
    )
    found = source_table(table, EvaluateConfig()).to_pylist()
    assert [(row["source"], row["documents"], row["n_tokens"]) for row in found] == [
        ("", 1, 5),
        ("c#d", 1, 1),
        ("b.jsonl", 3, 80),
        ("a.txt", 1, 10),
    ]
    assert found[2]["loss"] == pytest.approx((40 + 60 + 160) / 80)
    assert 2.0 <= found[2]["loss_low"] < found[2]["loss"] < found[2]["loss_high"] <= 4.0
    assert found[3]["loss_low"] is None
    one = table.set_column(table.schema.get_field_index("parent"), "parent", pa.array(["b"] * len(names)))
    assert [row["loss_low"] for row in source_table(one, EvaluateConfig()).to_pylist()] == [None] * 4


Judge = Callable[..., Artifact]


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    """Makes an evaluation of forty documents: each is easier or harder for all models, and a model adds its own."""
    store = Store(tmp_path / "store")

    def make(own: float, noise: float = 0.05, *, data: str = "a" * 64, seed: int = 0, **config: Any) -> Artifact:
        sizes = np.random.default_rng(1).integers(200, 3000, config.pop("documents", 40)).astype(float)
        hard = np.random.default_rng(2).normal(4.0, 0.8, len(sizes))
        nats = sizes * (hard + own + noise * np.random.default_rng(3 + seed).normal(size=len(sizes)))
        ones = dict.fromkeys(("n_chars", "plain_nats", "unigram_nats", "correct", "correct_at_5"), sizes / 2)
        ones["correct"] = sizes * config.pop("right", 0.5)
        bins = {name: np.stack([sizes, sizes], 1) for name in ("bin_tokens", "bin_probability", "bin_correct")}
        first, retokenized = config.pop("first", False), config.pop("retokenized", 0)
        kind = config.pop("kind", "document")

        def build(directory: Path) -> dict[str, Any]:
            ids = [f"d{n}" for n in range(len(sizes))]
            if first:
                columns = {"document": ids, "n_tokens": sizes.astype(int), "n_bytes": sizes.astype(int) * 4}
                pq.write_table(
                    pa.table({**columns, "nats": nats, "loss": nats / sizes}), directory / "documents.parquet"
                )
            else:
                columns = {"n_tokens": sizes + retokenized, "n_bytes": sizes * 4, "nats": nats}
                order = (
                    "n_tokens",
                    "n_bytes",
                    "n_chars",
                    "nats",
                    "plain_nats",
                    "unigram_nats",
                    "correct",
                    "correct_at_5",
                )
                every = {**columns, **ones, **bins}
                kept = {name: every[name] for name in (*order, *bins)}
                save_units(Units(kind, ids, kept), directory / UNITS)
            return {"split": "validation"}

        asked = {"split": "validation", "max_tokens": 0, **({} if first else {"stride": 0}), **config}
        inputs = (Ref("weights", f"{own}{seed}".encode().hex().ljust(64, "0"), "c" * 64), Ref("shards", "b" * 64, data))
        asked["model"] = [own, seed]
        return store.produce(Request("evaluation", 1 if first else 2, asked, inputs), build)[0]

    return make


def test_pairing_sees_what_two_intervals_beside_each_other_do_not(judge: Judge) -> None:
    old, new = judge(0.0), judge(-0.05, seed=1)
    found = compare_evaluations(old, new)
    loss = found.of("loss")
    assert loss.difference == pytest.approx(loss.challenger - loss.champion)
    assert loss.low < loss.difference < loss.high < 0
    assert loss.p_better > 0.99
    alone = [figures(load_units(one), EvaluateConfig())["intervals"]["loss"] for one in (old, new)]
    assert alone[0][0] < alone[1][1], "the two intervals overlap"
    assert loss.high - loss.low < (alone[0][1] - alone[0][0]) / 5
    assert (found.unit, found.units, found.resamples) == ("document", 40, 2000)
    assert found == compare_evaluations(old, new), "the same seed gives the same"
    surer = compare_evaluations(old, new, confidence=0.5).of("loss")
    assert loss.low < surer.low < surer.difference < surer.high < loss.high
    assert surer.difference == loss.difference
    back = compare_evaluations(new, old).of("loss")
    assert (back.difference, back.p_better) == pytest.approx((-loss.difference, 1 - loss.p_better))


def test_a_model_is_no_better_than_itself_and_noise_is_told_apart_from_gain(judge: Judge) -> None:
    same = compare_evaluations(judge(0.0), judge(0.0))
    assert {(found.difference, found.low, found.high, found.p_better) for found in same.differences} == {(0, 0, 0, 0.5)}
    noise = compare_evaluations(judge(0.0, 0.3), judge(0.0, 0.3, seed=1)).of("loss")
    assert noise.low < 0 < noise.high


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"data": "f" * 64}, r"their shards differ.*evaluate both on the same"),
        ({"split": "train"}, r"evaluate.split was validation and train"),
        ({"stride": 8}, r"evaluate.stride was 0 and 8"),
        ({"max_tokens": 50}, r"evaluate.max_tokens was 0 and 50"),
        ({"documents": 39}, r"they scored other tokens of the documents"),
        ({"retokenized": 1}, r"they scored other tokens of the documents"),
    ],
)
def test_what_was_not_judged_on_the_same_text_is_not_compared(judge: Judge, other: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compare_evaluations(judge(0.0), judge(0.1, **other))


def test_of_one_document_nothing_is_drawn(judge: Judge) -> None:
    with pytest.raises(ConfigError, match="has one document only, of which nothing can be drawn"):
        compare_evaluations(judge(0.0, documents=1), judge(0.1, documents=1))


def test_an_evaluation_that_took_pieces_for_documents_is_named(judge: Judge) -> None:
    old, new = judge(0.0), judge(0.1, kind="text", seed=1)
    with pytest.raises(ConfigError, match=rf"{old.label} took pieces of one text .* evaluate its model again"):
        compare_evaluations(new, old)


def test_more_right_guesses_are_better_and_a_higher_loss_is_worse(judge: Judge) -> None:
    found = compare_evaluations(judge(0.0), judge(0.5, seed=1, right=0.75))
    assert found.of("accuracy").difference == pytest.approx(0.25)
    assert (found.of("accuracy").p_better, found.of("loss").p_better) == (1.0, 0.0)
    assert found.of("accuracy_at_5").p_better == 0.5, "the same"


def test_evaluations_of_recipe_1_are_compared_by_what_they_have(judge: Judge) -> None:
    old, new = judge(0.0, first=True), judge(-0.05, seed=1)
    found = compare_evaluations(old, new)
    assert [difference.name for difference in found.differences] == ["loss", "perplexity", "bits_per_byte"]
    assert found.of("loss") == compare_evaluations(judge(0.0), new).of("loss")


def test_an_evaluation_and_its_comparison_from_end_to_end(
    tiny_data: tuple[Store, Artifact], tiny: Callable[..., PipelineConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    store, shards = tiny_data
    config = replace(tiny().evaluate, max_tokens=512, stride=16, prompts=(), surprisal_passages=0)
    made = []
    for seed in (1, 2):
        model = GPT(replace(tiny().model, n_embd=8, n_head=1), seed=seed)

        def build(directory: Path, model: GPT = model) -> dict[str, Any]:
            save_model(model, directory)
            return {}

        weights, _ = store.produce(Request("weights", 1, {"judged": seed}), build)
        made.append(evaluate(store, weights, shards, config)[0])
    told = json.loads(made[0].file("evaluation.json").read_text())
    assert told["intervals"].keys() == load_units(made[0]).figures().keys()
    assert all(low < told[name] < high for name, (low, high) in told["intervals"].items() if "accuracy" not in name)
    assert told["stride"] == 16
    assert told["loss"] != told["plain_loss"]
    documents = pq.read_table(made[0].file("documents.parquet")).to_pydict()
    assert set(documents["source"]) <= {f"{n:03d}.txt" for n in range(40)}
    assert sum(documents["nats"]) / told["tokens"] == pytest.approx(told["loss"])
    assert sum(documents["n_chars"]) == told["chars"] == told["bytes"], "the text is plain ASCII"
    assert sum(tokens["tokens"] for tokens in told["calibration"]) == told["tokens"]
    assert pq.read_table(made[0].file("sources.parquet")).num_rows == len(documents["source"])

    compared, reused = compare(store, made[0], made[1], config)
    assert not reused
    assert compare(store, made[0], made[1], config)[1]
    drawn_anew, reused = compare(store, made[0], made[1], replace(config, bootstrap_seed=1, confidence=0.9))
    assert not reused
    assert (drawn_anew.summary["seed"], drawn_anew.summary["confidence"]) == (1, 0.9)
    assert drawn_anew.summary["differences"] != compared.summary["differences"]
    loss = compared.summary["differences"][0]
    assert (loss["name"], loss["champion"]) == ("loss", pytest.approx(told["loss"]))
    assert compared.summary["champion"] == made[0].request.inputs[0].label
    show({"evaluation": made[0], "comparison": compared})
    assert f"draws of {len(documents['source'])} documents, worth" in resampled_words(made[0].summary)
    shown = capsys.readouterr().out
    for name in ("accuracy at 5", "bits per char", "calibration error", "unigram loss", "stride"):
        assert re.search(rf"^ +{name} +\d", shown, re.MULTILINE), name
    low, high = told["intervals"]["accuracy_at_5"]
    assert f"{told['accuracy_at_5']:.4f}  {low:.4f} to {high:.4f}" in shown
    numbers = rf"{loss['champion']:.4f} +{loss['challenger']:.4f} +{loss['difference']:.4f}"
    bounds = rf"{loss['low']:.4f} to {loss['high']:.4f} +{loss['p_better']:.3f}"
    assert re.search(rf"^ +loss +{numbers} +{bounds} *$", shown, re.M), "on one line, in 80 columns"
    with pytest.raises(ConfigError, match=r"evaluate.resamples is 0"):
        compare(store, made[0], made[1], replace(config, resamples=0))
    with pytest.raises(ConfigError, match="is no evaluation"):
        compare_evaluations(made[0], shards)
