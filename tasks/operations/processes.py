"""Processes that outlive the command that started them, and that another command finds again and stops.

A process is known by its pid and a mark in its environment, since the pid alone may by now be somebody else's, and its
kin by the same mark, which they inherit: so nothing is stopped that was not started here, and nothing is left over.
"""

from __future__ import annotations

import base64
import contextlib
import http
import http.client
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from gptmodel.errors import GptflowError, first_line

_MARK = "GPTFLOW_SERVICE"
_PAUSES = (0.2, 1.0, 4.0)  # seconds before asking again after a 503: Prefect says it while its database is locked
_READ_SECONDS, _WRITE_SECONDS = 10.0, 30.0  # to wait for an answer: a write waits for the lock first
_CLOCK_SECONDS = 2.0  # start times are reckoned from the wall clock, and move with it
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is no way to this machine


class ServiceError(GptflowError):
    """A service did not start or answer as it should."""


@dataclass(frozen=True)
class Record:
    """A process that was started: what its file in `.run/` holds."""

    pid: int
    created: float
    """Start time, seconds since 1970, by the clock of then."""
    port: int
    mark: str
    folder: str = ""
    """Where it was started; older versions did not say."""

    def of_another(self, folder: Path) -> bool:
        """Whether it was started in another folder than this one, which then is a copy of that."""
        try:
            return bool(self.folder) and not folder.samefile(self.folder)
        except FileNotFoundError:  # moved to here
            return False
        except OSError:
            return True

    @property
    def leader(self) -> psutil.Process | None:
        """The process itself, if it still runs and is the one that was started."""
        try:
            process = psutil.Process(self.pid)
            return process if process.status() != psutil.STATUS_ZOMBIE and self._is(process) else None
        except psutil.NoSuchProcess:
            return None

    def _is(self, process: psutil.Process) -> bool:
        try:
            env = process.environ()
        except (psutil.AccessDenied, OSError):
            env = {}
        # The start time only where there is nothing to read: after the clock was set right it would be another's.
        return env.get(_MARK) == self.mark if env else abs(process.create_time() - self.created) < _CLOCK_SECONDS

    def kin(self) -> list[psutil.Process]:
        """Living processes that it started, in any session of their own; without itself."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != self.pid and process.environ().get(_MARK) == self.mark:
                    found.append(process)
            except (psutil.Error, OSError):
                continue  # gone meanwhile, or another user's
        return found


def start(command: Sequence[str], folder: Path, env: dict[str, str], log: Path, record: Path, port: int) -> None:
    """Start `command` in `folder` with output to `log`, and write who it is to `record`."""
    mark = os.urandom(8).hex()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**env, _MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C meant for `make up` does not reach it
        )
    process.returncode = 0  # nobody here waits for it: it is to outlive us
    try:
        created = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess:
        created = 0.0
    unfinished = record.with_suffix(".tmp")
    unfinished.write_text(json.dumps(asdict(Record(process.pid, created, port, mark, str(folder.resolve())))))
    unfinished.replace(record)


def read(record: Path) -> Record | None:
    """What `start` wrote there; None if nothing legible."""
    try:
        return Record(**json.loads(record.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def stop(record: Record, *, kin_seconds: float = 0.0, seconds: float = 20.0) -> int:
    """End the process and all its kin; how many they were.

    SIGTERM, `seconds` of patience, then SIGKILL. With `kin_seconds` what the process started gets its SIGTERM first and
    that long to end in good order, while its parent can still report how it ended.
    """
    leader, kin = record.leader, record.kin()
    family = [*kin, *([leader] if leader else [])]
    if kin_seconds and kin:
        _terminate(kin, kin_seconds)
    if leader:
        _terminate([leader], seconds)
    left = _terminate(record.kin(), seconds)  # a leader that was killed could not take them along
    left += [leader] if leader and record.leader else []
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, seconds)
    return len(family)


def _terminate(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """SIGTERM to each; those that still live after so many seconds."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    return psutil.wait_procs(processes, seconds)[1]


def ask(url: str, body: dict[str, Any] | list[Any] | None = None, method: str = "") -> Any:
    """`demand`, with None for any answer that is none: whether somebody is there and well."""
    try:
        return demand(url, body, method)
    except ServiceError:
        return None


def demand(
    url: str, body: dict[str, Any] | list[Any] | None = None, method: str = "", none_for: Collection[int] = ()
) -> Any:
    """GET, or POST (or `method`) of a JSON body, on this machine; the JSON or text that comes back.

    ServiceError with the server's own words where it does not answer with 2xx, but None for the codes `none_for`. One
    that has no time (503) is asked again. Sends the password that PREFECT_API_AUTH_STRING (`user:secret`) has for
    Prefect's server, where it is set.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if data else {}
    if "/api/" in url and (known := os.environ.get("PREFECT_API_AUTH_STRING")):
        headers["Authorization"] = f"Basic {base64.b64encode(known.encode()).decode()}"
    request = urllib.request.Request(url, data, headers, method=method or None)
    try:
        text = _answer(request, _READ_SECONDS if request.get_method() == "GET" else _WRITE_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code in none_for:
            return None
        raise _failed(request, f"was answered with {error.code} {error.reason} ({_words(error)})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _failed(request, f"got no answer ({first_line(error)})") from error
    try:
        return json.loads(text)
    except ValueError:
        return text


def _failed(request: urllib.request.Request, how: str) -> ServiceError:
    what = f"{request.get_method()} {request.full_url} {how}"
    return ServiceError(f"{what}; is the server busy, or down? run the same command again, or read its log in .run/")


def _words(error: urllib.error.HTTPError) -> str:
    """What the server says of it, on one line."""
    try:
        return " ".join(error.read(1000).decode(errors="replace").split())[:200] or "no word"
    except (OSError, http.client.HTTPException):
        return "no word"


def _answer(request: urllib.request.Request, seconds: float) -> str:
    for pause in _PAUSES:
        try:
            return _answer_now(request, seconds)
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.SERVICE_UNAVAILABLE:
                raise
        time.sleep(pause)
    return _answer_now(request, seconds)


def _answer_now(request: urllib.request.Request, seconds: float) -> str:
    with _direct.open(request, timeout=seconds) as response:
        return str(response.read().decode())


def port_taken(host: str, port: int) -> bool:
    """Whether somebody listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port just left is free
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False
