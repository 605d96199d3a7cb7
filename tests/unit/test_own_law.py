"""A law of one's own as an artifact: what it reads from evaluations, whose text it is of, and when it is not used.

The models are what trainings leave as far as a law looks at them; their losses are drawn from a known law.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptmodel.arithmetic import count_parameters
from gptmodel.config import CorpusConfig, LadderConfig, ModelConfig, PipelineConfig, recipe
from gptmodel.config.corpus import SourceConfig
from gptmodel.errors import DataError
from gptmodel.judging.bootstrap import interval
from gptmodel.planning.law_text import asked_budget, law_sections, told_of
from gptmodel.planning.own_law import OwnLaw, fit_evaluations, law_for, law_of
from gptmodel.planning.scaling import Additive
from gptmodel.presets import PRESETS
from gptmodel.store import artifacts
from gptmodel.store.artifacts import Artifact, Request, Store

TRUE = Additive("true", "", 2.0, 40.0, 60.0, 0.34, 0.37)
SHAPES = [ModelConfig(n_layer=2, n_head=2, n_embd=n, context_length=64, vocab_size=500) for n in (16, 32, 64)]
STEPS, BATCH = (50, 200, 800), 4
LADDER = LadderConfig(resamples=50)
TEXT = CorpusConfig(source=SourceConfig(kind="files", paths=("/texts/a.txt", "/texts/b.txt")))


def make(
    store: Store, kind: str, asked: dict[str, Any], inputs: tuple[Artifact, ...], *, summary: Any = None, **files: Any
) -> Artifact:

    def build(directory: Path) -> dict[str, Any]:
        for name, told in ({"a": kind} | files).items():
            (directory / f"{name}.json").write_text(json.dumps(told))
        return dict(summary or {})

    return store.produce(Request(kind, 1, asked, tuple(made.ref for made in inputs)), build)[0]


def shards_of(store: Store, text: CorpusConfig = TEXT) -> Artifact:
    asked = {**recipe(text), "source": {**recipe(text.source), "paths": [Path(p).name for p in text.source.paths]}}
    corpus = make(store, "corpus", asked, (), text=asked)
    return make(store, "shards", {"tokenizer": "gpt2"}, (corpus,), summary={"train_tokens": 25_600}, tokens=asked)


def judged(
    store: Store, shards: Artifact, shape: ModelConfig, steps: int, *begun: Artifact, split: str = "validation"
) -> Artifact:
    """The evaluation of a training of this shape and length; N of its loss counts all parameters."""
    train = {"batch_size": BATCH, "max_steps": steps}
    config = {"model": recipe(shape), "train": train}
    files = {"config": recipe(shape), "weights": steps}
    model = make(store, "checkpoint", config, (shards, *begun), summary={"step": steps}, **files)
    loss = TRUE.loss(count_parameters(shape).total, steps * BATCH * shape.context_length)
    return make(store, "evaluation", {"split": split}, (model, shards), summary={"loss": loss})


def ladder_of(store: Store, text: CorpusConfig = TEXT) -> list[Artifact]:
    shards = shards_of(store, text)
    return [judged(store, shards, shape, steps) for steps in STEPS for shape in SHAPES]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Artifact]:
    store = Store(tmp_path_factory.mktemp("law") / "store")
    return store, fit_evaluations(store, ladder_of(store), LADDER)[0]


Fitted = tuple[Store, Artifact]


@pytest.mark.parametrize(("A", "B", "warned"), [(0.0, 60.0, ["alpha"]), (40.0, 60.0, [])])
def test_what_the_runs_do_not_tell_is_said(
    A: float, B: float, warned: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses that do not depend on size have no exponent of it."""
    monkeypatch.setattr(f"{__name__}.TRUE", Additive("true", "", 2.0, A, B, 0.34, 0.37))
    store = Store(tmp_path / "store")
    made, _ = fit_evaluations(store, ladder_of(store), LADDER)
    law = law_sections(made)[1]
    assert [value for name, value, _ in law.rows if name == "beware"] == warned


def test_a_law_is_fitted_to_what_the_evaluations_say_of_their_models(fitted: Fitted) -> None:
    told = told_of(fitted[1])
    assert [point["shape"] for point in told["points"][:3]] == ["2x16x2", "2x32x2", "2x64x2"]
    for number, point in enumerate(told["points"]):
        counted, n_tokens = count_parameters(SHAPES[number % 3]), STEPS[number // 3] * BATCH * 64
        assert (point["n_params"], point["n_blocks"]) == (counted.total, counted.without_embeddings)
        assert (point["n_tokens"], point["epochs"]) == (n_tokens, n_tokens / 25_600)
        assert point["flops"] == 6 * counted.total * n_tokens
        assert point["residual"] == pytest.approx(math.log(point["loss"] / point["fitted"]), abs=1e-9)
    law = law_of(fitted[1])
    assert law.law.loss(20_000, 60_000) == pytest.approx(TRUE.loss(20_000, 60_000), rel=1e-4)
    assert law.params == (count_parameters(SHAPES[0]).total, count_parameters(SHAPES[2]).total)
    assert law.tokens == (STEPS[0] * BATCH * 64, STEPS[2] * BATCH * 64)
    assert asked_budget(told, 0) == 10 * max(point["flops"] for point in told["points"])
    assert asked_budget(told, 5e12) == 5e12


def test_what_the_law_counts_is_what_it_is_asked_with(fitted: Fitted, tmp_path: Path) -> None:
    shutil.copytree(fitted[0].root, tmp_path / "store")
    store, law = Store(tmp_path / "store"), fitted[1]
    evaluations = [store.at(ref.kind, ref.fingerprint[:16]) for ref in law.request.inputs]
    counted = law_of(fit_evaluations(store, evaluations, replace(LADDER, counts="without-embeddings"))[0])
    assert counted.params == tuple(count_parameters(SHAPES[n]).without_embeddings for n in (0, 2))
    assert (counted.of(10, 3), law_of(law).of(10, 3)) == (3, 10)
    for each, rows in ((counted, 500 + 64), (law_of(law), 0)):
        advice = each.advise(1e12)
        n = advice.n_params + rows * (advice.n_params * 100 / 36) ** (1 / 3)
        assert 6 * n * advice.n_tokens == pytest.approx(1e12), "embeddings are paid, counted or not"
        low, high = advice.intervals["n_params"]
        assert low <= advice.n_params <= high
    again, reused = fit_evaluations(store, evaluations, LADDER)
    assert (reused, again.digest) == (True, law.digest)
    other, reused = fit_evaluations(store, evaluations, replace(LADDER, huber_delta=0.5))
    assert (reused, other.fingerprint == law.fingerprint) == (False, False)


def test_runs_that_do_not_compare_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    evaluations = ladder_of(store)
    shards = store.input_of(evaluations[0], "shards")
    otherwise = judged(store, shards, SHAPES[0], 51, split="train")
    elsewhere = judged(store, shards_of(store, replace(TEXT, split_key="other")), SHAPES[0], 52)
    for odd in (otherwise, elsewhere):
        with pytest.raises(DataError, match="judged on different text, or in another way"):
            fit_evaluations(store, [*evaluations, odd], LADDER)
    weights = make(store, "weights", {"source": "there"}, (), config=recipe(SHAPES[0]))
    imported = make(store, "evaluation", {"split": "validation"}, (weights, shards), summary={"loss": 3.0})
    for begun in (judged(store, shards, SHAPES[0], 53, weights), imported):
        with pytest.raises(DataError, match="was not trained here from nothing; leave it out"):
            fit_evaluations(store, [*evaluations, begun], LADDER)
    assert store.directories("scaling-law") == []


def law_like(**given: Any) -> OwnLaw:
    told: dict[str, Any] = {"counts": "all", "draws": np.empty((0, 5)), "freedom": 4, "confidence": 0.95}
    return OwnLaw(**{"law": TRUE, "params": (1e6, 8e6), "tokens": (1e6, 5e7), **told, **given})


def test_bands_go_by_the_confidence_and_the_degrees_of_freedom() -> None:
    draws = np.array([[2 + 0.01 * i, 40.0, 60.0, 0.34, 0.37] for i in range(101)])
    law = law_like(draws=draws)
    assert law.interval(lambda each: each.E) == interval(draws[:, 0], 5, 0.95)
    width = [np.ptp(law_like(draws=draws, **given).interval(lambda each: each.E)) for given in (
        {"confidence": 0.5}, {}, {"freedom": 2, "confidence": 0.9}, {"freedom": 50, "confidence": 0.9}
    )]  # fmt: skip
    assert width[0] < width[1]
    assert width[2] > width[3]
    low, high = law.advise(1e14).intervals["loss"]
    assert low < law.advise(1e14).loss + 0.5 < high


def test_what_is_beyond_the_runs_is_told() -> None:
    law = law_like()
    assert (law.outside(8.3e6, 4.8e7), law.outside(0.97e6, 0.97e6)) == ("", ""), "the last twentieth is near enough"
    assert law.outside(8.8e6, 2e6) == "extrapolated: 1.1 times the most parameters that it was fitted to"
    assert law.outside(5e5, 1e8) == (
        "extrapolated: 2 times fewer parameters than it was fitted to and 2 times the most tokens that it was fitted to"
    )
    assert law.advise(1e20).outside.startswith("extrapolated: ")
    within = law.advise(6 * 3e6 * 2e7)
    assert within.outside == law.outside(within.n_params, within.n_tokens)


def asking(text: CorpusConfig) -> PipelineConfig:
    return replace(PRESETS["smoke"](), corpus=text)


def test_a_law_is_used_for_its_text_and_for_no_other(fitted: Fitted) -> None:
    store, law = fitted
    os.utime(law.path, (0, 0))
    same = law_for(store, asking(TEXT))
    assert same is not None
    assert law.path.stat().st_mtime > 1e9, "a law that plans go by is not collected as old"
    assert same.label == law.label
    elsewhere = replace(TEXT, source=replace(TEXT.source, paths=("/moved/*.txt",)))
    assert law_for(store, asking(elsewhere)) is not None, "the folder is not the text"
    for other in (
        replace(TEXT, split_key="another"),
        replace(TEXT, near_duplicates="apart"),
        replace(TEXT, source=replace(TEXT.source, max_documents=5)),
        replace(TEXT, source=replace(TEXT.source, paths=("/texts/a.txt",))),
        CorpusConfig(),
    ):
        assert law_for(store, asking(other)) is None, other


def test_a_law_of_text_without_near_duplicates_is_of_that_alone(tmp_path: Path) -> None:
    """The setting is younger than stores: a recipe that does not name it means that they are kept."""
    store, apart = Store(tmp_path / "store"), replace(TEXT, near_duplicates="apart")
    fit_evaluations(store, ladder_of(store, apart), LADDER)
    assert law_for(store, asking(apart)) is not None
    assert law_for(store, asking(TEXT)) is None


def test_of_several_laws_the_newest_that_can_be_read_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, laws = Store(tmp_path / "store"), list[Artifact]()
    evaluations = ladder_of(store)
    for seed, day in enumerate(("2026-01-02", "2026-01-03", "2026-01-01")):
        monkeypatch.setattr(artifacts, "now", lambda day=day: f"{day}T00:00:00+00:00")
        laws.append(fit_evaluations(store, evaluations, replace(LADDER, seed=seed))[0])

    def used() -> str:
        found = law_for(store, asking(TEXT))
        return found.label if found else ""

    assert used() == laws[1].label
    (laws[1].path / "law.json").write_text("{")
    assert used() == laws[0].label
