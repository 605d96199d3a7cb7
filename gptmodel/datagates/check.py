"""All gates over a corpus, in two readings of it: what validation holds first, then training text against that."""

from __future__ import annotations

import math
import tempfile
from array import array
from collections import Counter
from pathlib import Path

import numpy as np

from gptmodel.config import DataGatesConfig
from gptmodel.datagates.contamination import Protected, protect_file
from gptmodel.datagates.pii import find
from gptmodel.datagates.quality import garbage, language
from gptmodel.datagates.reading import lengths, numbered
from gptmodel.datagates.report import Report, Worst
from gptmodel.datagates.verdict import Measured, judge
from gptmodel.progress import Progress
from gptmodel.store.artifacts import Artifact
from gptmodel.text.corpus import Document, iter_documents
from gptmodel.text.minhash import Numbers, Signatures, clusters, near_to
from gptmodel.text.shingles import word_hashes

_PROGRESS_BYTES = 1 << 20


def check(
    corpus: Artifact,
    previous: Artifact | None = None,
    config: DataGatesConfig | None = None,
    *,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Look at a corpus, and compare it with the `previous` one of the same source if there is one.

    Beside what is fixed, memory is about 100 bytes for a document, and at most 200 MB for the runs of words that are
    looked for (`benchmarks/results/data_gates.json`).
    `scratch` is a directory for the signatures, 512 bytes a document; left out, a temporary one.
    `progress` gets bytes of text. Raises ConfigError for a benchmark file that cannot be read, ArtifactError for a
    damaged corpus. A gate that is not passed raises nothing: ask the report.
    """
    config = config or DataGatesConfig()
    with tempfile.TemporaryDirectory(dir=scratch, prefix="gates-") as folder:
        look = _Look(corpus, config, Path(folder) / "signatures", progress)
        return judge(corpus, previous, config, look.measured(previous))


class _Look:
    """One look at a corpus: what is counted while its documents go by."""

    def __init__(self, corpus: Artifact, config: DataGatesConfig, path: Path, progress: Progress | None) -> None:
        self.corpus, self.config, self.progress = corpus, config, progress
        self.total = sum(int(corpus.summary.get(f"{split}_bytes", 0)) for split in ("train", "validation"))
        self.garbage, self.pii = Worst(config.examples), Worst(config.examples)
        self.garbage_bytes = self.bytes = self.shown = 0
        self.pii_kinds: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.others = Worst(config.examples)
        self.signatures = Signatures(path) if {config.near_duplicates, config.leak} != {"off"} else None
        self.order = array("q")
        self.earlier = array("q")  # the previous corpus's validation documents; their signatures stand first
        self.validation = Protected(config.ngram_words) if config.contamination != "off" else None
        files = config.benchmark_files if config.benchmarks != "off" else ()
        self.benchmarks = {name: protect_file(name, config.ngram_words) for name in files}
        self.bound = id_bound(corpus, config.language_sample)
        self.hits: Worst = Worst(config.examples)

    def measured(self, previous: Artifact | None) -> Measured:
        """Read it all."""
        if self.signatures is not None and self.config.leak != "off" and previous is not None:
            for number, document in numbered(previous, "validation"):
                self.signatures.add(word_hashes(document.text))
                self.earlier.append(number)
        needs_words = self.signatures is not None or self.validation is not None or self.benchmarks
        for split in ("validation", "train"):
            if split == "train" and self.validation is not None:
                self.validation.ready()
            for number, document in numbered(self.corpus, split):
                self._look_at(number, document)
                if needs_words:
                    self._compare(number, document)
        near, earlier, roots = self._near()
        return Measured(
            documents=len(self.order),
            bytes=self.bytes,
            lengths=lengths(self.corpus),
            previous_lengths=lengths(previous) if previous and self.config.length != "off" else None,
            languages=self.languages,
            previous_languages=self._languages_of(previous) if previous and self.config.language != "off" else None,
            other_languages=self.others,
            garbage=self.garbage,
            garbage_bytes=self.garbage_bytes,
            pii=self.pii,
            pii_kinds=self.pii_kinds,
            near=near,
            near_earlier=earlier,
            roots=roots,
            validation=self.validation,
            benchmarks=self.benchmarks,
            hits=self.hits,
        )

    def _look_at(self, number: int, document: Document) -> None:
        self.order.append(number)
        config, text = self.config, document.text
        self.bytes += document.n_bytes
        if config.garbage != "off" and (why := garbage(text)):
            self.garbage_bytes += document.n_bytes
            self.garbage.add(number, why, document.n_bytes)
        if config.language != "off" and int(document.id[:8], 16) < self.bound:
            code = language(text)
            self.languages[code] += 1
            if config.languages and code not in config.languages:
                self.others.add(number, f"looks like {code}", document.n_bytes)
        if config.pii != "off" and (found := list(find(text))):
            self.pii_kinds.update(each.kind for each in found)
            first = found[0]
            more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
            self.pii.add(number, f"{first.kind} {first.masked} at character {first.at:,}{more}", len(found))
        if self.progress and self.bytes - self.shown >= _PROGRESS_BYTES:
            self.shown = self.bytes
            self.progress(self.bytes, self.total, "bytes")

    def _compare(self, number: int, document: Document) -> None:
        words = word_hashes(document.text)
        if self.signatures is not None:
            self.signatures.add(words)
        if document.split == "validation":
            if self.validation is not None:
                self.validation.add(number, words)
            return
        if self.validation is not None:
            self.validation.look(words)
        for name, benchmark in self.benchmarks.items():
            if found := benchmark.look(words):
                self.hits.add(number, f"holds {found:,} runs of words of {Path(name).name}", found)

    def _near(self) -> tuple[dict[int, int] | None, dict[int, int] | None, dict[int, int] | None]:
        """By number: the validation document that a training document is near to, of this corpus and of the previous
        one, and the first document of a document's cluster."""
        if self.signatures is None:
            return None, None, None
        table, order, config = self.signatures.close(), np.array(self.order), self.config
        first, rows = len(self.earlier), np.arange(len(table))
        train = rows >= first + self._validation_documents
        near = earlier = roots = None
        if config.leak != "off":
            found = near_to(table, (rows >= first) & ~train, train, config.similarity)[first:]
            near = _by_number(np.where(found < 0, -1, found - first), order, order)
            found = near_to(table, rows < first, train, config.similarity)[first:]
            earlier = _by_number(found, order, np.array(self.earlier))
        if config.near_duplicates != "off":
            found = clusters(table[first:], config.similarity)
            found[found == np.arange(len(found))] = -1
            roots = _by_number(found, order, order)
        return near, earlier, roots

    @property
    def _validation_documents(self) -> int:
        return int(self.corpus.summary["validation_documents"])

    def _languages_of(self, previous: Artifact) -> Counter[str]:
        bound = id_bound(previous, self.config.language_sample)
        return Counter(language(d.text) for d in iter_documents(previous) if int(d.id[:8], 16) < bound)


def id_bound(corpus: Artifact, sample: int) -> int:
    """Documents whose id begins with less than this are about `sample` of them: always the same ones."""
    return math.ceil(min(1.0, sample / max(1, int(corpus.summary["documents"]))) * 16**8)


def _by_number(found: Numbers, places: Numbers, others: Numbers) -> dict[int, int]:
    """From rows that were found near to rows (-1 for none) to numbers of documents."""
    return {int(places[row]): int(others[found[row]]) for row in np.flatnonzero(found >= 0)}
