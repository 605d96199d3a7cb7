"""Many files hashed at once, each read anew: what this process remembers of a file is not asked."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

from gptmodel.progress import Progress

_CHUNK = 1 << 20  # bytes at a time: stays in a core's own cache between reading and hashing
_MOST_THREADS = 16
_WORTH_THREADS = 4 << 20  # bytes


@dataclass(frozen=True)
class Hashed:
    """What a file holds: its sha256 and its bytes, or why it could not be read."""

    sha256: str = ""
    bytes: int = 0
    failure: str = ""


def hash_files(
    files: Sequence[tuple[Path, int, bool]], *, threads: int = 0, progress: Progress | None = None
) -> list[Hashed]:
    """sha256 of each of (path, expected bytes, whether to follow a link), in the order given.

    `progress` gets bytes. Large files are begun first, so that no thread is left alone with one at the
    end.
    """
    total = sum(size for _, size, _ in files)
    done, lock = 0, threading.Lock()

    def advance(n_bytes: int) -> None:
        nonlocal done
        with lock:
            done += n_bytes
            if progress is not None:
                progress(done, total, "bytes")

    if total < _WORTH_THREADS:
        return [_hash(path, links, advance) for path, _, links in files]
    order = sorted(range(len(files)), key=lambda number: -files[number][1])
    with futures.ThreadPoolExecutor(threads or cores(), thread_name_prefix="hash") as pool:
        try:
            begun = {number: pool.submit(_hash, files[number][0], files[number][2], advance) for number in order}
            return [begun[number].result() for number in range(len(files))]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def cores() -> int:
    """Processors that this process may use, and no more than a disk can feed."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(found, _MOST_THREADS)


def _hash(path: Path, links: bool, advance: Callable[[int], None]) -> Hashed:
    digest, n_bytes = hashlib.sha256(), 0
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW))
        try:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            buffer = memoryview(bytearray(_CHUNK))
            while count := os.readv(descriptor, [buffer]):
                digest.update(buffer[:count])
                n_bytes += count
                advance(count)
        finally:
            os.close(descriptor)
    except OSError as error:
        return Hashed(bytes=n_bytes, failure=f"cannot be read: {error.strerror}")
    return Hashed(digest.hexdigest(), n_bytes)
