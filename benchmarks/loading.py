"""A batch from shards beside nanoGPT's memmap, and the first batch of a large corpus.

    python -m benchmarks.loading [--gigabytes 10] [--rounds 5]

16 sequences of 256 tokens, and 4 of 1,024, from shards of random ids through `Batches` (each window once an epoch, in
the order of its permutation) and from one file of the same ids as nanoGPT reads it (`np.memmap` opened for each batch,
random places, one cast and one tensor a row, stacked). In turns; median and mean of hundreds of batches. Then a new
process opens `--gigabytes` of shards and takes its first batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.machine import machine, spread
from gptmodel.store.artifacts import Artifact, Request, Store
from gptmodel.tokenizer import gpt2
from gptmodel.tokens.batches import Batches
from gptmodel.tokens.shards import open_split, shard_schema

RESULTS = Path(__file__).with_name("results") / "loading.json"
SIZES = ((16, 256), (4, 1024))
SHARD_TOKENS = 50_000_000


def make(root: Path, n_tokens: int) -> Artifact:
    """Shards of random ids, each of one document."""

    def write(directory: Path) -> dict[str, Any]:
        draw = np.random.default_rng(0)
        block = draw.integers(0, 50_256, min(n_tokens, SHARD_TOKENS), dtype=np.uint16)
        for number in range(-(-n_tokens // SHARD_TOKENS)):
            ids = np.roll(block, number * 12_345)
            tokens = pa.LargeListArray.from_arrays(pa.array([0, len(ids)], pa.int64()), pa.array(ids))
            columns = [pa.array([str(number)], pa.string()), pa.array([0], pa.int32()), tokens]
            batch = pa.record_batch(columns, schema=shard_schema(gpt2()))
            path = directory / f"train-{number:05d}.arrow"
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
        return {}

    return Store(root).produce(Request("shards", 1, {"tokens": n_tokens}), write)[0]


def memmap_batch(path: Path, rows: int, length: int, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """As nanoGPT's training script makes one."""
    data = np.memmap(path, dtype=np.uint16, mode="r")
    places = torch.randint(len(data) - length, (rows,), generator=draw).tolist()
    x = torch.stack([torch.from_numpy(data[i : i + length].astype(np.int64)) for i in places])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + length].astype(np.int64)) for i in places])
    return x, y


def race(shards: Artifact, flat: Path, rows: int, length: int, batches: int) -> dict[str, Any]:
    ours = Batches(open_split(shards, "train"), context_length=length, batch_size=rows, micro_batch_size=rows, seed=1)
    draw = torch.Generator().manual_seed(1)
    found: dict[str, list[float]] = {"gptflow": [], "memmap": []}
    for step in range(batches + 20):
        for who in found:
            started = time.perf_counter()
            ours.batch(step) if who == "gptflow" else memmap_batch(flat, rows, length, draw)
            found[who].append(1e3 * (time.perf_counter() - started))
    row: dict[str, Any] = {"rows": rows, "tokens": length}
    for name, middle in (("median", statistics.median), ("mean", statistics.fmean)):
        ms = {who: round(middle(values[20:]), 4) for who, values in found.items()}
        row[f"{name}_ms"], row[f"{name}_ratio"] = ms, round(ms["memmap"] / ms["gptflow"], 2)
    row["spread_ms"] = {who: spread(values[20:], 4) for who, values in found.items()}
    return row


FIRST = """
import sys, time
from pathlib import Path
from gptmodel.store.artifacts import load_artifact
from gptmodel.tokens.batches import Batches
from gptmodel.tokens.shards import open_split
import torch
started = time.perf_counter()
stream = open_split(load_artifact(Path(sys.argv[1])), "train", check=sys.argv[2] == "checked")
Batches(stream, context_length=1024, batch_size=16, micro_batch_size=16, seed=1).batch(0)
print(time.perf_counter() - started)
"""


def first_batch(shards: Artifact, how: str) -> float:
    """Seconds in a new process from the artifact's directory to the first batch; imports left out."""
    command = [sys.executable, "-c", FIRST, str(shards.path), how]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gptflow-loading-") as folder:
        small = make(Path(folder) / "small", 2 * SHARD_TOKENS)
        stream, flat = open_split(small, "train"), Path(folder) / "train.bin"
        stream.slice(0, stream.n_tokens).tofile(flat)
        rows = [race(small, flat, *size, given.batches) for size in SIZES]
        large = make(Path(folder) / "large", int(given.gigabytes * 5e8))
        first = {how: [first_batch(large, how) for _ in range(given.rounds)] for how in ("sizes", "checked")}
    told = {"machine": machine("pyarrow"), "batches": rows, "gigabytes": given.gigabytes, "first_batch_seconds": first}
    RESULTS.write_text(json.dumps(told, indent=2) + "\n")
    for row in rows:
        print(row)
    print(f"first batch of {given.gigabytes:g} GB: " + ", ".join(f"{how} {min(s):.2f} s" for how, s in first.items()))


if __name__ == "__main__":
    main()
