"""From what was measured to what each gate says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptmodel.config import Act, DataGatesConfig
from gptmodel.datagates.contamination import Protected, read_benchmark
from gptmodel.datagates.quality import commonest, mix_distance
from gptmodel.datagates.reading import fetch
from gptmodel.datagates.report import Finding, Offender, Report, State, Worst, excerpt
from gptmodel.store.artifacts import Artifact

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a look at a corpus counted. Documents are told by their place in it. None was not looked at."""

    documents: int
    bytes: int
    lengths: Counts
    previous_lengths: Counts | None
    languages: Counter[str]
    previous_languages: Counter[str] | None
    other_languages: Worst
    garbage: Worst
    garbage_bytes: int
    pii: Worst
    pii_kinds: Counter[str]
    near: dict[int, int] | None
    """Training documents that are near to a validation document: that one."""
    near_earlier: dict[int, int] | None
    """Training documents that are near to a validation document of the previous corpus: its number there."""
    roots: dict[int, int] | None
    """Documents that are near to one read before: the first of their cluster."""
    validation: Protected | None
    benchmarks: dict[str, Protected]
    hits: Worst
    """Training documents that hold runs of benchmarks."""


def judge(corpus: Artifact, previous: Artifact | None, config: DataGatesConfig, measured: Measured) -> Report:
    """One finding for each gate, in the order of the settings."""
    told = _Telling(corpus, previous, config, measured)
    gates: dict[str, Callable[[], Finding]] = {
        "size": told.size,
        "length": told.length,
        "language": told.language,
        "garbage": told.garbage,
        "near_duplicates": told.near_duplicates,
        "leak": told.leak,
        "contamination": told.contamination,
        "benchmarks": told.benchmarks,
        "pii": told.pii,
    }
    findings = tuple(
        Finding(name, "not looked at", "off in the settings") if getattr(config, name) == "off" else gate()
        for name, gate in gates.items()
    )
    return Report(corpus.label, previous.label if previous else "", measured.documents, measured.bytes, findings)


@dataclass(frozen=True)
class _Telling:
    corpus: Artifact
    previous: Artifact | None
    config: DataGatesConfig
    found: Measured

    def _finding(
        self,
        gate: str,
        wrong: bool,
        said: str,
        figures: dict[str, Any],
        offenders: Collection[Offender] = (),
        of: int | None = None,
    ) -> Finding:
        act: Act = getattr(self.config, gate)
        state: State = "passed" if not wrong else "warned" if act == "warn" else "failed"
        return Finding(gate, state, said, figures, tuple(offenders), len(offenders) if of is None else of)

    def _show(self, whys: dict[int, str], *, hide: bool = False) -> list[Offender]:
        """These documents, in this order; `hide` leaves their text out."""
        documents = fetch(self.corpus, whys)
        return [
            Offender(d.id, d.source, d.split, why, "" if hide else excerpt(d.text))
            for number, why in whys.items()
            for d in [documents[number]]
        ]

    def size(self) -> Finding:
        if self.previous is None:
            return Finding("size", "not looked at", "there is no earlier corpus of this source")
        before = {n: _total(self.previous, n) for n in ("documents", "bytes")}
        now = {n: _total(self.corpus, n) for n in ("documents", "bytes")}
        ratios = {n: now[n] / max(1, before[n]) for n in now}
        low, high = min(ratios.values()), max(ratios.values())
        wrong = low < 1 - self.config.largest_loss or high > self.config.largest_growth
        said = (
            f"{now['documents']:,} documents and {now['bytes']:,} bytes are {ratios['documents']:.2f} and "
            f"{ratios['bytes']:.2f} times those of {self.previous.label}; {1 - self.config.largest_loss:g} to "
            f"{self.config.largest_growth:g} are allowed"
        )
        return self._finding("size", wrong, said, {f"{n}_ratio": round(r, 4) for n, r in ratios.items()})

    def length(self) -> Finding:
        if self.found.previous_lengths is None:
            return Finding("length", "not looked at", "there is no earlier corpus of this source")
        one, other = (np.cumsum(c) / max(1, c.sum()) for c in (self.found.lengths, self.found.previous_lengths))
        distance = float(np.abs(one - other).max())
        said = f"Kolmogorov-Smirnov distance {distance:.3f} to the last corpus; {self.config.length_drift:g} is allowed"
        return self._finding("length", distance > self.config.length_drift, said, {"distance": round(distance, 4)})

    def language(self) -> Finding:
        found, config, wrong, told = self.found, self.config, False, []
        looked = max(1, sum(found.languages.values()))
        figures: dict[str, Any] = {"documents": looked, "languages": commonest(found.languages)}
        if config.languages:
            share = found.other_languages.found / looked
            figures["other"] = round(share, 4)
            wrong = share > config.other_languages
            told.append(
                f"{share:.1%} of {looked:,} documents are in other languages than {', '.join(config.languages)}; "
                f"{config.other_languages:.1%} are allowed"
            )
        if found.previous_languages is not None:
            drift = mix_distance(found.languages, found.previous_languages)
            figures["drift"] = round(drift, 4)
            wrong = wrong or drift > config.language_drift
            told.append(f"the mix differs from the last corpus's by {drift:.3f}; {config.language_drift:g} is allowed")
        if not told:
            mix = ", ".join(f"{name} {share:.1%}" for name, share in figures["languages"].items())
            return Finding("language", "not looked at", f"none is asked for, and none was before; {mix}", figures)
        shown = self._show(found.other_languages.kept) if wrong else []
        return self._finding("language", wrong, "; ".join(told), figures, shown, found.other_languages.found)

    def garbage(self) -> Finding:
        share = self.found.garbage_bytes / max(1, self.found.bytes)
        count, bound = self.found.garbage.found, self.config.garbage_share
        said = f"{count:,} documents with {share:.2%} of the bytes look like no text; {bound:.1%} are allowed"
        figures = {"documents": count, "bytes_share": round(share, 6)}
        return self._finding("garbage", share > bound, said, figures, self._show(self.found.garbage.kept), count)

    def near_duplicates(self) -> Finding:
        assert self.found.roots is not None
        roots, bound = self.found.roots, self.config.near_duplicate_share
        share = len(roots) / max(1, self.found.documents)
        sizes = Counter(roots.values())
        largest = 1 + max(sizes.values(), default=0)
        said = (
            f"{len(roots):,} of {self.found.documents:,} documents ({share:.1%}) are nearly equal to an earlier one, "
            f"in {len(sizes):,} clusters; {bound:.1%} are allowed"
        )
        figures = {"documents": len(roots), "share": round(share, 6), "clusters": len(sizes), "largest": largest}
        order = sorted(roots, key=lambda number: (-sizes[roots[number]], roots[number], number))[: self.config.examples]
        return self._finding("near_duplicates", share > bound, said, figures, self._beside(order, roots), len(roots))

    def leak(self) -> Finding:
        assert self.found.near is not None
        near, earlier, bound = self.found.near, self.found.near_earlier or {}, self.config.leaked_share
        told, shares = [], []
        figures: dict[str, Any] = {}
        for found, corpus, key in ((near, self.corpus, ""), (earlier, self.previous, "earlier_")):
            if corpus is None:
                continue
            leaked, of = len(set(found.values())), int(corpus.summary["validation_documents"])
            shares.append(leaked / max(1, of))
            figures |= {f"{key}train_documents": len(found), f"{key}validation_documents": leaked}
            figures[f"{key}share"] = round(shares[-1], 6)
            whose = f" of {corpus.label}" if key else ""
            told.append(f"{len(found):,} to {leaked:,} of {of:,} validation documents{whose} ({shares[-1]:.1%})")
        said = f"training documents are nearly equal, {' and '.join(told)}; {bound:.1%} are allowed"
        if near or earlier:
            held = f" and corpus.hold_out={self.previous.label}" if earlier and self.previous else ""
            said += f"; corpus.near_duplicates=apart{held} leaves such training documents out"
        shown = self._beside(sorted(near)[: self.config.examples], near)
        if self.previous is not None:
            only = sorted(earlier.keys() - near.keys())[: self.config.examples - len(shown)]
            shown += self._beside(only, earlier, self.previous)
        return self._finding("leak", max(shares) > bound, said, figures, shown, len(near.keys() | earlier.keys()))

    def _beside(self, numbers: list[int], other: dict[int, int], of: Artifact | None = None) -> list[Offender]:
        """These documents, each with the one that it is near to: of this corpus, or of another."""
        others = fetch(of or self.corpus, {other[number] for number in numbers})
        where = f" of {of.label}" if of else ""
        return self._show({n: f"near {(d := others[other[n]]).id} ({d.source}, {d.split}{where})" for n in numbers})

    def contamination(self) -> Finding:
        assert self.found.validation is not None
        config, protected = self.config, self.found.validation
        found = protected.found(config.contaminated_from)
        looked = len(protected.keys)
        share, mean = len(found) / max(1, looked), float(protected.overlaps().mean()) if looked else 0.0
        said = (
            f"{len(found):,} of {looked:,} validation documents ({share:.1%}) have {config.contaminated_from:.0%} or "
            f"more of their runs of {config.ngram_words} words in training text; "
            f"{config.contaminated_share:.1%} are allowed"
        )
        figures = {"documents": len(found), "share": round(share, 6), "mean_overlap": round(mean, 6)}
        figures |= {"too_short": protected.too_short, "one_run_in": protected.sampled}
        whys = {n: f"{s:.0%} of its runs stand in training text" for n, s in _most(found, config.examples)}
        return self._finding(
            "contamination", share > config.contaminated_share, said, figures, self._show(whys), len(found)
        )

    def benchmarks(self) -> Finding:
        if not self.found.benchmarks:
            return Finding("benchmarks", "not looked at", "data_gates.benchmark_files names none")
        config, told, wrong, figures, shown = self.config, [], False, {}, []
        for path, protected in self.found.benchmarks.items():
            found = protected.found(0.0)
            looked, name = len(protected.keys), Path(path).name
            share = len(found) / max(1, looked)
            wrong = wrong or share > config.benchmark_share
            told.append(f"{len(found):,} of {looked:,} items of {name} ({share:.1%})")
            figures[name] = {"items": looked, "found": len(found), "too_short": protected.too_short}
            shown += _items(path, dict(_most(found, config.examples)))
        said = f"training text holds {', '.join(told)}; {config.benchmark_share:.1%} are allowed"
        shown += self._show(self.found.hits.kept)
        return self._finding("benchmarks", wrong, said, figures, shown, len(shown))

    def pii(self) -> Finding:
        count, bound = self.found.pii.found, self.config.pii_share
        share = count / max(1, self.found.documents)
        kinds = ", ".join(f"{n:,} x {kind}" for kind, n in sorted(self.found.pii_kinds.items())) or "nothing"
        said = f"{count:,} documents ({share:.2%}) hold personal data ({kinds}); {bound:.1%} are allowed"
        figures = {"documents": count, "share": round(share, 6), "kinds": dict(sorted(self.found.pii_kinds.items()))}
        return self._finding("pii", share > bound, said, figures, self._show(self.found.pii.kept, hide=True), count)


def _total(corpus: Artifact, what: str) -> int:
    return int(corpus.summary[f"train_{what}"]) + int(corpus.summary[f"validation_{what}"])


def _most(found: dict[int, float], most: int) -> list[tuple[int, float]]:
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))[:most]


def _items(path: str, found: dict[int, float]) -> list[Offender]:
    """Items of a benchmark by their lines."""
    name = Path(path).name
    return [
        Offender(f"{name}:{line}", name, "benchmark", f"{found[line]:.0%} of it stands in training text", excerpt(text))
        for line, text in read_benchmark(path)
        if line in found
    ]
