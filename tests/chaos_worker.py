"""A pipeline as a deployment run: the servers and the worker of `make up` in a project folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from chaos_runs import is_child, living_child

from gptmodel.settings import merge_layers
from tasks.operations.automations import RESTARTS
from tasks.operations.processes import Record, ask, read

_PATIENCE_SECONDS = 400  # a silent run is marked after 90 s, and started again 30 s later
_ASK_SECONDS = 0.5
_OVER = ("COMPLETED", "FAILED", "CANCELLED")


class Deployed:
    """`through worker`: the flow is a process of the worker's, which may be killed with it or alone.

    A crashed run is started again by the automations of `make up`, `RESTARTS` times; after that, by the next run of the
    deployment, which has to take over what the dead one held.
    """

    targets = ("child", "flow", "worker", "worker+flow")

    def __init__(self, folder: Path, code: Path, sets: list[str]) -> None:
        self.folder, self.store = folder, folder / "store"
        shutil.copytree(code, folder, ignore=shutil.ignore_patterns("tests"))
        _, overrides = merge_layers("smoke", None, sets)
        entry = {"name": "chaos", "entrypoint": "flows.pipeline.pipeline", "tags": ["gptflow"]}
        entry |= {"work_pool": {"name": "local"}, "parameters": {"preset": "smoke", "overrides": overrides}}
        (folder / "prefect.yaml").write_text(yaml.safe_dump({"deployments": [entry]}))
        self._ports = {"PREFECT_PORT": _free_port(), "MLFLOW_PORT": _free_port()}
        self._asked = 0.0
        self._known: dict[str, Any] = {}
        self._flow: list[psutil.Process] = []

    @property
    def _api(self) -> str:
        return f"http://127.0.0.1:{self._ports['PREFECT_PORT']}/api"

    def start(self) -> None:
        self._services("up")
        self._next_run()

    def _services(self, command: str) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "GPTFLOW_"))}
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.folder), **self._ports}
        asked = [sys.executable, "-m", "tasks.services", command]
        done = subprocess.run(asked, cwd=self.folder, env=clean | own, capture_output=True, text=True, timeout=500)
        if done.returncode:
            raise RuntimeError(f"services {command}: {done.stdout}{done.stderr}")

    def _next_run(self) -> None:
        deployment = ask(f"{self._api}/deployments/name/pipeline/chaos")
        self.since = time.time()
        self._run = str(ask(f"{self._api}/deployments/{deployment['id']}/create_flow_run", {})["id"])

    def _state(self) -> tuple[str, int]:
        """State type and run count. Looks for the flow's process too: a kill must find it at once."""
        if time.monotonic() - self._asked > _ASK_SECONDS:
            self._known = ask(f"{self._api}/flow_runs/{self._run}") or self._known
            self._flow = self._of_flow()
            self._asked = time.monotonic()
        return self._known["state"]["type"], self._known["run_count"]

    def ended(self) -> bool:
        return self._state()[0] in _OVER

    def _worker(self) -> Record:
        found = read(self.folder / ".run" / "worker.json")
        assert found is not None
        return found

    def kill(self, target: str) -> str:
        worker = self._worker()
        if target == "child":
            child = living_child(self.store, worker.mark) or next(filter(is_child, worker.kin()), None)
            if child:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
                    return "child"
            target = "flow"
        if "flow" in target:  # the worker may only just have been asked for it
            self._until(lambda: self.ended() or bool(self._flow), "the process of the flow")
        doomed = [process for process in self._flow if "flow" in target and process.is_running()]
        doomed = [*doomed, worker.leader] if "worker" in target and worker.leader else doomed
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._asked = 0.0
        return target if doomed and not self.ended() else ""

    def _of_flow(self) -> list[psutil.Process]:
        """The process of the flow, and what it has started besides the training child."""
        found = []
        for process in self._worker().kin():
            with suppress(psutil.Error):
                if process.environ().get("PREFECT__FLOW_RUN_ID") == self._run and not is_child(process):
                    found.append(process)
        return found

    def go_on(self, hit: str) -> str:
        killed, (_, count) = time.time(), self._state()
        self.since = killed
        if hit == "child":
            return "the task tries again"
        if "worker" in hit:
            self._services("up")  # ends a flow that has outlived its worker: it saves first
        self._until(lambda: self._state()[0] in ("CRASHED", *_OVER), f"the run to be marked after {hit}")
        marked = f"{self._state()[0].capitalize()} after {time.time() - killed:.0f} s"
        if self._state()[0] != "CRASHED":
            return marked
        if count > RESTARTS:
            self._next_run()
            self._until(lambda: self._state()[0] in ("RUNNING", *_OVER), "the next run")
            return f"{marked}, then the next run of the deployment, at work after {time.time() - killed:.0f} s"
        self._until(lambda: self._state()[1] > count or self.ended(), "the run to be started again")
        self.since = time.time()
        return f"{marked}, started again by the automation after {time.time() - killed:.0f} s"

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {_PATIENCE_SECONDS} s in vain for {what}; it is {self._state()}")
            time.sleep(0.1)

    def finish(self) -> str:
        self._until(lambda: self._state()[0] in ("CRASHED", *_OVER), "the run to end")
        kind = self._state()[0]
        message = self._known["state"].get("message")
        return "" if kind == "COMPLETED" else f"a run that nobody killed ended as {kind}: {message}"

    def close(self) -> None:
        if (self.folder / ".run").is_dir():
            self._services("down")


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
