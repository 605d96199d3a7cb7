"""Shards hold every document's tokens once, in order, whatever the number of workers and however often it crashed."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gptmodel.config import ShardsConfig
from gptmodel.errors import ArtifactError, DataError
from gptmodel.store.artifacts import Artifact, Request, Store
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.shards import build_shards, open_split, shards_request

END = 50256


def make_corpus(store: Store, texts: dict[str, tuple[str, str]]) -> Artifact:
    """A corpus of `id: (split, text)`, in this order, as the corpus step leaves it."""

    def build(directory: Path) -> dict[str, int]:
        table = {
            "id": list(texts),
            "text": [text for _, text in texts.values()],
            "source": ["test"] * len(texts),
            "n_bytes": pa.array([len(text.encode()) for _, text in texts.values()], pa.int64()),
            "split": [split for split, _ in texts.values()],
        }
        pq.write_table(pa.table(table), directory / "documents-00000.parquet")
        return {}

    asked = Request("corpus", 1, {"texts": [[k, *v] for k, v in texts.items()]})
    return store.produce(asked, build)[0]


def many(n: int) -> dict[str, tuple[str, str]]:
    """`n` documents of different lengths; every fifth one is for validation."""
    return {
        f"doc-{i}": ("validation" if i % 5 == 4 else "train", f"Document {i} of many. " + "All is well, isn't it? " * i)
        for i in range(n)
    }


def expected_stream(texts: dict[str, tuple[str, str]], split: str) -> list[int]:
    return [t for where, text in texts.values() if where == split for t in [*gpt2().encode(text).tolist(), END]]


def in_subprocess(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    where = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {where!r})\n{code}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_documents_come_back_in_order_closed_by_the_end_token(store):
    texts = many(40) | {"odd": ("train", "one<|endoftext|>two, 漢字 👍")}
    shards, reused = build_shards(store, make_corpus(store, texts), ShardsConfig(shard_bytes=4_000))
    assert not reused
    for split in ("train", "validation"):
        stream = open_split(shards, split)
        assert stream.slice(0, stream.n_tokens).tolist() == expected_stream(texts, split)
        index = stream.documents()
        assert index.ids == [name for name, (where, _) in texts.items() if where == split]
        for name, start, n_tokens in zip(index.ids, index.starts, index.n_tokens, strict=True):
            tokens = stream.slice(start, start + n_tokens)
            assert tokens[-1] == END
            assert gpt2().decode(tokens[:-1]) == texts[name][1]


def test_summary_figures(store):
    texts = many(20)
    shards, _ = build_shards(store, make_corpus(store, texts), ShardsConfig(shard_bytes=2_000))
    summary = shards.summary
    for split in ("train", "validation"):
        assert summary[f"{split}_tokens"] == len(expected_stream(texts, split))
        assert summary[f"{split}_documents"] == sum(where == split for where, _ in texts.values())
        assert summary[f"{split}_bytes"] == sum(len(t.encode()) for where, t in texts.values() if where == split)
    n_tokens = summary["train_tokens"] + summary["validation_tokens"]
    assert summary["bytes_per_token"] == sum(len(t.encode()) for _, t in texts.values()) / n_tokens
    assert summary["shards"] == len(shards.files)
    assert summary["tokenizer"] == {"name": "gpt2", "digest": gpt2().digest, "vocab_size": 50257}


def test_a_shard_is_one_arrow_record_batch_that_says_what_made_it(store):
    shards, _ = build_shards(store, make_corpus(store, many(20)), ShardsConfig(shard_bytes=2_000))
    assert {"train-00000.arrow", "train-00001.arrow", "validation-00000.arrow"} <= set(shards.names())
    for name in shards.names():
        reader = pa.ipc.open_file(shards.file(name).read_bytes())
        assert reader.num_record_batches == 1
        assert reader.schema.names == ["document", "part", "tokens"]
        assert reader.schema.types == [pa.string(), pa.int32(), pa.large_list(pa.uint16())]
        assert reader.schema.metadata == {
            b"tokenizer": b"gpt2",
            b"tokenizer_digest": gpt2().digest.encode(),
            b"vocab_size": b"50257",
            b"end_token": b"50256",
        }
        rows = reader.read_all()
        texts = [gpt2().decode(t[:-1]) for t in rows.column("tokens").to_pylist()]
        assert sum(len(t.encode()) for t in texts) <= 2_000


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path):
    digests = set()
    for workers in (1, 2, 7):
        store = Store(tmp_path / str(workers))
        shards, _ = build_shards(store, make_corpus(store, many(60)), ShardsConfig(shard_bytes=3_000, workers=workers))
        assert len(shards.files) > 10
        digests.add((shards.fingerprint, shards.digest))
    assert len(digests) == 1


def test_a_document_larger_than_a_shard_goes_on_in_the_next(store):
    large = "Fourscore and seven years ago, our fathers didn't know.\n\n" * 200
    texts = {"a": ("train", "Before."), "large": ("train", large), "z": ("train", "After.")}
    shards, _ = build_shards(store, make_corpus(store, texts), ShardsConfig(shard_bytes=4_000))
    rows = [
        row
        for name in shards.names()
        for row in pa.ipc.open_file(shards.file(name).read_bytes()).read_all().select(["document", "part"]).to_pylist()
    ]
    assert [(r["document"], r["part"]) for r in rows] == [("a", 0), ("large", 0), ("large", 1), ("large", 2), ("z", 0)]
    stream = open_split(shards, "train")
    assert stream.slice(0, stream.n_tokens).tolist() == expected_stream(texts, "train")
    index = stream.documents()
    assert index.ids == ["a", "large", "z"]
    assert index.n_tokens.tolist() == [len(gpt2().encode(text)) + 1 for _, text in texts.values()]
    assert index.starts.tolist() == [0, index.n_tokens[0], index.n_tokens[0] + index.n_tokens[1]]
    assert shards.summary["train_documents"] == 3


def test_slices_across_shards_and_their_bounds(store):
    texts = many(12)
    shards, _ = build_shards(store, make_corpus(store, texts), ShardsConfig(shard_bytes=1_000))
    stream, whole = open_split(shards, "train"), expected_stream(texts, "train")
    assert stream.n_tokens == len(whole)
    for start in range(0, len(whole), 3):
        for stop in (start, start + 1, start + 40, len(whole)):
            assert stream.slice(start, min(stop, len(whole))).tolist() == whole[start:stop]
    for start, stop in [(-1, 2), (5, 4), (0, len(whole) + 1)]:
        with pytest.raises(IndexError, match=f"tokens {start} to {stop} of a stream of {len(whole)}"):
            stream.slice(start, stop)


def test_torch_shares_the_mapped_memory_and_the_file_stays_as_it_is(store):
    shards, _ = build_shards(store, make_corpus(store, many(5)), ShardsConfig())
    stream = open_split(shards, "train")
    tensor = torch.from_numpy(stream.slice(3, 9))
    assert tensor.dtype == torch.uint16
    assert tensor.data_ptr() == stream.slice(0, 4).ctypes.data + 3 * 2
    before = hashlib.sha256(shards.file("train-00000.arrow").read_bytes()).hexdigest()
    stream.slice(0, 4)[:] = 1
    assert hashlib.sha256(shards.file("train-00000.arrow").read_bytes()).hexdigest() == before


def test_the_same_request_is_not_built_twice(store):
    corpus = make_corpus(store, many(5))
    first, _ = build_shards(store, corpus, ShardsConfig(workers=1))
    second, reused = build_shards(store, corpus, ShardsConfig(workers=2))
    assert reused
    assert second.path == first.path
    other, reused = build_shards(store, corpus, ShardsConfig(shard_bytes=1_000))
    assert not reused
    assert other.fingerprint != first.fingerprint


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
build_shards(Store(Path(sys.argv[1])), corpus, ShardsConfig(shard_bytes=3_000, workers=2), progress=progress)
"""


def test_after_a_kill_finished_shards_are_kept_and_damaged_ones_made_again(store, tmp_path):
    corpus = make_corpus(store, many(60))
    config = ShardsConfig(shard_bytes=3_000)
    died = in_subprocess(KILLED_MIDWAY, str(store.root), str(corpus.path))
    assert died.returncode == -signal.SIGKILL, died.stderr
    building = store.building_path(shards_request(corpus, config))
    finished = [building / sidecar.stem for sidecar in sorted(building.glob(".work/*.json"))]
    assert len(finished) >= 4
    assert store.find(shards_request(corpus, config)) is None

    kept = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in finished}
    damaged = finished[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    (building / "train-99999.arrow").write_bytes(b"of a plan that is no more")
    shards, reused = build_shards(store, corpus, config)

    assert not reused
    for name, written in kept.items():
        found = (shards.path / name).stat()
        assert ((found.st_ino, found.st_mtime_ns) == written) is (name != damaged.name)
    whole = Store(tmp_path / "other")
    undisturbed, _ = build_shards(whole, make_corpus(whole, many(60)), config)
    assert shards.digest == undisturbed.digest
    assert shards.summary == undisturbed.summary
    assert sorted(p.name for p in shards.path.iterdir()) == sorted([*undisturbed.names(), "manifest.json"])


def test_a_sidecar_of_another_plan_is_not_believed(store, tmp_path):
    config = ShardsConfig(shard_bytes=3_000)
    corpus = make_corpus(store, many(60))
    in_subprocess(KILLED_MIDWAY, str(store.root), str(corpus.path))
    scratch = store.building_path(shards_request(corpus, config)) / ".work"
    for sidecar in scratch.glob("*.json"):
        sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "plan": "another", "tokens": 1}))
    shards, _ = build_shards(store, corpus, config)
    assert shards.summary["train_tokens"] == open_split(shards, "train").n_tokens


def test_a_split_without_documents_is_empty(store):
    shards, _ = build_shards(store, make_corpus(store, {"a": ("train", "Alone.")}), ShardsConfig())
    stream = open_split(shards, "validation")
    assert stream.n_tokens == 0
    assert stream.slice(0, 0).tolist() == []
    assert stream.documents().ids == []
    assert stream.documents().starts.tolist() == []
    assert shards.summary["validation_tokens"] == 0


def test_a_corpus_without_documents_is_refused(store):
    with pytest.raises(DataError, match="has no documents"):
        build_shards(store, make_corpus(store, {}), ShardsConfig())


def test_text_that_cannot_be_tokenized_is_named(store):
    corpus = make_corpus(store, {"good": ("train", "Fine."), "bad-7": ("train", "x" * 1_100_000)})
    for shard_bytes in (16_000_000, 1_000):
        with pytest.raises(DataError, match=r"document bad-7: a run of more than 1,048,576 characters"):
            build_shards(store, corpus, ShardsConfig(shard_bytes=shard_bytes))
    assert [a.kind for a in store.artifacts()] == ["corpus"]


def test_wrong_kinds_and_splits_are_refused(store):
    corpus = make_corpus(store, many(2))
    shards, _ = build_shards(store, corpus, ShardsConfig())
    with pytest.raises(ArtifactError, match=r"is of kind shards; shards are made from a corpus"):
        build_shards(store, shards, ShardsConfig())
    with pytest.raises(ArtifactError, match=r"is of kind corpus; token streams are read from shards"):
        open_split(corpus, "train")
    with pytest.raises(DataError, match=r"no split 'test'; there are train, validation"):
        open_split(shards, "test")


@pytest.mark.parametrize("change", [lambda b: b[:-7], lambda b: b.replace(b"\x50\xc4", b"\x50\xc5", 1)])
def test_a_damaged_shard_is_refused_before_it_is_mapped(store, change):
    shards, _ = build_shards(store, make_corpus(store, many(3)), ShardsConfig())
    path = shards.path / "train-00000.arrow"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArtifactError, match=r"train-00000\.arrow is damaged"):
        open_split(shards, "train")


def test_progress_counts_bytes_of_text(store):
    seen: list[tuple[int, int, str]] = []
    texts = many(20)
    build_shards(
        store,
        make_corpus(store, texts),
        ShardsConfig(shard_bytes=2_000),
        progress=lambda done, total, unit: seen.append((done, total, unit)),
    )
    done = [d for d, _, _ in seen]
    assert done == sorted(done)
    assert done[-1] == sum(len(text.encode()) for _, text in texts.values())
    assert {unit for _, _, unit in seen} == {"bytes"}
