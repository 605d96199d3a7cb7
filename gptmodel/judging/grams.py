"""Hashes of byte grams, and tables of them: what the search for shared passages is made of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


Places = npt.NDArray[np.int64]


Words = npt.NDArray[np.uint64]


_WORD = 8


PADDING = 128 + _WORD  # on both sides, so that the longest gram and a word more may be read anywhere


GRAMS = (*range(1, 9), 16, 32, 64, 128)


_PAIRS = 1 << 20  # compared at a time


_ODD, _OTHER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


class Table:
    """Which texts hold a gram: a filter that most grams of a corpus do not pass, then the grams themselves, sorted."""

    def __init__(self, hashes: Words, places: Places) -> None:
        order = np.argsort(hashes, kind="stable")
        self._places = places[order]
        self._grams, self._first = np.unique(hashes[order], return_index=True)
        self._counts = np.diff(self._first, append=len(order))
        bits = min(22, max(12, len(self._grams).bit_length() + 4))
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits, np.bool_)
        self._filter[(self._grams * _ODD) >> self._shift] = True

    def pairs(self, hashes: Words) -> Iterator[tuple[Places, Places]]:
        """(index of the hash, s) of all that are equal, about `_PAIRS` at a time."""
        if not len(self._grams):
            return
        passed = np.flatnonzero(self._filter[(hashes * _ODD) >> self._shift])
        found = np.searchsorted(self._grams, hashes[passed])
        found[found == len(self._grams)] = 0
        equal = self._grams[found] == hashes[passed]
        at, found = passed[equal], found[equal]
        totals = np.cumsum(self._counts[found])
        first = 0
        while first < len(at):
            done = int(totals[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(totals, done + _PAIRS, side="right")))
            counts = self._counts[found[first:last]]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            yield (
                np.repeat(at[first:last], counts),
                self._places[np.repeat(self._first[found[first:last]], counts) + within],
            )
            first = last


def runs(values: Places) -> Iterator[tuple[int, int, int]]:
    """(value, first, stop) of each run of equal values."""
    found, first = np.unique(values, return_index=True)
    if len(found):
        yield from zip(found.tolist(), first.tolist(), [*first[1:].tolist(), len(values)], strict=True)


def gram_bound(least: Places) -> Places:
    """The longest gram to look for: up to 15 bytes a whole word, above that about half, so that steps are as long."""
    return np.where(least < 2 * _WORD, np.minimum(least, _WORD), (least + 1) // 2)


def words(data: Bytes) -> Words:
    """The 8 bytes from each place on as one number, over the same memory."""
    return np.ndarray((len(data) - _WORD + 1,), "<u8", data, strides=(1,))


def gram_hashes(words: Words, at: Places | slice, size: int) -> Words:
    """A hash of the `size` bytes at each place; up to 8 bytes it is the bytes themselves."""
    hashes = words[at].astype(np.uint64)
    if size < _WORD:
        return hashes & np.uint64((1 << (8 * size)) - 1)
    for offset in range(_WORD, size, _WORD):
        beyond = slice(at.start + offset, at.stop + offset, at.step) if isinstance(at, slice) else at + offset
        hashes = (hashes ^ (hashes >> np.uint64(29))) * _OTHER + words[beyond]
    return hashes


def common(corpus: Words, texts: Words, p: Places, s: Places, *, forward: bool) -> Places:
    """How many bytes are equal from p and s on; or before them. The paddings differ, so it ends."""
    lengths = np.zeros(len(p), np.int64)
    open_ = np.arange(len(p))
    step = _WORD if forward else -_WORD
    p, s = (p, s) if forward else (p - _WORD, s - _WORD)
    while len(open_):
        differ = corpus[p] ^ texts[s]
        if not forward:
            differ = differ.byteswap()
        lowest = differ & (~differ + np.uint64(1))
        equal = np.where(differ == 0, _WORD, np.bitwise_count(lowest - np.uint64(1)) // 8)
        lengths[open_] += equal
        go_on = equal == _WORD
        open_, p, s = open_[go_on], p[go_on] + step, s[go_on] + step
    return lengths
