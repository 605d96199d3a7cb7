"""Tokens that are known already: earlier shards of the store hold them, so that a grown source is not tokenized anew.

A document's id is the hash of its text, so the earlier shards are the blocks of a content-addressed store, and no
second copy of them is kept. Looked at are shards of the same recipe and tokenizer, those used last first. Every other
recipe may have other tokens, and is left alone.

What is taken is proved first: the file by its sha256, and then each document by spelling its tokens out, which must
give the very bytes of its text. A damaged file, a row under a wrong id and a document that changed are thus tokenized
afresh. What remains to be trusted is that the recipe which wrote the file cut that text into tokens as this one would.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gptmodel.errors import ArtifactError
from gptmodel.store.artifacts import Artifact, Request, Store
from gptmodel.tokenizer import Tokenizer, Tokens
from gptmodel.tokens.shardplan import SPLITS, Part
from gptmodel.tokens.spelling import Spelling

log = logging.getLogger(__name__)
Numbers = npt.NDArray[np.int32]
Keys = npt.NDArray[np.uint64]
_ID_CHARS, _KEY_CHARS = 32, 16  # hex digits of an id, and how many of them the index keeps
_VAIN_FACTOR, _VAIN_LEAST = 4, 1 << 20
_UNREADABLE = (ArtifactError, OSError, ValueError, pa.ArrowException)
_DIGIT = np.zeros(256, np.uint8)
_DIGIT[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


@dataclass(frozen=True)
class _File:
    """A file of earlier shards."""

    shards: Artifact
    name: str

    @property
    def split(self) -> str:
        return self.name.rsplit("-", 1)[0]


class KnownTokens:
    """Where earlier shards hold the documents of a corpus: 16 bytes a document (key, file, row), sorted by key.

    The key is the first half of the id. Two documents that share it (1 in 400,000 corpora of 10 million has a pair) are
    told apart when they are read. Safe to share between threads.
    """

    def __init__(self, keys: Keys, tokenizer: Tokenizer, schema: Any) -> None:
        self._keys, self._tokenizer, self._schema = keys, tokenizer, schema
        self._file: Numbers = np.full(len(keys), -1, np.int32)
        self._row: Numbers = np.zeros(len(keys), np.int32)
        self._files: list[_File] = []
        self._unreadable: set[int] = set()
        self._told: set[str] = set()
        self.found = 0
        """Documents of the corpus that earlier shards hold."""

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling(self._tokenizer)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to look for."""
        return self.found == len(self)

    @property
    def labels(self) -> list[str]:
        """Names of the shards that are read from."""
        used = np.unique(self._file[self._file >= 0])
        return sorted({self._files[number].shards.label for number in used})

    def look_into(self, shards: Artifact, may_look: int) -> int:
        """Enter what these shards hold; the number of documents looked at in vain, not many more than `may_look`."""
        names = [n for split in SPLITS for n in _in_order(shards.names(suffix=".arrow", prefix=f"{split}-"))]
        first, vain = len(self._files), 0
        self._files += [_File(shards, name) for name in names]
        for number, name in enumerate(names, first):
            if vain > may_look or self.complete:
                break
            try:
                keys, rows = _documents_of(_open(shards.path / name, self._schema))
                at = self._at(keys)
                new = (self._keys[at] == keys) & (self._file[at] < 0)
                if new.any():
                    shards.file(name)  # before anything of it is believed
            except _UNREADABLE as error:
                self._skip(number, error)
                continue
            self._file[at[new]], self._row[at[new]] = number, rows[new]
            self.found += (taken := len(np.unique(at[new])))
            vain += len(keys) - taken
        return vain

    def tokens_of(self, parts: Sequence[Part]) -> list[Tokens | None]:
        """The tokens of each part's text, without the end token; None where they are not known for sure."""
        taken: list[Tokens | None] = [None] * len(parts)
        if not self.found:
            return taken
        for number, places in self._places(parts).items():  # file by file: an open one takes a descriptor
            if (batch := self._batch(number)) is None:
                continue
            at_once = self._whole_rows(parts, places, batch)
            proved = self._spelling.are_of([(tokens, parts[i].texts) for i, tokens in at_once.items()])
            for i, tokens in zip(at_once, proved, strict=True):
                taken[i] = tokens
            for i, row in places:
                if i not in at_once:
                    taken[i] = self._proved(parts[i], self._stored(parts[i].document, number, row, batch))
        return taken

    def _whole_rows(self, parts: Sequence[Part], places: list[tuple[int, int]], batch: Any) -> dict[int, Tokens]:
        """By part: the tokens of those that are a whole document and lie in one row, which are most of them.

        Whether it is their document is left to the proof.
        """
        tokens, offsets = (batch.column("tokens").values.to_numpy(), batch.column("tokens").offsets.to_numpy())
        found = {i: tokens[offsets[row] : offsets[row + 1]] for i, row in places if parts[i].whole and row < len(batch)}
        return {i: row[:-1] for i, row in found.items() if len(row) and row[-1] == self._tokenizer.end_token}

    def _places(self, parts: Sequence[Part]) -> dict[int, list[tuple[int, int]]]:
        """By file: (which part, row where its document begins)."""
        places: dict[int, list[tuple[int, int]]] = defaultdict(list)
        keys, which = _keys(pa.array([part.document for part in parts], pa.string()))
        at = self._at(keys)
        held = (self._keys[at] == keys) & (self._file[at] >= 0)
        for i, file, row in zip(which[held], self._file[at[held]], self._row[at[held]], strict=True):
            places[int(file)].append((int(i), int(row)))
        return places

    def _at(self, keys: Keys) -> npt.NDArray[np.int64]:
        return np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)

    def _batch(self, number: int) -> Any | None:
        file = self._files[number]
        if number not in self._unreadable:
            try:
                return _open(file.shards.file(file.name), self._schema)
            except _UNREADABLE as error:
                self._skip(number, error)
        return None

    def _skip(self, number: int, error: Exception) -> None:
        self._unreadable.add(number)
        file = self._files[number]
        what = str(error) if isinstance(error, ArtifactError) else f"{file.shards.label}: {file.name}: {error}"
        if what not in self._told:  # that shards are gone is the same for all their files
            self._told.add(what)
            log.warning("%s (meanwhile the documents in it are tokenized again)", what)

    def _stored(self, document: str, number: int, row: int, batch: Any) -> Iterator[Tokens]:
        """The document's tokens as they lie in one file or in several that follow each other."""
        file, part = self._files[number], 0
        while batch is not None and len(batch) > row and self._files[number].split == file.split:
            if [batch.column(name)[row].as_py() for name in ("document", "part")] != [document, part]:
                return
            column = batch.column("tokens")
            start, stop = (column.offsets[row + i].as_py() for i in (0, 1))
            tokens: Tokens = column.values.to_numpy()[start:stop]
            if len(tokens) and tokens[-1] == self._tokenizer.end_token:
                yield tokens[:-1]
                return
            yield tokens
            number, row, part = number + 1, 0, part + 1
            if number == len(self._files) or self._files[number].shards is not file.shards:
                return
            batch = self._batch(number)

    def _proved(self, part: Part, stored: Iterator[Tokens]) -> Tokens | None:
        """What is stored of this part, if it spells its text."""
        pieces = list(stored if part.whole else self._cut_out(stored, part.start, part.start + part.n_bytes))
        if not pieces:
            return None
        tokens: Tokens = np.concatenate(pieces)  # a copy: the file is closed after this
        return tokens if self._spelling.is_of(tokens, part.texts) else None

    def _cut_out(self, stored: Iterator[Tokens], start: int, stop: int) -> Iterator[Tokens]:
        """The tokens of bytes `start` to `stop` of a document. Both are safe cuts, so no token goes over them."""
        at = 0
        for tokens in stored:
            ends = at + self._spelling.ends(tokens)
            first, last = np.searchsorted(ends, (start, stop), side="right")
            yield tokens[first:last]
            at = int(ends[-1]) if len(ends) else at
            if at >= stop:
                return


def find_known(store: Store, corpus: Artifact, asked: Request, tokenizer: Tokenizer, schema: Any) -> KnownTokens:
    """What earlier shards of the store hold of a corpus, for the shards that are `asked`.

    `schema` is the Arrow schema that their files must have. The search ends when all is found, or when more documents
    were looked at in vain than reading the corpus itself would cost: 4 for each of its own, a million at least. Files
    that are damaged or gone are left out with a warning.
    """
    known: KnownTokens | None = None
    vain = 0
    for shards in _earlier(store, asked):
        if known is None:
            known = KnownTokens(_wanted(corpus), tokenizer, schema)
            limit = max(_VAIN_LEAST, _VAIN_FACTOR * len(known))
        if known.complete or vain > limit:
            break
        vain += known.look_into(shards, limit - vain)
    if known is None:
        return KnownTokens(np.empty(0, np.uint64), tokenizer, schema)
    if known.found:
        log.info("%s of %s documents were tokenized before", f"{known.found:,}", f"{len(known):,}")
    return known


def _earlier(store: Store, asked: Request) -> Iterator[Artifact]:
    """Shards of the same recipe and tokenizer, those made or used last first."""
    for _, path in sorted(((_age(p), p) for p in store.directories() if p.parent.name == asked.kind), reverse=True):
        try:
            found = store.at(asked.kind, path.name)
        except _UNREADABLE as error:
            log.warning("%s (its documents are not looked for there)", error)
            continue
        names = ("tokenizer", "tokenizer_digest")
        same = all(found.request.config.get(name) == asked.config[name] for name in names)
        if same and found.request.recipe_version == asked.recipe_version:
            yield found


def _age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # collected just now
        return 0


def _wanted(corpus: Artifact) -> Keys:
    """The sorted keys of a corpus's documents; only their ids are read."""
    found = [np.empty(0, np.uint64)]
    for name in corpus.names(suffix=".parquet", prefix="documents-"):
        with pq.ParquetFile(corpus.file(name)) as file:
            found += [_keys(batch.column("id"))[0] for batch in file.iter_batches(columns=["id"])]
    keys = np.concatenate(found)
    keys.sort()
    return keys


def _keys(ids: Any) -> tuple[Keys, npt.NDArray[np.int64]]:
    """(keys, positions) of those that are ids of a content, 32 hex digits. Others, which are none, may get any key."""
    fits = pc.fill_null(pc.equal(pc.binary_length(ids), _ID_CHARS), False)
    kept = ids.filter(fits).cast(pa.binary(_ID_CHARS))
    chars = np.frombuffer(kept.buffers()[1], np.uint8).reshape(-1, _ID_CHARS)[kept.offset : kept.offset + len(kept)]
    digits = _DIGIT[chars[:, :_KEY_CHARS]]
    keys = (digits[:, ::2] << 4 | digits[:, 1::2]).view(">u8")[:, 0].astype(np.uint64)
    return keys, np.flatnonzero(fits.to_numpy(zero_copy_only=False))


def _open(path: Path, schema: Any) -> Any:
    """The record batch of a shard file, mapped. ArrowInvalid for any other file."""
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    if not batch.schema.equals(schema, check_metadata=True):
        raise pa.ArrowInvalid("it is no token shard of this tokenizer")
    batch.validate(full=True)  # offsets that lead outside would end the process
    return batch


def _documents_of(batch: Any) -> tuple[Keys, npt.NDArray[np.int64]]:
    """(keys, rows) of the documents that begin in a shard."""
    keys, rows = _keys(batch.column("document"))
    begins = batch.column("part").to_numpy()[rows] == 0
    return keys[begins], rows[begins]


def _in_order(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: (len(name), name))
