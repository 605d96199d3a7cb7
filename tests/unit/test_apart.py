"""Near duplicates are never split: what is near to a validation document is not trained on, whenever text arrives."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptmodel.config import CorpusConfig, DataGatesConfig, SourceConfig
from gptmodel.datagates import check
from gptmodel.errors import ArtifactError, ConfigError
from gptmodel.reproduction.chain import plan_reproduction
from gptmodel.reproduction.rebuilding import reproduce
from gptmodel.reproduction.repeating import Wishes
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.text.corpus import build_corpus, iter_documents, split_of
from gptmodel.text.minhash import BANDS, VALUES, Signatures, clusters, near_to, similarity
from gptmodel.text.shingles import word_hashes

Build = Callable[..., Artifact]
VOCABULARY = [
    f"{a}{b}" for a in ("har", "mill", "coun", "riv", "let", "win") for b in ("bour", "er", "cil", "ters", "ow")
]


def text_of(seed: int, version: int = 0) -> str:
    """A text of 200 words; other versions of it have another last word."""
    words = random.Random(seed).choices(VOCABULARY, k=200)
    return " ".join([*words, f"edition {version}"])


def version_on(side: str, seed: int, first: int = 0) -> str:
    """The first version of a text from `first` on that falls on this side."""
    return next(t for v in range(first, first + 500) if split_of(t := text_of(seed, v), CorpusConfig()) == side)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """build(texts, **settings): a corpus, by default with near duplicates apart."""

    def make(texts: list[str], store: str = "store", **settings: object) -> Artifact:
        path = tmp_path / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        source = SourceConfig(kind="files", paths=(str(path),))
        config = CorpusConfig(**{"source": source, "near_duplicates": "apart", **settings})  # type: ignore[arg-type]
        return build_corpus(Store(tmp_path / store), config)[0]

    return make


def sides(corpus: Artifact) -> dict[str, str]:
    return {d.text: d.split for d in iter_documents(corpus)}


def leaks(corpus: Artifact, previous: Artifact | None = None) -> int:
    """Training documents that the gate finds near to validation documents."""
    report = check(corpus, previous, DataGatesConfig())
    figures = next(f.figures for f in report.findings if f.gate == "leak")
    return int(figures["train_documents"] + figures.get("earlier_train_documents", 0))


HELD = [version_on("validation", seed) for seed in range(10)]
COPIES = [version_on("train", seed) for seed in range(10)]
OTHERS = [version_on("train", seed) for seed in range(100, 140)]


def test_a_training_document_near_to_validation_is_left_out(build: Build) -> None:
    split = build([*OTHERS, *HELD, *COPIES], near_duplicates="keep")
    assert leaks(split) == 10
    corpus = build([*OTHERS, *HELD, *COPIES])
    assert sides(corpus) == {**dict.fromkeys(OTHERS, "train"), **dict.fromkeys(HELD, "validation")}
    assert leaks(corpus) == 0
    assert corpus.summary["near_duplicates_dropped"] == 10
    assert corpus.summary["documents"] == corpus.summary["train_documents"] + 10 == 50
    assert corpus.summary["train_bytes"] == sum(len(text) for text in OTHERS)


def test_near_duplicates_within_a_side_stay(build: Build) -> None:
    twins = [version_on("train", 100, 500), version_on("validation", 0, 500)]
    assert sides(build([*OTHERS, *HELD, *twins])) == sides(build([*OTHERS, *HELD])) | {
        twins[0]: "train",
        twins[1]: "validation",
    }


def test_new_text_moves_no_validation_document_and_nothing_near_one_is_trained_on(build: Build) -> None:
    """Whichever came first: what is near to a new validation document is not trained on any more."""
    before = build([*OTHERS, *HELD])
    new_copies, new_held = (
        [version_on("train", s, 500) for s in range(5)],
        [version_on("validation", s) for s in (100, 101)],
    )
    after = build([*OTHERS, *HELD, *new_copies, *new_held])
    held = [text for text, side in sides(before).items() if side == "validation"]
    assert {sides(after)[text] for text in held} == {"validation"}
    assert sides(after) == {
        **dict.fromkeys(OTHERS[2:], "train"),
        **dict.fromkeys([*HELD, *new_held], "validation"),
    }
    assert leaks(after, before) == 0


def test_the_order_of_the_documents_decides_nothing(build: Build) -> None:
    texts = [*OTHERS, *HELD, *COPIES]
    one = sides(build(texts))
    random.Random(1).shuffle(texts)
    assert sides(build(texts)) == one


def test_what_a_revised_source_no_longer_holds_stays_held_out(build: Build) -> None:
    """The frozen documents were revised, and their new versions fall on the training side."""
    before = build([*OTHERS, *HELD])
    revised = [*OTHERS, *COPIES, version_on("validation", 999)]
    assert leaks(build(revised), before) == 10  # the gate tells it
    after = build(revised, hold_out=before.label)
    assert not set(COPIES) & sides(after).keys()
    assert leaks(after, before) == 0
    assert [ref.kind for ref in after.request.inputs] == ["source", "corpus"]
    assert after.request.inputs[1].digest == before.digest


def test_a_corpus_that_was_kept_apart_is_made_again_with_what_it_was_kept_from(build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*OTHERS, *HELD]))
    first = CorpusConfig(source=SourceConfig(kind="files", paths=(f"{folder}/a.jsonl",)), near_duplicates="apart")
    before, _ = build_corpus(Store(tmp_path / "store"), first)
    after = build([*OTHERS, *COPIES, version_on("validation", 999)], hold_out=before.label)
    plan = plan_reproduction(Store(tmp_path / "store"), after, Wishes())
    assert [node.name for node in plan.nodes] == [before.label, after.label]
    verdict = reproduce(plan, Store(tmp_path / "fresh"))
    assert verdict.equal


def test_settings_that_do_not_go_together(build: Build) -> None:
    with pytest.raises(ConfigError, match="near_duplicates=apart"):
        CorpusConfig(hold_out="corpus/0123456789abcdef")
    with pytest.raises(ConfigError, match="whole name"):
        CorpusConfig(hold_out="0123", near_duplicates="apart")
    with pytest.raises(ArtifactError):
        build(OTHERS, hold_out="corpus/0123456789abcdef")


def test_a_band_too_many_documents_share_hides_none_of_them(tmp_path: Path) -> None:
    """A thousand documents from one form: all share bands, and one of them is a validation document."""
    form = " ".join(random.Random(1).choices(VOCABULARY, k=300))
    signatures = Signatures(tmp_path / "signatures")
    for number in range(1_000):
        signatures.add(word_hashes(f"{form} {' '.join(text_of(number).split()[:20])}"))
    table = signatures.close()
    guards = np.arange(1_000) == 500
    near = near_to(table, guards, ~guards, 0.8)
    expected = (similarity(table, table[500]) >= 0.8) & ~guards
    assert expected.sum() > 900
    assert list(near >= 0) == list(expected)
    assert len(set(clusters(table, 0.8))) == 1


def test_texts_without_words_are_near_to_nothing(tmp_path: Path) -> None:
    signatures = Signatures(tmp_path / "signatures")
    for text in ["...", "...", "!!!", "one two", "One, two!"]:
        signatures.add(word_hashes(text))
    table = signatures.close()
    assert table.shape == (5, VALUES)
    assert VALUES % BANDS == 0
    assert list(clusters(table, 0.8)) == [0, 1, 2, 3, 3]
