"""What a source that grew by a twentieth costs: tokenized afresh, or with the shards of before in the store.

    python -m benchmarks.incremental [--rounds 5] [--copies 12]

The text is the embedded corpus, `copies` times, each piece of each copy with a line of its own, so that no two
documents are the same. The two ways run in turns, each in a process of its own, on all cores, with fastokens and with
tiktoken; what is timed is `build_shards`, its hashing and syncing included, and the digests must be equal. Printed and
written: all seconds, their medians, and the ratios. Besides, the memory of the index of known documents, for a million
of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import machine, spread
from gptmodel.config import CorpusConfig, ShardsConfig, SourceConfig
from gptmodel.resident import peak_resident_bytes
from gptmodel.store.artifacts import Artifact, Request, Store, load_artifact
from gptmodel.text.corpus import build_corpus, iter_documents
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.encoder import encoder
from gptmodel.tokens.known_tokens import find_known
from gptmodel.tokens.shards import build_shards, shard_schema, shards_request

RESULTS = Path(__file__).with_name("results") / "incremental.json"
NEW_SHARE = 0.05
ENCODERS = ("auto", "tiktoken")


def texts(scratch: Path, copies: int) -> Iterator[str]:
    """Pieces of about 10,000 characters, each unlike all others."""
    small = CorpusConfig(cut_above_chars=10_000, cut_to_chars=7_000)
    once = [document.text for document in iter_documents(build_corpus(Store(scratch), small)[0])]
    for copy in range(copies):
        for number, text in enumerate(once):
            yield f"Piece {number} of copy {copy}.\n{text}"


def corpora(root: Path, copies: int) -> tuple[Artifact, Artifact]:
    """The corpus before and after it grew at its end."""
    lines = [json.dumps({"text": text}) + "\n" for text in texts(root / "once", copies)]
    old = int(len(lines) * (1 - NEW_SHARE))
    folder = root / "text"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(lines[:old]))
    config = CorpusConfig(source=SourceConfig(kind="files", paths=(f"{folder}/*.jsonl",)))
    before, _ = build_corpus(Store(root / "corpora"), config)
    (folder / "b.jsonl").write_text("".join(lines[old:]))
    after, _ = build_corpus(Store(root / "corpora"), config)
    return before, after


def tokenize(store: Path, corpus: Path, config: ShardsConfig) -> dict[str, Any]:
    """To be run in a process of its own, where nothing is hashed yet. What every step before it loads, is loaded."""
    encoder(config.encoder)
    pa.array([""])  # imports pandas, if it is there: 1 to 3 s
    found = load_artifact(corpus)
    started = time.perf_counter()
    shards, reused = build_shards(Store(store), found, config)
    seconds = time.perf_counter() - started
    assert not reused
    return {
        "seconds": seconds,
        "peak_mb": peak_resident_bytes() / 1e6,
        "path": str(shards.path),
        "digest": shards.digest,
        **shards.summary,
    }


def write_rows(path: Path, ids: list[str]) -> None:
    """A shard file of documents with no text."""
    tokens = pa.LargeListArray.from_arrays(
        pa.array(range(len(ids) + 1), pa.int64()), pa.array([gpt2().end_token] * len(ids), pa.uint16())
    )
    columns = [pa.array(ids, pa.string()), pa.array([0] * len(ids), pa.int32()), tokens]
    batch = pa.record_batch(columns, schema=shard_schema(gpt2()))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def index_memory(root: Path, documents: int, a_file: int = 10_000) -> dict[str, Any]:
    """Memory for so many documents, all of which earlier shards hold: of the index, and the most while it was made."""

    def ids(number: int) -> list[str]:
        return [sha256(str(number * a_file + i).encode()).hexdigest()[:32] for i in range(a_file)]

    def write_corpus(directory: Path) -> dict[str, Any]:
        with pq.ParquetWriter(directory / "documents-00000.parquet", pa.schema({"id": pa.string()})) as writer:
            for number in range(documents // a_file):
                writer.write_table(pa.table({"id": ids(number)}))
        return {}

    def write_shards(directory: Path) -> dict[str, Any]:
        for number in range(documents // a_file):
            write_rows(directory / f"train-{number:05d}.arrow", ids(number))
        return {}

    store = Store(root)
    corpus, _ = store.produce(Request("corpus", 2, {"documents": documents}), write_corpus)
    asked = shards_request(corpus, ShardsConfig())
    earlier = Request("shards", asked.recipe_version, {**asked.config, "earlier": True}, asked.inputs)
    store.produce(earlier, write_shards)
    tracemalloc.start()  # numpy's memory; Arrow's is a page of ids at a time
    started = time.perf_counter()
    known = find_known(store, corpus, asked, gpt2(), shard_schema(gpt2()))
    seconds = time.perf_counter() - started
    held, peak = tracemalloc.get_traced_memory()
    assert known.found == documents
    return {
        "documents": documents,
        "held_mb": round(held / 1e6, 1),
        "peak_mb": round(peak / 1e6, 1),
        "seconds": round(seconds, 2),
    }


def in_child(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.incremental", *arguments]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(out)
    return found


def compare(root: Path, rounds: int, copies: int) -> dict[str, Any]:
    before, after = corpora(root, copies)
    grown = Store(root / "grown")
    old = in_child("--store", str(grown.root), "--corpus", str(before.path))
    ways = [(way, by) for by in ENCODERS for way in ("afresh", "incremental")]
    runs: dict[str, dict[str, list[float]]] = {by: {"afresh": [], "incremental": []} for by in ENCODERS}
    peaks: dict[str, list[float]] = {"afresh": [], "incremental": []}
    made: dict[str, Any] = {}
    for number in range(rounds):
        for way, by in ways if number % 2 == 0 else reversed(ways):
            store = root / f"fresh-{number}-{by}" if way == "afresh" else grown.root
            made[way] = in_child("--store", str(store), "--corpus", str(after.path), "--encoder", by)
            shutil.rmtree(made[way]["path"])
            runs[by][way].append(round(made[way]["seconds"], 3))
            peaks[way].append(round(made[way]["peak_mb"], 1))
        assert made["afresh"]["digest"] == made["incremental"]["digest"], "not the same bytes"
        print({by: {way: values[-1] for way, values in found.items()} for by, found in runs.items()}, flush=True)
    new, documents = made["incremental"], after.summary["documents"]
    return {
        "text_mb": round((new["train_bytes"] + new["validation_bytes"]) / 1e6, 1),
        "documents": documents,
        "documents_before": old["train_documents"] + old["validation_documents"],
        "documents_tokenized": new["documents_tokenized"],
        "mb_tokenized": round(new["bytes_tokenized"] / 1e6, 1),
        "encoders": {by: figures(found) for by, found in runs.items()},
        "median_peak_mb": {way: statistics.median(values) for way, values in peaks.items()},
        "same_digest": True,
    }


def figures(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Of the two ways with one encoder."""
    pairs = zip(seconds["afresh"], seconds["incremental"], strict=True)
    return {
        "seconds": seconds,
        "median_seconds": {way: statistics.median(values) for way, values in seconds.items()},
        "spread_seconds": {way: spread(values, 3) for way, values in seconds.items()},
        "times_as_fast": round(statistics.median(afresh / incremental for afresh, incremental in pairs), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=12, help="of the 12 MB of text")
    parser.add_argument("--scratch", help="where to work; default: a temporary folder")
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", help=argparse.SUPPRESS)
    parser.add_argument("--encoder", choices=ENCODERS, default="auto", help=argparse.SUPPRESS)
    parser.add_argument("--index", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.index:
        print(json.dumps(index_memory(Path(asked.index), 1_000_000)))
        return
    if asked.store:
        config = ShardsConfig(encoder=asked.encoder)
        print(json.dumps(tokenize(Path(asked.store), Path(asked.corpus), config)))
        return
    root = Path(tempfile.mkdtemp(prefix="incremental-", dir=asked.scratch))
    try:
        found = compare(root, asked.rounds, asked.copies)
        found["index_of_a_million"] = in_child("--index", str(root / "index"))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    RESULTS.write_text(json.dumps({**found, "machine": machine("pyarrow", "tiktoken", "fastokens")}, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
