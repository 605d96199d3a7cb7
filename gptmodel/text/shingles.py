"""Words and runs of words of a text as 64-bit numbers, at once: the same on every machine and in every process.

A word is a run of letters, marks and digits of any script, in lower case; what stands between them is not looked at.
Scripts written without spaces (Chinese, Japanese kana, Thai, Lao, Burmese, Khmer) count each character as a word.
"""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
_ALONE = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF)),
    *((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3134F)),
)  # ranges whose characters are words of their own
_BETWEEN, _INSIDE, _WHOLE = 0, 1, 2
_CHAR, _WORD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)  # odd: multiplying loses nothing


def word_hashes(text: str) -> Hashes:
    """A number for each word, in order. Two words with the same number: 1 in 2^64 for words that nobody chose."""
    points = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds().take(points)
    inside = kinds > _BETWEEN
    starts = inside.copy()
    starts[1:] &= ~inside[:-1] | (kinds[1:] == _WHOLE) | (kinds[:-1] == _WHOLE)
    where = np.flatnonzero(inside)
    if not len(where):
        return np.zeros(0, np.uint64)
    first = np.flatnonzero(starts.take(where))
    lengths = np.diff(first, append=len(where))
    place = np.arange(len(where)) - np.repeat(first, lengths)
    powers = np.cumprod(np.full(int(lengths.max()), _CHAR, np.uint64))
    return _mixed(np.add.reduceat(points.take(where).astype(np.uint64) * powers.take(place), first))


def runs(words: Hashes, n: int) -> Hashes:
    """A number for each run of `n` words; for a text that is shorter, one for all of it; none for a text of no word."""
    n = min(n, len(words))
    if not n:
        return words
    count = len(words) - n + 1
    found = words[:count].copy()
    for skip in range(1, n):
        found *= _WORD
        found += words[skip : skip + count]
    return _mixed(found)


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """For every code point: between words, inside one, or one by itself."""
    kinds = (unicodedata.category(chr(point))[0] in "LMN" for point in range(0x110000))
    table = np.fromiter(kinds, np.uint8, 0x110000)
    for first, last in _ALONE:
        table[first : last + 1] *= _WHOLE
    return table


def _mixed(values: Hashes) -> Hashes:
    """Every bit made to depend on all (the finaliser of splitmix64, Steele et al. 2014). In place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values
