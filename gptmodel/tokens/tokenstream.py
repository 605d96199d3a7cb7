"""The tokens of one split as a single stream, read from memory-mapped shards without copying."""

from __future__ import annotations

import errno
import mmap
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gptmodel.config import GPT2_VOCAB_SIZE
from gptmodel.errors import ArtifactError, DataError
from gptmodel.store.artifacts import Artifact
from gptmodel.tokens.shardplan import SPLITS

Tokens = npt.NDArray[np.uint16]
Counts = npt.NDArray[np.int64]
_in_vocabulary: set[tuple[str, str]] = set()  # shards whose ids this process has looked through


@dataclass(frozen=True)
class DocumentIndex:
    """The documents of a stream, in order: id, where each starts, and its tokens, the end token included."""

    ids: list[str]
    starts: Counts
    n_tokens: Counts

    def between(self, start: int, stop: int) -> range:
        """Numbers of the documents that have a token at positions start to stop of the stream; start < stop."""
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        return range(max(first, 0), int(np.searchsorted(self.starts, stop, side="left")))


@dataclass(frozen=True)
class Shard:
    """An open shard: its record batch, and its tokens over the same mapped memory."""

    batch: Any
    tokens: Tokens


class TokenStream:
    """The tokens of all shards end to end. Positions count from 0 to n_tokens, end tokens included."""

    def __init__(self, shards: list[Shard]) -> None:
        self._shards = shards
        self._starts: Counts = np.concatenate(
            [np.zeros(1, np.int64), np.cumsum([len(s.tokens) for s in shards], dtype=np.int64)]
        )

    @property
    def n_tokens(self) -> int:
        return int(self._starts[-1])

    def slice(self, start: int, stop: int) -> Tokens:
        """Tokens start to stop: a view into the mapped file where one shard holds them all, else a copy.

        `torch.from_numpy` takes it without copying. Writing to it changes this process's memory, never the file.
        IndexError outside 0..n_tokens.
        """
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"tokens {start} to {stop} of a stream of {self.n_tokens}")
        if start == stop:
            return np.empty(0, np.uint16)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left")) - 1
        parts = []
        for i in range(first, last + 1):
            offset = int(self._starts[i])
            parts.append(self._shards[i].tokens[max(start - offset, 0) : stop - offset])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def picked(self, ids: set[str]) -> TokenStream:
        """A stream of these documents alone, copied; in the order in which they stand here."""
        index, found = self.documents(), []
        for name, start, n_tokens in zip(index.ids, index.starts.tolist(), index.n_tokens.tolist(), strict=True):
            if name in ids:
                values = self.slice(start, start + n_tokens)
                tokens = pa.LargeListArray.from_arrays(pa.array([0, n_tokens], pa.int64()), pa.array(values))
                columns = [pa.array([name], pa.string()), pa.array([0], pa.int32()), tokens]
                found.append(Shard(pa.record_batch(columns, ["document", "part", "tokens"]), np.array(values)))
        return TokenStream(found)

    def documents(self) -> DocumentIndex:
        """Where each document stands in the stream; parts of one that goes over several shards are joined."""
        ids: list[str] = []
        starts = [np.empty(0, np.int64)]
        for shard, offset in zip(self._shards, self._starts, strict=False):
            first = _numbers(shard.batch.column("part"), np.int32) == 0
            offsets = _numbers(shard.batch.column("tokens").offsets, np.int64)
            starts.append(offset + offsets[:-1][first])
            named = shard.batch.column("document").to_pylist()
            ids += named if first.all() else compress(named, first)
        joined: Counts = np.concatenate(starts)
        return DocumentIndex(ids, joined, np.diff(joined, append=self.n_tokens))


def open_split(artifact: Artifact, split: str, *, check: bool = True) -> TokenStream:
    """The token stream of a split; one without documents has n_tokens 0.

    Sizes and hashes are checked first, since a mapped file cut short kills the process. ArtifactError where they do not
    hold, or where this is no shards artifact. Without `check` only the sizes are, as the artifact was loaded: for who
    asks where documents lie, and should not have to read all their tokens.
    """
    if artifact.kind != "shards":
        raise ArtifactError(f"{artifact.label} is of kind {artifact.kind}; token streams are read from shards")
    if split not in SPLITS:
        raise DataError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    names = sorted(artifact.names(suffix=".arrow", prefix=f"{split}-"), key=lambda name: (len(name), name))
    return TokenStream([_open(artifact, name, len(names), check) for name in names])


def _open(artifact: Artifact, name: str, n_files: int, check: bool) -> Shard:
    path = artifact.file(name) if check else artifact.path / name
    try:
        memory = _map(path)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise DataError(
            f"{artifact.label} has {n_files:,} shards, more files than this process may hold open; "
            "raise the limit (ulimit -n), or prepare it with a larger shard_bytes"
        ) from None
    buffer = pa.py_buffer(memory)
    try:
        reader = pa.ipc.open_file(buffer)
        batch = reader.get_batch(0)
        values = batch.column("tokens").values
    except (pa.ArrowInvalid, KeyError) as error:
        raise ArtifactError(f"{artifact.label}: {name} is no token shard ({error})") from None
    offset = values.buffers()[1].address - buffer.address
    shard = Shard(batch, np.frombuffer(memory, dtype=np.uint16, count=len(values), offset=offset))
    if check:
        _check_ids(artifact, name, shard)
    return shard


def _check_ids(artifact: Artifact, name: str, shard: Shard) -> None:
    """ArtifactError for an id beyond the vocabulary: on a GPU it would end as an assertion of the device."""
    key = (artifact.digest, name)
    if key in _in_vocabulary:
        return
    vocab_size = int((shard.batch.schema.metadata or {}).get(b"vocab_size", GPT2_VOCAB_SIZE))
    if len(shard.tokens) and (largest := int(shard.tokens.max())) >= vocab_size:
        raise ArtifactError(
            f"{artifact.label}: {name} holds token {largest:,}, and its vocabulary has {vocab_size:,}; "
            f"remove {artifact.path} and run the step again"
        )
    _in_vocabulary.add(key)


def _numbers(array: Any, kind: type[np.signedinteger[Any]]) -> npt.NDArray[Any]:
    """An Arrow array of such integers without nulls. Its own `to_numpy` would import pandas, which takes a second."""
    return np.frombuffer(array.buffers()[1], kind, count=len(array), offset=array.offset * np.dtype(kind).itemsize)


def _map(path: Path) -> mmap.mmap:
    # Copy-on-write, not read-only: torch.from_numpy warns of arrays that cannot be written to.
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
