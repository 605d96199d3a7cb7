"""What is in use: so that the collector of garbage takes nothing that a living step holds.

A step that makes an artifact says which artifacts it uses in a file of its own, `<store>/.uses/…`, and keeps that file
locked for as long as it runs; the kernel frees the lock when it dies. The collector takes `<store>/.gc.lock` alone
while it looks at those files, decides, and moves away what nobody holds. A step takes the same lock together with all
other steps, and only while it enters its name or picks up an artifact that is there: milliseconds. So a step either
has its name down before the collector looks, and keeps all that it named, or comes after it, and finds whole artifacts
or none.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gptmodel.errors import ArtifactError, LockHeldError

log = logging.getLogger(__name__)
USES = ".uses"
GC_LOCK = ".gc.lock"
_POLL_SECONDS = 0.05
_GC_WAITS = 30.0  # seconds for steps that are just entering their names


@contextmanager
def no_collection(root: Path) -> Iterator[None]:
    """While the body runs nothing is taken away. For moments only. In a store that is read-only nothing is anyway."""
    descriptor = _opened(root / GC_LOCK)
    try:
        if descriptor is not None:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def collecting(root: Path) -> Iterator[None]:
    """While the body runs no step can begin to use anything. LockHeldError if another collector is at it for long."""
    descriptor = _opened(root / GC_LOCK)
    if descriptor is None:  # and why
        descriptor = os.open(root / GC_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + _GC_WAITS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LockHeldError(f"{root / GC_LOCK} is held by another collection; wait for it") from None
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def using(root: Path, labels: Iterable[str]) -> Iterator[None]:
    """Keep what bears these labels (`shards/1f2e…`, `.downloads/ab…`) from being collected while the body runs."""
    directory = root / USES
    with no_collection(root):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor, hidden = tempfile.mkstemp(prefix=f".{os.getpid()}-", suffix=".json", dir=directory)
        name = directory / Path(hidden).name[1:]
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with os.fdopen(descriptor, "w", closefd=False) as file:
            json.dump(sorted(labels), file)
        os.fchmod(descriptor, 0o664)  # another user's collector reads it too
        os.replace(hidden, name)  # seen only when locked and written
    try:
        yield
    finally:
        with suppress(OSError):
            name.unlink()  # before the lock goes, so that nobody takes it for a dead one's
        os.close(descriptor)


def in_use(root: Path, *, clear: bool = False) -> set[str]:
    """The labels that living steps named; `clear` drops what dead ones left, and is for use while `collecting`.

    ArtifactError where it cannot be read what a step uses.
    """
    found: set[str] = set()
    for path in _entries(root / USES):
        try:
            file, lock = _probe(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unknown(path, f"cannot be read ({error.strerror})") from None
        with file:
            try:
                fcntl.flock(file, lock | fcntl.LOCK_NB)
            except BlockingIOError:
                found |= _labels(path, file)
                continue
            if clear:
                with suppress(OSError):  # gone meanwhile, or another user's
                    path.unlink()
    return found


def _entries(folder: Path) -> list[Path]:
    """The files of steps, living and dead."""
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unknown(folder, f"cannot be listed ({error.strerror})") from None
    return [path for path in paths if path.suffix == ".json" and not path.name.startswith(".")]


def _probe(path: Path) -> tuple[IO[str], int]:
    """A step's file, and the lock that tells whether it lives. Network disks give the stronger only to a writer."""
    try:
        return path.open("r+"), fcntl.LOCK_EX
    except PermissionError:
        return path.open(), fcntl.LOCK_SH


def _unknown(path: Path, why: str) -> ArtifactError:
    return ArtifactError(
        f"{path} {why}, so nobody can tell what a run of another user may need; wait until it has ended, and remove it"
    )


def is_held(lock: Path) -> bool:
    """Whether a living process holds a lock of `gptmodel.store.locks`. One that is given back is not touched."""
    try:
        with lock.open() as file:
            text = file.read()
            if text and "pid" not in json.loads(text):
                return False
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # held, not ours to read, or just being written
        return True
    return False


def _labels(path: Path, file: IO[str]) -> set[str]:
    try:
        return {str(label) for label in json.load(file)}
    except (ValueError, TypeError):
        raise ArtifactError(f"{path} does not say what a living run uses; wait until that run has ended") from None


def _opened(path: Path) -> int | None:
    """A descriptor of the lock file; None where there is none and none can be made."""
    with suppress(OSError):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return None
