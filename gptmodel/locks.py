"""One writer: a lock file that the kernel frees when its holder dies, and that names the holder to others."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from gptmodel.errors import LockHeldError

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5


@contextmanager
def exclusive(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file at `path` while the body runs.

    Another living holder: LockHeldError at once, or wait for it if `wait`. A holder that died left its name in the
    file; taking over from it is logged. A lock of flock(2): it works on one machine, and on NFS where the mount
    supports it.
    """
    file = path.open("a+")
    try:
        _acquire(file, what, wait)
        if dead := _read_holder(file):
            log.warning("%s: taking over from a run that died (%s)", what, dead)
        _write_holder(file, _me())
        try:
            yield
        finally:
            _write_holder(file, "")
    finally:
        file.close()


def _acquire(file: IO[str], what: str, wait: bool) -> None:
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _read_holder(file) or "a run that is just starting"
            if not wait:
                raise LockHeldError(f"{what} is being written by {holder}; wait for it, or stop it") from None
            if not told:
                log.info("%s: waiting for %s", what, holder)
                told = True
            time.sleep(_POLL_SECONDS)


def _me() -> str:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": started})


def _read_holder(file: IO[str]) -> str:
    file.seek(0)
    text = file.read()
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return ""


def _write_holder(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
