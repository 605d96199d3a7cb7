"""How fast the longest verbatim passages are found, and in how much memory, as the corpus grows.

    python -m benchmarks.overlap [--text FILE] [--megabytes 1 4 10] [--samples 32] [--bytes 600]

The corpus is the first so many megabytes of a text, the embedded speeches unless a file is named, cut into documents
where a line is empty; it is read in blocks, as an evaluation's is spelled. The samples are passages from the end of the
text, which is in no corpus: like real samples they share some tens of bytes with it. Each size is searched in a process
of its own, which tells its time and by how much the search raised its peak of memory: once for the longest passage of
each sample (what every evaluation does), and once for all passages of 40 bytes or more of the first sample (what
`gptflow overlap` does). `grep` is for scale: how long Python takes to find one string in the same bytes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from gptmodel.judging.grams import Bytes
from gptmodel.judging.overlap import END, all_passages, longest_passages
from gptmodel.resident import peak_resident_bytes

RESULTS = Path(__file__).with_name("results") / "overlap.json"
BLOCK = 4 << 20  # about as much as a block of 2^20 tokens spells
KEPT = 1_000_000  # bytes at the end, for samples


def embedded(path: Path) -> None:
    """The embedded speeches, one after the other."""
    from gptmodel.config import SourceConfig
    from gptmodel.text.sources import open_source

    with path.open("wb") as file:
        for document in open_source(SourceConfig(kind="embedded"), path.parent).texts():
            text = document.text or b""
            file.write((text if isinstance(text, bytes) else text.encode()) + b"\n\n")


def blocks(path: Path, n_bytes: int) -> Iterator[Bytes]:
    """The first bytes of a file, `END` in place of the second line end of each empty line."""
    with path.open("rb") as file:
        left, before = n_bytes, b""
        while left > 0 and (read := file.read(min(BLOCK, left))):
            left -= len(read)
            yield np.frombuffer((before + read).replace(b"\n\n", b"\n" + bytes([END]))[len(before) :], np.uint8)
            before = read[-1:]


def samples(path: Path, n: int, n_bytes: int) -> list[bytes]:
    """Passages from the last megabyte, evenly spread, of whole characters."""
    with path.open("rb") as file:
        file.seek(-KEPT, 2)
        tail = file.read()
    starts = [i * (KEPT - n_bytes) // n for i in range(n)]
    return [tail[s : s + n_bytes].decode(errors="ignore").encode() for s in starts]


def _timed(work: Any) -> tuple[float, int, Any]:
    """Seconds, bytes by which the peak of memory rose, and the result."""
    before, began = peak_resident_bytes(), time.perf_counter()
    found = work()
    seconds = time.perf_counter() - began
    return seconds, peak_resident_bytes() - before, found


def measure(path: Path, n_bytes: int, texts: list[bytes], what: str) -> dict[str, Any]:
    for _ in blocks(path, n_bytes):  # into the page cache, and what reading takes into the peak
        pass
    if what == "longest":
        seconds, rise, found = _timed(lambda: longest_passages(texts, blocks(path, n_bytes)))
        lengths = [each.passage.length if each.passage else 0 for each in found]
        return {"seconds": seconds, "rise_bytes": rise, "longest": max(lengths), "mean": sum(lengths) / len(lengths)}
    if what == "all":
        seconds, rise, found = _timed(lambda: all_passages(texts[0], blocks(path, n_bytes), 40))
        return {"seconds": seconds, "rise_bytes": rise, "passages": len(found)}
    seconds, rise, _ = _timed(lambda: [texts[0] in block.tobytes() for block in blocks(path, n_bytes)])
    return {"seconds": seconds, "rise_bytes": rise}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--text", type=Path, default=None, help="A text file; left out, the embedded speeches.")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1, 4, 10])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--bytes", type=int, default=600, help="Of each sample: 128 tokens are about so many.")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.text or Path(folder) / "speeches.txt"
        if given.text is None:
            embedded(path)
        if given.one:
            texts = samples(path, given.samples, given.bytes)
            print(json.dumps(measure(path, int(given.megabytes[0] * 1e6), texts, given.one)))
            return
        if max(given.megabytes) * 1e6 > path.stat().st_size - KEPT:
            raise SystemExit(f"{path} has {path.stat().st_size:,} bytes; the last {KEPT:,} are kept for samples")
        rows = [
            _row(path, given, megabytes, what) for megabytes in given.megabytes for what in ("longest", "all", "grep")
        ]
    told: dict[str, Any] = {"text": given.text.name if given.text else "embedded speeches", "samples": given.samples}
    told |= {"machine": machine(), "sample_bytes": given.bytes, "rows": rows}
    RESULTS.write_text(json.dumps(told, indent=2) + "\n")


def _row(path: Path, given: argparse.Namespace, megabytes: float, what: str) -> dict[str, Any]:
    words = (
        "--text",
        path,
        "--megabytes",
        megabytes,
        "--samples",
        given.samples,
        "--bytes",
        given.bytes,
        "--one",
        what,
    )
    command = [sys.executable, "-m", "benchmarks.overlap", *map(str, words)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    row = {"megabytes": megabytes, "what": what, **told}
    more = {name: value for name, value in told.items() if name not in ("seconds", "rise_bytes")}
    print(
        f"{megabytes:8,.0f} MB  {what:8} {told['seconds']:8.2f} s  {megabytes / told['seconds']:8.1f} MB/s  "
        f"+{told['rise_bytes'] / 1e6:6.1f} MB  {more or ''}",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
