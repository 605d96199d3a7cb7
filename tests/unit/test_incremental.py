"""When a source grows, only what is new is tokenized, and the shards are the same to the byte as if all of it were."""

from __future__ import annotations

import json
import logging
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptmodel.config import CorpusConfig, ShardsConfig, SourceConfig
from gptmodel.store.artifacts import Artifact, Request, Store, load_artifact
from gptmodel.text.corpus import Document, build_corpus, iter_documents, split_of
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.encoder import Encoder
from gptmodel.tokens.shardplan import SPLITS
from gptmodel.tokens.shards import build_shards, open_split, shards_request
from gptmodel.tokens.spelling import Spelling

WORDS = [
    "the",
    "of",
    "isn't",
    "harbour",
    "1893",
    "mends\n\nits",
    "own",
    "books;",
    "漢字",
    "👍",
    "counterrevolutionary",
    "we'll",
]
SMALL = ShardsConfig(shard_bytes=2_000, workers=2)


def text_of(seed: int, words: int = 60) -> str:
    draw = random.Random(seed)
    return f"Document {seed}. " + " ".join(draw.choices(WORDS, k=words))


SPLIT = CorpusConfig(validation_fraction=0.3)
ONE_EACH = [next(t for t in map(text_of, range(-1, -99, -1)) if split_of(t, SPLIT) == s) for s in SPLITS]
"""In every corpus, since a split without documents is refused."""


def corpus_of(store: Store, texts: list[str]) -> Artifact:
    """A real corpus of these texts, in this order, and ONE_EACH."""
    path = store.root.parent / f"{sha256(repr(texts).encode()).hexdigest()[:12]}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, *ONE_EACH]))
    source = SourceConfig(kind="files", paths=(str(path),))
    return build_corpus(store, replace(SPLIT, source=source))[0]


def tokenized(store: Store, texts: list[str], config: ShardsConfig = SMALL) -> Artifact:
    return build_shards(store, corpus_of(store, texts), config)[0]


def same_as_afresh(shards: Artifact, corpus: Artifact, config: ShardsConfig, fresh: Store) -> None:
    """Same fingerprint, same files, same figures but for what was reused, as in a store with nothing in it."""
    other, _ = build_shards(fresh, corpus, config)
    assert other.summary["documents_reused"] == 0
    assert (shards.fingerprint, shards.digest) == (other.fingerprint, other.digest)
    assert shards.names() == other.names()
    for name in shards.names():
        assert (shards.path / name).read_bytes() == (other.path / name).read_bytes()
    history = ("documents_tokenized", "documents_reused", "bytes_tokenized")
    assert {k: v for k, v in shards.summary.items() if k not in history} == {
        k: v for k, v in other.summary.items() if k not in history
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def fresh(tmp_path: Path) -> Store:
    return Store(tmp_path / "fresh")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the tokenizer is given from now on."""
    given: list[str] = []
    encode = Encoder.iter_encode

    def noted(self: Encoder, text: str, *, check: bool = False):
        given.append(text)
        return encode(self, text, check=check)

    monkeypatch.setattr(Encoder, "iter_encode", noted)
    return given


def earlier_rows(path: Path, change: Callable[[dict[str, list]], None]) -> None:
    """Write a shard file again with other rows, as a wrong recipe would have."""
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    rows = table.to_pydict()
    change(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_batch(pa.record_batch(rows, schema=table.schema))


def forged(store: Store, shards: Artifact, change: Callable[[Path], None], request: Request) -> Artifact:
    """A whole artifact, hashes and all, with the files of another one after a change; the other one is removed."""

    def build(directory: Path) -> dict[str, int]:
        for name in shards.names():
            shutil.copy(shards.path / name, directory / name)
        change(directory)
        return {}

    made = store.produce(request, build)[0]
    shutil.rmtree(shards.path)
    return made


def test_only_new_and_changed_documents_are_tokenized(store, fresh, encoded, caplog):
    caplog.set_level(logging.INFO)
    texts = [text_of(i) for i in range(30)]
    first = tokenized(store, texts)
    assert first.summary["documents_tokenized"] == len(encoded) == 32
    assert first.summary["documents_reused"] == 0
    assert first.summary["bytes_tokenized"] == sum(len(text.encode()) for text in encoded)
    assert "were tokenized before" not in caplog.text

    encoded.clear()
    edited = texts[7] + " And more."
    inserted = text_of(100)
    grown = [*texts[:5], inserted, *texts[5:7], edited, *texts[8:20], *texts[22:], text_of(101)]
    second = tokenized(store, grown)
    assert sorted(encoded) == sorted([edited, inserted, text_of(101)])
    assert second.summary["documents_tokenized"] == 3
    assert second.summary["documents_reused"] == 29
    assert second.summary["bytes_tokenized"] == sum(len(text.encode()) for text in encoded)
    assert "29 of 32 documents were tokenized before" in caplog.text
    assert not list((store.root / ".uses").iterdir())
    same_as_afresh(second, corpus_of(store, grown), SMALL, fresh)
    assert load_artifact(second.path).verify().summary == second.summary


def test_documents_are_found_in_several_earlier_shards(store, fresh, encoded):
    tokenized(store, [text_of(i) for i in range(10)])
    tokenized(store, [text_of(i) for i in range(20, 30)], ShardsConfig(shard_bytes=3_000))
    encoded.clear()
    both = [text_of(i) for i in (25, 3, 50, 28, 4, 1)]
    shards = tokenized(store, both)
    assert encoded == [text_of(50)]
    same_as_afresh(shards, corpus_of(store, both), SMALL, fresh)


GROWTH = st.lists(
    st.tuples(
        st.sampled_from(["append", "insert", "remove", "edit", "move", "long"]),
        st.integers(0, 1_000_000),
        st.integers(0, 1_000_000),
    ),
    min_size=1,
    max_size=6,
)


def grow(texts: list[str], steps: list[tuple[str, int, int]]) -> list[str]:
    texts = list(texts)
    for what, a, b in steps:
        at, to = a % (len(texts) or 1), b % (len(texts) or 1)
        if what == "append" or not texts:
            texts.append(text_of(1_000 + b))
        elif what == "insert":
            texts.insert(at, text_of(1_000 + b))
        elif what == "remove":
            texts.pop(at)
        elif what == "edit":
            texts[at] = texts[at][: b % 300] + "X" + texts[at][b % 300 :]
        elif what == "move":
            texts.insert(to, texts.pop(at))
        else:
            texts.insert(at, text_of(a, words=200 + b % 600))
    return texts


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=GROWTH,
    sizes=st.tuples(*[st.sampled_from([1_000, 1_700, 4_000, 100_000])] * 2),
)
def test_however_a_source_grows_the_bytes_are_those_of_tokenizing_it_afresh(tmp_path_factory, steps, sizes):
    root = tmp_path_factory.mktemp("grown")
    store = Store(root / "store")
    were = [*map(text_of, range(6)), text_of(6, 400)]
    old, config = (ShardsConfig(shard_bytes=size, workers=2) for size in sizes)
    tokenized(store, were, old)
    texts = grow(were, steps)
    corpus = corpus_of(store, texts)
    shards, very_same = build_shards(store, corpus, config)
    same_as_afresh(shards, corpus, config, Store(root / "fresh"))
    if not very_same:
        kept = 2 + len(set(texts) & set(were))
        figures = [shards.summary[f"documents_{how}"] for how in ("tokenized", "reused")]
        assert figures == [corpus.summary["documents"] - kept, kept]
    shutil.rmtree(root)


@pytest.mark.parametrize(
    ("old", "new"), [(1_500, 1_500), (1_500, 2_300), (9_000, 2_300), (100_000, 2_300), (2_300, 100_000)]
)
def test_long_documents_over_several_shards_are_cut_out_anew(store, fresh, encoded, old, new):
    texts = [text_of(1), text_of(2, 900), text_of(3), text_of(4, 1_400), text_of(5)]
    tokenized(store, texts, ShardsConfig(shard_bytes=old))
    encoded.clear()
    grown = [text_of(6), *texts]
    shards = tokenized(store, grown, ShardsConfig(shard_bytes=new))
    assert encoded == [text_of(6)]
    assert (shards.summary["documents_tokenized"], shards.summary["documents_reused"]) == (1, 7)
    assert shards.summary["bytes_tokenized"] == len(text_of(6).encode())
    same_as_afresh(shards, corpus_of(store, grown), ShardsConfig(shard_bytes=new), fresh)


def test_a_long_document_of_which_a_part_is_missing_is_tokenized_where_it_is(store, fresh, caplog):
    texts = [text_of(1), text_of(2, 1_400), text_of(3)]
    first = tokenized(store, texts)
    middle = sorted(first.names(prefix="train-"))[2]
    (first.path / middle).write_bytes((first.path / middle).read_bytes().replace(b"\x00", b"\x01", 1))
    corpus = corpus_of(store, [*texts, text_of(9)])
    shards, _ = build_shards(store, corpus, SMALL)
    assert f"{middle} is damaged" in caplog.text
    assert shards.summary["documents_tokenized"] == 2
    assert 0 < shards.summary["bytes_tokenized"] - len(text_of(9).encode()) < len(text_of(2, 1_400).encode())
    same_as_afresh(shards, corpus, SMALL, fresh)
    whole = ShardsConfig(shard_bytes=100_000)
    same_as_afresh(build_shards(store, corpus, whole)[0], corpus, whole, Store(fresh.root / "whole"))


KILLED_MIDWAY = """
import os, signal
from pathlib import Path
from gptmodel.store.artifacts import Store, load_artifact
from gptmodel.config import ShardsConfig
from gptmodel.tokens.shards import build_shards

calls = []
def progress(done, total, unit):
    calls.append(done)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)

corpus = load_artifact(Path(sys.argv[2]))
build_shards(Store(Path(sys.argv[1])), corpus, ShardsConfig(shard_bytes=2_000, workers=2), progress=progress)
"""


def test_after_a_kill_it_goes_on_with_what_it_took_over(store, fresh):
    texts = [text_of(i) for i in range(40)]
    tokenized(store, texts[::2])
    corpus = corpus_of(store, texts)
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n{KILLED_MIDWAY}"
    command = [sys.executable, "-c", code, str(store.root), str(corpus.path)]
    died = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    building = store.building_path(shards_request(corpus, SMALL))
    kept = [building / sidecar.stem for sidecar in building.glob(".work/*.json")]
    assert len(kept) >= 4
    written = {path.name: path.stat().st_ino for path in kept}
    old_version = building / ".work" / f"{min(written)}.json"
    said = json.loads(old_version.read_text())
    old_version.write_text(json.dumps({k: v for k, v in said.items() if not k.startswith("tokenized")}))

    shards, _ = build_shards(store, corpus, SMALL)
    assert all((shards.path / name).stat().st_ino == inode for name, inode in written.items())
    assert shards.summary["documents_reused"] == 22 - (said["documents"] - said["tokenized_documents"])
    same_as_afresh(shards, corpus, SMALL, fresh)


def test_damaged_shards_are_left_out_with_a_warning_and_older_ones_serve(store, fresh, encoded, caplog):
    texts = [text_of(i) for i in range(12)]
    older = tokenized(store, texts)
    newer = tokenized(store, texts, ShardsConfig(shard_bytes=100_000))
    path = newer.path / "train-00000.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    encoded.clear()
    grown = [*texts, text_of(50)]
    shards = tokenized(store, grown)
    assert encoded == [text_of(50)]
    assert f"{newer.label}: train-00000.arrow is damaged" in caplog.text
    same_as_afresh(shards, corpus_of(store, grown), SMALL, fresh)

    shutil.rmtree(shards.path)
    shutil.rmtree(older.path)
    encoded.clear()
    shards = tokenized(store, grown)
    damaged = [d.text for d in iter_documents(corpus_of(store, texts)) if d.split == "train"]
    assert sorted(encoded) == sorted([*damaged, text_of(50)])
    same_as_afresh(shards, corpus_of(store, grown), SMALL, Store(fresh.root / "again"))


def test_no_flipped_bit_of_an_earlier_file_reaches_the_new_one(store, fresh):
    texts = [text_of(i) for i in range(6)]
    path = tokenized(store, texts, ShardsConfig(shard_bytes=100_000)).path / "train-00000.arrow"
    corpus = corpus_of(store, [*texts, text_of(90)])
    expected = build_shards(fresh, corpus, SMALL)[0].digest
    whole = path.read_bytes()
    for position in range(5, len(whole), len(whole) // 24):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x80]) + whole[position + 1 :])
        shards, _ = build_shards(store, corpus, SMALL)
        assert shards.digest == expected, position
        assert shards.summary["documents_tokenized"] == shards.summary["train_documents"]
        shutil.rmtree(shards.path)


def test_rows_that_do_not_spell_their_document_are_tokenized_again(store, fresh, encoded):
    """Hashes cannot tell: such files are whole."""
    texts = [text_of(i) for i in range(8)]
    first = tokenized(store, texts, ShardsConfig(shard_bytes=100_000))

    def swap(directory: Path) -> None:
        def change(rows: dict[str, list]) -> None:
            ids, tokens = rows["document"], rows["tokens"]
            ids[0], ids[1] = ids[1], ids[0]
            tokens[2] = [*tokens[2][:-2], 60_000, gpt2().end_token]
            tokens[3] = tokens[3][:-2]

        earlier_rows(directory / "train-00000.arrow", change)

    config = {**first.request.config, "by": "a wrong hand"}
    forged(store, first, swap, replace(first.request, config=config))
    encoded.clear()
    shards = tokenized(store, texts, ShardsConfig(shard_bytes=100_000))
    assert len(encoded) == 4
    assert shards.summary["documents_reused"] == 6
    same_as_afresh(shards, corpus_of(store, texts), ShardsConfig(shard_bytes=100_000), fresh)


@pytest.mark.parametrize(
    "other",
    [
        lambda asked: replace(asked, recipe_version=asked.recipe_version + 1),
        lambda asked: replace(asked, recipe_version=asked.recipe_version - 1),
        lambda asked: replace(asked, config={**asked.config, "tokenizer_digest": "0" * 64}),
    ],
)
def test_shards_of_another_recipe_or_tokenizer_are_not_used(store, other):
    texts = [text_of(i) for i in range(5)]
    first = tokenized(store, texts)
    forged(store, first, lambda _: None, other(first.request))
    assert tokenized(store, texts).summary["documents_reused"] == 0


def test_files_that_name_another_tokenizer_are_not_used(store, caplog):
    texts = [text_of(i) for i in range(5)]
    first = tokenized(store, texts)

    def rename(directory: Path) -> None:
        for path in directory.glob("*.arrow"):
            path.write_bytes(path.read_bytes().replace(gpt2().digest.encode(), b"0" * 64))

    forged(store, first, rename, replace(first.request, config={**first.request.config, "x": 1}))
    assert tokenized(store, texts).summary["documents_reused"] == 0
    assert "it is no token shard of this tokenizer" in caplog.text


def test_shards_that_are_collected_meanwhile_are_done_without(store, fresh, caplog):
    texts = [text_of(i) for i in range(30)]
    first = tokenized(store, texts)
    corpus = corpus_of(store, [*texts, text_of(70)])

    def progress(done: int, total: int, unit: str) -> None:
        shutil.rmtree(first.path, ignore_errors=True)

    shards, _ = build_shards(store, corpus, replace(SMALL, workers=1), progress=progress)
    told = [record for record in caplog.records if first.label in record.message]
    assert 1 <= len(told) <= 2, "once that it is gone; a file may have been seen missing before that"
    assert 0 < shards.summary["documents_reused"] < 32
    same_as_afresh(shards, corpus, SMALL, fresh)


def test_what_is_read_from_is_said_to_be_in_use(store):
    texts = [text_of(i) for i in range(20)]
    first = tokenized(store, texts)
    corpus = corpus_of(store, [*texts, text_of(70)])
    named: set[str] = set()

    def progress(done: int, total: int, unit: str) -> None:
        for path in (store.root / ".uses").glob("*.json"):
            named.update(json.loads(path.read_text()))

    build_shards(store, corpus, SMALL, progress=progress)
    assert first.label in named


def test_the_search_ends_when_much_was_looked_at_in_vain(store, encoded, monkeypatch):
    import gptmodel.tokens.known_tokens as known_tokens

    tokenized(store, [text_of(1)])
    for i in range(3):
        tokenized(store, [text_of(n) for n in range(100 * i + 100, 100 * i + 140)], ShardsConfig(shard_bytes=3_000))
    again = [text_of(1), text_of(2)]
    monkeypatch.setattr(known_tokens, "_VAIN_LEAST", 10)
    encoded.clear()
    shards = tokenized(store, again)
    assert text_of(1) in encoded, "the oldest shards, which hold it, are out of reach"
    shutil.rmtree(shards.path)
    monkeypatch.setattr(known_tokens, "_VAIN_LEAST", 1_000)
    encoded.clear()
    tokenized(store, again)
    assert encoded == [text_of(2)]


def test_two_documents_that_share_half_their_id_are_told_apart(store):
    def made_up(ids: list[str]) -> Artifact:
        def build(directory: Path) -> dict[str, int]:
            columns = {
                "id": ids,
                "text": [f"Text {i}." for i in ids],
                "source": ids,
                "n_bytes": [len(f"Text {i}.") for i in ids],
                "split": ["train"] * len(ids),
            }
            pq.write_table(pa.table(columns), directory / "documents-00000.parquet")
            return {}

        return store.produce(Request("corpus", 2, {"ids": ids}), build)[0]

    one, other = "ab" * 8 + "0" * 16, "ab" * 8 + "1" * 16
    build_shards(store, made_up([one]), SMALL)
    shards, _ = build_shards(store, made_up([other, one]), SMALL)
    stream = open_split(shards, "train")
    assert gpt2().decode(stream.slice(0, stream.n_tokens)) == f"Text {other}.<|endoftext|>Text {one}.<|endoftext|>"
    assert open_split(shards, "train").documents().ids == [other, one]


def test_spelling_is_that_of_the_tokenizer():
    text = "".join(text_of(i) for i in range(900))
    tokens, spelling = gpt2().encode(text), Spelling(gpt2())
    assert len(tokens) > 2 * 32_768
    assert spelling.is_of(tokens, [text])
    assert spelling.is_of(tokens, [text[:70_000], text[70_000:]])
    assert spelling.is_of(np.empty(0, np.uint16), [])
    assert spelling.ends(tokens)[-1] == len(text.encode())
    for at in (0, 40_000, len(tokens) - 1):
        wrong = tokens.copy()
        wrong[at] ^= 1
        assert not spelling.is_of(wrong, [text])
    assert not spelling.is_of(tokens[:-1], [text])
    assert not spelling.is_of(np.append(tokens, np.uint16(60_000)), [text + "!"])


def test_many_are_spelled_together_and_each_is_judged_alone():
    texts = [text_of(i) for i in range(2_000)]
    pairs = [(gpt2().encode(text), [text[:5], text[5:]]) for text in texts]
    assert sum(len(tokens) for tokens, _ in pairs) > 2 * 32_768
    spelling = Spelling(gpt2())
    assert [len(found) for found in spelling.are_of(pairs)] == [len(tokens) for tokens, _ in pairs]
    a, b = pairs[10][0], pairs[11][0]
    pairs[10], pairs[11] = (np.append(a, b[:1]), pairs[10][1]), (b[1:], pairs[11][1])  # the same bytes, cut elsewhere
    pairs[1_500] = pairs[1_500][0], [text_of(0)]
    found = list(spelling.are_of(pairs))
    assert [i for i, tokens in enumerate(found) if tokens is None] == [10, 11, 1_500]
    assert all(np.array_equal(tokens, pairs[i][0]) for i, tokens in enumerate(found) if tokens is not None)
    assert list(spelling.are_of([])) == []


def sides(corpus: Artifact) -> dict[str, Document]:
    return {document.id: document for document in iter_documents(corpus)}


def grown(store: Store, before: CorpusConfig, after: Callable[[], CorpusConfig], encoded: list[str]) -> Artifact:
    """Run both steps before and after; what is true of every source that grows is checked here."""
    config = ShardsConfig(shard_bytes=2_000_000)
    old, _ = build_corpus(store, before)
    build_shards(store, old, config)
    new, _ = build_corpus(store, after())
    encoded.clear()
    shards, _ = build_shards(store, new, config)
    were, are = sides(old), sides(new)
    added = [document for id_, document in are.items() if id_ not in were]
    assert added
    assert all(are[id_].split == document.split for id_, document in were.items() if id_ in are)
    assert sorted(encoded) == sorted(document.text for document in added)
    assert shards.summary["documents_tokenized"] == len(added)
    assert shards.summary["documents_reused"] == len(are) - len(added)
    for split in ("train", "validation"):
        index = open_split(shards, split).documents()
        assert index.ids == [document.id for document in are.values() if document.split == split]
    same_as_afresh(shards, new, config, Store(store.root.parent / "fresh"))
    return shards


def test_addresses_of_later_years_arrive(store, encoded):
    source = SourceConfig(first_year=1790, last_year=1990)
    after = CorpusConfig(source=replace(source, last_year=2026))
    shards = grown(store, CorpusConfig(source=source), lambda: after, encoded)
    assert shards.summary["documents_reused"] > 5 * shards.summary["documents_tokenized"]


def test_one_of_many_files_is_edited_and_another_comes_before_all(store, encoded, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i + 1:02}.txt").write_text(text_of(i))
    config = replace(SPLIT, source=SourceConfig(kind="files", paths=(f"{folder}/*.txt",)))

    def edit() -> CorpusConfig:
        (folder / "17.txt").write_text(text_of(17).replace("the", "a"))
        (folder / "00-first.txt").write_text(text_of(70))
        return config

    shards = grown(store, config, edit, encoded)
    assert shards.summary["documents_tokenized"] == 2
