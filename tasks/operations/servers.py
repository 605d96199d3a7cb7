"""The three services of a folder: who they are, where they listen, and what they and others are told of each other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gptmodel.errors import ConfigError
from tasks.operations.automations import SETTINGS
from tasks.operations.processes import Record, ServiceError, ask, demand, read

HOST = "127.0.0.1"


PREFECT_PORT, MLFLOW_PORT = 4200, 5000


POOL = "local"


_PREFECT_TOML = """\
# Written by `make up`, removed by `make down`: the server that `prefect` commands typed in this folder talk to.
[api]
url = "{url}/api"
"""


@dataclass(frozen=True)
class Service:
    """One long-lived process of a project folder."""

    folder: Path
    name: str
    title: str
    port: int
    """Where it listens; the worker's is the port of the server that it works for."""
    command: tuple[str, ...]
    answers: Callable[[Record], bool]
    """Whether it does its work: asked over HTTP."""

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / ".run" / f"{self.name}.log"

    @property
    def file(self) -> Path:
        return self.folder / ".run" / f"{self.name}.json"

    @property
    def record(self) -> Record | None:
        """Who it is, if it was started in this folder."""
        return _own(self.file)

    @property
    def alive(self) -> bool:
        return (record := self.record) is not None and record.leader is not None

    @property
    def healthy(self) -> bool:
        try:
            return self.works
        except ServiceError:
            return False

    @property
    def works(self) -> bool:
        """`healthy`, but for a worker of whom the server cannot say it: ServiceError."""
        return (record := self.record) is not None and record.leader is not None and self.answers(record)


def environment(folder: Path | None = None) -> dict[str, str]:
    """Variables with which Prefect and MLflow keep to `folder` (default: the current one) and use its servers if up.

    For a process to set before it imports prefect or mlflow. With no server up, Prefect starts one of its own for the
    time of the run, and MLflow writes straight to the database that its server reads.
    """
    folder = (folder or Path.cwd()).resolve()
    prefect, mlflow, _ = services_of(folder)
    variables = {
        "PREFECT_HOME": str(folder / ".prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        # The default keeps concurrency slots in memory, and a restarted server has forgotten them.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        **SETTINGS,
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": mlflow.url if mlflow.alive else f"sqlite:///{folder / 'mlflow.db'}",
    }
    if prefect.alive:
        variables["PREFECT_API_URL"] = f"{prefect.url}/api"
    else:
        forget_server(folder)  # a machine that was switched off leaves the file, and nothing answers there
    return variables


def services_of(
    folder: Path, prefect_port: str | None = None, mlflow_port: str | None = None
) -> tuple[Service, Service, Service]:
    """Prefect server, MLflow server, worker: on the ports where they run now, else those asked for, else the usual."""
    at = _port(folder / ".run" / "prefect.json", "PREFECT_PORT", prefect_port, PREFECT_PORT)
    mlflow_at = _port(folder / ".run" / "mlflow.json", "MLFLOW_PORT", mlflow_port, MLFLOW_PORT)
    prefect_command = (sys.executable, "-m", "prefect", "--no-prompt")
    server = (*prefect_command, "server", "start", "--host", HOST, "--port", str(at), "--analytics-off")
    tracker = (
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(mlflow_at), "--workers", "1"),
        *("--backend-store-uri", "sqlite:///mlflow.db"),
        # Artifacts by plain path and not through the server, so that runs made with and without it read alike: an
        # `mlflow-artifacts:` address cannot be resolved once the server is down.
        *("--no-serve-artifacts", "--default-artifact-root", "./mlruns"),
        *("--allowed-hosts", f"{HOST}:{mlflow_at},localhost:{mlflow_at}"),
    )
    worker = (*prefect_command, *f"worker start -p {POOL} --type process --name gptflow --install-policy never".split())
    return (
        Service(folder, "prefect", "Prefect server", at, server, lambda _: _says(at, "/api/health", True)),
        Service(folder, "mlflow", "MLflow server", mlflow_at, tracker, lambda _: _says(mlflow_at, "/health", "OK")),
        Service(folder, "worker", "Prefect worker", at, worker, lambda record: _worker_online(at, record)),
    )


def _port(file: Path, variable: str, asked: str | None, default: int) -> int:
    record = _own(file)
    current = record.port if record and record.leader else None
    if not asked:
        return current or default
    if not asked.isdecimal() or not 0 < int(asked) < 65_536:
        raise ConfigError(f"{variable} is {asked!r}; give a port number from 1 to 65535, such as {default + 1}")
    if current not in (None, int(asked)):
        raise ConfigError(f"{variable} is {asked}, but {file.stem} runs on port {current} already; `make down` first")
    return int(asked)


def _own(file: Path) -> Record | None:
    """What stands there, but not what came with a copy of another folder."""
    record = read(file)
    return None if record is None or record.of_another(file.parent.parent) else record


def _says(port: int, path: str, answer: object) -> bool:
    return bool(ask(f"http://{HOST}:{port}{path}") == answer)


def _worker_online(port: int, record: Record) -> bool:
    """Whether a worker of the pool has been heard of since this one started, and not long ago."""
    asked = f"http://{HOST}:{port}/api/work_pools/{POOL}/workers/filter"
    workers = demand(asked, {}, none_for=(404,)) or []  # 404: the pool is not made yet
    heard = [w["last_heartbeat_time"] for w in workers if w["status"] == "ONLINE" and w["last_heartbeat_time"]]
    leader = record.leader
    began = leader.create_time() if leader else record.created  # by the clock of now, as the server's times
    return any(datetime.fromisoformat(time).timestamp() >= began for time in heard)


def child_environment(folder: Path, prefect: Service, mlflow: Service) -> dict[str, str]:
    foreign = ("PREFECT_PROFILE", "PREFECT_API_KEY", "PREFECT_PORT", "MLFLOW_PORT")  # another server's, or ours alone
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    env |= environment(folder) | {
        "PREFECT_API_URL": f"{prefect.url}/api",
        "MLFLOW_TRACKING_URI": mlflow.url,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{prefect.url},http://localhost:{prefect.port}",  # by default all pages
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 processes and 0.5 GB in place of 15 and 1.9 GB
        "GPTFLOW_STORE": str(folder / (os.environ.get("GPTFLOW_STORE") or "store")),
        "PREFECT_WORKER_QUERY_SECONDS": "3",  # asks for work that often: a run starts sooner than with 10
        "PYTHONUNBUFFERED": "1",
    }
    for name in ("NO_PROXY", "no_proxy"):
        env[name] = ",".join(filter(None, [env.get(name), HOST, "localhost"]))
    return env


def write_prefect_toml(folder: Path, prefect: Service) -> None:
    path, text = folder / "prefect.toml", _PREFECT_TOML.format(url=prefect.url)
    if path.is_file() and not _is_ours(path):
        raise ConfigError(f"{path.name} is yours, and may name another server; put [api] url = {prefect.url}/api in it")
    path.write_text(text)


def forget_server(folder: Path) -> None:
    if _is_ours(path := folder / "prefect.toml"):
        path.unlink()


def _is_ours(path: Path) -> bool:
    return path.is_file() and path.read_text().startswith(_PREFECT_TOML.splitlines()[0])
