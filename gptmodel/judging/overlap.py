"""The longest passages that texts share with a corpus, exactly, in memory that does not grow with the corpus.

Nothing of the corpus is indexed: it streams past. A common passage of at least `f` bytes holds, wherever it lies, the
`q` bytes at one of the corpus's positions 0, d, 2d, … whole, if d = f - q + 1. So only every d-th gram of `q` bytes is
looked up among those of the texts; from where one is found, both are compared byte by byte in both directions. When
only the longest passage of each text is wanted, `f` grows with what was found already, and most of the corpus is
skipped.

All is bytes of UTF-8, so that it does not matter where a tokenizer cuts; a passage is whole characters. `END`, which
occurs in no UTF-8, stands after each document, so that no passage goes over an end.

Positions: p in the corpus, s in the texts; both are int64 arrays where they come in numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gptmodel.judging.grams import (
    GRAMS,
    PADDING,
    Bytes,
    Places,
    Table,
    Words,
    common,
    gram_bound,
    gram_hashes,
    runs,
    words,
)

END = 0xFF
_BETWEEN = 0xFE  # texts; no UTF-8 either
_FIRST_BYTES, _GROWTH = 256, 4


@dataclass(frozen=True)
class Passage:
    """Bytes `start` to `start + length` of a text, as they stand in `documents` of the corpus (counted from 0)."""

    start: int
    length: int
    documents: tuple[int, ...]


@dataclass
class Longest:
    """What was found of one text: the longest passage that its prompt does not hold, and the longest that it does.

    None where there is none; of several of the same length, the first in the corpus.
    """

    passage: Passage | None = None
    prompted: Passage | None = None


def longest_passages(texts: Sequence[bytes], blocks: Iterable[Bytes], prompts: Sequence[bytes] = ()) -> list[Longest]:
    """For each text its longest passage that stands in a document of the corpus.

    `blocks` are the corpus, cut anywhere, with `END` after each document. A passage that stands in the text's prompt
    too is no find of the model's: it is kept apart as `prompted`.
    """
    search = _LongestOnly(texts, prompts or [b""] * len(texts))
    search.run(blocks)
    return search.found


def all_passages(text: bytes, blocks: Iterable[Bytes], at_least: int) -> list[Passage]:
    """Every passage of at least `at_least` bytes that stands in the corpus and cannot be made longer there.

    In the order of the text; each with all documents in which it stands as that maximal passage. Arguments as above.
    """
    search = _All(text, at_least)
    search.run(blocks)
    return [Passage(start, length, tuple(documents)) for (start, length), documents in sorted(search.found.items())]


class _Texts:
    """The texts side by side, padded, with a separator between them."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        gap = bytes([_BETWEEN])
        padding = gap * PADDING
        self.bytes = np.frombuffer(padding + gap.join(texts) + padding, np.uint8)
        self.words = words(self.bytes)
        self.lengths: Places = np.array([len(text) for text in texts], np.int64)
        self.starts: Places = PADDING + np.cumsum(self.lengths + 1, dtype=np.int64) - self.lengths - 1

    def grams(self, which: Places, size: int) -> tuple[Words, Places]:
        """(hash, place) of every gram of this size in these texts."""
        spans = [
            np.arange(self.starts[i], self.starts[i] + self.lengths[i] - size + 1)
            for i in which
            if self.lengths[i] >= size
        ]
        places = np.concatenate(spans) if spans else np.empty(0, np.int64)
        return gram_hashes(self.words, places, size), places


@dataclass
class _Buffer:
    """A stretch of the corpus: padding, `carried` bytes that were seen before, new ones, padding."""

    bytes: Bytes
    carried: int
    documents: int
    """Documents that end before its first byte."""
    words: Words = field(init=False)

    def __post_init__(self) -> None:
        self.words = words(self.bytes)

    @property
    def start(self) -> int:
        return PADDING

    @property
    def stop(self) -> int:
        return len(self.bytes) - PADDING

    def document(self, p: int) -> int:
        return self.documents + int(np.count_nonzero(self.bytes[self.start : p] == END))


class _Search:
    """The corpus streams through `run`; who inherits says how long a passage must be, and takes what is found."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._texts = _Texts(texts)
        self._reach = int(self._texts.lengths.max(initial=0))
        self._tables: dict[tuple[int, bytes], Table] = {}

    def least(self) -> Places:
        """The shortest passage, in bytes, that would be news for each text; 0 where none would."""
        raise NotImplementedError

    def take(self, buffer: _Buffer, p: Places, s: Places, lengths: Places) -> None:
        """Passages that cannot be made longer. They may begin or end within a character, or be too short to count."""
        raise NotImplementedError

    def run(self, blocks: Iterable[Bytes]) -> None:
        carried, documents = np.empty(0, np.uint8), 0
        padding = np.full(PADDING, END, np.uint8)
        for block in self._cut(blocks):
            if not self.least().any():
                return
            body = np.concatenate([carried, block])
            self._look(_Buffer(np.concatenate([padding, body, padding]), len(carried), documents))
            gone, carried = np.split(body, [max(0, len(body) - self._reach)])
            documents += int(np.count_nonzero(gone == END))

    def _cut(self, blocks: Iterable[Bytes]) -> Iterator[Bytes]:
        """Small pieces first: what they hold is soon known, and then little of the rest need be compared."""
        size = max(16, min(_FIRST_BYTES, (16 << 20) // max(1, len(self._texts.bytes))))
        for block in blocks:
            start = 0
            while start < len(block):
                yield block[start : start + size]
                start, size = start + size, max(size, min(size * _GROWTH, 1 << 40))
        yield np.array([END], np.uint8)  # nothing is cut off by the end

    def _look(self, buffer: _Buffer) -> None:
        least = self.least()
        sizes = np.array(GRAMS)[np.searchsorted(GRAMS, np.maximum(1, gram_bound(least)), side="right") - 1]
        for size in np.unique(sizes[least > 0]):
            which = np.flatnonzero((sizes == size) & (least > 0))
            step = int(least[which].min()) - int(size) + 1
            hashes = gram_hashes(buffer.words, slice(buffer.start, buffer.stop - int(size) + 1, step), int(size))
            for index, s in self._table(which, int(size)).pairs(hashes):
                self._extend(buffer, buffer.start + index * step, s)

    def _table(self, which: Places, size: int) -> Table:
        key = size, which.tobytes()
        if key not in self._tables:
            self._tables = {k: t for k, t in self._tables.items() if k[0] != size}  # texts only move on
            self._tables[key] = Table(*self._texts.grams(which, size))
        return self._tables[key]

    def _extend(self, buffer: _Buffer, p: Places, s: Places) -> None:
        right = common(buffer.words, self._texts.words, p, s, forward=True)
        order = np.lexsort((p, p - s))
        p, s, right = p[order], s[order], right[order]
        # of those on one diagonal, one passage holds all that begin before it ends
        new = np.ones(len(p), np.bool_)
        new[1:] = (np.diff(p - s) != 0) | (p[1:] >= p[:-1] + right[:-1])
        p, s, right = p[new], s[new], right[new]
        left = common(buffer.words, self._texts.words, p, s, forward=False)
        p, s, lengths = p - left, s - left, left + right
        # what touches the end may go on; what ends before the new bytes was taken with the buffer before
        end = p + lengths
        whole = (end >= buffer.start + buffer.carried) & (end < buffer.stop) & (lengths > 0)
        self.take(buffer, p[whole], s[whole], lengths[whole])

    def _trimmed(self, s: int, length: int) -> tuple[int, int]:
        """(bytes to leave out at the start, bytes that remain) so that only whole characters stay."""
        data = self._texts.bytes[s : s + length]
        first = int(np.argmax((data & 0xC0) != 0x80)) if len(data) else 0
        if (data[first:] & 0xC0 == 0x80).all():
            return first, 0
        lead = length - 1
        while data[lead] & 0xC0 == 0x80:
            lead -= 1
        wanted = 1 if data[lead] < 0xC0 else 2 if data[lead] < 0xE0 else 3 if data[lead] < 0xF0 else 4
        end = length if length - lead >= wanted else lead
        return first, max(0, end - first)


class _LongestOnly(_Search):
    def __init__(self, texts: Sequence[bytes], prompts: Sequence[bytes]) -> None:
        super().__init__(texts)
        self._prompts = prompts
        self.found = [Longest() for _ in texts]

    def least(self) -> Places:
        best = np.array([f.passage.length if f.passage else 0 for f in self.found], np.int64)
        return np.where(best < self._texts.lengths, best + 1, 0)

    def take(self, buffer: _Buffer, p: Places, s: Places, lengths: Places) -> None:
        owners = np.searchsorted(self._texts.starts, s, side="right") - 1
        news = lengths >= self.least()[owners]
        p, s, lengths, owners = p[news], s[news], lengths[news], owners[news]
        order = np.lexsort((s, p, -lengths, owners))
        for owner, first, stop in runs(owners[order]):
            for i in order[first:stop]:
                if not self._note(buffer, owner, int(p[i]), int(s[i]), int(lengths[i])):
                    break

    def _note(self, buffer: _Buffer, owner: int, p: int, s: int, length: int) -> bool:
        """Keep it if it is news; whether a shorter one could be."""
        found = self.found[owner]
        if found.passage and length <= found.passage.length:
            return False
        skipped, length = self._trimmed(s, length)
        data = self._texts.bytes[s + skipped : s + skipped + length].tobytes()
        prompted = data in self._prompts[owner]
        before = found.prompted if prompted else found.passage
        if length <= (before.length if before else 0):
            return True
        passage = Passage(s + skipped - int(self._texts.starts[owner]), length, (buffer.document(p),))
        if prompted:
            found.prompted = passage
        else:
            found.passage = passage
        return True


class _All(_Search):
    def __init__(self, text: bytes, at_least: int) -> None:
        super().__init__([text])
        self._least = np.array([at_least if len(text) >= at_least else 0], np.int64)
        self.found: dict[tuple[int, int], dict[int, None]] = {}

    def least(self) -> Places:
        return self._least

    def take(self, buffer: _Buffer, p: Places, s: Places, lengths: Places) -> None:
        for i in np.lexsort((s, p)):
            if lengths[i] >= self._least[0]:
                skipped, length = self._trimmed(int(s[i]), int(lengths[i]))
                if length >= self._least[0]:
                    key = int(s[i]) + skipped - PADDING, length
                    self.found.setdefault(key, {})[buffer.document(int(p[i]))] = None
