"""Which protected texts stand in training text: by runs of 13 words (Brown et al. 2020, arXiv:2005.14165, appendix C).

As there, case, punctuation and spaces do not count, and texts shorter than 13 words are looked for whole, down to 8. A
protected text's overlap is the share of its runs that stand somewhere in training text. Runs are compared by 64-bit
hashes. Of more than `MOST_RUNS` runs only those whose hash is below a bound are kept: a fair sample, the same in
every process, so that memory has an end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from gptmodel.errors import ConfigError
from gptmodel.text.reading import local_path
from gptmodel.text.shingles import Hashes, runs, word_hashes

BENCHMARK_FILES = "data_gates.benchmark_files"
MOST_RUNS = 4_000_000  # of one protected set
FEWEST_WORDS = 8  # less says little: Brown et al.'s smallest N
_MAP_BITS = 26  # at most: 64 MB
_WHOLE = 2**64


class Protected:
    """Texts that training text should not hold. First `add` them, then `ready`, then `look` at training, then ask."""

    def __init__(self, words: int, most: int = MOST_RUNS) -> None:
        self._words, self._most = words, most
        self.keys: list[int] = []
        """Of the texts that are long enough to be looked for."""
        self.too_short = 0
        self._hashes: list[Hashes] = []
        self._owners: list[npt.NDArray[np.int32]] = []
        self._held = 0
        self._bound = _WHOLE  # a hash at or above it is not kept
        self._unique: Hashes = np.zeros(0, np.uint64)
        self._seen: npt.NDArray[np.bool_] = np.zeros(0, bool)
        self._map: npt.NDArray[np.bool_] = np.zeros(0, bool)
        self._shift = np.uint64(0)
        self._lengths: set[int] = set()
        self._owned: Hashes = np.zeros(0, np.uint64)
        self._owner: npt.NDArray[np.int32] = np.zeros(0, np.int32)

    def add(self, key: int, words: Hashes) -> None:
        """A text, given the numbers of its words. `key` is whatever it is to be known by."""
        if len(words) < min(FEWEST_WORDS, self._words):
            self.too_short += 1
            return
        self._lengths.add(min(self._words, len(words)))
        hashes = self._sampled(runs(words, self._words))
        self._hashes.append(hashes)
        self._owners.append(np.full(len(hashes), len(self.keys), np.int32))
        self.keys.append(key)
        self._held += len(hashes)
        while self._held > self._most:
            self._bound //= 2
            keep = [self._below(hashes) for hashes in self._hashes]
            self._hashes = [np.concatenate([h[k] for h, k in zip(self._hashes, keep, strict=True)])]
            self._owners = [np.concatenate([o[k] for o, k in zip(self._owners, keep, strict=True)])]
            self._held = len(self._hashes[0])

    def _sampled(self, hashes: Hashes) -> Hashes:
        return hashes if self._bound == _WHOLE else hashes[self._below(hashes)]

    def _below(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        return hashes < np.uint64(self._bound)

    @property
    def sampled(self) -> int:
        """One run in so many is looked at."""
        return _WHOLE // self._bound

    def ready(self) -> None:
        """To be called between the last `add` and the first `look`."""
        if self._hashes:
            self._owned, self._owner = np.concatenate(self._hashes), np.concatenate(self._owners)
            self._hashes, self._owners = [], []
        self._unique = np.unique(self._owned)
        self._seen = np.zeros(len(self._unique), bool)
        bits = min(_MAP_BITS, max(10, len(self._unique).bit_length() + 4))
        self._shift = np.uint64(64 - bits)
        self._map = np.zeros(1 << bits, bool)
        self._map[self._scattered(self._unique)] = True

    def _scattered(self, hashes: Hashes) -> Hashes:
        # Not the top bits themselves: in a sample these are all 0.
        return (hashes * np.uint64(0x9E3779B97F4A7C15)) >> self._shift

    def look(self, words: Hashes) -> int:
        """How many runs of this training document are protected ones; they count as found from now on."""
        found = 0
        for n in self._lengths:
            if len(words) < n:
                continue
            hashes = self._sampled(runs(words, n))
            hashes = hashes[self._map.take(self._scattered(hashes))]
            if not len(hashes):
                continue
            at = np.searchsorted(self._unique, hashes)
            at[at == len(self._unique)] = 0
            hit = self._unique.take(at) == hashes
            self._seen[at[hit]] = True
            found += int(hit.sum())
        return found

    def overlaps(self) -> npt.NDArray[np.float64]:
        """For each text the share of its runs that were found; 0 for one of which no run was kept."""
        seen = self._seen[np.searchsorted(self._unique, self._owned)] if len(self._owned) else np.zeros(0, bool)
        n = np.bincount(self._owner, minlength=len(self.keys))
        hits = np.bincount(self._owner[seen], minlength=len(self.keys))
        found: npt.NDArray[np.float64] = hits / np.maximum(1, n)
        return found

    def found(self, at_least: float) -> dict[int, float]:
        """Keys of the texts of which such a share of the runs, and one at least, was found, with that share."""
        shares = self.overlaps()
        return {self.keys[i]: float(shares[i]) for i in np.flatnonzero((shares > 0) & (shares >= at_least))}


def read_benchmark(path: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of each item of a file: a line of text, or all strings of a line of JSON (`.jsonl`).

    ConfigError if it cannot be read or holds nothing.
    """
    empty = True
    try:
        with local_path(path, BENCHMARK_FILES, ConfigError).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    empty = False
                    yield number, " ".join(_strings(json.loads(line))) if path.endswith((".jsonl", ".ndjson")) else line
    except OSError as error:
        raise ConfigError(f"benchmark file {path} cannot be read: {error.strerror}; mend {BENCHMARK_FILES}") from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise ConfigError(
            f"benchmark file {path} cannot be read: {error}; write text in UTF-8, or JSON lines"
        ) from None
    if empty:
        raise ConfigError(f"benchmark file {path} holds no item; leave it out of {BENCHMARK_FILES}")


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def protect_file(path: str, words: int) -> Protected:
    """The items of a benchmark file by their line, ready to look for."""
    protected = Protected(words)
    for number, text in read_benchmark(path):
        protected.add(number, word_hashes(text))
    protected.ready()
    return protected
