"""Files: hashed, put on disk, and written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from pathlib import Path

from gptmodel.progress import Meter, progress

_HASH_CHUNK = 1 << 22
_WORTH_TELLING = 1 << 28  # bytes: about a second


def sha256_file(path: Path, meter: Meter | None = None) -> str:
    """Hex sha256 of a file's bytes, read in chunks, which are added to `meter`; a large file brings its own."""
    digest = hashlib.sha256()
    with path.open("rb") as file, ExitStack() as shown:
        if meter is None and (n_bytes := path.stat().st_size) >= _WORTH_TELLING:
            meter = shown.enter_context(progress(f"hashing {path.name}", n_bytes, "bytes"))
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
            if meter is not None:
                meter.add(len(chunk))
    return digest.hexdigest()


def fsync_path(path: Path) -> None:
    """Put a file or a directory's entries on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a whole file or none: temporary sibling, fsync, replace, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        fsync_path(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)
