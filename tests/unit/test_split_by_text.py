"""corpus.split_by=text: pieces of a text that was cut are on one side, of the corpus and of what chooses weights."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from gptmodel.config import CorpusConfig, ShardsConfig, SourceConfig
from gptmodel.errors import DataError
from gptmodel.reproduction.recorded import shards_config
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.text.corpus import build_corpus, iter_documents
from gptmodel.tokens.shards import build_shards, open_split


def book(number: int, paragraphs: int = 40) -> str:
    draw = random.Random(number)
    return "".join(f"Book {number}, paragraph {draw.random()} of it.\n\n" for _ in range(paragraphs))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "books"
    made.mkdir()
    for number in range(60):
        (made / f"{number:02d}.txt").write_text(book(number))
    (made / "short.txt").write_text("A text that nobody cuts.\n")
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def asked(folder: Path, **more: Any) -> CorpusConfig:
    source = SourceConfig(kind="files", paths=(f"{folder}/*.txt",))
    cut: dict[str, Any] = {"cut_above_chars": 600, "cut_to_chars": 300}
    return CorpusConfig(source=source, **{"validation_fraction": 0.3, "split_by": "text", **cut, **more})


def sides_of_texts(corpus: Artifact) -> dict[str, set[str]]:
    found = defaultdict(set)
    for document in iter_documents(corpus):
        found[document.source.partition("#")[0]].add(document.split)
    return found


def test_no_text_has_pieces_on_both_sides(store: Store, folder: Path) -> None:
    apart, _ = build_corpus(store, asked(folder, split_by="piece"))
    together, _ = build_corpus(store, asked(folder))
    assert any(len(sides) == 2 for sides in sides_of_texts(apart).values())
    whole = sides_of_texts(together)
    assert all(len(sides) == 1 for sides in whole.values())
    assert {side for sides in whole.values() for side in sides} == {"train", "validation"}
    assert [d.id for d in iter_documents(together)] == [d.id for d in iter_documents(apart)]


def test_a_text_that_grows_stays_on_its_side(store: Store, folder: Path) -> None:
    before = sides_of_texts(build_corpus(store, asked(folder))[0])
    for path in folder.glob("[0-9]*.txt"):
        path.write_text(path.read_text() + book(1_000 + int(path.stem), 20))
    (folder / "000-first.txt").write_text(book(999))
    after = sides_of_texts(build_corpus(store, asked(folder))[0])
    assert {name: after[name] for name in before} == before


def test_a_text_whose_first_piece_is_elsewhere_too_has_one_side(store: Store, folder: Path) -> None:
    opening = "\n \n" * 110 + book(0)[:700]  # blank at first, then a text that was there before
    for number in range(20):
        (folder / f"again-{number:02d}.txt").write_text(opening + book(2_000 + number))
    assert all(len(sides) == 1 for sides in sides_of_texts(build_corpus(store, asked(folder))[0]).values())


def test_texts_that_are_not_cut_are_where_they_were(store: Store, folder: Path) -> None:
    whole: dict[str, Any] = {"cut_above_chars": 250_000, "cut_to_chars": 10_000}
    by_piece, by_text = (build_corpus(store, asked(folder, split_by=by, **whole))[0] for by in ("piece", "text"))
    assert by_piece.digest == by_text.digest
    assert by_piece.label != by_text.label


def test_what_weights_are_chosen_by_is_whole_texts_too(store: Store, folder: Path) -> None:
    corpus, _ = build_corpus(store, asked(folder))
    settings = ShardsConfig(side="training", selection_fraction=0.3)
    shards, _ = build_shards(store, corpus, settings)
    came_from = {document.id: document.source.partition("#")[0] for document in iter_documents(corpus)}
    train, chosen = ({came_from[i] for i in open_split(shards, s).documents().ids} for s in ("train", "validation"))
    assert train
    assert chosen
    assert not train & chosen
    assert shards_config(shards) == settings


def test_equal_documents_of_another_split_give_other_shards(store: Store, folder: Path) -> None:
    whole: dict[str, Any] = {"cut_above_chars": 250_000, "cut_to_chars": 10_000}
    corpora = [build_corpus(store, asked(folder, split_by=by, **whole))[0] for by in ("piece", "text")]
    for settings, same in ((ShardsConfig(), True), (ShardsConfig(side="training", selection_fraction=0.2), False)):
        made = [build_shards(store, corpus, settings)[0].label for corpus in corpora]
        assert (made[0] == made[1]) is same


def test_one_text_for_both_sides_is_refused_with_the_way_out(store: Store, folder: Path) -> None:
    for path in folder.glob("*.txt"):
        if path.name != "03.txt":
            path.unlink()
    with pytest.raises(DataError, match=r"corpus\.split_by=piece"):
        build_corpus(store, asked(folder))
    with pytest.raises(DataError, match=r"cut_to_chars=\d+ and corpus\.split_by=piece"):
        build_corpus(store, asked(folder, cut_above_chars=250_000, cut_to_chars=10_000))
    build_corpus(store, asked(folder, split_by="piece"))


def test_neighbours_on_both_sides_are_told(store: Store, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build_corpus(store, asked(folder))
    assert "split_by" not in caplog.text
    with caplog.at_level(logging.WARNING):
        build_corpus(store, asked(folder, split_by="piece"))
    assert "60 of 61 texts were cut" in caplog.text
    assert "corpus.split_by=text" in caplog.text
