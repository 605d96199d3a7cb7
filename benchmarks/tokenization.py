"""Text to shards on disk, hashed and synced, beside bare tiktoken with the same cores on the same documents.

    python -m benchmarks.tokenization [--rounds 3] [--copies 20]

The text is the embedded corpus, `copies` times, in documents of about 7,000 characters. Three contestants take turns,
each in a process of its own: `build_shards`, reading its corpus from disk, writing, hashing and syncing its shards;
tiktoken's `encode_ordinary_batch` with as many threads as there are cores, on text that is in memory already, as it
ships; and its `encode_to_numpy` in as many threads, which spares it the lists of Python integers. All must give the
same number of tokens. A second, smaller text shows whether memory grows with it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.incremental import texts
from benchmarks.machine import machine, spread
from gptmodel.config import CorpusConfig, ShardsConfig, SourceConfig
from gptmodel.resident import peak_resident_bytes
from gptmodel.store.artifacts import Artifact, Store, load_artifact
from gptmodel.text.corpus import build_corpus, iter_documents
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.shards import build_shards

RESULTS = Path(__file__).with_name("results") / "tokenization.json"
CONTESTANTS = ("build_shards", "tiktoken, lists", "tiktoken, numpy")


def corpus_of(root: Path, copies: int) -> Artifact:
    folder = root / "text"
    folder.mkdir(parents=True)
    with (folder / "a.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts(root / "once", copies))
    config = CorpusConfig(source=SourceConfig(kind="files", paths=(f"{folder}/*.jsonl",)))
    return build_corpus(Store(root / "corpora"), config)[0]


def run(who: str, corpus: Path, store: Path) -> dict[str, Any]:
    """One contestant, in a process of its own, with its tokenizer loaded."""
    cores = os.cpu_count() or 1
    tokenizer = gpt2()
    pa.array([""])  # imports pandas, if it is there: 1 to 3 s
    found = load_artifact(corpus)
    documents = [] if who == "build_shards" else [document.text for document in iter_documents(found)]
    wall, cpu = time.perf_counter(), time.process_time()
    if who == "build_shards":
        shards, reused = build_shards(Store(store), found, ShardsConfig())
        assert not reused
        tokens = sum(
            shards.summary[f"{split}_tokens"] - shards.summary[f"{split}_documents"]
            for split in ("train", "validation")
        )
    elif who == "tiktoken, lists":
        tokens = sum(map(len, tokenizer._encoding.encode_ordinary_batch(documents, num_threads=cores)))
    else:
        with ThreadPoolExecutor(cores) as pool:
            encode = tokenizer._encoding.encode_to_numpy
            tokens = sum(pool.map(lambda text: len(encode(text, disallowed_special=())), documents))
    seconds = {"wall": time.perf_counter() - wall, "processor": time.process_time() - cpu}
    return {**seconds, "tokens": tokens, "peak_mb": round(peak_resident_bytes() / 1e6)}


def race(root: Path, copies: int, rounds: int) -> dict[str, Any]:
    corpus = corpus_of(root, copies)
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in CONTESTANTS}
    for turn in range(rounds):
        for who in CONTESTANTS:
            with tempfile.TemporaryDirectory(dir=root) as store:
                command = [sys.executable, "-m", "benchmarks.tokenization", "--who", who, "--corpus", str(corpus.path)]
                done = subprocess.run([*command, "--store", store], check=True, capture_output=True, text=True)
            found[who].append(json.loads(done.stdout))
            print(f"round {turn + 1}, {who}: {found[who][-1]}", flush=True)
    assert len({row["tokens"] for rows in found.values() for row in rows}) == 1, "not the same tokens"
    medians = {
        who: {of: statistics.median(row[of] for row in rows) for of in ("wall", "processor", "peak_mb")}
        for who, rows in found.items()
    }
    spreads = {
        who: {of: spread([r[of] for r in rows], 2) for of in ("wall", "processor")} for who, rows in found.items()
    }
    ratios = {
        f"{of}, ours / {who}": round(
            statistics.median(a[of] / b[of] for a, b in zip(found["build_shards"], found[who], strict=True)), 3
        )
        for who in CONTESTANTS[1:]
        for of in ("wall", "processor")
    }
    n_bytes = corpus.summary["train_bytes"] + corpus.summary["validation_bytes"]
    return {"bytes": n_bytes, "medians": medians, "spread_seconds": spreads, "ratios": ratios, "all": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--who", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.who:
        print(json.dumps(run(given.who, given.corpus, given.store)))
        return
    with tempfile.TemporaryDirectory(prefix="gptflow-tokenization-") as folder:
        rows = [
            race(Path(folder) / str(copies), copies, rounds)
            for copies, rounds in ((given.copies, given.rounds), (max(1, given.copies // 4), 1))
        ]
    told = {"machine": machine("tiktoken", "fastokens", "pyarrow"), "rows": rows}
    RESULTS.write_text(json.dumps(told, indent=2) + "\n")
    for row in rows:
        peaks = {who: median["peak_mb"] for who, median in row["medians"].items()}
        print(f"{row['bytes'] / 1e6:.0f} MB: {row['ratios']}, peak MB {peaks}")


if __name__ == "__main__":
    main()
