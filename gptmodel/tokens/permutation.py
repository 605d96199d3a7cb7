"""A random order of 0..n-1 that needs no memory and never changes.

A Feistel network over the next power of four, whose rounds mix with splitmix64 (Steele, Lea and Flood 2014), and which
is applied again to values that fall outside 0..n-1 ("cycle walking", Black and Rogaway 2002). It is written out here
because numpy's shuffles promise no stable order between versions, and a run must find the same order years later.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]
_Apply = Callable[[_Words], _Words]
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_ROUNDS = 8


class Permutation:
    """The order of 0..n-1 for one seed and epoch: `forward` says what stands at a place, `inverse` at which place."""

    def __init__(self, n: int, *, seed: int, epoch: int) -> None:
        if n < 1:
            raise ValueError(f"n is {n}; a permutation needs at least one element")
        self.n = n
        self._half_bits = np.uint64(((n - 1).bit_length() + 1) // 2)
        self._half_mask = np.uint64((1 << int(self._half_bits)) - 1)
        state = _mix_int(_mix_int(seed & _MASK) + (epoch & _MASK))
        self._keys = [np.uint64(_mix_int(state + i * _GOLDEN)) for i in range(1, _ROUNDS + 1)]

    def forward(self, places: npt.ArrayLike) -> Numbers:
        """The elements that stand at these places, each in 0..n-1; shape kept."""
        return self._walk(places, self._encrypt)

    def inverse(self, elements: npt.ArrayLike) -> Numbers:
        """The places at which these elements stand."""
        return self._walk(elements, self._decrypt)

    def _walk(self, values: npt.ArrayLike, apply: _Apply) -> Numbers:
        given = np.asarray(values, dtype=np.int64)
        if given.size and (given.min() < 0 or given.max() >= self.n):
            raise ValueError(f"values must lie in 0..{self.n - 1}, found {given.min()}..{given.max()}")
        words = apply(given.reshape(-1).astype(np.uint64))
        # At least about a quarter of the network's values lie inside, so this ends after a few turns.
        while (outside := words >= self.n).any():
            words[outside] = apply(words[outside])
        return words.astype(np.int64).reshape(given.shape)

    def _encrypt(self, words: _Words) -> _Words:
        left, right = words >> self._half_bits, words & self._half_mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._half_mask)
        return (left << self._half_bits) | right

    def _decrypt(self, words: _Words) -> _Words:
        left, right = words >> self._half_bits, words & self._half_mask
        for key in reversed(self._keys):
            left, right = right ^ (_mix(left ^ key) & self._half_mask), left
        return (left << self._half_bits) | right


def _mix(words: _Words) -> _Words:
    """splitmix64's finalizer, element by element; products wrap at 2**64 as they should."""
    words = words + np.uint64(_GOLDEN)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _mix_int(word: int) -> int:
    """The same for one Python integer."""
    return int(_mix(np.array([word & _MASK], dtype=np.uint64))[0])
