"""Starts training in a process of its own, passes on its log, and turns its end back into an error.

A task's retries run in one process, so a broken CUDA context or an out-of-memory kill would poison them; a child
starts clean. One process is started directly, several through torchrun: its agent would hide the child's exit code
and take seconds to start.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import gptmodel
from gptmodel import errors
from gptmodel.errors import ChildDiedError, GptflowError, Interrupted, LockLostError
from gptmodel.store.artifacts import write_atomic

log = logging.getLogger(__name__)
ERROR_FILE = "error.json"
ERROR_ROOM = 4096  # bytes kept free in it, so that a full disk can still be told of
WATCHED = "GPTFLOW_PARENT_ON_STDIN"
"""Says to the ranks that the standard input, which torchrun hands on to them, ends with the process that wants them."""
_STOP_SECONDS = 120.0  # a step and a checkpoint must fit in
ALLOCATOR = {
    # glibc returns large blocks at every step otherwise: 10 to 15 % of a step on a processor.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
}


def run_child(job: Path, *, processes: int, threads: int, on_line: Callable[[str], None]) -> None:
    """Run `gptmodel.pretraining.worker` on a job file until it ends; `on_line` gets each line it prints.

    Its own GptflowError is raised again here; ChildDiedError if a signal killed it. When this process is told to stop
    (an exception in here), the child is asked to save, and waited for.
    """
    error_file = job.parent / ERROR_FILE
    write_atomic(error_file, " " * ERROR_ROOM)
    child = subprocess.Popen(
        _command(job, processes),
        stdin=subprocess.PIPE,  # closes when this process dies, however it dies: the child then saves and ends
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**child_environment(threads), WATCHED: "1"},
        start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
    )
    last: list[str] = []
    assert child.stdout is not None
    reader = threading.Thread(target=_pump, args=(child.stdout, on_line, last), daemon=True)
    reader.start()
    try:
        with _stopped_with_us(child):
            child.wait()
    finally:
        assert child.stdin is not None
        child.stdin.close()
        reader.join()
        child.stdout.close()
    _raise_for(child.returncode, error_file, last)


def _command(job: Path, processes: int) -> list[str]:
    if processes <= 1:
        return [sys.executable, "-m", "gptmodel.pretraining.worker", str(job)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *launcher, "-m", "gptmodel.pretraining.worker", str(job)]


def child_environment(threads: int) -> dict[str, str]:
    """Of a process that trains; 0 threads is one for each core."""
    paths = [str(Path(gptmodel.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {
        **ALLOCATOR,
        **os.environ,
        "OMP_NUM_THREADS": str(threads or os.cpu_count() or 1),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what deterministic kernels need
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def _pump(stdout: IO[str], on_line: Callable[[str], None], last: list[str]) -> None:
    for line in stdout:
        text = line.rstrip()
        last[:] = [*last[-4:], text]
        try:
            on_line(text)
        except Exception:  # a listener that fails must not leave the pipe full and the child stuck
            log.exception("not passed on: %s", text)


@contextmanager
def _stopped_with_us(child: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # KeyboardInterrupt and the orchestrator's termination are none of Exception's
        asked = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
        _signal_group(child, asked)
        try:
            child.wait(_STOP_SECONDS)
        finally:  # a second Ctrl-C, or no end in time
            if child.poll() is None:
                _signal_group(child, signal.SIGKILL)
                child.wait()
        raise


def _signal_group(child: subprocess.Popen[str], signum: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signum)


def _raise_for(code: int, error_file: Path, last: list[str]) -> None:
    if code == 0:
        return
    if code == LockLostError.exit_code:  # told by its last line alone: the error file is another run's by now
        raise LockLostError(last[-1] if last else "the training process lost its lock")
    if told := error_file.read_text().strip() if error_file.exists() else "":
        raised = json.loads(told)
        if signum := raised.get("signum"):
            raise Interrupted(raised["message"], signum)
        kind = getattr(errors, raised["type"], GptflowError)
        raise kind(raised["message"])
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; out of memory? try a smaller train.micro_batch_size" if name == "SIGKILL" else ""
        raise ChildDiedError(f"the training process was killed by {name}{hint}. Its last checkpoint is safe")
    raise GptflowError(f"the training process failed with exit code {code}: {last[-1] if last else 'no output'}")
