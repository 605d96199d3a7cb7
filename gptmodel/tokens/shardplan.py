"""Which text goes into which shard: decided by bytes alone, before anything is tokenized.

Documents of a split fill shards in corpus order. One that does not fit into the room left opens the next shard; one
that is larger than a whole shard is cut at safe places into parts that fill consecutive shards. So the plan depends on
the corpus and `shard_bytes` and on nothing else, and every shard can be made alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from gptmodel.errors import DataError
from gptmodel.safecuts import CHUNK_CHARS, chunks

SPLITS = ("train", "validation")
_UTF8_BYTES = 4  # at most, for one character


class PlannedDocument(Protocol):
    """What is read of a corpus document."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def split(self) -> str: ...


@dataclass
class Part:
    """A row of a shard: a whole document, or part `number` of one. `texts` are safe cuts of it, to be joined."""

    document: str
    number: int
    start: int = 0
    """Bytes of the document's UTF-8 that stand in the parts before."""
    texts: list[str] = field(default_factory=list)
    n_bytes: int = 0
    last: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is all of its document."""
        return self.last and self.number == 0


@dataclass
class ShardPlan:
    """One shard to be made."""

    split: str
    index: int
    parts: list[Part] = field(default_factory=list)
    n_bytes: int = 0

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05d}.arrow"

    @property
    def key(self) -> str:
        """Hex sha256 over what the shard is to hold, so that a half-built one of another plan is not taken for it."""
        rows = [[p.document, p.number, p.last, p.n_bytes] for p in self.parts]
        return hashlib.sha256(json.dumps([self.name, rows]).encode()).hexdigest()

    def has_room(self, n_bytes: int, shard_bytes: int) -> bool:
        return not self.parts or self.n_bytes + n_bytes <= shard_bytes

    def add(self, text: str, n_bytes: int) -> None:
        """Append to the last part."""
        self.parts[-1].texts.append(text)
        self.parts[-1].n_bytes += n_bytes
        self.n_bytes += n_bytes


def plan_shards(documents: Iterable[PlannedDocument], shard_bytes: int) -> Iterator[ShardPlan]:
    """The shards of all splits, each given as soon as it is full: at most one a split is held.

    A shard holds at most `shard_bytes` of UTF-8, unless a single run without a safe cut is longer. DataError for text
    that cannot be cut, and for an unknown split.
    """
    filling = {split: ShardPlan(split, 0) for split in SPLITS}
    for document in documents:
        if document.split not in filling:
            raise DataError(f"document {document.id} is in split {document.split!r}; known are {', '.join(SPLITS)}")
        number, start, continues = 0, 0, False
        for text, n_bytes in _pieces(document, shard_bytes):
            shard = filling[document.split]
            if not shard.has_room(n_bytes, shard_bytes):
                yield shard
                shard = filling[document.split] = ShardPlan(shard.split, shard.index + 1)
                continues = False
            if not continues:
                shard.parts.append(Part(document.id, number, start))
                number, continues = number + 1, True
            shard.add(text, n_bytes)
            start += n_bytes
        filling[document.split].parts[-1].last = True
    yield from (shard for shard in filling.values() if shard.parts)


def _pieces(document: PlannedDocument, shard_bytes: int) -> Iterator[tuple[str, int]]:
    """(text, UTF-8 bytes) of the whole document, or of safe cuts of one that is larger than a shard."""
    if document.n_bytes <= shard_bytes:
        yield document.text, document.n_bytes
        return
    try:
        for text in chunks(document.text, min(CHUNK_CHARS, shard_bytes // _UTF8_BYTES)):
            yield text, len(text.encode())
    except DataError as error:
        raise DataError(f"document {document.id}: {error}") from None
