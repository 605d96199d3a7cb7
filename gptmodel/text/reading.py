"""The texts in files of known bytes: plain, JSONL and Parquet, packed or not."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gptmodel.config import SourceConfig
from gptmodel.errors import ConfigError, DataError, GptflowError
from gptmodel.store.artifacts import sha256_file

_ENDINGS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


_PARQUET_ROWS = 1_000


LONGEST_TEXT_BYTES = 256_000_000


@dataclass(frozen=True)
class RawText:
    """Bytes or text of one document as the source has it, and its name there. None is a null of a table."""

    text: bytes | str | None
    source: str


@dataclass(frozen=True)
class SourceFile:
    """A file of a source: its name, which does not depend on the folder, its path here, and what it held."""

    name: str
    path: Path
    sha256: str
    seen: tuple[int, int]
    """(bytes, mtime in ns) when it was hashed."""

    @classmethod
    def of(cls, name: str, path: Path) -> SourceFile:
        try:
            seen = size_and_time(path)
            return cls(name, path, sha256_file(path), seen)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; give this user the right to read it") from None

    def check_unchanged(self) -> None:
        """DataError if the file was written since it was hashed: the corpus would bear the wrong name."""
        try:
            seen = size_and_time(self.path)
        except OSError as error:
            raise DataError(
                f"cannot read {self.path}: {error.strerror}; it could be hashed before: put it back and run again"
            ) from None
        if seen != self.seen:
            raise DataError(f"{self.name} was changed while it was read; wait until it is finished and run again")


def local_path(text: str, check: str, kind: type[GptflowError] = DataError) -> Path:
    """The path that a person means, who may have written `~`; `kind`, with what to check, for one that none can be.

    Whether something lies there is not said.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        said = error.strerror if isinstance(error, OSError) else "there is no home of that name"
        raise kind(f"{text} cannot be looked for: {said}; check {check}") from None
    return path


def check_utf8(name: str) -> None:
    """DataError for a file name whose bytes are not UTF-8: no record could hold it."""
    if re.search("[\ud800-\udfff]", name):
        raise DataError(f"the file name {name!a} is not UTF-8; rename it, so that it can be recorded")


def size_and_time(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def texts_of(files: list[SourceFile], config: SourceConfig) -> Iterator[RawText]:
    for file in files:
        file.check_unchanged()
        kind = "text" if config.kind == "embedded" else format_of(file, config)
        yield from _parquet(file, config.text_column) if kind == "parquet" else _plain(file, kind, config.text_column)
        file.check_unchanged()


def _plain(file: SourceFile, kind: str, column: str) -> Iterator[RawText]:
    try:
        with _opened(file) as opened:
            if kind == "text":
                yield RawText(_bounded(opened.read(LONGEST_TEXT_BYTES + 1), file.name), file.name)
            else:
                yield from _jsonl(opened, file.name, column)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{file.name} is no whole gzip file ({error}); get it again, or leave it out of corpus.source.paths"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {file.path}: {error.strerror}; give this user the right to read it") from None


def format_of(file: SourceFile, config: SourceConfig) -> str:
    if config.format != "auto":
        return config.format
    ending = Path(file.name[:-3] if is_gzip(file) else file.name).suffix.lower()
    if ending not in _ENDINGS:
        raise ConfigError(f"cannot tell what {file.name} is by its ending; set corpus.source.format=text|jsonl|parquet")
    return _ENDINGS[ending]


def is_gzip(file: SourceFile) -> bool:
    return file.name.lower().endswith(".gz")


def _opened(file: SourceFile) -> IO[bytes]:
    return gzip.open(file.path) if is_gzip(file) else file.path.open("rb")  # type: ignore[return-value]


def _jsonl(lines: IO[bytes], name: str, column: str) -> Iterator[RawText]:
    for number, line in enumerate(iter(lambda: lines.readline(LONGEST_TEXT_BYTES + 1), b""), start=1):
        where = f"{name}:{number}"
        _bounded(line, where)
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        # Decoded leniently here: bad UTF-8 inside the string is judged with all other text.
        try:
            row = json.loads(line.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON ({error}); mend that line, or set corpus.source.format") from None
        if not isinstance(row, dict) or column not in row:
            raise DataError(f"{where} has no field {column!r}; set corpus.source.text_column to one that it has")
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"{where}: field {column!r} holds {type(text).__name__}, not text; set corpus.source.text_column"
            )
        yield RawText(text, where)


def _bounded(raw: bytes | None, where: str) -> bytes | None:
    if raw is not None and len(raw) > LONGEST_TEXT_BYTES:
        raise DataError(
            f"{where} is one text of more than {LONGEST_TEXT_BYTES:,} bytes, and a text is held in memory several "
            "times; put it in several files or rows"
        )
    return raw


def _parquet(file: SourceFile, column: str) -> Iterator[RawText]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.path) as table:
            names = table.schema_arrow.names
            if column not in names:
                raise DataError(
                    f"{file.name} has no column {column!r}; set corpus.source.text_column to one of {', '.join(names)}"
                )
            kind = table.schema_arrow.field(column).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise DataError(f"{file.name}: column {column!r} holds {kind}, not text; set corpus.source.text_column")
            number = 0
            for batch in table.iter_batches(_PARQUET_ROWS, columns=[column]):
                for value in batch.column(0).cast(pa.large_binary()):
                    yield RawText(_bounded(value.as_py(), f"{file.name}#{number}"), f"{file.name}#{number}")
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file.name} is no readable Parquet file ({str(error).splitlines()[0]}); get it again"
        ) from None
