"""A real MLflow server on loopback, and a proxy before it that can be slow, fail, or lose answers: for tests and races.

with Server(folder) as server, Proxy(server.port) as proxy:
    os.environ["MLFLOW_TRACKING_URI"] = proxy.url
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
Answer = tuple[int, bytes]
Forward = Callable[[bytes], Answer]
Rule = Callable[[str, str, bytes, Forward], Answer]
"""(method, path, body, forward) -> status and body; `forward(body)` asks the real server."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class Server:
    """`mlflow server` with a database of its own in `folder`; can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def start(self) -> Self:
        """Returns when it answers."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        env |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
        command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--no-serve-artifacts"]
        command += ["--default-artifact-root", str(self.folder / "mlruns")]
        command += ["--allowed-hosts", f"{HOST}:{self.port}"]
        with (self.folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"MLflow did not start: {(self.folder / 'mlflow.log').read_text()[-2000:]}")
            time.sleep(0.1)
        return self

    def kill(self) -> None:
        """SIGKILL to it and its children."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def plainly(method: str, path: str, body: bytes, forward: Forward) -> Answer:
    """The rule that changes nothing."""
    return forward(body)


class Proxy:
    """Passes requests on as its `rule` says; 502 if the server behind it does not answer. `seen` counts the paths."""

    def __init__(self, backend_port: int) -> None:
        self.rule: Rule = plainly
        self.seen: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.seen.append(self.path)
                headers = {"Content-Type": self.headers.get("Content-Type") or "application/json"}

                def forward(changed: bytes) -> Answer:
                    there = http.client.HTTPConnection(HOST, backend_port, timeout=60)
                    try:
                        there.request(self.command, self.path, changed, headers)
                        answer = there.getresponse()
                        return answer.status, answer.read()
                    except (OSError, http.client.HTTPException):
                        return 502, b"{}"
                    finally:
                        there.close()

                status, text = outer.rule(self.command, self.path, body, forward)
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                except OSError:
                    pass  # the client did not wait

            do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815 - the names that http.server calls

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{HOST}:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
