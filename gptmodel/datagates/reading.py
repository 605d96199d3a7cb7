"""Documents of a corpus by number: in streams, and single ones again later."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gptmodel.store.artifacts import Artifact
from gptmodel.text.corpus import Document

LENGTH_BINS = 400  # ten to a doubling of the bytes


def numbered(corpus: Artifact, split: str) -> Iterator[tuple[int, Document]]:
    """(place in the corpus, document) of a split. Holds one row group at a time."""
    number = 0
    for file, group in _groups(corpus):
        table = file.read_row_group(group)
        wanted = pc.equal(table.column("split"), split)
        places = np.flatnonzero(wanted.to_numpy(zero_copy_only=False))
        for at, row in zip(places, table.filter(wanted).to_pylist(), strict=True):
            yield number + int(at), Document(**row)
        number += table.num_rows


def fetch(corpus: Artifact, numbers: Collection[int]) -> dict[int, Document]:
    """The documents at these places; reads only the row groups that hold them."""
    found: dict[int, Document] = {}
    start = 0
    for file, group in _groups(corpus):
        rows = file.metadata.row_group(group).num_rows
        if here := sorted(number for number in numbers if start <= number < start + rows):
            table = file.read_row_group(group).take([number - start for number in here])
            found |= {number: Document(**row) for number, row in zip(here, table.to_pylist(), strict=True)}
        start += rows
    return found


def lengths(corpus: Artifact) -> npt.NDArray[np.int64]:
    """How many documents are how long: counts by the logarithm of their bytes. Text is not read."""
    counts = np.zeros(LENGTH_BINS, np.int64)
    for file, group in _groups(corpus):
        sizes = file.read_row_group(group, columns=["n_bytes"]).column("n_bytes").to_numpy()
        bins = (10 * np.log2(np.maximum(1, sizes))).astype(np.int64)
        counts += np.bincount(bins, minlength=LENGTH_BINS)
    return counts


def _groups(corpus: Artifact) -> Iterator[tuple[pq.ParquetFile, int]]:
    for name in corpus.names(suffix=".parquet", prefix="documents-"):
        with pq.ParquetFile(corpus.file(name)) as file:
            for group in range(file.num_row_groups):
                yield file, group
