"""Documents in Parquet files: a few large files, in groups that are small enough to be held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gptmodel.progress import Progress

_GROUP_BYTES = 8_000_000  # of text in a row group: what is held in memory
_FILE_BYTES = 256_000_000  # of text in a file
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.large_string()),
        ("source", pa.string()),
        ("n_bytes", pa.int64()),
        ("split", pa.string()),
    ]
)


@dataclass(frozen=True)
class Document:
    """One document of a corpus. `n_bytes` is the UTF-8 length of its text."""

    id: str
    text: str
    source: str
    n_bytes: int
    split: str


def documents_in(files: Iterable[Path]) -> Iterator[Document]:
    """All documents of files that `write_documents` wrote. Holds one row group at a time."""
    for path in files:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                for row in file.read_row_group(group).to_pylist():
                    yield Document(**row)


def write_documents(
    documents: Iterator[Document], directory: Path, total: int = 0, progress: Progress | None = None
) -> None:
    """Files of about 256 MB of text, in row groups of about 8 MB."""
    number = 0
    group: list[Document] = []
    writer: pq.ParquetWriter | None = None
    in_group = in_file = written = 0

    def flush() -> None:
        nonlocal writer, number, in_group, in_file, written
        if writer is None:
            writer = pq.ParquetWriter(directory / f"documents-{number:05d}.parquet", _SCHEMA, compression="zstd")
        writer.write_table(pa.Table.from_pylist([asdict(d) for d in group], schema=_SCHEMA))
        group.clear()
        in_file, written = in_file + in_group, written + in_group
        in_group = 0
        if progress:
            progress(written, total, "bytes")
        if in_file >= _FILE_BYTES:
            writer.close()
            writer, in_file, number = None, 0, number + 1

    try:
        for document in documents:
            group.append(document)
            in_group += document.n_bytes
            if in_group >= _GROUP_BYTES:
                flush()
        if group:
            flush()
    except BaseException:
        if writer is not None:
            with suppress(OSError):  # closing writes too, and its error must not hide the first
                writer.close()
        raise
    if writer is not None:
        writer.close()
