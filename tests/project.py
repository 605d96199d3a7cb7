"""A project folder with its own servers and worker, as `make up` starts them, for tests that kill them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from tasks.operations.processes import ask
from tests.conftest import write_text

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass
class Project:
    folder: Path
    ports: dict[str, str]
    told: list[dict[str, str]]
    """What its server sent to the webhook that it was given."""

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.ports['PREFECT_PORT']}/api"

    def run(self, *words: str, **env: str) -> str:
        """`python WORDS` in the folder, as from a shell in which nothing was exported; what it printed."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "GPTFLOW_"))}
        command = [sys.executable, *words]
        done = subprocess.run(
            command, cwd=self.folder, env=clean | env, capture_output=True, text=True, timeout=250, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up(self) -> str:
        return self.run("-m", "tasks.services", "up", **self.ports)

    def kill(self, service: str) -> None:
        pid = int(json.loads((self.folder / ".run" / f"{service}.json").read_text())["pid"])
        os.kill(pid, signal.SIGKILL)
        until(lambda: not psutil.pid_exists(pid), f"{service} to be gone")

    def start(self, deployment: str, **parameters: Any) -> str:
        """Ask the server for a run; its id."""
        found = until(lambda: ask(f"{self.api}/deployments/name/{deployment}"), f"the deployment {deployment}")
        asked = {"parameters": parameters, "idempotency_key": str(uuid.uuid4())}  # asked twice, it starts one run
        run = until(lambda: ask(f"{self.api}/deployments/{found['id']}/create_flow_run", asked), "a run to start")
        return str(run["id"])

    def of(self, run: str) -> tuple[str, int]:
        """State name and run count."""
        found = ask(f"{self.api}/flow_runs/{run}") or {"state": {"name": "?"}, "run_count": -1}
        return found["state"]["name"], found["run_count"]

    def states(self, run: str) -> list[dict[str, Any]]:
        return list(ask(f"{self.api}/flow_run_states/?flow_run_id={run}") or [])

    def attempts(self) -> list[int]:
        file = self.folder / "attempts"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def next_attempt(self, number: int) -> int:
        """Pid of the process of the `number`th attempt, counted from 1 over all runs."""
        until(lambda: len(self.attempts()) >= number, f"attempt {number}")
        return self.attempts()[number - 1]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def until(condition: Callable[[], Any], what: str, seconds: float = 180) -> Any:
    """What the condition gives once it is true or full."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.1)
    return found


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Its address, and what is posted to it."""
    told: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook?token=t0psecret", told
        server.shutdown()


@contextmanager
def opened(folder: Path, deployments: str, files: Mapping[str, str]) -> Iterator[Project]:
    """The code, these deployments and files in a folder; servers and worker up, and words of the server kept."""
    for room in ("gptmodel", "tasks", "flows"):
        shutil.copytree(REPOSITORY / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    for name, text in {**files, "prefect.yaml": deployments}.items():
        (folder / name).write_text(text)
    ports = {"PREFECT_PORT": free_port(), "MLFLOW_PORT": free_port()}
    with webhook() as (url, told):
        (folder / "notify.txt").write_text(f"{url}\n")
        project = Project(folder, ports, told)
        try:
            said = project.up()
            assert "installed: mark silent runs" in said
            assert "sent to http://127.0.0.1/…" in said
            yield project
        finally:
            project.run("-m", "tasks.services", "down")


def night_sets(tiny_sets: list[str], name: str, text: Path) -> list[str]:
    """`--set` values of nights of retraining on the text files of a folder, over `tiny_sets`; steps are left open."""
    kept = [each for each in tiny_sets if not each.startswith(("corpus.source.paths", "name=", "train.max_steps"))]
    return [
        *kept,
        f"name={name}",
        f"corpus.source.paths=['{text}/*.txt']",
        "corpus.validation_fraction=0.3",
        "evaluate.max_tokens=0",
        "evaluate.memorised_tokens=8",
        "retrain.active=true",
        "retrain.selection_fraction=0.15",
        "retrain.gate.min_documents=10",
        "retrain.gate.max_repeated=1",
        "retrain.gate.max_memorised=1",
        "train.optimizer.warmup_steps=2",
    ]


def more_text(text: Path, start: int, documents: int = 40) -> None:
    """More documents in a folder of text files, all different from those before."""
    made = write_text(text.parent / f"more-{start}", documents=documents + start, sentences=8)
    for number in range(start, start + documents):
        (text / f"new-{number:03d}.txt").write_text(f"Arrived {number}. {(made / f'{number:03d}.txt').read_text()}")
