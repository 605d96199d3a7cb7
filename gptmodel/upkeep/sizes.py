"""How large and how old what lies in a store is, while others may take it away."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def tree_bytes(path: Path) -> int:
    """Bytes of all files below a path, or of the file itself; links count nothing."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    if stat.S_ISDIR(found.st_mode):
        return sum(_lstat_sizes(path))
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _lstat_sizes(path: Path) -> Iterator[int]:
    for folder, _, files in os.walk(path):
        for name in files:
            with suppress(FileNotFoundError):
                yield (Path(folder) / name).lstat().st_size


def newest(path: Path) -> float:
    """When anything below a path was last written."""
    newest = mtime(path)
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            newest = max(newest, mtime(Path(folder) / name, gone=0.0))
    return newest


def mtime(path: Path, gone: float | None = None) -> float:
    """When a path was last written; `gone`, or now, if somebody took it away meanwhile."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return time.time() if gone is None else gone
