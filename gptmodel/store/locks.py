"""One writer: a lock file that the kernel frees when its holder dies, and that names the holder to others.

A holder can lose its lock without dying: the file is removed by hand, or the machine sleeps and a network file system
gives its locks away. So each taking gets a token, larger than all before it, and the holder looks for its token in
the file before each write that counts (`Hold.check`). What this cannot give: the look and the write are two steps, so
a holder that is stopped exactly between them still writes once.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from gptmodel.errors import LockHeldError, LockLostError

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Hold:
    """A lock that was taken."""

    path: Path
    what: str
    inode: int
    token: int

    @property
    def stands(self) -> bool:
        """Whether the lock file is still the one that was locked, with nobody's token but ours."""
        try:
            with self.path.open() as file:
                return os.fstat(file.fileno()).st_ino == self.inode and _read(file).get("token") == self.token
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """LockLostError if another has taken over; to be called before each write that others will read."""
        if self.stands:
            return
        taker = "its lock file is gone"
        with suppress(FileNotFoundError), self.path.open() as file:
            taker = f"it is now held by {_name(_read(file)) or 'nobody'}"
        raise LockLostError(f"{self.what}: this run lost its lock, and writes nothing more: {taker}")


@contextmanager
def exclusive(path: Path, what: str, *, wait: bool = False) -> Iterator[Hold]:
    """Hold the lock file at `path` while the body runs.

    Another living holder: LockHeldError at once, or wait for it if `wait`. A holder that died left its name in the
    file; taking over from it is logged. A lock of flock(2): it works on one machine, and on NFS where the mount
    supports it.
    """
    file = _locked(path, what, wait)
    try:
        before = _read(file)
        if dead := _name(before):
            log.warning("%s: taking over from a run that died (%s)", what, dead)
        # A file that was removed starts at the clock's count, so that no token comes twice.
        token = before["token"] + 1 if isinstance(before.get("token"), int) else time.time_ns()
        _write(file, {**_me(), "token": token})
        hold = Hold(path, what, os.fstat(file.fileno()).st_ino, token)
        try:
            yield hold
        finally:
            if hold.stands:
                _write(file, {"token": token})
    finally:
        file.close()


def _locked(path: Path, what: str, wait: bool) -> IO[str]:
    """The file at `path`, locked; opened anew if it was removed or replaced while we waited for it."""
    while True:
        file = path.open("a+")
        try:
            _acquire(file, what, wait)
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _acquire(file: IO[str], what: str, wait: bool) -> None:
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _name(_read(file)) or "a run that is just starting"
            if not wait:
                raise LockHeldError(f"{what} is being written by {holder}; wait for it (--wait), or stop it") from None
            if not told:
                log.info("%s: waiting for %s", what, holder)
                told = True
            time.sleep(_POLL_SECONDS)


def _me() -> dict[str, Any]:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": started}


def _name(record: dict[str, Any]) -> str:
    """The holder in words; an empty string if the lock was given back."""
    try:
        return f"process {record['pid']} on {record['host']}, since {record['since']}"
    except KeyError:
        return ""


def _read(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _write(file: IO[str], record: dict[str, Any]) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(record))
    file.flush()
