"""How fast `gptflow verify` hashes a store, against `sha256sum` on the same files.

    python -m benchmarks.verify_speed [--gigabytes 2] [--rounds 5] [--folder DIR]

A store of random files, as shards of 64 MB and a few small ones, read once so that it lies in memory; then in turns:
`gptflow verify --all` in this process (its own starting left out), and `find | xargs -P2 sha256sum`, which starts 2
processes at a time as verify does 2 threads. Prints and writes medians in seconds and GB/s, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, spread
from gptmodel.store.artifacts import Request, Store
from gptmodel.upkeep.verification import verify

RESULTS = Path(__file__).with_name("results") / "verify_speed.json"
SHARD = 64 << 20
THREADS = 2


def fill(store: Store, n_bytes: int) -> None:
    """Artifacts of eight shards and a small file each, in a chain."""

    def build(directory: Path) -> dict[str, Any]:
        for number in range(8):
            with (directory / f"train-{number:05d}.arrow").open("wb") as file:
                for _ in range(SHARD >> 20):
                    file.write(os.urandom(1 << 20))
        (directory / "training.json").write_text("{}")
        return {}

    before: tuple[Any, ...] = ()
    for number in range(max(1, n_bytes // (8 * SHARD))):
        before = (store.produce(Request("shards", 1, {"number": number}, before), build)[0].ref,)


def by_verify(store: Store) -> int:
    report = verify(store, store.directories(), threads=THREADS)
    assert not report.differences
    return report.bytes


def by_sha256sum(store: Store) -> int:
    command = f"find . -type f -name 'train*' -print0 | xargs -0 -P{THREADS} -n1 sha256sum > /dev/null"
    subprocess.run(["sh", "-c", command], cwd=store.root, check=True)
    return sum(path.stat().st_size for path in store.root.rglob("train*"))


def timed(work: Any, store: Store) -> tuple[float, int]:
    began = time.perf_counter()
    n_bytes = work(store)
    return time.perf_counter() - began, n_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="Where the store is made; left out, a temporary one.")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="gptflow-verify-", dir=given.folder))
    ways = {"gptflow verify": by_verify, "sha256sum": by_sha256sum}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    load_before, n_bytes = os.getloadavg()[0], 0
    try:
        store = Store(folder / "store")
        fill(store, int(given.gigabytes * 1e9))
        for work in ways.values():
            work(store)  # into memory
        for number in range(given.rounds):
            for name, work in ways.items():
                found, n_bytes = timed(work, store)
                seconds[name].append(found)
                print(f"round {number + 1}  {name:15} {found:7.3f} s  {n_bytes / 1e9 / found:.2f} GB/s", flush=True)
    finally:
        shutil.rmtree(folder)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    result = {
        "machine": machine(threads=THREADS),
        "bytes": n_bytes,
        "threads": THREADS,
        "rounds": given.rounds,
        "sha_ni": "sha_ni" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else None,
        "load_before": round(load_before, 2),
        "median_seconds": {name: round(found, 4) for name, found in medians.items()},
        "spread_seconds": {name: spread(found, 4) for name, found in seconds.items()},
        "gigabytes_per_second": {name: round(n_bytes / 1e9 / found, 3) for name, found in medians.items()},
        "times_as_fast": round(medians["sha256sum"] / medians["gptflow verify"], 3),
        "seconds": {name: [round(each, 4) for each in found] for name, found in seconds.items()},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "seconds"}, indent=2))


if __name__ == "__main__":
    main()
