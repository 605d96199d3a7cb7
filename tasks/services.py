"""The two web pages and the worker behind them, on this machine alone: `make up`, `make down`.

    python -m tasks.services up|down|status

Three processes, started in the project folder (the current one) and reachable on 127.0.0.1 only: the Prefect server,
the MLflow server, and a worker that carries out flow runs. All they keep lies in the folder: `.prefect/` and
`mlflow.db` with `mlruns/`, the same places that a run without servers uses, so each sees the other's runs. Who they
are stands in `.run/NAME.json`, what they said in `.run/NAME.log`. PREFECT_PORT and MLFLOW_PORT choose other ports,
NIGHTLY=on|off switches the nightly schedule.

While they are up, a `prefect.toml` in the folder tells every `prefect` command typed there which server is meant.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gptmodel.errors import ConfigError, GptflowError
from gptmodel.store.locks import exclusive
from tasks import slots
from tasks.automations import SETTINGS, install
from tasks.deployments import register
from tasks.notifying import addresses, tell
from tasks.processes import Record, ServiceError, ask, port_taken, read, start, stop
from tasks.schedules import SETTING, switch

HOST = "127.0.0.1"
PREFECT_PORT, MLFLOW_PORT = 4200, 5000
POOL = "local"

_START_SECONDS = 180  # a new Prefect database takes 16 CPU seconds, and the cores may be busy
_FLOW_STOP_SECONDS = 90  # a training child finishes its step and saves a checkpoint first
_PREFECT_TOML = """\
# Written by `make up`, removed by `make down`: the server that `prefect` commands typed in this folder talk to.
[api]
url = "{url}/api"
"""

Say = Callable[[str], None]


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
    def alive(self) -> bool:
        return (record := read(self.file)) is not None and record.leader is not None

    @property
    def healthy(self) -> bool:
        return (record := read(self.file)) is not None and record.leader is not None and self.answers(record)


def environment(folder: Path | None = None) -> dict[str, str]:
    """Variables with which Prefect and MLflow keep to `folder` (default: the current one) and use its servers if up.

    For a process to set before it imports prefect or mlflow. With no server up, Prefect starts one of its own for the
    time of the run, and MLflow writes straight to the database that its server reads.
    """
    folder = (folder or Path.cwd()).resolve()
    prefect, mlflow, _ = _services(folder)
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
        _forget_server(folder)  # a machine that was switched off leaves the file, and nothing answers there
    return variables


def up(folder: Path, say: Say = print) -> None:
    """Start what does not run yet, register deployments and automations, and say where the pages are.

    Raises ConfigError for a port that is taken or a folder that is no project, ServiceError for a service that died.
    """
    if not (folder / "prefect.yaml").is_file():
        raise ConfigError(f"no prefect.yaml in {folder}; run this in the project folder")
    (folder / ".run").mkdir(exist_ok=True)
    addresses(folder)  # a wrong one is said before anything is started
    with _alone(folder):
        prefect, mlflow, worker = _services(folder, os.environ.get("PREFECT_PORT"), os.environ.get("MLFLOW_PORT"))
        fresh = [service for service in (prefect, mlflow) if not service.healthy]
        moved = (before := read(mlflow.file)) is not None and before.port != mlflow.port
        for service in fresh:
            _end(service)  # what a half-dead one left
            _refuse_taken_port(service)
        for service in fresh:
            _begin(service, prefect, mlflow, say)
        for service in (prefect, mlflow):
            _await(service, say, fresh=service in fresh)
        _write_prefect_toml(folder, prefect)
        restart = moved or not worker.healthy  # else it may be at work on a run, which the repair must not end
        if restart:
            _end(worker)
            # One run at a time. Not by a worker's --limit: in 3.8 that worker dies when a run is started again at once.
            pool = {"name": POOL, "type": "process", "concurrency_limit": 1}
            ask(f"{prefect.url}/api/work_pools/", pool)  # no 2xx: it is there already
            _begin(worker, prefect, mlflow, say)
        env = _child_environment(folder, prefect, mlflow)
        register(folder, f"{prefect.url}/api", env, folder / ".run" / "deploy.log", say)
        switch(f"{prefect.url}/api", os.environ.get(SETTING), say)
        install(f"{prefect.url}/api", say)
        tell(folder, f"{prefect.url}/api", say)
        slots.install(f"{prefect.url}/api", slots.gpus_here(), say)
        _await(worker, say, fresh=restart)
    say(f"\nPrefect  {prefect.url}\nMLflow   {mlflow.url}\n")
    say("Run the pipeline:  .venv/bin/prefect deployment run 'pipeline/quickstart' --watch")
    say("Stop the servers:  make down")


def down(folder: Path, say: Say = print) -> None:
    """Stop the services that `up` started in this folder and nothing else. A running flow is asked to save first."""
    stopped = False
    if (folder / ".run").is_dir():
        with _alone(folder):
            for service in reversed(_services(folder)):
                if _end(service):
                    stopped = True
                    say(f"{service.title:<15} stopped")
            _forget_server(folder)
    if not stopped:
        say("Nothing was running.")


def status(folder: Path, say: Say = print) -> bool:
    """Say how each service is; True if all run and answer."""
    services = _services(folder)
    for service in services:
        how = "not running" if not service.alive else "running" if service.healthy else "running, but not answering"
        say(f"{service.title:<15} {how}" + (f" at {service.url}" if service.alive and service.name != "worker" else ""))
    return all(service.healthy for service in services)


def _services(
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
    record = read(file)
    current = record.port if record and record.leader else None
    if not asked:
        return current or default
    if not asked.isdecimal() or not 0 < int(asked) < 65_536:
        raise ConfigError(f"{variable} is {asked!r}; give a port number from 1 to 65535, such as {default + 1}")
    if current not in (None, int(asked)):
        raise ConfigError(f"{variable} is {asked}, but {file.stem} runs on port {current} already; `make down` first")
    return int(asked)


def _says(port: int, path: str, answer: object) -> bool:
    return bool(ask(f"http://{HOST}:{port}{path}") == answer)


def _worker_online(port: int, record: Record) -> bool:
    """Whether a worker of the pool has been heard of since this one started, and not long ago."""
    workers = ask(f"http://{HOST}:{port}/api/work_pools/{POOL}/workers/filter", {}) or []
    heard = [w["last_heartbeat_time"] for w in workers if w["status"] == "ONLINE" and w["last_heartbeat_time"]]
    return any(datetime.fromisoformat(time).timestamp() >= record.created for time in heard)


def _refuse_taken_port(service: Service) -> None:
    if port_taken(HOST, service.port):
        variable = f"{service.name.upper()}_PORT"
        raise ConfigError(
            f"port {service.port}, where the {service.title} is to listen, is taken by another program; "
            f"stop that one, or choose another port: {variable}={service.port + 1} make up"
        )


def _begin(service: Service, prefect: Service, mlflow: Service, say: Say) -> None:
    say(f"{service.title:<15} starting (log: {service.log.relative_to(service.folder)})")
    env = _child_environment(service.folder, prefect, mlflow)
    start(service.command, service.folder, env, service.log, service.file, service.port)


def _child_environment(folder: Path, prefect: Service, mlflow: Service) -> dict[str, str]:
    foreign = ("PREFECT_PROFILE", "PREFECT_API_KEY", "PREFECT_PORT", "MLFLOW_PORT")  # another server's, or ours alone
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    env |= environment(folder) | {
        "PREFECT_API_URL": f"{prefect.url}/api",
        "MLFLOW_TRACKING_URI": mlflow.url,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{prefect.url},http://localhost:{prefect.port}",  # by default all pages
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 processes and 0.5 GB in place of 15 and 1.9 GB
        "GPTFLOW_STORE": str(folder / os.environ.get("GPTFLOW_STORE", "store")),
        "PREFECT_WORKER_QUERY_SECONDS": "3",  # asks for work that often: a run starts sooner than with 10
        "PYTHONUNBUFFERED": "1",
    }
    for name in ("NO_PROXY", "no_proxy"):
        env[name] = ",".join(filter(None, [env.get(name), HOST, "localhost"]))
    return env


def _await(service: Service, say: Say, *, fresh: bool) -> None:
    """Return when it answers. ServiceError with the end of its log if it dies, or does not answer in time."""
    began = time.monotonic()
    while fresh and not service.healthy:
        late = time.monotonic() - began > _START_SECONDS
        if late or not service.alive:
            what = f"did not answer within {_START_SECONDS} s" if late else "stopped while starting"
            last = (service.log.read_text(errors="replace").split("\n\n")[-1].strip() or "nothing").splitlines()[-1]
            where = service.log.relative_to(service.folder)
            raise ServiceError(f"the {service.title} {what}; its last words: {last.strip()!r}; read {where}")
        time.sleep(0.2)
    say(f"{service.title:<15} {'ready' if fresh else 'running already'}")


def _end(service: Service) -> bool:
    """Stop it and all that it started; whether there was anything."""
    if (record := read(service.file)) is None:
        return False
    found = stop(record, kin_seconds=_FLOW_STOP_SECONDS if service.name == "worker" else 0)
    service.file.unlink(missing_ok=True)
    return found > 0


def _write_prefect_toml(folder: Path, prefect: Service) -> None:
    path, text = folder / "prefect.toml", _PREFECT_TOML.format(url=prefect.url)
    if path.is_file() and not _is_ours(path):
        raise ConfigError(f"{path.name} is yours, and may name another server; put [api] url = {prefect.url}/api in it")
    path.write_text(text)


def _forget_server(folder: Path) -> None:
    if _is_ours(path := folder / "prefect.toml"):
        path.unlink()


def _is_ours(path: Path) -> bool:
    return path.is_file() and path.read_text().startswith(_PREFECT_TOML.splitlines()[0])


def _alone(folder: Path) -> AbstractContextManager[object]:
    return exclusive(folder / ".run" / "lock", "the services of this folder", wait=True)


def main(arguments: list[str]) -> int:
    """Exit code 0, or that of the error; `status` gives 1 if something is not well."""
    commands = {"up": up, "down": down, "status": status}
    if len(arguments) != 1 or arguments[0] not in commands:
        print("usage: python -m tasks.services up|down|status", file=sys.stderr)
        return 2
    try:
        return 1 if commands[arguments[0]](Path.cwd()) is False else 0
    except GptflowError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
