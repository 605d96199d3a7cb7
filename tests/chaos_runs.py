"""A pipeline whose flow is one process: `plain` calls gptmodel's functions, `cli` is the real `gptflow run`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import chaos_moments
import chaos_pipeline
import psutil

from tasks.operations.processes import Record

_MARK = "GPTFLOW_SERVICE"  # in the environment of all that an attempt starts, so that its child is found
_PATIENCE_SECONDS = 400
NEED_CHILD = ("child", "both")


class Pipeline(Protocol):
    """One pipeline in a store of its own, carried out by as many attempts as the kills make necessary."""

    targets: tuple[str, ...]
    """What can be killed."""
    store: Path
    since: float
    """Seconds since 1970. What is older in the store was left by an attempt that was killed."""

    def start(self) -> None:
        """Begin the first attempt."""

    def ended(self) -> bool:
        """Whether nothing goes on any more, undisturbed."""

    def kill(self, target: str) -> str:
        """SIGKILL; what was hit: without a child, it is the flow. An empty string if all was over."""

    def go_on(self, hit: str) -> str:
        """Wait for what the kill has ended, and see to it that the pipeline goes on; how, in words."""

    def finish(self) -> str:
        """Wait for its end; what went wrong, or an empty string."""

    def close(self) -> None:
        """Leave no process behind."""


class Process:
    """`plain` and `cli`."""

    targets = ("flow", "child", "both")

    def __init__(self, folder: Path, code: Path, sets: list[str], through: str) -> None:
        self.folder, self.store = folder, folder / "store"
        self._tries_again = through == "cli"  # its task does, when the child dies
        options = [word for text in sets for word in ("--set", text)]
        plain = [sys.executable, str(code / "tests" / Path(chaos_pipeline.__file__).name), json.dumps(sets)]
        cli = [sys.executable, "-m", "flows", "run", "--preset", "smoke", *options]
        self._command = cli if through == "cli" else plain
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "GPTFLOW_"))}
        own = {"GPTFLOW_STORE": str(self.store), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(code)}
        self._env = clean | own
        self.said: deque[str] = deque(maxlen=30)

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mark = os.urandom(8).hex()
        self.since = time.time()
        self.said.clear()
        self._flow = subprocess.Popen(
            self._command,
            cwd=self.folder,
            env=self._env | {_MARK: self._mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._read, args=(self._flow,), daemon=True).start()

    def _read(self, flow: subprocess.Popen[str]) -> None:
        assert flow.stdout is not None
        for line in flow.stdout:
            self.said.append(line.rstrip())

    def ended(self) -> bool:
        return self._flow.poll() is not None

    def kill(self, target: str) -> str:
        child = living_child(self.store, self._mark) if target != "flow" else None
        child = child or (self._child() if target != "flow" else None)
        hit = target if child else "flow"
        if child:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        if hit != "child":
            self._flow.kill()
            return hit if self._flow.wait() < 0 else ""
        return hit

    def _kin(self) -> list[psutil.Process]:
        return Record(self._flow.pid, 0.0, 0, self._mark).kin()

    def _child(self) -> psutil.Process | None:
        return next((process for process in self._kin() if is_child(process)), None)

    def go_on(self, hit: str) -> str:
        if hit == "child" and self._tries_again:
            self.since = time.time()
            return "the task tries again"
        self._flow.wait(_PATIENCE_SECONDS)
        self._end_kin()
        self.start()
        return "the next run"

    def finish(self) -> str:
        code = self._flow.wait(_PATIENCE_SECONDS)
        self._end_kin()
        last = "\n  ".join(["", *list(self.said)[-8:]])
        return f"a run that nobody killed ended with exit code {code}; its last words:{last}" if code else ""

    def _end_kin(self) -> None:
        """Servers that an attempt started for itself end with it. An orphaned child goes on saving."""
        for process in self._kin():
            if not is_child(process):
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def close(self) -> None:
        for process in [*self._kin(), self._flow]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._flow.wait()


def is_child(process: psutil.Process) -> bool:
    """Whether it is a training child."""
    try:
        return "gptmodel.pretraining.worker" in process.cmdline()
    except psutil.Error:
        return False


def living_child(store: Path, mark: str) -> psutil.Process | None:
    """The child that trains in this store now and bears this mark, if its lock names one."""
    for pid in chaos_moments.child_pids(store):
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if is_child(process) and process.environ().get(_MARK) == mark:
                return process
    return None
