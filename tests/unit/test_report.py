"""The report: its figures are the manifest's, what is not there is left out, and no text from outside becomes code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from flows.commands.report import report as command
from gptmodel.config import DecodingConfig, ModelConfig, PipelineConfig
from gptmodel.errors import ArtifactError
from gptmodel.model import GPT
from gptmodel.pages.line_chart import Line, line_chart, ticks
from gptmodel.pages.report import report_page
from gptmodel.pages.report_facts import report_facts
from gptmodel.rating.statistics import preference
from gptmodel.store.artifacts import Artifact, Request, Store
from tests.unit.test_model_card import HOSTILE, checkpoint, evaluation, shards_of, store, weights
from tests.unit.test_surprisal import Reader

__all__ = ["store"]


def sections(page: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page)


def test_what_is_not_there_is_left_out(store: Store) -> None:
    model = checkpoint(store)
    bare = evaluation(store, model)
    page = report_page(report_facts(store, model))
    assert sections(page) == ["Figures", "Training", "Lineage"]
    assert "interval" not in page
    assert "<script" not in page
    assert not re.search(r"<tbody>\s*</tbody>|<p>\s*</p>", page)
    assert all(artifact.digest in page for artifact in (model, bare, shards_of(store)))
    imported = weights(store)
    evaluation(store, imported, 1)
    assert sections(report_page(report_facts(store, imported))) == ["Figures", "Lineage"]


def test_a_real_evaluation_fills_the_page(store: Store, tiny: Callable[..., PipelineConfig], tmp_path: Path) -> None:
    from gptmodel.judging.evaluation import evaluate
    from gptmodel.weights import save_model

    def made(seed: int) -> Artifact:
        def build(directory: Path) -> dict[str, Any]:
            save_model(GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=32), seed=seed), directory)
            return {}

        return store.produce(Request("weights", 1, {"for": "report", "seed": seed}, ()), build)[0]

    model, champion = made(4), made(5)
    few = (DecodingConfig(temperature=0.0, max_new_tokens=4),)
    config = replace(tiny().evaluate, max_tokens=800, surprisal_passages=2, decodings=few)
    judged, _ = evaluate(store, model, shards_of(store), config)
    page = report_page(report_facts(store, model))
    assert {"Figures", "Documents", "Samples", "Surprisal", "Lineage"} <= {*sections(page)}
    assert "A GPT of 403.2 k parameters (1 layer, 8 wide, context 32 tokens), imported weights" in page, "of its file"
    assert f"{judged.summary['loss']:.4f}" in page
    assert f"{100 * judged.summary['accuracy']:.2f} %" in page
    for low, high in judged.summary.get("intervals", {}).values():
        assert re.search(
            rf"{low:.4f} to {high:.4f}|{low:,.1f} to {high:,.1f}|{100 * low:.2f} % to {100 * high:.2f} %", page
        )
    assert ("of fewer than 10 they are too narrow" in page) is (judged.summary["resampling"]["units"] < 10)
    assert len(Reader(page).tiles) == 80
    assert page == report_page(report_facts(store, model))

    evaluate(store, champion, shards_of(store), replace(config, max_tokens=500))
    facts = report_facts(store, model, champion=champion, champion_name="tiny/1")
    assert facts.champion is None, "it was judged on other tokens"
    rival, _ = evaluate(store, champion, shards_of(store), config)
    facts = report_facts(store, model, champion=champion, champion_name="tiny/1")
    beside = report_page(facts)
    assert sections(beside)[:2] == ["Figures", "Against the champion"]
    assert "tiny/1 is the champion" in beside
    assert facts.champion is not None
    found = facts.champion.of("loss")
    assert found.difference == pytest.approx(judged.summary["loss"] - rival.summary["loss"])
    assert f'<td class="n">{found.low:+.4f} to {found.high:+.4f}</td>' in beside
    assert report_facts(store, model, champion=model, champion_name="tiny/2").champion is None, "it is itself"


def told(store: Store, model: Artifact, text: str, number: int) -> Artifact:
    """An evaluation all of whose texts are this one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def build(directory: Path) -> dict[str, Any]:
        bins = [{"above": 0.0, "to": 0.5, "tokens": 7, "probability": 0.25, "accuracy": 0.125}]
        (directory / "evaluation.json").write_text(json.dumps({"calibration": bins}))
        written = f"{text}\u2028\x85{text}"  # which end lines of text, and none of JSON
        sample = {"prompt": text, "text": written, "decoding": text, "overlap_tokens": 3, "overlap_text": text[:3]}
        (directory / "samples.jsonl").write_text(json.dumps(sample, ensure_ascii=False) + "\n")
        names = {"document": [f"{n}{text}" for n in range(4)], "source": [text] * 4, "n_tokens": [64, 65, 3, 99]}
        losses = {"loss": [1.5, 4.5, 9.5, 2.5], "perplexity": [1.0] * 4, "bits_per_byte": [1.0] * 4}
        pq.write_table(pa.table({**names, **losses}), directory / "documents.parquet")
        bounds = {"loss_low": [1.0, None] * 2, "loss_high": [2.0, None] * 2, "documents": [1] * 4}
        pq.write_table(pa.table({**names, **losses, **bounds}), directory / "sources.parquet")
        figures = {"loss": 4.0, "perplexity": 54.6, "tokens": 8, "split": text, "intervals": {"loss": [3.5, 4.5]}}
        return figures | {"resampling": {"unit": text}, "distinct_2": 0.5, "unseen_distinct_2": 0.75}

    return store.produce(Request("evaluation", 1, {"n": number}, (model.ref, shards_of(store).ref)), build)[0]


def rated(store: Store, model: Artifact) -> None:
    def build(directory: Path) -> dict[str, Any]:
        (directory / "results.json").write_text("{}")
        found = {"mean": 3.25, "low": 2.5, "high": 4.0, "ratings": 12}
        missing = {"mean": None, "low": None, "high": None, "ratings": 0}
        points = np.array([[5.0, 2.0, 4.0, 3.0, 1.0]])
        said = [{"model": model.label, "comment": "<b>dry</b>"}, {"model": "checkpoint/other", "comment": "not on it"}]
        (directory / "ratings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
        asked = {"a_wins": 1, "b_wins": 4, "ties": 0, "p_value": 0.375, "share_a": 0.2}
        return {
            "raters": 3,
            "raters_flagged": 1,
            "models": {model.label: {"coherence": found, "fluency": missing}},
            "alpha": {"coherence": 0.61},
            "preference": [{"a": model.label, "b": "checkpoint/other", **preference(points, points[:, ::-1])}],
            "asked": [{"a": model.label, "b": "checkpoint/asked", **asked}],
        }

    store.produce(Request("ratings", 1, {}, (model.ref,)), build)


def test_texts_from_outside_stay_texts(store: Store) -> None:
    model = weights(store)
    rated(store, model)
    plain = Reader(report_page(report_facts(store, model, told(store, model, "plain words", 0))))
    page = report_page(report_facts(store, model, told(store, model, HOSTILE, 1)))
    hostile = Reader(page)
    assert hostile.tags == plain.tags
    assert hostile.attributes == plain.attributes
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert "\x00" not in page
    wanted = ["Figures", "By source", "Documents", "Calibration", "Samples", "People&#x27;s ratings", "Lineage"]
    assert sections(page) == wanted


def test_documents_are_the_worst_and_the_best_of_the_long_ones(store: Store) -> None:
    model = weights(store)
    rated(store, model)
    page = report_page(report_facts(store, model, told(store, model, "words", 0)))
    assert f"{model.label} was preferred after 2 prompts, checkpoint/other after 2, neither after 1 (sign test" in page
    assert "neither after 1 (sign test: p = 1.000); taken from their points, not asked" in page
    assert "checkpoint/asked after 4, neither after 0 (sign test: p = 0.375); raters were asked" in page
    assert "<li>&lt;b&gt;dry&lt;/b&gt;</li>" in page
    assert "not on it" not in page
    worst, best = page.split("<h3>Best predicted</h3>")
    assert "4.5000" in worst.split("<h3>Worst predicted</h3>")[1]
    assert "1.5000" in best.split("</table>")[0]
    assert "9.5000" not in best.split("</table>")[0] + worst.split("<h3>Worst predicted</h3>")[1]
    assert "3.5000 to 4.5000" in page
    for cell in ("different pairs of tokens", "0.500", "0.750", "3.25", "2.50 to 4.00", "0.61"):
        assert f">{cell}</td>" in page, cell
    assert "fluency" not in page, "nobody rated it"
    assert "without 1 rater who did not read" in page


def test_curves_have_round_ticks_and_end_where_the_numbers_do() -> None:
    assert ticks(0, 300) == [0, 50, 100, 150, 200, 250, 300]
    assert ticks(4.13, 10.8) == [4, 6, 8, 10, 12]
    assert len(ticks(5, 5)) >= 2
    nan = float("nan")
    points = [(0, 10.0), (50, nan), (100, 5.0)]
    drawn = line_chart([Line("<b>", "blue", points)], "x", "y", x_words=str, reference=("level", 7.5))
    (curve,) = re.findall(r'points="([^"]*)"', drawn)
    (start, end) = ([float(n) for n in place.split(",")] for place in curve.split())
    level = float(re.findall(r'class="reference" [^>]*y1="([\d.]+)"', drawn)[0])
    assert (start[0], end[0]) == (56.0, 690.0), "from edge to edge"
    assert start[1] < level < end[1]
    assert level == pytest.approx((start[1] + end[1]) / 2, abs=0.1)
    assert "<b>" not in drawn
    assert line_chart([Line("a", "blue", [(1, 2.0)])], "x", "y", x_words=str) == ""


def test_the_command_writes_a_page_or_says_what_is_missing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTFLOW_STORE", str(store.root))
    monkeypatch.chdir(tmp_path)
    model = weights(store)
    lost = CliRunner().invoke(command, [model.label, "--local"])
    assert isinstance(lost.exception, ArtifactError)
    assert "was not evaluated yet; run `gptflow evaluate --model" in str(lost.exception)
    assert not (tmp_path / "report.html").exists()
    evaluation(store, model)
    done = CliRunner().invoke(command, [model.label, "--local", "--out", "r.html"])
    assert done.exit_code == 0, done.output
    assert model.digest in (tmp_path / "r.html").read_text()
