"""What Prefect says on the terminal, without what the command line says better."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

from gptmodel.errors import GptflowError
from gptmodel.store.artifacts import store_root
from gptmodel.store.space import make_root

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class _Quiet(logging.Filter):
    """Drops the traceback of an error or a signal that is told in one line at the end."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        told = isinstance(error, GptflowError) or (error is not None and not isinstance(error, Exception))
        told = told or (error is not None and bool(lost_server(error)))
        return not (told or record.getMessage().startswith("Stopping temporary server"))


def quiet_prefect() -> None:
    """For the terminal only: the pages keep every line."""
    from prefect.logging.configuration import setup_logging

    setup_logging()
    for handler in logging.getLogger().handlers:  # where Prefect puts its console
        handler.addFilter(_Quiet())


def lost_server(error: BaseException) -> str:
    """One line on a Prefect server that does not answer, if that is what this error says; else nothing."""
    import httpx

    where = ""
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 401:
        url = error.request.url.copy_with(userinfo=b"", path="/api", query=None)
        return (
            f"the Prefect server ({url}) refuses us: it asks for another password; "
            "export PREFECT_API_AUTH_STRING=user:password"
        )
    if isinstance(error, httpx.TransportError):
        try:
            where = str(error.request.url.copy_with(userinfo=b"", path="/api", query=None))
        except RuntimeError:  # the client noted no request with it
            where = os.environ.get("PREFECT_API_URL", "which was started for this run")
    elif isinstance(error, RuntimeError) and str(error).startswith("Failed to reach API at "):
        where = str(error).removeprefix("Failed to reach API at ").rstrip("/")
    if not where:
        return ""
    return (
        f"the Prefect server ({where}) does not answer; each step that was finished stands in the store. Start the "
        "server again (`make up`; without one the command starts its own), and run the same command to go on"
    )


def last_word_on(error: BaseException) -> str:
    """`lost_server`, for the last line: that its logs do not reach the server either is not told below it."""
    told = lost_server(error)
    logging.raiseExceptions = logging.raiseExceptions and not told
    return told


def start_server_apart() -> None:
    """Start Prefect's temporary server, where one is needed, so that a signal to the command's group does not reach it.

    A terminal's Ctrl-C goes to every process of the command, and so does the SIGTERM of `timeout`; without its server
    the end of a run could not be told, and each message that is lost would be a screenful.
    """
    from prefect.settings import PREFECT_API_URL

    make_root(store_root())  # a store that cannot be one is told before anything starts
    if PREFECT_API_URL.value():
        return
    from prefect.server.api.server import SubprocessASGIServer  # late: 3.5 s of processor

    class Apart(SubprocessASGIServer):
        def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
            tied = partial(subprocess.Popen, start_new_session=True, preexec_fn=_tie_to_parent())
            with patch.object(subprocess, "Popen", tied):
                return super()._run_uvicorn_command()

    Apart().start()  # there is one in a process; the flow finds it running


def _tie_to_parent() -> Callable[[], None]:
    """What a child in a session of its own is to do first, so that it never outlives this process, however that ends.

    Linux only; elsewhere the child is not tied.
    """
    parent, prctl = os.getpid(), getattr(ctypes.CDLL(None), "prctl", None)

    def tie() -> None:
        if prctl is None:
            return
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died meanwhile
            os._exit(1)

    return tie
