"""Text in, documents out: what is kept, how it is cut, and that no document ever changes sides."""

from __future__ import annotations

import os
import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptmodel.config import CorpusConfig, SourceConfig
from gptmodel.errors import ArtifactError, DataError
from gptmodel.store.artifacts import Artifact, Request, Store
from gptmodel.text.corpus import build_corpus, cut, iter_documents, normalise

Build = Callable[..., Artifact]


def write(folder: Path, texts: dict[str, str | bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def texts(count: int, first: int = 0) -> dict[str, str | bytes]:
    return {f"{n:04d}.txt": f"Text {n} of many.\nIt has two lines.\n" for n in range(first, first + count)}


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """build(folder, pattern, max_documents=…, **corpus settings)."""

    def make(
        folder: Path, pattern: str = "*.txt", max_documents: int = 0, store: str = "store", **more: Any
    ) -> Artifact:
        source = SourceConfig(kind="files", paths=(f"{folder}/{pattern}",), max_documents=max_documents)
        config = CorpusConfig(source=source, **{"validation_fraction": 0.3, **more})
        return build_corpus(Store(tmp_path / store), config)[0]

    return make


def sides(artifact: Artifact) -> dict[str, str]:
    return {document.text: document.split for document in iter_documents(artifact)}


def test_documents_are_kept_in_order_with_their_source(tmp_path: Path, build: Build) -> None:
    corpus = build(write(tmp_path / "in", texts(30)))
    documents = list(iter_documents(corpus))
    assert [d.source for d in documents] == sorted(texts(30))
    assert [d.text for d in documents] == list(texts(30).values())
    assert all(d.n_bytes == len(d.text.encode()) for d in documents)
    assert len({d.id for d in documents}) == 30
    assert corpus.summary["documents"] == 30
    for split in ("train", "validation"):
        part = list(iter_documents(corpus, split))
        assert part == [d for d in documents if d.split == split]
        assert corpus.summary[f"{split}_documents"] == len(part) > 0
        assert corpus.summary[f"{split}_bytes"] == sum(d.n_bytes for d in part)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(12)), added=st.integers(1, 12))
def test_new_data_and_another_order_move_no_document(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], added: int
) -> None:
    folder = tmp_path_factory.mktemp("moved")
    some = list(texts(12).values())
    more = [some[n] for n in order] + list(texts(added, 100).values())
    found = []
    for name, chosen in (("some", some), ("more", more)):
        write(folder / name, {f"{n:02d}.txt": text for n, text in enumerate(chosen)})
        config = CorpusConfig(
            source=SourceConfig(kind="files", paths=(f"{folder}/{name}/*.txt",)), validation_fraction=0.5
        )
        found.append(sides(build_corpus(Store(folder / "store"), config)[0]))
    assert found[0].items() <= found[1].items()


def test_a_larger_fraction_only_adds_to_validation_and_a_key_is_another_split(tmp_path: Path, build: Build) -> None:
    folder = write(tmp_path / "in", texts(200))
    small, large = (sides(build(folder, validation_fraction=f)) for f in (0.2, 0.5))
    in_small = {t for t, side in small.items() if side == "validation"}
    in_large = {t for t, side in large.items() if side == "validation"}
    assert in_small < in_large
    assert 20 <= len(in_small) <= 60
    assert 75 <= len(in_large) <= 125
    assert sides(build(folder, validation_fraction=0.2, split_key="k" * 100)) != small


def test_the_same_bytes_are_the_same_corpus_wherever_and_whenever_they_lie(tmp_path: Path, build: Build) -> None:
    first = build(write(tmp_path / "here", texts(20)))
    second = build(write(tmp_path / "there" / "deeper", texts(20)), store="other")
    assert first.fingerprint == second.fingerprint
    assert first.digest == second.digest
    for name in first.names():
        assert first.file(name).read_bytes() == second.file(name).read_bytes()
    os.utime(tmp_path / "here" / "0003.txt", (1, 1))
    assert build(tmp_path / "here").path == first.path
    (tmp_path / "here" / "0003.txt").write_text("Text 3 of many,\nIt has two lines.\n")
    assert build(tmp_path / "here").fingerprint != first.fingerprint


def test_a_second_build_is_reused_and_no_path_is_in_the_fingerprint(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", texts(20))
    config = CorpusConfig(source=SourceConfig(kind="files", paths=(f"{folder}/*.txt",)), validation_fraction=0.3)
    store = Store(tmp_path / "store")
    artifact, reused = build_corpus(store, config)
    assert not reused
    assert build_corpus(store, config)[1]
    assert str(tmp_path) not in str(artifact.request)


def test_line_ends_unicode_form_and_byte_order_mark(tmp_path: Path, build: Build) -> None:
    other = unicodedata.normalize("NFD", "Café über\r\nalles\rein\n")
    assert normalise("\ufeff" + other) == "Café über\nalles\nein\n"
    folder = write(tmp_path / "in", {**texts(20), "a.txt": "\ufeff" + other, "b.txt": "Café über\nalles\nein\n"})
    corpus = build(folder)
    assert corpus.summary["duplicates_dropped"] == 1
    assert "Café über\nalles\nein\n" in sides(corpus)
    kept = "  spaces \t, \x0b control\x00 and\n\n\n\nlines stay  \n"
    assert normalise(kept) == kept


def test_empty_null_and_double_documents_are_counted_and_dropped(tmp_path: Path, build: Build) -> None:
    lines = [f'{{"text": "line {n}"}}' for n in range(20)]
    lines += ['{"text": null}', '{"text": ""}', '{"text": " \\n\\t"}', '{"text": "line 3"}', '{"text": "line 3"}']
    corpus = build(write(tmp_path / "in", {"a.jsonl": "\n".join(lines)}), "*.jsonl")
    counted = {n: corpus.summary[n] for n in ("documents", "null_dropped", "empty_dropped", "duplicates_dropped")}
    assert counted == {"documents": 20, "null_dropped": 1, "empty_dropped": 2, "duplicates_dropped": 2}


def test_bad_utf8_stops_and_names_file_and_byte(tmp_path: Path, build: Build) -> None:
    folder = write(tmp_path / "in", {**texts(20), "bad.txt": b"good until \xff here"})
    with pytest.raises(DataError, match=r"bad\.txt.*byte 11\b"):
        build(folder)
    corpus = build(folder, errors="replace")
    assert "good until \ufffd here" in sides(corpus)
    assert corpus.summary["invalid_utf8"] == 1
    corpus = build(folder, errors="skip")
    assert corpus.summary["documents"] == 20
    assert corpus.summary["invalid_utf8"] == 1


def test_bad_utf8_in_json_lines(tmp_path: Path, build: Build) -> None:
    good = b"".join(b'{"text": "line %d"}\n' % n for n in range(20))
    bad = b'{"text": "raw \xff byte"}\n{"text": "half \\ud800 pair"}\n'
    folder = write(tmp_path / "in", {"a.jsonl": good + bad})
    with pytest.raises(DataError, match=r"a\.jsonl.*\b21\b"):
        build(folder, "*.jsonl")
    found = build(folder, "*.jsonl", errors="replace")
    assert found.summary["invalid_utf8"] == 2
    assert {"raw \ufffd byte", "half \ufffd pair"} <= sides(found).keys()
    assert build(folder, "*.jsonl", errors="skip").summary["documents"] == 20


@given(
    text=st.text(alphabet="ab .\n\té", max_size=400),
    to=st.integers(1, 30),
    more=st.integers(0, 60),
)
def test_the_pieces_of_a_text_join_to_it(text: str, to: int, more: int) -> None:
    pieces = list(cut(text, to + more, to))
    assert "".join(pieces) == text
    if len(text) <= to + more:
        assert pieces in ([text], [])
    else:
        assert all(len(piece) >= to for piece in pieces[:-1])
        assert all(len(piece) <= 2 * to + more for piece in pieces)


def test_a_cut_falls_at_a_paragraph_else_a_line_else_a_space() -> None:
    paragraphs = "".join(f"Paragraph {n} begins.\nIt ends here.\n\n" for n in range(50))
    lines = paragraphs.replace("\n\n", "\n")
    words = lines.replace("\n", " ")
    for text, end in ((paragraphs, "\n\n"), (lines, "\n"), (words, " ")):
        pieces = list(cut(text, 200, 100))
        assert len(pieces) > 5
        assert all(piece.endswith(end) for piece in pieces[:-1])


def test_one_long_text_is_cut_into_documents_that_name_their_place(tmp_path: Path, build: Build) -> None:
    draw = random.Random(0)
    text = "".join(f"Paragraph {draw.random()}.\n\n" for _ in range(2_000))
    corpus = build(write(tmp_path / "in", {"long.txt": text}), cut_above_chars=4_000, cut_to_chars=1_000)
    documents = list(iter_documents(corpus))
    assert "".join(d.text for d in documents) == text
    assert corpus.summary["cut_documents"] == 1
    assert len({d.source for d in documents}) == len(documents) > 20
    assert all(d.source.startswith("long.txt#") for d in documents)


@pytest.mark.parametrize(("alphabet", "fraction"), [("latin", 0.3), ("han", 0.3), ("latin", 0.01)])
def test_the_settings_advised_for_a_single_document_work(
    tmp_path: Path, build: Build, alphabet: str, fraction: float
) -> None:
    word = {"latin": "every effort moves you", "han": "天地玄黄宇宙洪荒"}[alphabet]
    text = "".join(f"{word} {n}.\n\n" for n in range(2_000))
    folder = write(tmp_path / "in", {"one.txt": text})
    with pytest.raises(DataError, match="cut_above_chars") as caught:
        build(folder, validation_fraction=fraction)
    advised = re.findall(r"cut_(?:above|to)_chars(?:=| to, say, )(\d[\d,]*\d)", str(caught.value))
    piece = int(advised[-1].replace(",", ""))
    corpus = build(folder, validation_fraction=fraction, cut_above_chars=piece, cut_to_chars=piece)
    assert corpus.summary["validation_documents"] > 0


def test_nothing_left_says_what_was_dropped(tmp_path: Path, build: Build) -> None:
    folder = write(tmp_path / "in", {"a.txt": "", "b.txt": " \n"})
    with pytest.raises(DataError, match=r"no document is left.*2 empty"):
        build(folder)


def test_at_most_max_documents_in_source_order(tmp_path: Path, build: Build) -> None:
    corpus = build(write(tmp_path / "in", texts(40)), max_documents=25)
    assert [d.source for d in iter_documents(corpus)] == sorted(texts(40))[:25]


def test_max_documents_counts_the_pieces_of_a_cut_text(tmp_path: Path, build: Build) -> None:
    words = random.Random(3)
    long = "\n\n".join(" ".join(f"word{words.randrange(900)}" for _ in range(40)) for _ in range(60))
    folder = write(tmp_path / "in", {"a.txt": long, "b.txt": long[::-1], **texts(3)})
    sizes: dict[str, Any] = {"cut_above_chars": 600, "cut_to_chars": 600}
    whole = list(iter_documents(build(folder, **sizes)))
    for limit in (7, len([d for d in whole if d.source.startswith(("0", "a.txt"))]), len(whole) - 1):
        some = build(folder, max_documents=limit, **sizes)
        assert list(iter_documents(some)) == whole[:limit]
        assert some.summary["documents"] == limit


def test_only_a_corpus_that_max_documents_bounds_is_of_the_new_recipe(tmp_path: Path, build: Build) -> None:
    folder = write(tmp_path / "in", texts(40))
    assert [build(folder, max_documents=n).request.recipe_version for n in (0, 25)] == [2, 3]


def test_a_failed_build_leaves_no_corpus_and_the_next_one_is_whole(tmp_path: Path, build: Build) -> None:
    folder = write(tmp_path / "in", {**texts(20), "zz.txt": b"\xff"})
    with pytest.raises(DataError):
        build(folder)
    assert not list(Store(tmp_path / "store").artifacts())
    (folder / "zz.txt").write_text("mended")
    clean = build(folder, store="clean")
    left = Store(tmp_path / "store").building_path(clean.request)
    write(left, {"documents-00007.parquet": "of an attempt that was killed"})
    assert build(folder).digest == clean.digest


def test_documents_are_read_from_a_corpus_only(tmp_path: Path) -> None:
    other = Artifact(tmp_path, Request("shards", 1, {}), (), {}, {})
    with pytest.raises(ArtifactError, match="corpus"):
        list(iter_documents(other))


def test_the_embedded_corpus_has_every_address(tmp_path: Path) -> None:
    config = CorpusConfig()
    store = Store(tmp_path / "store")
    corpus, _ = build_corpus(store, config)
    assert corpus.summary["train_documents"] + corpus.summary["validation_documents"] == corpus.summary["documents"]
    sources = {document.source.partition("#")[0] for document in iter_documents(corpus)}
    assert len(sources) == 249
    assert corpus.summary["train_bytes"] + corpus.summary["validation_bytes"] > 12_000_000


def test_later_years_arrive_without_moving_earlier_ones(tmp_path: Path) -> None:
    found = []
    for last in (1840, 1845):
        source = SourceConfig(first_year=1790, last_year=last)
        found.append(sides(build_corpus(Store(tmp_path), CorpusConfig(source=source, validation_fraction=0.3))[0]))
    assert len(found[1]) > len(found[0])
    assert found[0].items() <= found[1].items()
    nothing = CorpusConfig(source=SourceConfig(first_year=1700, last_year=1701))
    with pytest.raises(DataError, match="1700"):
        build_corpus(Store(tmp_path), nothing)
