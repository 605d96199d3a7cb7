"""Documents that are nearly equal: MinHash (Broder 1997) over runs of 5 words, through `rensa`, and banded lookup.

Runs of 5 words, and 0.8 as the similarity from which on two documents are near duplicates, follow Lee et al. 2022
(arXiv:2107.06499). A signature has 128 values: the share of equal ones estimates the Jaccard similarity with a standard
error of at most 0.044. Two documents are compared if any of 32 bands of 4 values is equal, so a pair of similarity 0.8
is missed with probability (1 - 0.8^4)^32 = 5e-8; what decides is the estimate.

Signatures lie in a file: 512 bytes a document on disk, and about 40 in memory while they are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

from gptmodel.text.shingles import Hashes, runs

VALUES, BANDS = 128, 32
ROWS = VALUES // BANDS
SHINGLE_WORDS = 5
ALGORITHM = RMinHash.ALGORITHM_VERSION  # of rensa: another one gives other signatures
_SEED = 20_221  # any; another one finds other borderline pairs
_BATCH = 256  # signatures handed over at a time
_PAIRS = 1 << 16  # compared at a time: 2 x 32 MB
_ALL_PAIRS = 32  # documents of one bucket that are all compared with each other

Numbers = npt.NDArray[np.int64]
Signature = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.bool_]


class Signatures:
    """The signatures of documents, numbered as they are added, in a file of this name."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("wb")
        self._waiting: list[Hashes] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, words: Hashes) -> None:
        """Of a document, given the numbers of its words. One without a word is near to nothing."""
        shingles = runs(words, SHINGLE_WORDS)
        # Nothing would have the same signature as nothing: each gets a number of its own.
        self._waiting.append(shingles if len(shingles) else np.array([self._count], np.uint64))
        self._count += 1
        if len(self._waiting) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._file.write(signatures(self._waiting).tobytes())
            self._waiting.clear()

    def close(self) -> npt.NDArray[np.uint32]:
        """All of them, [documents, 128], read from the file as needed. To be called once, after the last `add`."""
        self._flush()
        self._file.close()
        if not self._count:
            return np.zeros((0, VALUES), np.uint32)
        return np.memmap(self._path, np.uint32, "r", shape=(self._count, VALUES))


def signatures(shingles: list[Hashes]) -> Signature:
    """[documents, 128] from the numbers of each document's runs of words."""
    ends = np.cumsum([0, *map(len, shingles)], dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(shingles), ends, VALUES, _SEED)
    return np.array(matrix.to_rows(), np.uint32)


def similarity(one: Signature, other: Signature) -> npt.NDArray[np.float64]:
    """Estimated Jaccard similarity of signatures, row by row."""
    found: npt.NDArray[np.float64] = (one == other).mean(axis=-1)
    return found


def clusters(table: Signature, at_least: float) -> Numbers:
    """For each document the first one of its cluster: itself, where nothing before it is near.

    Nearness is passed on: a cluster is connected by pairs. In a bucket of more than 32, each is compared with the first
    32 and with the one before it.
    """
    root = np.arange(len(table))
    for members in _buckets(table):
        members = members[np.unique(root[members], return_index=True)[1]]  # one of each cluster found so far
        one, other = _pairs(np.sort(members))
        for start in range(0, len(one), _PAIRS):
            a, b = one[start : start + _PAIRS], other[start : start + _PAIRS]
            near = similarity(table[a], table[b]) >= at_least
            for left, right in zip(a[near], b[near], strict=True):
                _join(root, int(left), int(right))
    for number in range(len(root)):  # in order, so that the one before points at its root already
        root[number] = root[root[number]]
    return root


def near_to(table: Signature, protected: Flags, asked: Flags, at_least: float) -> Numbers:
    """For each document that is `asked` about a `protected` one that it is near to; -1 for none, and for the others.

    All pairs that share a band are compared, however many: nothing that this finds is left by a second look.
    """
    found = np.full(len(table), -1, np.int64)
    for members in _buckets(table):
        open_ = members[asked[members] & (found[members] < 0)]
        if not len(open_):
            continue
        for guard in np.sort(members[protected[members]]):
            if not len(open_):
                break
            near = np.concatenate(
                [
                    similarity(table[open_[i : i + _PAIRS]], table[guard]) >= at_least
                    for i in range(0, len(open_), _PAIRS)
                ]
            )
            found[open_[near]] = guard
            open_ = open_[~near]
    return found


def _buckets(table: Signature) -> Iterator[Numbers]:
    """Numbers of documents that are equal in a band, two or more at a time, band by band."""
    for band in range(BANDS):
        part = np.ascontiguousarray(table[:, band * ROWS : (band + 1) * ROWS]).view(np.uint64)
        keys = runs(part.ravel(), part.shape[1])[:: part.shape[1]] if len(part) else part.ravel()
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        edges = np.flatnonzero(keys[1:] != keys[:-1]) + 1
        starts = np.concatenate(([0], edges, [len(keys)]))
        for at in np.flatnonzero(np.diff(starts) > 1):
            yield order[starts[at] : starts[at + 1]]


def _pairs(members: Numbers) -> tuple[Numbers, Numbers]:
    count = len(members)
    if count <= _ALL_PAIRS:
        one, other = np.triu_indices(count, 1)
    else:
        one = np.concatenate((np.repeat(np.arange(_ALL_PAIRS), count), np.arange(count - 1)))
        other = np.concatenate((np.tile(np.arange(count), _ALL_PAIRS), np.arange(1, count)))
        one, other = one[one < other], other[one < other]
    return members[one], members[other]


def _join(root: Numbers, one: int, other: int) -> None:
    """Put two clusters together under the earlier root."""
    a, b = _root(root, one), _root(root, other)
    root[max(a, b)] = min(a, b)


def _root(root: Numbers, number: int) -> int:
    while root[number] != number:
        root[number] = root[root[number]]
        number = int(root[number])
    return number
